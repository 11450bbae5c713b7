"""What a comparison leaves on disk: tables, figures, the page, the artifact on Weights & Biases."""
