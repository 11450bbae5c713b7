"""Batches of three windows at 256 pixels from 512 x 512 DICOM: hemlearn's loader and what a user would take instead.

    python experiments/benchmarks/loader_speed.py              # a synthetic set of RSNA's layout
    python experiments/benchmarks/loader_speed.py --root DIR   # a folder in RSNA's layout

One core, no loader processes, batches of 32, one epoch per turn. The published way reads each slice with pydicom in
every epoch, shows it through three windows, resizes it (Pillow, bilinear) and stacks. MONAI's CacheDataset and
PersistentDataset hold the finished channels of the same steps, written as its tutorials do (dictionary transforms), in
memory and on disk; "bare" is a CacheDataset of plain tensors, without dictionaries and metadata. hemlearn gathers rows
of its store and shows them through the windows. What each prepares beforehand is not counted.

Share of the memory bandwidth: the time of a plain copy of as many bytes as share of hemlearn's. Private memory: what
making the data set and two epochs add to the unique set size of a process of their own.
"""

from __future__ import annotations

import argparse
import multiprocessing
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import psutil  # type: ignore[import-untyped]
import pydicom
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from turns import in_turns, table

from hemlearn.config.compose import compose
from hemlearn.phantom.layouts import write_phantom
from hemlearn.training.build import build_datamodule
from hemlearn.transforms.channels import Channels

BATCH, SIDE = 32, 256
WINDOWS = ((40.0, 80.0), (80.0, 200.0), (40.0, 380.0))  # centre and width, HU


def hounsfield(file: str) -> NDArray[np.float32]:
    """A slice in HU as pydicom gives it."""
    found = pydicom.dcmread(file)
    raw: NDArray[Any] = found.pixel_array
    return raw.astype(np.float32) * float(found.RescaleSlope) + float(found.RescaleIntercept)


def windowed(hu: NDArray[np.float32]) -> Tensor:
    """(3, 256, 256) in [0, 1]."""
    shown = []
    for centre, width in WINDOWS:
        channel = np.clip((hu - (centre - width / 2)) / width, 0.0, 1.0)
        shown.append(np.asarray(Image.fromarray(channel).resize((SIDE, SIDE), Image.Resampling.BILINEAR)))
    return torch.from_numpy(np.stack(shown))


def bare(file: str) -> Tensor:
    """A slice as :func:`published` shows it."""
    return windowed(hounsfield(file))


def published(files: Sequence[str]) -> Callable[[], int]:
    """Read, show and resize every slice in every epoch."""

    def epoch() -> int:
        for start in range(0, len(files), BATCH):
            torch.stack([bare(file) for file in files[start : start + BATCH]])
        return len(files)

    return epoch


def steps() -> Any:
    """The same in MONAI's dictionary transforms."""
    from monai.transforms import (
        Compose,
        ConcatItemsd,
        CopyItemsd,
        EnsureChannelFirstd,
        LoadImaged,
        Resized,
        ScaleIntensityRanged,
        SelectItemsd,
    )

    names = [f"window_{number}" for number in range(len(WINDOWS))]
    shown = [
        ScaleIntensityRanged(name, centre - width / 2, centre + width / 2, 0.0, 1.0, clip=True)
        for name, (centre, width) in zip(names, WINDOWS, strict=True)
    ]
    return Compose(
        [
            LoadImaged("image", reader="PydicomReader", swap_ij=False),
            EnsureChannelFirstd("image"),
            CopyItemsd("image", times=len(names), names=names),
            *shown,
            ConcatItemsd(names, "image"),
            Resized("image", (SIDE, SIDE), mode="bilinear"),
            SelectItemsd(["image", "label"]),
        ]
    )


def monai(kind: str, files: Sequence[str], folder: Path) -> Callable[[], int]:
    """One of MONAI's data sets with its loader."""
    from monai.data import CacheDataset, DataLoader, PersistentDataset
    from monai.transforms import Lambda

    data: Any
    items = [{"image": file, "label": 0.0} for file in files]
    if kind == "bare":
        data = CacheDataset(files, Lambda(bare), num_workers=0, progress=False)
    elif kind == "CacheDataset":
        data = CacheDataset(items, steps(), num_workers=0, progress=False)
    else:
        data = PersistentDataset(items, steps(), cache_dir=folder)
    loader = DataLoader(data, batch_size=BATCH, shuffle=True)
    return lambda: sum(len(batch if kind == "bare" else batch["image"]) for batch in loader)


def ours(root: Path, cache: Path) -> tuple[Callable[[], int], list[str], Callable[[], int]]:
    """An epoch of hemlearn's loader, the files it loads, and a plain copy of as many bytes."""
    config = compose(
        [
            *("data=rsna", f"data.root={root}", f"data.cache_dir={cache}", f"data.image_size={SIDE}"),
            *(f"data.batch_size={BATCH}", "task=hemorrhage", "task.labels=[any]", "channels=brain_subdural_soft"),
            "split.duplicates=none",
        ]
    )
    data = build_datamodule(config)
    data.prepare_data()
    channels = Channels("ct", WINDOWS, unit="HU")
    loader = data.train_dataloader()
    slices = len(data.rows("train"))
    paths = data.manifest.table["path"].iloc[data.rows("train")]

    def epoch() -> int:
        for batch in loader:
            channels(batch["image"])
        return slices

    # Read int16, written int16 (the gather), read int16, written float32 thrice: what cannot be avoided.
    raw = torch.zeros((BATCH, 1, SIDE, SIDE), dtype=torch.int16)
    shown = torch.zeros((BATCH, len(WINDOWS), SIDE, SIDE))
    there, target = raw.clone(), shown.clone()

    def copy() -> int:
        for _ in range(-(-slices // BATCH)):
            there.copy_(raw)
            target.copy_(shown)
        return slices

    return epoch, [str(root / path) for path in paths], copy


def grown(queue: Any, side: str, root: Path, files: Sequence[str], folder: Path) -> None:
    """Put into ``queue`` the MiB that making a data set and two epochs add to this process's private memory."""
    torch.set_num_threads(1)
    before = psutil.Process().memory_full_info().uss
    epoch = ours(root, folder / "cache")[0] if side == "hemlearn" else monai(side, files, folder)
    for _ in range(2):
        epoch()
    queue.put((psutil.Process().memory_full_info().uss - before) / 2**20)


def private(*given: Any) -> float:
    """:func:`grown` in a process of its own, which shares no page with this one."""
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    process = context.Process(target=grown, args=(queue, *given))
    process.start()
    found = float(queue.get(timeout=600))
    process.join()
    return found


def main(argv: Sequence[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, help="folder in RSNA's layout; without it a synthetic one")
    parser.add_argument("--patients", type=int, default=40, help="of the synthetic set")
    given = parser.parse_args(argv)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        root = given.root or folder / "rsna"
        if given.root is None:
            write_phantom("rsna", root, patients=given.patients, n_jobs=2)
        epoch, files, copy = ours(root, folder / "cache")
        sides = {
            "hemlearn": epoch,
            "pydicom in every epoch": published(files),
            "MONAI CacheDataset": monai("CacheDataset", files, folder),
            "MONAI PersistentDataset": monai("PersistentDataset", files, folder / "kept"),
            "MONAI CacheDataset, bare": monai("bare", files, folder),
            "a plain copy": copy,
        }
        speeds, ratios = in_turns(sides)
        print(f"{len(files)} slices, batches of {BATCH}, {SIDE} px, one core")
        print(table(speeds, ratios, "slices"))
        print(f"share of the memory bandwidth: {ratios['a plain copy'].cpu:.0%}")
        held = {side: private(side, root, files, folder) for side in ("hemlearn", "CacheDataset")}
        print(
            f"private memory: hemlearn {held['hemlearn']:.0f} MiB, CacheDataset {held['CacheDataset']:.0f} MiB "
            f"({held['CacheDataset'] / max(held['hemlearn'], 1):.1f} x)"
        )


if __name__ == "__main__":
    main()
