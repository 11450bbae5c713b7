"""Where the blood lies in the pictures of the ``head_ct`` layout, which come without masks, as the real ones do."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from hemlearn.phantom.head import Streams
from hemlearn.phantom.slab import Grid
from hemlearn.phantom.writers.head_ct import _skull_box, head_ct_slice


def head_ct_mask(seed: int, patient: int, grid: Grid | None = None) -> NDArray[np.bool_]:
    """The blood of one patient, in the pixels of its picture: the head is drawn once more.

    Args:
        seed: Seed of the data set.
        patient: Index of the patient, which is its number in ``labels.csv``.
        grid: Sampling the set was written with.

    Returns:
        ``(height, width)`` of the picture; all False without blood.
    """
    picture, volume = head_ct_slice(seed, patient, grid)
    rng = Streams.of(seed, patient).layout
    rng.uniform(-12.0, 46.0)  # in the order in which the picture was drawn: position, width, margins
    rng.integers(180, 321)
    margins = rng.uniform(0.0, 0.36, size=4) * rng.uniform()
    box = _skull_box(volume.hu[0], margins)
    blood = np.any(np.stack([mask[0] for mask in volume.masks.values()]), axis=0)
    image = Image.fromarray(blood.astype(np.uint8) * np.uint8(255))
    resized = image.resize(picture.shape[::-1], Image.Resampling.BICUBIC, box=box)
    return np.asarray(np.asarray(resized) >= 128)
