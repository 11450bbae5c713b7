"""Training and embedding on one GPU, each beside a bare loop on the same tensors; they take turns.

    python experiments/benchmarks/gpu.py             # one GPU, at most eight minutes; no data needed
    python experiments/benchmarks/gpu.py --small     # tiny, under 90 s on a CPU; without a GPU it is always small

ResNet-50 with random weights, three windows at 256 px, batches of 256, bf16, channels-last, as `trainer=gpu` has them;
the slices are random numbers in a store that is drawn for the occasion. Rows: `trainer.fit` with slices from the disk
by loader processes, with slices on the device (data.resident), and compiled there; the embedding pass, with the cache
that it writes, from the disk and from the device. The bare loop holds a few batches on the device as floats and neither
loads, windows, clips, logs nor stores; where fit is compiled, so is its network. Rates are medians over the rounds,
ratios medians over pairs; the first steps of every epoch and the first round are not counted.

Aim for an H200: 4,400 slices/s in training (published figures of ResNet-50 on an A100 and an RTX 3090, scaled by memory
bandwidth and by 256 px instead of 224) and at least .90 of the bare loop.
"""

from __future__ import annotations

import argparse
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any
from unittest import mock

import numpy as np
import pytorch_lightning as pl
import torch
from numpy.typing import NDArray
from pytorch_lightning.callbacks import Callback
from torch import Tensor

from hemlearn.config.compose import compose
from hemlearn.config.schema import Config
from hemlearn.data import resident
from hemlearn.data.batches import EpochSampler, SliceDataset, batch_loader
from hemlearn.models.embeddings import Encoder, open_embeddings
from hemlearn.tasks.slices import SliceClassification
from hemlearn.training.batch_size import find_batch_size
from hemlearn.training.build import build_task
from hemlearn.training.trainer import build_trainer, compiled
from hemlearn.util.console import silence_libraries

AIM, SHARE = 4_400, 0.90  # slices/s of an H200 in training; of the bare loop
SECONDS, LONGEST = 480, 120  # of the whole script, and of its longest row
SKIPPED = 2  # first steps of an epoch
Pairs = list[tuple[float, float]]  # slices/s of hemlearn and of the bare loop


@dataclass(frozen=True)
class Setting:
    """What is measured."""

    config: Config
    slices: int  # in an epoch and in the store
    held: int  # batches that the bare loop goes through again and again
    rounds: int
    device: torch.device

    @property
    def batch(self) -> int:
        """Slices per step."""
        return self.config.data.batch_size


def setting(small: bool, device: torch.device) -> Setting:
    """The sizes, and the configuration as `hemlearn train` composes it."""
    words = ["channels=brain_subdural_soft", "task=subtypes", "augmentation=none", "backbone.pretrained=false"]
    words += ["logger=none", "trainer.options={enable_checkpointing: false}"]
    words += ["backbone.name=test_efficientnet", "data.image_size=32", "data.batch_size=4"] if small else []
    words += [] if small else ["backbone=resnet50", "backbone.pretrained=false", "data.image_size=256"]
    words += [] if small else ["data.batch_size=256"]
    words += ["trainer=gpu"] if device.type == "cuda" else ["trainer=cpu"]
    rounds = 2 if small else 5
    config = compose([*words, f"trainer.max_epochs={rounds + 1}"])
    return Setting(config, 32 if small else 8_192, 4 if small else 8, rounds, device)


def draw_store(folder: Path, slices: int, size: int) -> NDArray[Any]:
    """A memory map of random HU."""
    block = np.random.default_rng(0).integers(-1000, 1500, (64, size, size)).astype("<i2")
    with (folder / "slices.bin").open("wb") as file:
        for start in range(0, slices, len(block)):
            file.write(np.roll(block, start, axis=2)[: slices - start].tobytes())
    return np.memmap(folder / "slices.bin", dtype="<i2", mode="r", shape=(slices, size, size))


def now(device: torch.device) -> float:
    """Wall clock with the GPU's queue empty."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def autocast(it: Setting) -> torch.autocast:
    """As `trainer.precision` has it."""
    return torch.autocast(it.device.type, torch.bfloat16, enabled=it.config.trainer.precision == "bf16-mixed")


def build(it: Setting) -> SliceClassification:
    """The task, the same each time."""
    pl.seed_everything(0, verbose=False)
    known = [float(it.slices // 2)] * len(it.config.task.labels)
    task = build_task(it.config, unit="HU", positives=known, negatives=known)
    assert isinstance(task, SliceClassification)
    return task


def bare_batches(it: Setting, task: SliceClassification, array: NDArray[Any]) -> list[tuple[Tensor, Tensor]]:
    """What the bare loop is given: images in [0, 1] and labels, on the device."""
    parts = (np.array(array[start : start + it.batch, None]) for start in range(0, it.held * it.batch, it.batch))
    with torch.no_grad():
        images = [task.channels(torch.from_numpy(part).to(it.device)) for part in parts]
    labels = torch.zeros(it.batch, len(it.config.task.labels), device=it.device)
    return [(image.contiguous(memory_format=torch.channels_last), labels) for image in images]


def bare_training(it: Setting, task: SliceClassification, array: NDArray[Any]) -> Callable[[], float]:
    """A function that trains on one epoch's slices and returns slices/s."""
    batches = bare_batches(it, task, array)
    groups = task.parameter_groups()
    fused = it.device.type == "cuda"
    optimizer = torch.optim.AdamW(groups, lr=it.config.optimizer.lr, fused=fused)
    steps = it.slices // it.batch - SKIPPED

    def turn() -> float:
        began = now(it.device)
        for step in range(steps):
            image, label = batches[step % len(batches)]
            with autocast(it):
                loss = task.loss(task.head(task.backbone(image)), label)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
        return steps * it.batch / (now(it.device) - began)

    return turn


class Turns(Callback):
    """Times each epoch from its third step on, and lets the bare loop have its turn after it."""

    def __init__(self, it: Setting, bare: Callable[[], float]) -> None:
        self.it, self.bare = it, bare
        self.pairs: Pairs = []

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, at: int) -> None:
        """Start the clock."""
        if at == SKIPPED:
            self._began = now(self.it.device)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Stop it."""
        steps = self.it.slices // self.it.batch - SKIPPED
        rate = steps * self.it.batch / (now(self.it.device) - self._began)
        self.pairs.append((rate, self.bare()))


def fit(it: Setting, array: NDArray[Any], place: str, *, fast: bool = False) -> Pairs:
    """Rounds of `trainer.fit`; ``fast``: compiled."""
    task, other = build(it), build(it).to(it.device).train()
    data = dataset(it, array)
    loader = batch_loader(
        data,
        it.device,
        resident=place,
        pin_memory=it.device.type == "cuda",
        batch_size=it.batch,
        sampler=EpochSampler(len(data), 0),
    )
    with compiled(task, fast), compiled(other, fast):
        assert isinstance(other, SliceClassification)
        turns = Turns(it, bare_training(it, other, array))
        trainer = build_trainer(it.config, [], [turns])
        trainer.limit_val_batches = 0
        trainer.fit(task, train_dataloaders=loader)
    return turns.pairs


def dataset(it: Setting, array: NDArray[Any]) -> SliceDataset:
    """All slices, labelled at random."""
    rows = np.arange(it.slices)
    labels = np.random.default_rng(0).integers(0, 2, (it.slices, len(it.config.task.labels))).astype(np.float32)
    return SliceDataset(array, rows[:, None], labels, rows)


def embed(it: Setting, array: NDArray[Any], place: str, folder: Path) -> Pairs:
    """Rounds of the embedding pass; each writes a cache of its own."""
    task = build(it).eval()
    encoder = Encoder(task.channels, task.backbone, None, (), True)
    network = build(it).to(it.device).eval()
    batches = bare_batches(it, network, array)
    data = dataset(it, array)
    data.reside(place, it.device)  # once for all rounds, as the jobs of a sweep find it

    def turn(at: int) -> float:
        began = now(it.device)
        open_embeddings(
            encoder,
            data,
            content=f"round {at}",
            cache_dir=folder / place,
            device=it.device,
            precision=it.config.trainer.precision,
            batch_size=it.batch,
            resident=place,
        )
        return it.slices / (now(it.device) - began)

    @torch.inference_mode()
    def bare() -> float:
        began = now(it.device)
        for step in range(it.slices // it.batch):
            with autocast(it):
                network.backbone(batches[step % len(batches)][0])
        return it.slices / (now(it.device) - began)

    return [(turn(at), bare()) for at in range(it.rounds + 1)]


def same_batches(it: Setting, array: NDArray[Any]) -> bool:
    """Whether a batch from the device equals that from the disk to the bit."""
    there, disk = dataset(it, array), dataset(it, array)
    there.reside("device", it.device)
    rows = list(range(0, it.slices, it.slices // it.batch))[: it.batch]
    return torch.equal(there.__getitems__(rows)["image"].cpu(), disk.__getitems__(rows)["image"])


def rows(it: Setting, array: NDArray[Any], folder: Path) -> Iterator[tuple[str, Callable[[], Pairs]]]:
    """What is measured, in the order of the table."""
    workers = resident.loader_workers(None, it.device)
    yield f"fit, from the disk, {workers} loader processes", partial(fit, it, array, "disk")
    yield "fit, slices on the device", partial(fit, it, array, "device")
    yield "embeddings, from the disk", partial(embed, it, array, "disk", folder)
    yield "embeddings, slices on the device", partial(embed, it, array, "device", folder)
    yield "fit, slices on the device, compiled", partial(fit, it, array, "device", fast=True)


def main() -> None:
    """Measure, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--small", action="store_true", help="tiny sizes; the default without a GPU")
    gpu = torch.cuda.is_available()
    small = parser.parse_args().small or not gpu
    silence_libraries()
    warnings.simplefilter("ignore")
    began, device = time.perf_counter(), torch.device("cuda", 0) if gpu else torch.device("cpu")
    it = setting(small, device)
    if not gpu:
        torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as scratch, ExitStack() as stack:
        if not gpu:  # the CPU passes for the device, so that the same code runs
            stack.enter_context(mock.patch.object(resident, "free_memory", return_value=(1 << 40, 1 << 40)))
        if small:  # tracing alone: compiling takes minutes
            stack.enter_context(mock.patch.object(torch, "compile", partial(torch.compile, backend="eager")))
        folder = Path(scratch)
        array = draw_store(folder, it.slices, it.config.data.image_size)
        name = torch.cuda.get_device_name(device) if gpu else "CPU, 1 thread: not run on a GPU"
        print(
            f"{name}; torch {torch.__version__}; {it.config.backbone.name}, {it.config.data.image_size} px, batches of"
        )
        print(f"{it.batch}, {it.config.trainer.precision}, {it.slices} slices, {it.rounds} rounds\n")
        print("| measured | slices/s | bare loop, slices/s | ratio |\n|---|---|---|---|", flush=True)
        for what, measure in rows(it, array, folder):
            if time.perf_counter() - began > SECONDS - LONGEST:
                print(f"| {what} | not run: no time left | | |")
                continue
            pairs = measure()[1:]
            ours, bare = (median(pair[side] for pair in pairs) for side in (0, 1))
            ratio = median(one / other for one, other in pairs)
            print(f"| {what} | {ours:,.0f} | {bare:,.0f} | {ratio:.2f} |", flush=True)
        print(f"\nA batch from the device equals that from the disk to the bit: {same_batches(it, array)}")
        if gpu and time.perf_counter() - began < SECONDS - LONGEST:
            start = time.perf_counter()
            size, rate = find_batch_size(it.config, build(it), dataset(it, array))
            print(
                f"trainer.find_batch_size: {size} slices, optimizer.lr={rate:.3g}, {time.perf_counter() - start:.0f} s"
            )
    print(f"Computed aim on an H200, ResNet-50 at 256 px: {AIM:,} slices/s in training, {SHARE:.2f} of the bare loop")
    print(f"{time.perf_counter() - began:.0f} s in all")


if __name__ == "__main__":
    main()
