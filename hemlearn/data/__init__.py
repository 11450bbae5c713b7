"""Files on disk become a manifest, a split and a slice store."""
