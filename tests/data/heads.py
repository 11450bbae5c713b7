"""Small made-up heads and data sets for the tests of the data room."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage

from hemlearn.data.manifest import Manifest, build_manifest


def head(seed: int, height: int = 120, width: int = 100) -> NDArray[np.uint8]:
    """A skull with ventricles, sulci and noise that no other seed shares."""
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[-1 : 1 : height * 1j, -1 : 1 : width * 1j]
    turned = columns + rng.uniform(-0.15, 0.15) * rows
    radius = np.hypot(rows / rng.uniform(0.75, 0.9), turned / rng.uniform(0.65, 0.8))
    out = np.where(radius < 1, 95.0, 0.0)
    for side in (-1, 1):
        top, size = rng.uniform(-0.3, 0.2), rng.uniform(0.1, 0.3)
        out[np.hypot((rows - top) / size, (turned - side * 0.15) / (size / 3)) < 1] = 40.0
    texture = ndimage.gaussian_filter(rng.normal(size=out.shape), 2.0)
    out += np.where(radius < 1, 25 * texture / texture.std() + rng.normal(0, 6, out.shape), 0)
    out[(radius > 0.9) & (radius < 1)] = 255
    return np.clip(out, 0, 255).astype(np.uint8)


def save(path: Path, pixels: NDArray[np.uint8], **options: object) -> Path:
    """Write an image, with its folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, **options)  # type: ignore[arg-type]
    return path


def tiff(path: Path, stored: NDArray[np.uint8], photometric: int, bits: int = 8, sample_format: int = 1) -> Path:
    """Write stored values (H, W) as they are into an uncompressed TIFF, without a library that may change them.

    Args:
        path: The file.
        stored: Values of ``bits`` bits.
        photometric: Tag 262: 0 WhiteIsZero, 1 BlackIsZero.
        bits: Bits per sample: 1, 2, 4 or 8.
        sample_format: Tag 339: 1 unsigned, 2 signed.
    """
    unpacked = np.unpackbits(stored[..., None], axis=-1)[..., 8 - bits :].reshape(len(stored), -1)
    rows = np.packbits(unpacked, axis=1).tobytes()
    rows += bytes(len(rows) % 2)
    height, width = stored.shape
    tags = {256: width, 257: height, 258: bits, 259: 1, 262: photometric, 273: 8, 277: 1, 278: height, 279: len(rows)}
    entries = [struct.pack("<HHII", tag, 4, 1, value) for tag, value in (tags | {339: sample_format}).items()]
    directory = struct.pack("<H", len(entries)) + b"".join(entries) + bytes(4)
    path.write_bytes(b"II*\0" + struct.pack("<I", 8 + len(rows)) + rows + directory)
    return path


def folder_of_heads(root: Path, count: int, seed: int = 0) -> pd.DataFrame:
    """Write ``count`` heads of different sizes and return their rows; every other one is positive."""
    for item in range(count):
        save(root / f"img/{item:03d}.png", head(seed + item, 100 + item % 7, 90 + item % 5))
    names = [f"{item:03d}" for item in range(count)]
    return pd.DataFrame(
        {
            "slice_id": names,
            "patient_id": names,
            "path": [f"img/{name}.png" for name in names],
            "bleed": [str(item % 2) for item in range(count)],
        }
    )


def build(root: Path, rows: pd.DataFrame, **options: object) -> Manifest:
    """``build_manifest`` with the settings of these tests."""
    settings: dict[str, object] = {"labels": ["bleed"], "source": "table", "progress": False} | options
    return build_manifest(rows, root=root, **settings)  # type: ignore[arg-type]


def bare_manifest(labels: pd.DataFrame, patients: list[str], groups: list[str] | None = None) -> Manifest:
    """A manifest without files; ``groups`` are content hashes (equal: copies)."""
    ids = [f"s{item:04d}" for item in range(len(patients))]
    table = pd.DataFrame(
        {
            "slice_id": ids,
            "patient_id": patients,
            "study_id": patients,
            "series_id": patients,
            "z_mm": np.nan,
            "path": [f"{item}.png" for item in ids],
            "frame": 0,
            "modality": "CT",
            "height": 10,
            "width": 10,
            "content": groups or ids,
            "phash": "",
            "head_box": "",
        }
    )
    table = pd.concat([table, labels.reset_index(drop=True).astype(float)], axis=1)
    skipped = pd.DataFrame(columns=["item", "reason"])
    return Manifest(table, skipped, tuple(map(str, labels.columns)), Path("/nowhere"), "table")
