"""A finished run as one self-contained model: from intensities as files hold them to calibrated probabilities."""
