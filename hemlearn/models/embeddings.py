"""Slice embeddings, computed once per content and shared by every job that reads them.

An embedding cache lies in ``CACHE/embeddings/KEY`` as a :class:`~hemlearn.util.block_file.BlockFile` (N x V x (D + L)).
The key is a hash of the encoder's weights, its input channels, the slices' contents, the flips and how they are
computed, so that a stale cache is never found.
"""

from __future__ import annotations

import copy
import hashlib
import json
import os
import time
import zlib
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from hemlearn.data.batches import SliceDataset, batch_loader
from hemlearn.models.backbone import Backbone, module_groups
from hemlearn.plugins import fingerprints
from hemlearn.transforms.augment import Augment
from hemlearn.transforms.channels import Channels
from hemlearn.util.block_file import BlockFile, Part
from hemlearn.util.console import track
from hemlearn.util.errors import ConfigError, StoreError, count
from hemlearn.util.files import sha256
from hemlearn.util.shards import present

FORMAT = 2
FLIP_AXIS = {"horizontal": -1, "vertical": -2}
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
        shown = self.channels
        own = not isinstance(shown, Channels)
        channels = (shown, None if own else (shown.percentiles, shown.tone), self.flips)
        # The printed network tells pooling, strides and activations, which have no tensors of their own.
        found = hashlib.sha256(repr((channels, self.backbone, self.head)).encode())
        for part in (self.channels, self.backbone.model):
            found.update(_own_code(part))
        if not own:
            found.update(self.channels.low.numpy(force=True).tobytes())
            found.update(self.channels.width.numpy(force=True).tobytes())
        for name, tensor in sorted(self.state_dict().items()):
            if ".lora_" in name:  # adapters are asked before they train: they change nothing, and start at random
                continue
            found.update(name.encode())
            found.update(tensor.detach().cpu().contiguous().numpy().tobytes())
        return found.hexdigest()


def _own_code(part: nn.Module) -> bytes:
    """What a stranger's module is made of beside its tensors: its source and its plain attributes."""
    kind = type(part)
    if kind.__module__.partition(".")[0] in ("hemlearn", "timm", "torch", "torchvision"):
        return b""
    code = fingerprints({"_target_": f"{kind.__module__}.{kind.__qualname__}"})
    plain = {key: value for key, value in vars(part).items() if isinstance(value, int | float | str | list | tuple)}
    return json.dumps([code, plain], sort_keys=True, default=str).encode()


@dataclass(frozen=True)
class Embeddings:
    """Cached embeddings on disk.

    Args:
        file: Holds them: (N, V, D + L) rows of the manifest, views, embedding and logits.
        outputs: L, number of logits of the slice run; 0 where there is none.
    """

    file: BlockFile
    outputs: int

    @property
    def folder(self) -> Path:
        """Where they lie."""
        return self.file.folder

    @property
    def shape(self) -> tuple[int, ...]:
        """(N, V, D + L)."""
        return self.file.shape

    @property
    def width(self) -> int:
        """Embedding width D."""
        return self.shape[2] - self.outputs

    @property
    def array(self) -> NDArray[np.float32]:
        """``(N, V, D + L)`` read-only memory map."""
        return self.file.array

    def account(self) -> dict[str, Any]:
        """How the cache was made: forwards of the network, seconds and device."""
        found: dict[str, Any] = self.file.marker["account"]
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
    num_workers: int | None = None,
    resident: str = "auto",
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
        num_workers: Loader processes; None: by the device's need.
        resident: Where the slices lie meanwhile, as ``data.resident``.

    Raises:
        StoreError: The disk is full or cannot be written.
        ShardsMissing: This process is a shard that has computed its own, and others have not.
    """
    stack = sha256(data.stack.tobytes())
    # What changes the last digits counts too: a run's result may not depend on which run has filled the cache.
    how = [batch_size, device.type, torch.get_num_threads()]
    if device.type == "cuda" and torch.backends.cudnn.benchmark:
        how.append("autotune")
    recipe = [FORMAT, encoder.digest(), content, stack, precision if "mixed" in precision else "32", how]
    key = sha256(json.dumps(recipe))[:32]
    shape = (len(data), encoder.views, encoder.width)
    identity = {"format": FORMAT, "shape": list(shape)}
    file = BlockFile(Path(cache_dir) / "embeddings" / key, "vectors.bin", shape, "<f4", identity)
    account: dict[str, Any] = {"seconds": 0.0}

    def fill(missing: Sequence[range]) -> Iterator[Part]:
        count = sum(map(len, missing))
        account.update(forwards=count * shape[1], resumed_after=len(data) - count, device=str(device))
        encoder.to(device).eval()
        batches = [[*place[at : at + batch_size]] for place in missing for at in range(0, len(place), batch_size)]
        how: dict[str, Any] = {"resident": resident, "num_workers": num_workers, "pin_memory": device.type == "cuda"}
        loader = iter(batch_loader(data, device, batch_sampler=batches, **how))
        with ThreadPoolExecutor(1) as writer:  # a block is written while the next one is computed
            written: Future[Part] | None = None
            for place in track(missing, "Embedding slices", count, size=len):
                began = time.perf_counter()
                block = _read_and_encode(
                    encoder, islice(loader, -(-len(place) // batch_size)), place, device, precision
                )
                account["seconds"] = round(account["seconds"] + time.perf_counter() - began, 3)
                account["slices_per_second"] = round(count / max(account["seconds"], 1e-9), 2)
                if written is not None:
                    yield written.result()
                written = writer.submit(file.write, place.start, block)
            if written is not None:
                yield written.result()

    step = min(_BLOCK, max(1, _BLOCK_BYTES // (file.row_bytes * _STEP)) * _STEP)
    file.build(
        fill,
        step=step,
        what="the embeddings",
        extra=lambda: {**identity, "account": account},
        keep=True,
        shard=present(),  # batches are parts of a block, so that they are the same ones whoever computes it
    )
    return Embeddings(file, encoder.outputs)


def _read_and_encode(encoder: Encoder, batches: Iterator[Any], place: range, *how: Any) -> NDArray[np.float32]:
    """:func:`_encode`; a slice store that cannot be read is not mistaken for a cache that cannot be written."""
    try:
        return _encode(encoder, batches, *how)
    except OSError as error:
        raise StoreError(
            f"slices {place.start} to {place.stop - 1} cannot be read from the slice store ({error})",
            remedy="run the command again; if it stays, delete the store in the cache folder",
        ) from error


@torch.inference_mode()
def _encode(encoder: Encoder, batches: Iterator[Any], device: torch.device, precision: str) -> NDArray[np.float32]:
    kind = torch.bfloat16 if precision.startswith("bf16") else torch.float16
    parts = []
    for batch in batches:
        with torch.autocast(device.type, dtype=kind, enabled="mixed" in precision):
            parts.append(encoder(batch["image"].to(device, non_blocking=True)).float())
    found = torch.cat(parts).cpu().numpy()
    return np.ascontiguousarray(found, dtype="<f4")


# --- What the frozen layers make of every slice. A partly frozen network spends much of its time in layers that never
# change. With freeze.cached_draws=K each slice is augmented K times, once and for all; the output of the frozen layers
# is cached for these K views, the plain one and the test-time flips, and a training step draws one of the K. The views
# depend on neither split, fold nor seed, so that all runs of a study share one pass.

_TOLERANCE = 1e-3  # relative, between the whole network and its two parts; float32 summation differs by far less


class _Reached(Exception):  # noqa: N818 - not an error: it ends a forward pass at the border
    def __init__(self, value: Tensor) -> None:
        super().__init__()
        self.value = value


class Division:
    """The two parts of a backbone, sharing its tensors: ``upper(lower(x))`` equals ``backbone(x)``.

    The border lies before the first layer of the trained groups. Architectures whose trained layers need more than
    the output of the layer before (a vision transformer's position embedding, added by the model itself) cannot be
    divided there; this is found by trying, not by name.

    Args:
        backbone: In any mode; its modes decide how the parts behave.
        trainable: How many of the last groups train; 0 puts the border behind the backbone.
        image_size: Side of the square images, for the trial.

    Attributes:
        shape: Of the lower part's output for one image: ``(C, h, w)``, or ``(D,)`` behind the backbone.

    Raises:
        ConfigError: The backbone cannot be divided there, or nothing of it is frozen.
    """

    def __init__(self, backbone: Backbone, trainable: int, image_size: int) -> None:
        if trainable >= len(backbone.groups):
            raise ConfigError(
                "freeze.cached_draws: every layer trains, so that nothing can be cached",
                remedy="freeze some layers (freeze.trainable=N), or freeze.cached_draws=0",
            )
        self.backbone = backbone
        self._copies: list[tuple[nn.Module, nn.Module]] = []
        self._border: nn.Module | None = None
        self._top: nn.Module | None = None
        modes = [(module, module.training) for module in backbone.modules()]
        device = next(backbone.parameters()).device
        trial = torch.rand(
            2,
            backbone.in_chans,
            image_size,
            image_size,
            device=device,
            generator=torch.Generator(device).manual_seed(0),
        )
        backbone.eval()
        try:
            with torch.no_grad():
                if trainable:
                    self._divide(trainable, trial[:1])
                below = self.lower(trial)
                self._check(trial, below)
        finally:
            for module, mode in modes:
                module.training = mode
        self.shape = tuple(below.shape[1:])

    def lower(self, images: Tensor) -> Tensor:
        """Output ``(B, *shape)`` of the frozen part for images ``(B, C, S, S)`` in [0, 1]."""
        if self._border is None:
            return cast(Tensor, self.backbone(images))
        with self._border.register_forward_pre_hook(_stop):
            try:
                self.backbone(images)
            except _Reached as reached:
                return reached.value
        raise RuntimeError("the first trained layer was not reached")  # it was when the backbone was divided

    def upper(self, below: Tensor) -> Tensor:
        """Embeddings ``(B, D)`` of the frozen part's output ``(B, *shape)``."""
        if self._top is None:
            return below
        for clone, original in self._copies:
            clone.training = original.training
        return cast(Tensor, self._top(below))

    def _divide(self, trainable: int, trial: Tensor) -> None:
        model = self.backbone.model
        place = module_groups(model, self.backbone.groups)
        first = len(self.backbone.groups) - trainable
        trains = {
            module
            for name, module in model.named_modules()
            if place[name] >= first and next(module.parameters(), None) is not None
        }
        leaves = [module for module in model.modules() if next(module.children(), None) is None]
        order: list[nn.Module] = []
        handles = [leaf.register_forward_pre_hook(lambda module, _: order.append(module)) for leaf in leaves]
        try:
            self.backbone(trial)
        finally:
            for handle in handles:
                handle.remove()
        start = next((index for index, leaf in enumerate(order) if leaf in trains), None)
        if start is None:
            raise self._refusal(f"none of the layers of the last {count(trainable, 'group')} is a module of its own")
        self._border = order[start]
        after = set(order[start:])
        self._top = self._prune(model, set(order[:start]) - after, after)

    def _prune(self, module: nn.Module, before: set[nn.Module], after: set[nn.Module]) -> nn.Module:
        """``module`` without the parts that run before the border only; what trains is shared, not copied."""
        below = set(module.modules())
        if not below & before:
            return module
        if not below & after and module is not self.backbone.model:
            return nn.Identity()
        clone = copy.copy(module)
        parts = {name: child and self._prune(child, before, after) for name, child in module._modules.items()}
        clone.__dict__["_modules"] = parts
        self._copies.append((clone, module))
        return clone

    def _check(self, trial: Tensor, below: Tensor) -> None:
        whole = self.backbone(trial)
        try:
            parts = self.upper(below)
        except Exception as error:  # whatever the architecture does with a wrong input: it cannot be divided
            raise self._refusal(str(error).splitlines()[0] if str(error) else type(error).__name__) from error
        if parts.shape != whole.shape:
            raise self._refusal(f"shape {tuple(parts.shape)} in place of {tuple(whole.shape)}")
        gap = float((parts - whole).norm() / whole.norm().clamp_min(1e-12))
        if not gap < _TOLERANCE:
            raise self._refusal(f"its parts differ from the whole by {gap:.2g}")

    def _refusal(self, why: str) -> ConfigError:
        name = self.backbone.model.__class__.__name__
        return ConfigError(
            f"freeze.cached_draws: this {name} cannot be divided below its trained layers ({why})",
            remedy="take another freeze.trainable or backbone, or freeze.cached_draws=0",
        )


def _stop(_: nn.Module, inputs: tuple[Any, ...]) -> None:
    raise _Reached(inputs[0])


BATCH = 32  # slices that are augmented together: part of what the draws are, so it is not the user's batch size


class FrozenEncoder(Encoder):
    """Stored slices to the frozen layers' output: the plain view, the flips, then the augmented draws.

    Behind each view's flat output stand L numbers: the order of the labels in it. A mirrored head has its sides
    exchanged.

    Args:
        whole: Encoder of the run.
        division: Of its backbone.
        augment: Drawn from.
        recipe: What describes the augmentation, for the key of the cache.
        labels: Number of labels L.
        draws: Number of augmented views K.
        orders: Per flip of ``whole`` the order of the labels in it.
    """

    def __init__(
        self,
        whole: Encoder,
        division: Division,
        augment: Augment,
        recipe: Any,
        *,
        labels: int,
        draws: int,
        orders: Sequence[Sequence[int]],
    ) -> None:
        super().__init__(whole.channels, whole.backbone, None, whole.flips, whole.channels_last)
        self.division = division
        self.augment = augment
        self.labels, self.draws = labels, draws
        self._recipe = recipe
        self._orders = [list(range(labels)), *map(list, orders)]

    @property
    def outputs(self) -> int:
        """Numbers behind the flat output: the order of the labels."""
        return self.labels

    @property
    def views(self) -> int:
        """Views of each slice."""
        return 1 + len(self.flips) + self.draws

    @property
    def width(self) -> int:
        """Values per view."""
        return int(np.prod(self.division.shape)) + self.labels

    def forward(self, raw: Tensor) -> Tensor:
        """``(T, V, D + L)`` of stored slices ``(T, K, S, S)``."""
        images = self.channels(raw)
        views = [images, *(images.flip(FLIP_AXIS[flip]) for flip in self.flips)]
        same = torch.arange(self.labels, dtype=torch.float32, device=images.device).expand(len(images), -1)
        found = [self._row(view, same[:, order]) for view, order in zip(views, self._orders, strict=True)]
        # The draws are a function of the slices, so that every machine and every resumed pass has the same ones.
        seed = zlib.crc32(raw.cpu().numpy().tobytes())
        self.augment.train()
        with torch.random.fork_rng([images.device] if images.device.type == "cuda" else []):
            torch.manual_seed(seed)
            found += [self._row(*self.augment(images, same)) for _ in range(self.draws)]
        return torch.stack(found, dim=1)

    def _row(self, images: Tensor, order: Tensor) -> Tensor:
        if self.channels_last:
            images = images.contiguous(memory_format=torch.channels_last)
        return torch.cat([self.division.lower(images).flatten(1), order], dim=1)

    def digest(self) -> str:
        """Hash of every number that decides about the output."""
        found = hashlib.sha256(super().digest().encode())
        told = [list(self.division.shape), self._recipe, self.draws, self._orders, BATCH]
        found.update(json.dumps(told, sort_keys=True, default=str).encode())
        return found.hexdigest()


class FrozenLayers:
    """The cached output of frozen layers, and the layers above them.

    Not a module: it holds nothing that is not the run's own, and checkpoints do not know of it.

    Args:
        division: Of the run's backbone.
        cache: As :class:`FrozenEncoder` makes it.
        draws: Number of augmented views; the last ones of the cache.
        channels_last: Memory layout.
    """

    def __init__(self, division: Division, cache: Embeddings, draws: int, channels_last: bool) -> None:
        self.division = division
        self.cache = cache
        self.draws = draws
        self.channels_last = channels_last

    def __deepcopy__(self, memo: dict[int, Any]) -> FrozenLayers:
        return self  # weight averaging copies the task; the cache stays on disk, once

    def drawn(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Embeddings ``(B, D)`` of one random augmented view of each manifest row ``(B,)``, and its label order."""
        chosen = torch.randint(self.draws, (len(rows),)) + self.cache.shape[1] - self.draws
        return self._embed(rows, chosen.numpy())

    def view(self, rows: Tensor, view: int) -> tuple[Tensor, Tensor]:
        """Embeddings ``(B, D)`` of the plain view (0) or a test-time flip (1, ...), and its label order."""
        return self._embed(rows, np.full(len(rows), view))

    def _embed(self, rows: Tensor, views: Any) -> tuple[Tensor, Tensor]:
        found = torch.from_numpy(self.cache.array[rows.cpu().numpy(), views]).to(rows.device)
        below, order = found[:, : self.cache.width], found[:, self.cache.width :].long()
        below = below.reshape(-1, *self.division.shape)
        if self.channels_last and below.ndim == 4:
            below = below.contiguous(memory_format=torch.channels_last)
        return self.division.upper(below), order
