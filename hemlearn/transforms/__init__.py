"""Stored intensities -> network channels -> augmented batches, on the device that trains.

Batched tensor modules that know no file and no label table. Imports ``util`` and ``config``. ``models``, ``tasks`` and
``reading`` put them before the backbone.
"""

from hemlearn.transforms.augment import Augment, PerSample, side_permutation
from hemlearn.transforms.channels import Channels
from hemlearn.transforms.intensity import RandomBlur, RandomBrightnessContrast, RandomGamma, RandomNoise

__all__ = [
    "Augment",
    "Channels",
    "PerSample",
    "RandomBlur",
    "RandomBrightnessContrast",
    "RandomGamma",
    "RandomNoise",
    "side_permutation",
]
