"""Writers of synthetic data sets, one module per on-disk layout."""
