"""Synthetic anatomy in physical units, and writers of it in the on-disk layouts of real data sets."""
