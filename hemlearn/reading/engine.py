"""Series through the networks of one run or several, in batches that find their own size."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
import psutil  # type: ignore[import-untyped]
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from hemlearn.data.batches import neighbour_stack
from hemlearn.reading.members import Member
from hemlearn.reading.select_series import Series
from hemlearn.reading.stacks import Preprocessing, Stack, read_stack
from hemlearn.tasks.volumes import VolumeClassification
from hemlearn.util.errors import ConfigError, DataError

logger = logging.getLogger(__name__)
_GPU_START, _CPU_MOST = 512, 32  # slices; a CPU gains nothing from more
_SHARE = 0.25  # of the free memory that a batch on the CPU may take
_TOGETHER = 8  # series that pass a sequence model at once
_PARALLEL = 4  # series that are decoded ahead


@dataclass(frozen=True)
class Output:
    """What the members say of one series.

    Args:
        slices: (M, S, L) probabilities of its slices, not calibrated.
        whole: Per member (L,) of a sequence model's own output for the series; None where the member has none.
    """

    slices: NDArray[np.float64]
    whole: tuple[NDArray[np.float64] | None, ...]


def choose_device(asked: str) -> torch.device:
    """The device of ``device=auto|cpu|cuda``.

    Raises:
        ConfigError: An unknown one, or a GPU that is not there.
    """
    if asked not in ("auto", "cpu", "cuda"):
        raise ConfigError(f"device={asked}: unknown", remedy="use auto, cpu or cuda")
    if asked == "cuda" and not torch.cuda.is_available():
        raise ConfigError("device=cuda: torch sees no GPU", remedy="use device=cpu; see `hemlearn doctor`")
    return torch.device("cuda" if asked != "cpu" and torch.cuda.is_available() else "cpu")


class Predictor:
    """Predicts series with every member of an ensemble.

    Args:
        members: The runs.
        device: Where their networks run.
        batch_size: Slices at once; None: found by itself: large at first, halved where memory does not suffice.
    """

    def __init__(self, members: Sequence[Member], device: torch.device, batch_size: int | None = None) -> None:
        self.members = list(members)
        self.device = device
        self.steps = [Preprocessing.of(member) for member in members]
        for member in members:
            member.run.task.to(device).eval()
        start = batch_size or (_GPU_START if device.type == "cuda" else 0)
        self._sizes = [start] * len(self.members)  # 0: not known yet

    @property
    def batch(self) -> int:
        """Slices at once, of the member that takes fewest; 0 before the first batch on a CPU."""
        return min(self._sizes)

    def read(self, series: Iterable[Series]) -> Iterator[Stack]:
        """Decode series ahead of the networks, a few at a time, in their order."""
        todo = iter(series)
        with ThreadPoolExecutor(_PARALLEL) as pool:
            waiting: list[Future[Stack]] = []
            try:
                waiting += [pool.submit(read_stack, item, self.steps) for item in islice(todo, _PARALLEL + 1)]
                while waiting:
                    yield waiting.pop(0).result()
                    waiting += [pool.submit(read_stack, item, self.steps) for item in islice(todo, 1)]
            finally:  # an interrupted call does not wait for what it will not use
                for future in waiting:
                    future.cancel()

    def run(self, series: Iterable[Series]) -> Iterator[tuple[Stack, Output | None]]:
        """Each series with its output, in order; None where it was refused."""
        group: list[Stack] = []
        for stack in self.read(series):
            if stack.refused:
                yield from self._flush(group)
                group = []
                yield stack, None
                continue
            group.append(stack)
            if len(group) >= self._together or sum(len(item.series.rows) for item in group) >= max(self.batch, 1):
                yield from self._flush(group)
                group = []
        yield from self._flush(group)

    @property
    def _together(self) -> int:
        return _TOGETHER if any(member.of_series for member in self.members) else _GPU_START

    def _flush(self, group: list[Stack]) -> Iterator[tuple[Stack, Output | None]]:
        if group:
            yield from zip(group, self(group), strict=True)

    @torch.inference_mode()
    def __call__(self, stacks: Sequence[Stack]) -> list[Output]:
        """Outputs of decoded series.

        Raises:
            DataError: Memory does not suffice for one slice.
        """
        slices: list[list[NDArray[np.float64]]] = []
        whole: list[NDArray[np.float64] | None] = []
        lengths = [len(stack.series.rows) for stack in stacks]
        for place, (member, step) in enumerate(zip(self.members, self.steps, strict=True)):
            raw = torch.from_numpy(np.concatenate([_stacked(stack, step, member) for stack in stacks]))
            z_mm = np.concatenate([stack.series.rows["z_mm"].to_numpy(dtype=np.float32) for stack in stacks])
            kind = torch.bfloat16 if member.run.config.trainer.precision.startswith("bf16") else torch.float16
            mixed = self.device.type == "cuda" and "mixed" in member.run.config.trainer.precision
            with torch.autocast(self.device.type, dtype=kind, enabled=mixed):
                own, series = self._member(place, raw, lengths, torch.from_numpy(z_mm))
            slices.append(np.split(_plain(own), np.cumsum(lengths)[:-1]))
            whole.append(None if series is None else _plain(series)[np.cumsum(lengths) - 1])
        found = []
        for index in range(len(stacks)):
            each = tuple(None if item is None else item[index] for item in whole)
            found.append(Output(np.stack([item[index] for item in slices]), each))
        return found

    def _member(self, place: int, raw: Tensor, lengths: list[int], z_mm: Tensor) -> tuple[Tensor, Tensor | None]:
        """(T, L) of slices, and of their series, of one member."""
        task: Any = self.members[place].run.task
        index = torch.arange(len(raw))
        if not isinstance(task, VolumeClassification):
            return self._batches(
                place, lambda part: task.predict_step({"image": part, "index": index[: len(part)]}, 0)[0], raw, task
            ), None
        encoder = task.encoder.eval()
        vector = self._batches(place, encoder, raw, encoder)
        batch: Any = {
            "index": index,
            "lengths": torch.tensor(lengths).to(self.device),
            "z_mm": z_mm.to(self.device),
            "vector": vector.to(self.device),
        }  # labels are not asked for
        own, _, series = task.predict_step(batch, 0)
        return own, series

    def _batches(self, place: int, function: Callable[[Tensor], Tensor], raw: Tensor, model: nn.Module) -> Tensor:
        """``function`` of ``raw`` (T, K, S, S), a batch at a time; the batch is halved where memory is short."""
        self._sizes[place] = self._sizes[place] or cpu_batch(function, raw[:1], model)
        while True:
            size = self._sizes[place]
            try:
                parts = [function(part.to(self.device)).float().cpu() for part in torch.split(raw, size)]
                return torch.cat(parts)
            except (RuntimeError, MemoryError) as error:  # torch.OutOfMemoryError is a RuntimeError
                if not _out_of_memory(error):
                    raise
                if size == 1:
                    raise DataError(
                        f"{self.device}: memory does not suffice for a single slice",
                        remedy="free some memory, or predict with device=cpu",
                    ) from error
                self._sizes[place] = max(1, min(size, len(raw)) // 2)
                logger.info("memory was short: %d slices at once from here", self._sizes[place])
                if self.device.type == "cuda":
                    torch.cuda.empty_cache()


def cpu_batch(function: Callable[[Tensor], Tensor], one: Tensor, model: nn.Module) -> int:
    """Slices that a batch on the CPU may hold, from the largest activations that one slice causes.

    Args:
        function: Of a batch of slices.
        one: One slice (1, K, S, S).
        model: Whose modules are watched.
    """
    largest = 0

    def watch(_module: nn.Module, _inputs: Any, output: Any) -> None:
        nonlocal largest
        if isinstance(output, Tensor):
            largest = max(largest, output.numel() * output.element_size())

    handles = [module.register_forward_hook(watch) for module in model.modules()]
    try:
        function(one)
    finally:
        for handle in handles:
            handle.remove()
    # Input, output and workspace of one layer stand in memory together; a residual branch keeps another.
    free = psutil.virtual_memory().available * _SHARE
    return int(max(1, min(_CPU_MOST, free // max(6 * largest, 1))))


def _stacked(stack: Stack, step: Preprocessing, member: Member) -> NDArray[Any]:
    """(S, K, size, size): each slice with its neighbours."""
    rows = np.arange(len(stack.series.rows), dtype=np.int64)
    order = neighbour_stack(
        np.zeros(len(rows), dtype=object),
        stack.series.rows["z_mm"].to_numpy(dtype=np.float64),
        rows,
        member.run.config.channels.neighbours,
    )
    return stack.squares[step][order]


def _plain(values: Tensor) -> NDArray[np.float64]:
    return np.asarray(values.double().cpu().numpy(), dtype=np.float64)


def _out_of_memory(error: BaseException) -> bool:
    return isinstance(error, MemoryError) or any(
        text in str(error).lower() for text in ("out of memory", "can't allocate memory", "cudnn_status_alloc_failed")
    )
