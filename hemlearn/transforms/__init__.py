"""Stored intensities -> network channels -> augmented batches, on the device that trains."""

from hemlearn.transforms.augment import Augment, side_permutation
from hemlearn.transforms.channels import Channels
from hemlearn.transforms.intensity import RandomBlur, RandomBrightnessContrast, RandomGamma, RandomNoise

__all__ = [
    "Augment",
    "Channels",
    "RandomBlur",
    "RandomBrightnessContrast",
    "RandomGamma",
    "RandomNoise",
    "side_permutation",
]
