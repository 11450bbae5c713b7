"""The runs that cases predict with, and one case after the other in forked processes."""

from __future__ import annotations

import os
import re
import resource
import shutil
import signal
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.attack.case import Case, Outcome, Trained, Verdict, verdict
from tests.forked import hemlearn, preload, spawn

ENVIRONMENT = {
    "WANDB_MODE": "offline", "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": "", "COLUMNS": "200", "TERM": "dumb",
    "NO_COLOR": "1", "LC_ALL": "C.UTF-8", "TZ": "UTC", "PYTHONWARNINGS": "ignore", "OMP_NUM_THREADS": "1",
    "LOKY_MAX_CPU_COUNT": "1",
}  # fmt: skip
SPACE = 24 << 30  # bytes of address space; what is mapped but never touched counts too
SMALL = [
    "backbone.name=test_efficientnet",
    "backbone.pretrained=false",
    "data.image_size=64",
    "data.batch_size=16",
    "data.fit=letterbox",
    "trainer.max_epochs=1",
    "trainer.threads=1",
    "logger=none",
    "optimizer.schedule.warmup_epochs=0",
    "split.val_fraction=0.3",
    "split.test_fraction=0.3",
]

MADE = {  # the runs that cases work with: words of `train`
    "pictures": ["data=head_ct", "data.root=pictures", *SMALL],
    "ct": ["data=ct_ich", "task=subtypes", "channels=brain", "data.root=ct", *SMALL],
    "calibrated": ["data=head_ct", "data.root=pictures", *SMALL, "augmentation=none", "task.calibration=temperature"],
    "volumes": ["data=ct_ich", "task=subtypes", "channels=brain", "data.root=ct", *SMALL, "augmentation=none",
                "freeze=head", "sequence=mean"],
}  # fmt: skip
PHANTOMS = {"pictures": ("head_ct", 12, 1), "others": ("head_ct", 4, 2)}


@dataclass(frozen=True)
class Judged:
    """A case and its verdict."""

    kind: str
    name: str
    verdict: Verdict
    fault: str
    seconds: float
    command: str


class Session:
    """Packages loaded, phantoms written, runs trained.

    Args:
        work: An empty folder.
    """

    def __init__(self, work: Path) -> None:
        self.work = work
        work.mkdir(parents=True, exist_ok=True)
        os.environ.update(ENVIRONMENT, HEMLEARN_CACHE=str(work / "cache"))
        preload()

    def make(self) -> Trained:
        """Train what the cases predict with.

        Raises:
            RuntimeError: A command failed.
        """
        for name, (layout, patients, seed) in PHANTOMS.items():
            self.must(f"phantom layout={layout} out={name} patients={patients} seed={seed}".split())
        drawn = self.call(coarse_heads, self.work, seconds=600)
        if drawn.status:
            raise RuntimeError(drawn.err)
        runs = {}
        for name, words in MADE.items():
            self.must(["train", *words, f"name={name}"])
            runs[name] = next((self.work / "runs" / name).glob("*/status.json")).parent
        return Trained(self.work, runs)

    def must(self, argv: Sequence[str]) -> Outcome:
        """Run a command that has to succeed."""
        got = self.call(hemlearn(argv), self.work, seconds=600)
        if got.status:
            raise RuntimeError(f"hemlearn {' '.join(argv)} ended with {got.status}:\n{got.out}{got.err}")
        return got

    def call(
        self, target: Callable[[], object], folder: Path, *, seconds: float, trained: Trained | None = None
    ) -> Outcome:
        """Run in a forked process, with a limit of time and of memory."""
        out, err = folder / "stdout.log", folder / "stderr.log"
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

        def limited() -> object:
            resource.setrlimit(resource.RLIMIT_AS, (SPACE, SPACE))
            resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
            return target()

        with out.open("wb") as told, err.open("wb") as wrong:
            pid = spawn(limited, folder, told, wrong)
            status, usage = _wait(pid, seconds)
        texts = [file.read_text("utf-8", errors="backslashreplace") for file in (out, err)]
        peak = usage.ru_maxrss * 1024 - before
        seconds = usage.ru_utime + usage.ru_stime
        return Outcome(folder, status, *texts, peak, seconds, trained or Trained(self.work, {}))

    def judge(self, case: Case, trained: Trained, keep: bool = False) -> Judged:
        """Build, run, judge; the folder of a fault stays."""
        folder = self.work / "cases" / case.kind / re.sub(r"\W+", "_", case.name)
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        try:
            argv = list(case.build(folder, trained))
        except Exception as error:  # noqa: BLE001  # a case that cannot be built tests nothing: it counts as a fault
            return Judged(case.kind, case.name, Verdict.FAULT, f"not built: {error!r}"[:300], 0.0, "")
        with _Environment({"HEMLEARN_CACHE": str(folder / "cache"), **case.environment}):
            target = pixels_of(argv) if case.pixels else hemlearn(argv)
            got = self.call(target, folder, seconds=case.seconds, trained=trained)
        try:
            found, fault = verdict(case, got)
        except Exception as error:  # noqa: BLE001  # what a judge cannot read, a user cannot either
            found, fault = Verdict.FAULT, f"not judged: {error!r}"[:300]
        if found is not Verdict.FAULT and not keep:
            shutil.rmtree(folder, ignore_errors=True)
        return Judged(case.kind, case.name, found, fault, got.seconds, " ".join(argv))


def coarse_heads() -> object:
    """``ct``: eight volumes, coarse as the networks see them, and drawn six times as fast."""
    from hemlearn.phantom.layouts import write_phantom
    from hemlearn.phantom.slab import Grid

    grid = Grid(rows=96, cols=96, pixel_mm=2.4, samples=1)
    write_phantom("ct_ich_nifti", Path("ct"), patients=8, seed=1, grid=grid)
    return 0


def pixels_of(argv: Sequence[str]) -> Callable[[], object]:
    """``hemlearn index ...``, then what it has decoded, as ``pixels.npz``: array (N, S, S), path, frame, z_mm."""

    def run() -> object:
        from hemlearn.__main__ import main

        status = main(list(argv))
        if status == 0:
            import numpy as np

            from hemlearn.config.compose import compose
            from hemlearn.training.build import build_datamodule

            data = build_datamodule(compose([word for word in argv[1:] if not word.startswith("out=")]))
            table = data.manifest.table
            columns = {name: table[name].to_numpy() for name in ("path", "frame", "z_mm")}
            columns["path"] = columns["path"].astype(str)
            np.savez(Path("pixels.npz"), array=data.store.array, unit=data.store.unit, **columns)
        return status

    return run


def _wait(pid: int, seconds: float) -> tuple[int | None, resource.struct_rusage]:
    """Exit status and usage; None: the process and all that it had started were killed."""
    end = time.monotonic() + seconds
    pause = 0.005
    while time.monotonic() < end:
        done, code, usage = os.wait4(pid, os.WNOHANG)
        if done:
            _kill(pid)
            return os.waitstatus_to_exitcode(code), usage
        time.sleep(pause)
        pause = min(2 * pause, 0.05)
    _kill(pid)
    return None, os.wait4(pid, 0)[2]


def _kill(group: int) -> None:
    try:
        os.killpg(group, signal.SIGKILL)
    except ProcessLookupError:
        return


class _Environment:
    """Variables for the time of one case."""

    def __init__(self, variables: dict[str, str]) -> None:
        self.variables = variables

    def __enter__(self) -> None:
        self.before = {name: os.environ.get(name) for name in self.variables}
        os.environ.update(self.variables)

    def __exit__(self, *_: object) -> None:
        for name, value in self.before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def progress(text: str) -> None:
    """To the terminal alone."""
    print(text, file=sys.stderr, flush=True)
