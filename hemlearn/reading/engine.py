"""The one engine: series through the networks of one run or several, in batches of one size.

A probability does not depend on what else is predicted: every batch has the same number of slices (the last one is
filled up), for which each layer does the same sums in the same order wherever a slice stands in it, and a sequence
model reads one series at a time. So a slice alone, in a folder, and after an interruption gets the same bits; smaller
batches, where memory is short, another device or number of threads change them by less than 1e-6.

``predict``, ``evaluate``, ``explain``, ``submit``, the pages and the check of an exported file ask it for every
probability; the test of a training run calls the same ``predict_step`` on its cached slices.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from typing import Any, cast

import numpy as np
import psutil  # type: ignore[import-untyped]
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from hemlearn.data.batches import neighbour_stack
from hemlearn.reading.series import Series
from hemlearn.reading.stacks import Preprocessing, Stack, read_stack
from hemlearn.tasks.volumes import VolumeClassification
from hemlearn.tasks.volumes3d import Volume3DClassification
from hemlearn.training.run import Run
from hemlearn.util.errors import ConfigError, DataError, RunError, count

logger = logging.getLogger(__name__)
_GPU_MOST, _CPU_MOST = 128, 8  # slices; neither gains from more, and a single picture costs a whole batch
_SHARE = 0.25  # of the free memory that a batch on the CPU may take
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
        batch_size: Most slices at once; None: found by itself. Halved where memory does not suffice.
    """

    def __init__(self, runs: Sequence[Run], device: torch.device, batch_size: int | None = None) -> None:
        self.runs = list(runs)
        self.device = device
        self.steps = [Preprocessing.of(run) for run in runs]
        for run in runs:
            run.model.to(device).eval()
        most = _GPU_MOST if device.type == "cuda" else _CPU_MOST
        start = min(batch_size, most) if batch_size else _GPU_MOST if device.type == "cuda" else 0
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
        group: list[Stack] = []
        for stack in self.read(series):
            group += [] if stack.refused else [stack]
            full = sum(len(item.series.rows) for item in group) >= max(self.batch, 1)
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
            RunError: The network answers what is no number.
        """
        lengths = [len(stack.series.rows) for stack in stacks]
        z_mm = [torch.from_numpy(stack.series.rows["z_mm"].to_numpy(np.float32)) for stack in stacks]
        found: list[list[tuple[Tensor, Tensor | None]]] = []
        for place, run in enumerate(self.runs):
            with self._autocast(run):
                if isinstance(run.model, Volume3DClassification):
                    found.append([self._volume(place, stack, z) for stack, z in zip(stacks, z_mm, strict=True)])
                else:
                    found.append(self._probabilities(place, self.raw(stacks, place), lengths, z_mm))
            for stack, parts in zip(stacks, found[-1], strict=True):
                if not all(torch.isfinite(part).all() for part in parts if part is not None):
                    raise RunError(
                        f"run={run.path}: its network answers NaN for series {stack.series.series_id}",
                        remedy="train it again; `hemlearn doctor run=DIR` says whether its files are as they were",
                    )
        return [
            Output(
                np.stack([_plain(slices) for slices, _ in own]),
                tuple(None if series is None else _plain(series)[-1] for _, series in own),
            )
            for own in zip(*found, strict=True)
        ]

    @torch.inference_mode()
    def embed(self, stacks: Sequence[Stack]) -> list[NDArray[np.float32]]:
        """Embeddings ``(S, D)`` of the slices of each series, by the first run's backbone."""
        task: Any = self.runs[0].model
        if isinstance(task, Volume3DClassification):
            raise ConfigError(
                f"run={self.runs[0].path}: a 3D network has no embeddings of slices",
                remedy="take a run of a 2D backbone",
            )

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

    def _probabilities(
        self, place: int, raw: Tensor, lengths: list[int], z_mm: Sequence[Tensor]
    ) -> list[tuple[Tensor, Tensor | None]]:
        """Per series (S, L) of its slices and, repeated for each, of itself, by one run."""
        task: Any = self.runs[place].model
        if not isinstance(task, VolumeClassification):
            step = lambda part: task.predict_step({"image": part, "index": torch.arange(len(part))}, 0)[0]  # noqa: E731
            return [(own, None) for own in torch.split(self._batches(place, step, raw, task), lengths)]
        encoder = task.encoder.eval()
        out: list[tuple[Tensor, Tensor | None]] = []
        for vector, z in zip(torch.split(self._batches(place, encoder, raw, encoder), lengths), z_mm, strict=True):
            batch: Any = {
                "index": torch.arange(len(z)),
                "lengths": torch.tensor([len(z)]).to(self.device),
                "z_mm": z.to(self.device),
                "vector": vector.to(self.device),
            }  # labels are not asked for
            own, _, series = task.predict_step(batch, 0)
            out.append((own, series))
        return out

    def _volume(self, place: int, stack: Stack, z_mm: Tensor) -> tuple[Tensor, Tensor | None]:
        """The series' (S, L) probabilities, once for its slices and once for itself, by a run of a 3D network."""
        step, count = self.steps[place], len(z_mm)
        sides = stack.boxes[step][:, 2:] / step.size * np.array(stack.series.pixel_mm or (np.nan, np.nan))
        batch: Any = {
            "index": torch.arange(count),
            "lengths": torch.tensor([count]).to(self.device),
            "z_mm": z_mm.to(self.device),
            "pixel_mm": torch.from_numpy(sides.astype(np.float32)).to(self.device),
            "image": self.raw([stack], place).to(self.device),
        }
        own, _, series = cast(Volume3DClassification, self.runs[place].model).predict_step(batch, 0)
        return own, series

    def _batches(self, place: int, function: Callable[[Tensor], Tensor], raw: Tensor, model: nn.Module) -> Tensor:
        """``function`` of ``raw`` (T, K, S, S), whole batches at a time; they are halved where memory is short."""
        self._sizes[place] = self._sizes[place] or _cpu_batch(function, raw[:1], model)
        while True:
            size = self._sizes[place]
            try:
                parts = torch.split(torch.cat([raw, raw.new_zeros(-len(raw) % size, *raw.shape[1:])]), size)
                return torch.cat([function(part.to(self.device)).float().cpu() for part in parts])[: len(raw)]
            except (RuntimeError, MemoryError) as error:  # torch.OutOfMemoryError is a RuntimeError
                if not _out_of_memory(error):
                    raise
                if size == 1:
                    raise DataError(
                        f"{self.device}: memory does not suffice for a single slice",
                        remedy="free some memory, or predict with device=cpu",
                    ) from error
                self._sizes[place] = size // 2
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
