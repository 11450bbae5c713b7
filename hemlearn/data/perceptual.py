"""A hash of what a slice shows, the same for a re-export at another size, crop or window."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps
from scipy import ndimage

VERSION = 1  # of hash and criterion together; part of cache keys
HASH_SIDE = 16
SIDE = 64  # pixels of the thumbnails


def perceptual_hash(display: NDArray[np.uint8]) -> str:
    """Return the 256-bit hash of a slice as 64 hexadecimal digits; "" where nothing is to be seen.

    Args:
        display: (H, W) uint8 grey.
    """
    import imagehash

    thumbnail = head_thumbnail(display)
    if thumbnail is None:
        return ""
    return str(imagehash.phash(Image.fromarray(thumbnail), hash_size=HASH_SIDE))


def head_thumbnail(display: NDArray[np.uint8]) -> NDArray[np.uint8] | None:
    """Return the head, cut out and equalised, at 64 x 64; None where the slice is flat.

    The head is the largest bright component (the skull on CT): unlike the whole image it does not depend on
    margins, letters or the head rest. Equalisation takes out the window.
    """
    image = Image.fromarray(np.ascontiguousarray(display))
    step = max(1, max(image.size) // 128)  # the skull is found on a coarse copy: ten times as fast
    coarse = np.asarray(image.reduce(step))
    bright = coarse > 0.4 * float(np.percentile(coarse, 99.5))
    if not bright.any() or bright.all():
        return None
    labels, count = ndimage.label(ndimage.binary_opening(bright))
    if count:
        largest = int(np.argmax(np.bincount(labels.ravel())[1:]))
        down, right = ndimage.find_objects(labels)[largest]
        if down.stop - down.start >= 0.2 * len(coarse) and right.stop - right.start >= 0.2 * len(coarse[0]):
            box = (right.start * step, down.start * step, right.stop * step, down.stop * step)
            image = image.crop((box[0], box[1], min(box[2], image.width), min(box[3], image.height)))
    head = image.resize((SIDE, SIDE), Image.Resampling.BOX)
    return np.asarray(ImageOps.equalize(head), dtype=np.uint8)
