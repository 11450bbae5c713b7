"""Two processes on one machine, started by each launcher that a cluster has: their run is that of one process.

One process takes two batches for each step, which is what two processes take together; without dropout, augmentation
and statistics of a batch both follow the same gradients up to rounding. ``python -m tests.attack.launchers`` tries
every launcher with every kind of run.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from hemlearn.phantom.layouts import write_phantom
from hemlearn.phantom.slab import Grid

GRID = Grid(rows=48, cols=48, pixel_mm=4.8, slices=8, thickness_mm=18, samples=1)
BASE = (
    "data=ct_ich",
    "task=subtypes",
    "data.image_size=32",
    "data.batch_size=8",
    "split.val_fraction=0.3",
    "split.test_fraction=0.3",
    "split.seed=22",  # 80 slices of 10 series train: equal shares for two processes, whole batches
    "backbone.name=test_efficientnet",
    "backbone.pretrained=false",
    "augmentation=none",
    "optimizer.schedule.warmup_epochs=0",
    "trainer.max_epochs=2",
    "trainer.threads=1",
    "task.threshold=0.5",
    "logger=csv",
)
_LSTM = ("sequence=lstm", "sequence.hidden=8", "sequence.layers=1", "sequence.dropout=0", "sequence.series_per_batch=5")
KINDS = {
    "head": ("freeze=head",),
    "cached": (*_LSTM, "freeze=head"),
    "end_to_end": (*_LSTM, "freeze=none", "freeze.freeze_batchnorm=true"),
}
TWO = ("trainer.accelerator=cpu", "trainer.strategy=ddp")
TOLERANCE = 2e-5  # of probabilities: float32 sums in another order, over some steps
_SCHEDULERS = ("SLURM_", "TORCHELASTIC_", "LOCAL_RANK", "NODE_RANK", "GROUP_RANK", "RANK", "WORLD_SIZE", "MASTER_")


def data(folder: Path) -> Path:
    """A CT-ICH phantom of few, small slices."""
    write_phantom("ct_ich", folder, patients=20, seed=3, grid=GRID)
    return folder


def command(kind: str, root: Path, output_dir: Path) -> list[str]:
    """The words after ``hemlearn`` of a run of this kind."""
    return ["train", f"data.root={root}", f"output_dir={output_dir}", *BASE, *KINDS[kind]]


def _port() -> str:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return str(free.getsockname()[1])


def started_by(launcher: str, words: Sequence[str]) -> list[tuple[list[str], dict[str, str]]]:
    """The command line and the variables of each process that a user or a scheduler starts."""
    hemlearn, port = ["-m", "hemlearn", *words, *TWO], _port()
    if launcher == "one":
        return [([sys.executable, "-m", "hemlearn", *words, "trainer.accumulate_grad_batches=2"], {})]
    if launcher == "lightning":
        return [([sys.executable, *hemlearn, "trainer.devices=2"], {"MASTER_PORT": port})]
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--master-addr=127.0.0.1", f"--master-port={port}"]
    if launcher == "torchrun":
        return [([*torchrun, "--nproc-per-node=2", *hemlearn, "trainer.devices=2"], {})]
    if launcher == "torchrun_two_nodes":
        node = [*torchrun, "--nproc-per-node=1", "--nnodes=2"]
        return [([*node, f"--node-rank={rank}", *hemlearn, "trainer.num_nodes=2"], {}) for rank in (0, 1)]
    assert launcher == "slurm"
    slurm = {"SLURM_JOB_ID": "77", "SLURM_JOB_NAME": "train", "SLURM_NTASKS": "2", "SLURM_NTASKS_PER_NODE": "2"}
    slurm |= {"SLURM_NNODES": "1", "SLURM_NODEID": "0", "SLURM_NODELIST": "localhost"}
    slurm |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    return [
        ([sys.executable, *hemlearn, "trainer.devices=2"], slurm | {"SLURM_PROCID": rank, "SLURM_LOCALID": rank})
        for rank in ("0", "1")
    ]


LAUNCHERS = ("lightning", "torchrun", "torchrun_two_nodes", "slurm")


def launch(launcher: str, words: Sequence[str], cwd: Path, more: Mapping[str, str], limit: float = 240) -> list[str]:
    """Start the processes, wait for all of them, and give back what each has printed.

    Raises:
        AssertionError: One has failed, or none has ended within ``limit`` seconds.
    """
    clean = {key: value for key, value in os.environ.items() if not key.startswith(_SCHEDULERS)}
    clean |= {"OMP_NUM_THREADS": "1", **more}
    until = time.monotonic() + limit
    logs = [cwd / f"{launcher}{number}.log" for number in range(2)]
    running = []
    for (line, variables), log in zip(started_by(launcher, words), logs, strict=False):
        with log.open("w", encoding="utf-8") as stream:
            running.append(
                subprocess.Popen(line, cwd=cwd, env=clean | variables, stdout=stream, stderr=subprocess.STDOUT)
            )
    try:
        codes = [process.wait(max(until - time.monotonic(), 0.1)) for process in running]
    except subprocess.TimeoutExpired:
        raise AssertionError(f"{launcher}: not done after {limit:g} s\n{logs[0].read_text()[-2000:]}") from None
    finally:
        for process in running:
            process.kill()
    printed = [log.read_text(encoding="utf-8") for log in logs[: len(running)]]
    assert not any(codes), f"{launcher}: ended with {codes}\n" + "\n".join(text[-2000:] for text in printed)
    return printed


def finished(output_dir: Path) -> Path:
    """The one run folder, complete, of one writer.

    Raises:
        AssertionError: There are more, or it is not whole.
    """
    (folder,) = [file.parent for file in output_dir.glob("*/*/status.json")]
    assert json.loads((folder / "status.json").read_text())["state"] == "complete"
    assert not list(folder.rglob("*.part.*"))
    assert sorted(path.name for path in folder.parent.iterdir()) == [folder.name]
    epochs = [line for line in (folder / "train.log").read_text().splitlines() if "epoch " in line and "val/" in line]
    assert len(epochs) == 2, "each epoch is told once, by one process"
    curve = pd.read_csv(folder / "csv" / "metrics.csv")
    assert curve["val/log_loss"].notna().sum() == 2
    return folder


def compare(two: Path, one: Path) -> float:
    """The largest difference between the probabilities of two finished runs that shall be the same.

    Raises:
        AssertionError: Slices are missing or there twice, or predictions, metrics or curves differ.
    """
    found, wanted = (pd.read_parquet(folder / "predictions.parquet") for folder in (two, one))
    assert found["slice_id"].is_unique
    assert found["slice_id"].tolist() == wanted["slice_id"].tolist()
    assert (two / "split.csv").read_bytes() == (one / "split.csv").read_bytes()
    names = [name for name in wanted if str(name).startswith(("prob_", "series_prob_", "label_", "z_mm"))]
    np.testing.assert_allclose(found[names].to_numpy(float), wanted[names].to_numpy(float), atol=TOLERANCE)
    scores, known = (json.loads((folder / "metrics.json").read_text())["test"] for folder in (two, one))
    for level, values in known.items():
        for name in ("log_loss", "brier"):
            if isinstance(values.get(name), dict):
                np.testing.assert_allclose(scores[level][name]["value"], values[name]["value"], atol=10 * TOLERANCE)
                assert scores[level][name]["n"] == values[name]["n"]
    curves = [pd.read_csv(folder / "csv" / "metrics.csv") for folder in (two, one)]
    for name in ("val/log_loss", "train/loss"):
        lines = [curve[name].dropna().to_numpy() for curve in curves]
        np.testing.assert_allclose(lines[0], lines[1], atol=10 * TOLERANCE)
    probs = [name for name in names if str(name).startswith("prob_")]
    moved = wanted[probs].to_numpy(float)
    assert np.ptp(moved) > 20 * TOLERANCE, "a run that predicts alike everywhere would agree with anything"
    return float(np.abs(found[probs].to_numpy(float) - moved).max())


def one_process(kind: str, root: Path, folder: Path) -> Path:
    """The run folder of one process."""
    cache = {"HEMLEARN_CACHE": str(folder / "cache")}
    launch("one", command(kind, root, folder / "one" / kind), folder, cache)
    return finished(folder / "one" / kind)


def try_launcher(launcher: str, kind: str, root: Path, folder: Path, one: Path) -> float:
    """Train with two processes and hold the run against that of one; the largest difference of a probability."""
    place = folder / f"{launcher}_{kind}"
    cache = {"HEMLEARN_CACHE": str(folder / f"cache_{launcher}_{kind}")}  # nothing made by others
    place.mkdir()
    printed = launch(launcher, command(kind, root, place), folder, cache)
    for text in printed:
        assert "Traceback" not in text, text[-2000:]
        assert "ERROR" not in text, text[-2000:]
    return compare(finished(place), one)


def main() -> int:
    """Try everything; 1 where something differs."""
    faults = 0
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        root = data(folder / "data")
        for kind in KINDS:
            one = one_process(kind, root, folder)
            for launcher in LAUNCHERS:
                start = time.monotonic()
                try:
                    verdict = f"right, largest difference {try_launcher(launcher, kind, root, folder, one):.1e}"
                except AssertionError as error:
                    faults, verdict = faults + 1, f"FAULT {error}"
                print(f"{launcher:20} {kind:12} {time.monotonic() - start:5.1f} s  {verdict}", flush=True)
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
