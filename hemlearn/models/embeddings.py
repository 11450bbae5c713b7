"""Slice embeddings, computed once per content and shared by every job that reads them.

An embedding cache lies in ``CACHE/embeddings/KEY``: ``vectors.bin`` (N x V x (D + L)) and ``complete.json``, written
last. The key is a hash of the encoder's weights, its input channels, the slices' contents and the flips, so that a
stale cache is never found. While it is computed it is called ``KEY.building``; what was written before a kill is kept.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils.data import DataLoader

from hemlearn.data.batches import SliceDataset, as_is
from hemlearn.models.backbone import Backbone
from hemlearn.transforms.channels import Channels
from hemlearn.util.console import track
from hemlearn.util.errors import StoreError
from hemlearn.util.files import hash_range, hold_lock, is_full, sha256, write_json

logger = logging.getLogger(__name__)
FORMAT = 2
FLIP_AXIS = {"horizontal": -1, "vertical": -2}
_DATA, _MARKER, _JOURNAL = "vectors.bin", "complete.json", "journal.json"
_BLOCK, _STEP = 1024, 32  # most slices between two journal entries, of which there is a multiple of _STEP
_BLOCK_BYTES = 256 << 20


class Encoder(nn.Module):
    """Stored slices to embeddings and, where a slice run's head is at hand, to its logits.

    Args:
        channels: Stored numbers -> input channels.
        backbone: Images -> embeddings.
        head: Classifier of a slice run; None where the weights come from elsewhere.
        flips: Test-time views beside the plain one: horizontal, vertical.
        channels_last: Memory layout of the images.
    """

    def __init__(
        self, channels: Channels, backbone: Backbone, head: nn.Module | None, flips: Sequence[str], channels_last: bool
    ) -> None:
        super().__init__()
        self.channels = channels
        self.backbone = backbone
        self.head = head
        self.flips = tuple(flips)
        self.channels_last = channels_last

    @property
    def outputs(self) -> int:
        """Number of logits L; 0 without a head."""
        return 0 if self.head is None else int(list(self.head.parameters())[-1].shape[0])

    @property
    def views(self) -> int:
        """Views of each slice V: the plain one and the flips."""
        return 1 + len(self.flips)

    @property
    def width(self) -> int:
        """Values per view, D + L."""
        return self.backbone.embedding_dim + self.outputs

    def encode(self, images: Tensor) -> Tensor:
        """``(T, D + L)`` embedding and logits of images ``(T, C, S, S)`` in [0, 1]."""
        if self.channels_last:
            images = images.contiguous(memory_format=torch.channels_last)
        embedding = cast(Tensor, self.backbone(images))
        return embedding if self.head is None else torch.cat([embedding, self.head(embedding)], dim=1)

    def forward(self, raw: Tensor) -> Tensor:
        """``(T, V, D + L)`` of stored slices ``(T, K, S, S)``, the plain view first, then one per flip."""
        images = self.channels(raw)
        views = [images, *(images.flip(FLIP_AXIS[flip]) for flip in self.flips)]
        return torch.stack([self.encode(view) for view in views], dim=1)

    def digest(self) -> str:
        """Hash of every number that decides about the output."""
        channels = (self.channels, self.channels.percentiles, self.flips)
        # The printed network tells pooling, strides and activations, which have no tensors of their own.
        found = hashlib.sha256(repr((channels, self.backbone, self.head)).encode())
        found.update(self.channels.low.numpy(force=True).tobytes() + self.channels.width.numpy(force=True).tobytes())
        for name, tensor in sorted(self.state_dict().items()):
            found.update(name.encode())
            found.update(tensor.detach().cpu().contiguous().numpy().tobytes())
        return found.hexdigest()


@dataclass(frozen=True)
class Embeddings:
    """Cached embeddings on disk.

    Args:
        folder: Where they lie.
        shape: (N, V, D + L): rows of the manifest, views, embedding and logits.
        outputs: L, number of logits of the slice run; 0 where there is none.
    """

    folder: Path
    shape: tuple[int, int, int]
    outputs: int

    @property
    def width(self) -> int:
        """Embedding width D."""
        return self.shape[2] - self.outputs

    @cached_property
    def array(self) -> NDArray[np.float32]:
        """``(N, V, D + L)`` read-only memory map."""
        return np.memmap(self.folder / _DATA, dtype="<f4", mode="r", shape=self.shape)

    def account(self) -> dict[str, Any]:
        """How the cache was made: forwards of the network, seconds and device."""
        found: dict[str, Any] = json.loads((self.folder / _MARKER).read_text(encoding="utf-8"))["account"]
        return found


def open_embeddings(
    encoder: Encoder,
    data: SliceDataset,
    *,
    content: str,
    cache_dir: str | os.PathLike[str],
    device: torch.device,
    precision: str = "32-true",
    batch_size: int = 32,
    num_workers: int = 0,
) -> Embeddings:
    """The embeddings of every slice, computed first where no earlier job has done so.

    Args:
        encoder: In evaluation mode; moved to ``device`` while it computes.
        data: All N slices in manifest order.
        content: Key of the slice store the slices come from.
        cache_dir: Cache folder.
        device: Where to compute.
        precision: As ``trainer.precision``; ``bf16-mixed`` and ``16-mixed`` compute in autocast.
        batch_size: Slices per forward.
        num_workers: Loader processes.

    Raises:
        StoreError: The disk is full or cannot be written.
    """
    stack = sha256(data.stack.tobytes())
    recipe = [FORMAT, encoder.digest(), content, stack, precision if "mixed" in precision else "32"]
    key = sha256(json.dumps(recipe))[:32]
    folder = Path(cache_dir) / "embeddings" / key
    shape = (len(data), encoder.views, encoder.width)
    found = Embeddings(folder, shape, encoder.outputs)
    try:
        if not _is_complete(found):
            with hold_lock(folder):
                if not _is_complete(found):
                    _compute(found, encoder, data, device, precision, batch_size, num_workers)
    except OSError as error:
        what = "the disk is full" if is_full(error) else f"cannot be written: {error.strerror or error}"
        raise StoreError(
            f"{folder}: {what}; the embeddings need {4 * int(np.prod(shape)) / 1e9:.2f} GB",
            remedy="free some space (what is computed already is kept), or set data.cache_dir or "
            "$HEMLEARN_CACHE to another disk",
        ) from error
    return found


def _building(folder: Path) -> Path:
    return folder.with_name(f"{folder.name}.building")


def _is_complete(found: Embeddings) -> bool:
    try:
        marker = json.loads((found.folder / _MARKER).read_text(encoding="utf-8"))
        size = (found.folder / _DATA).stat().st_size
    except (FileNotFoundError, NotADirectoryError):
        return False
    except ValueError:
        marker, size = {}, -1
    if marker.get("shape") == list(found.shape) and size == 4 * int(np.prod(found.shape)):
        return True
    logger.warning("%s is damaged and is computed again", found.folder)
    return False


def _compute(
    found: Embeddings,
    encoder: Encoder,
    data: SliceDataset,
    device: torch.device,
    precision: str,
    batch_size: int,
    num_workers: int,
) -> None:
    building = _building(found.folder)
    building.mkdir(parents=True, exist_ok=True)
    row = 4 * found.shape[1] * found.shape[2]
    blocks = _kept(building, row)
    start = blocks[-1][1] if blocks else 0
    if start:
        logger.info("%s: going on after %d of %d slices", building, start, len(data))
    free = shutil.disk_usage(building).free
    if free < row * (len(data) - start):
        raise OSError(28, os.strerror(28))  # ENOSPC, before any time is spent
    spent = 0.0
    size = min(_BLOCK, max(1, _BLOCK_BYTES // (row * _STEP)) * _STEP)
    places = [range(first, min(first + size, len(data))) for first in range(start, len(data), size)]
    encoder.to(device).eval()
    with (building / _DATA).open("ab") as file:
        file.truncate(row * start)
        for place in track(places, "Embedding slices", len(data) - start, size=len):
            began = time.perf_counter()
            raw = _read_and_encode(encoder, data, place, device, precision, batch_size, num_workers).tobytes()
            spent += time.perf_counter() - began
            file.write(raw)
            file.flush()
            os.fsync(file.fileno())
            blocks.append([place.start, place.stop, sha256(raw)])
            write_json(building / _JOURNAL, {"blocks": blocks})
    count = len(data) - start
    account = {
        "forwards": count * found.shape[1],
        "seconds": round(spent, 3),
        "resumed_after": start,
        "slices_per_second": round(count / max(spent, 1e-9), 2),
        "device": str(device),
    }
    write_json(
        building / _MARKER,
        {"format": FORMAT, "shape": list(found.shape), "outputs": found.outputs, "blocks": blocks, "account": account},
    )
    (building / _JOURNAL).unlink(missing_ok=True)
    if found.folder.exists():  # damaged, see _is_complete
        shutil.rmtree(found.folder)
    building.replace(found.folder)


def _kept(building: Path, row: int) -> list[list[Any]]:
    """Blocks of an interrupted pass whose bytes are as they were journalled."""
    journal, data = building / _JOURNAL, building / _DATA
    if not journal.is_file() or not data.is_file():
        return []
    try:
        blocks = json.loads(journal.read_text(encoding="utf-8"))["blocks"]
    except (ValueError, KeyError):
        logger.warning("%s is damaged; the embeddings are computed from the start", journal)
        return []
    good: list[list[Any]] = []
    for first, last, digest in blocks:
        if hash_range(data, first * row, (last - first) * row) != digest:
            logger.warning("%s does not match its journal after slice %d; computed again from there", data, first)
            break
        good.append([first, last, digest])
    return good


def _read_and_encode(encoder: Encoder, data: SliceDataset, place: range, *how: Any) -> NDArray[np.float32]:
    """:func:`_encode`; a slice store that cannot be read is not mistaken for a cache that cannot be written."""
    try:
        return _encode(encoder, data, place, *how)
    except OSError as error:
        raise StoreError(
            f"slices {place.start} to {place.stop - 1} cannot be read from the slice store ({error})",
            remedy="run the command again; if it stays, delete the store in the cache folder",
        ) from error


@torch.inference_mode()
def _encode(
    encoder: Encoder,
    data: SliceDataset,
    place: range,
    device: torch.device,
    precision: str,
    batch_size: int,
    num_workers: int,
) -> NDArray[np.float32]:
    loader = DataLoader(
        data,
        batch_size=batch_size,
        sampler=list(place),
        collate_fn=as_is,
        num_workers=num_workers,
        pin_memory=device.type == "cuda",
    )
    kind = torch.bfloat16 if precision.startswith("bf16") else torch.float16
    parts = []
    for batch in loader:
        with torch.autocast(device.type, dtype=kind, enabled="mixed" in precision):
            parts.append(encoder(batch["image"].to(device, non_blocking=True)).float())
    found = torch.cat(parts).cpu().numpy()
    return np.ascontiguousarray(found, dtype="<f4")
