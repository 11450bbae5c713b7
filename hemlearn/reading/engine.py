"""The one engine: series through the networks of one run or several, in batches that find their own size.

``predict``, ``evaluate``, ``explain``, ``submit``, the pages and the check of an exported file ask it for every
probability; the test of a training run calls the same ``predict_step`` on its cached slices.
"""

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
from hemlearn.reading.series import Series
from hemlearn.reading.stacks import Preprocessing, Stack, read_stack
from hemlearn.tasks.volumes import VolumeClassification
from hemlearn.training.run import Run
from hemlearn.util.errors import ConfigError, DataError, count

logger = logging.getLogger(__name__)
_GPU_START, _CPU_MOST = 512, 32  # slices; a CPU gains nothing from more
_SHARE = 0.25  # of the free memory that a batch on the CPU may take
_TOGETHER = 8  # series that pass a sequence model at once
_PARALLEL = 4  # series that are decoded ahead


@dataclass(frozen=True)
class Output:
    """What R runs say of one series of S slices.

    Args:
        slices: (R, S, L) probabilities of its slices, not calibrated.
        whole: Per run (L,) of a sequence model's own output for the series; None where the run has none.
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
    """Predicts series with every run of an ensemble.

    Args:
        runs: The runs; their networks are moved to the device.
        device: Where they compute.
        batch_size: Slices at once; None: found by itself: large at first, halved where memory does not suffice.
    """

    def __init__(self, runs: Sequence[Run], device: torch.device, batch_size: int | None = None) -> None:
        self.runs = list(runs)
        self.device = device
        self.steps = [Preprocessing.of(run) for run in runs]
        for run in runs:
            run.model.to(device).eval()
        start = batch_size or (_GPU_START if device.type == "cuda" else 0)
        self._sizes = [start] * len(self.runs)  # 0: not known yet

    @property
    def batch(self) -> int:
        """Slices at once, of the run that takes fewest; 0 before the first batch on a CPU."""
        return min(self._sizes)

    def read(self, series: Iterable[Series], *, keep: bool = False) -> Iterator[Stack]:
        """Decode series ahead of the networks, a few at a time, in their order; ``keep``: with the files' pixels."""
        todo = iter(series)
        with ThreadPoolExecutor(_PARALLEL) as pool:
            waiting: list[Future[Stack]] = []

            def submit(count: int) -> None:
                waiting.extend(pool.submit(read_stack, item, self.steps, keep=keep) for item in islice(todo, count))

            try:
                submit(_PARALLEL + 1)
                while waiting:
                    yield waiting.pop(0).result()
                    submit(1)
            finally:  # an interrupted call does not wait for what it will not use
                for future in waiting:
                    future.cancel()

    def run(self, series: Iterable[Series]) -> Iterator[tuple[Stack, Output | None]]:
        """Each series with its output, in order; None where it was refused."""
        together = _TOGETHER if any(run.of_series for run in self.runs) else _GPU_START
        group: list[Stack] = []
        for stack in self.read(series):
            group += [] if stack.refused else [stack]
            full = len(group) >= together or sum(len(item.series.rows) for item in group) >= max(self.batch, 1)
            if group and (stack.refused or full):
                yield from zip(group, self(group), strict=True)
                group = []
            if stack.refused:
                yield stack, None
        if group:
            yield from zip(group, self(group), strict=True)

    @torch.inference_mode()
    def __call__(self, stacks: Sequence[Stack]) -> list[Output]:
        """Outputs of decoded series.

        Raises:
            DataError: Memory does not suffice for one slice.
        """
        lengths = [len(stack.series.rows) for stack in stacks]
        ends = np.cumsum(lengths)
        z_mm = torch.from_numpy(np.concatenate([stack.series.rows["z_mm"].to_numpy(np.float32) for stack in stacks]))
        slices: list[list[NDArray[np.float64]]] = []
        whole: list[NDArray[np.float64] | None] = []
        for place, run in enumerate(self.runs):
            with self._autocast(run):
                own, series = self._probabilities(place, self.raw(stacks, place), lengths, z_mm)
            slices.append(np.split(_plain(own), ends[:-1]))
            whole.append(None if series is None else _plain(series)[ends - 1])
        return [
            Output(
                np.stack([item[index] for item in slices]),
                tuple(None if item is None else item[index] for item in whole),
            )
            for index in range(len(stacks))
        ]

    @torch.inference_mode()
    def embed(self, stacks: Sequence[Stack]) -> list[NDArray[np.float32]]:
        """Embeddings ``(S, D)`` of the slices of each series, by the first run's backbone."""
        task: Any = self.runs[0].model

        def embeddings(part: Tensor) -> Tensor:
            images = task.channels(part)
            if task.channels_last:
                images = images.contiguous(memory_format=torch.channels_last)
            found: Tensor = task.backbone(images)
            return found

        with self._autocast(self.runs[0]):
            found = self._batches(0, embeddings, self.raw(stacks, 0), task.backbone)
        return np.split(found.numpy(), np.cumsum([len(stack.series.rows) for stack in stacks])[:-1])

    def raw(self, stacks: Sequence[Stack], place: int = 0) -> Tensor:
        """``(T, K, S, S)`` squares of all slices with their neighbours, as the run at ``place`` reads them."""
        step, neighbours = self.steps[place], self.runs[place].config.channels.neighbours
        return torch.from_numpy(np.concatenate([stacked(stack, step, neighbours) for stack in stacks]))

    def _autocast(self, run: Run) -> torch.autocast:
        """``trainer.precision`` of the run; what a GPU trained in mixed precision a CPU computes in 32 bits."""
        fit = run.config.trainer
        mixed = "mixed" in fit.precision and (self.device.type == "cuda" or fit.accelerator == "cpu")
        kind = torch.bfloat16 if fit.precision.startswith("bf16") else torch.float16
        return torch.autocast(self.device.type, dtype=kind, enabled=mixed)

    def _probabilities(self, place: int, raw: Tensor, lengths: list[int], z_mm: Tensor) -> tuple[Tensor, Tensor | None]:
        """(T, L) of slices, and of their series, by one run."""
        task: Any = self.runs[place].model
        index = torch.arange(len(raw))
        if not isinstance(task, VolumeClassification):
            step = lambda part: task.predict_step({"image": part, "index": index[: len(part)]}, 0)[0]  # noqa: E731
            return self._batches(place, step, raw, task), None
        encoder = task.encoder.eval()
        batch: Any = {
            "index": index,
            "lengths": torch.tensor(lengths).to(self.device),
            "z_mm": z_mm.to(self.device),
            "vector": self._batches(place, encoder, raw, encoder).to(self.device),
        }  # labels are not asked for
        own, _, series = task.predict_step(batch, 0)
        return own, series

    def _batches(self, place: int, function: Callable[[Tensor], Tensor], raw: Tensor, model: nn.Module) -> Tensor:
        """``function`` of ``raw`` (T, K, S, S), a batch at a time; the batch is halved where memory is short."""
        self._sizes[place] = self._sizes[place] or _cpu_batch(function, raw[:1], model)
        while True:
            size = self._sizes[place]
            try:
                return torch.cat([function(part.to(self.device)).float().cpu() for part in torch.split(raw, size)])
            except (RuntimeError, MemoryError) as error:  # torch.OutOfMemoryError is a RuntimeError
                if not _out_of_memory(error):
                    raise
                if size == 1:
                    raise DataError(
                        f"{self.device}: memory does not suffice for a single slice",
                        remedy="free some memory, or predict with device=cpu",
                    ) from error
                self._sizes[place] = max(1, min(size, len(raw)) // 2)
                logger.info("memory was short: %s at once from here", count(self._sizes[place], "slice"))
                if self.device.type == "cuda":
                    torch.cuda.empty_cache()


def _cpu_batch(function: Callable[[Tensor], Tensor], one: Tensor, model: nn.Module) -> int:
    """Slices that a batch on the CPU may hold, from the largest activations that one slice (1, K, S, S) causes."""
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


def stacked(stack: Stack, step: Preprocessing, neighbours: int) -> NDArray[Any]:
    """(S, K, size, size): each slice with its neighbours."""
    rows = np.arange(len(stack.series.rows), dtype=np.int64)
    z_mm = stack.series.rows["z_mm"].to_numpy(dtype=np.float64)
    return stack.squares[step][neighbour_stack(np.zeros(len(rows), dtype=object), z_mm, rows, neighbours)]


def _plain(values: Tensor) -> NDArray[np.float64]:
    return np.asarray(values.double().cpu().numpy(), dtype=np.float64)


def _out_of_memory(error: BaseException) -> bool:
    return isinstance(error, MemoryError) or any(
        text in str(error).lower() for text in ("out of memory", "can't allocate memory", "cudnn_status_alloc_failed")
    )
