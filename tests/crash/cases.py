"""The commands that are disturbed, and the data and runs that they need."""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.attack.session import SMALL, Session
from tests.forked import hemlearn, preload, spawn

MORE = (
    "onnx", "onnxscript", "onnxruntime", "torch.onnx", "torch.export", "torch._dynamo", "torch.utils.tensorboard",
    "torch.utils.data", "torch.onnx._internal.exporter._core", "statsmodels.api",
)  # fmt: skip


@dataclass(frozen=True)
class Case:
    """A command.

    Args:
        name: In the table.
        argv: The words after ``hemlearn``; relative paths are those of the try's own folder, which holds its cache too.
    """

    name: str
    argv: Sequence[str]


class Crashes(Session):
    """Data, runs, and commands that are forked from a process with all packages loaded."""

    def __init__(self, work: Path) -> None:
        super().__init__(work)
        preload(MORE)

    def cases(self) -> dict[str, Case]:
        """Draw the data, train the run that predict and export read."""
        heads, pictures = self.work / "ct", self.work / "pictures"
        if not pictures.exists():
            self.must(f"phantom layout=ct_ich_nifti out={heads} patients=8 seed=1".split())
            self.must(f"phantom layout=head_ct out={pictures} patients=100 seed=2".split())
            self.must(["train", "data=head_ct", f"data.root={pictures}", "name=known", *SMALL])
        run = next((self.work / "runs" / "known").glob("*/status.json")).parent
        ct = ["data=ct_ich", f"data.root={heads}", "task=subtypes", "channels=brain"]
        few = self.work / "few"
        if not few.exists():
            self.must(f"phantom layout=head_ct out={few} patients=16 seed=3".split())
        fit = [*SMALL, "logger=csv", "trainer.max_epochs=4"]
        lstm = ["sequence=lstm", "freeze=head", "sequence.hidden=8", "stage.experiment=null"]
        lstm += ["sequence.probabilities=none", "augmentation=none"]
        # A picture on whose network the extraction takes longer than everything else.
        slow = ["backbone.name=resnet18", "data.batch_size=8", "trainer.max_epochs=2"]
        found = [
            Case("prepare", ["prepare", *ct[:2], "data.image_size=192"]),
            Case("sweep", ["train", "-m", "data=head_ct", f"data.root={few}", "name=sweep", "seed=1,2,3", *fit]),
            Case("workers", ["train", "data=head_ct", f"data.root={few}", "name=one", *fit, "data.num_workers=2"]),
            Case("embeddings", ["train", *ct, "name=lstm", *fit, *lstm, *slow]),
            Case("predict", ["predict", f"run={run}", f"input={pictures / 'head_ct'}", "out=out"]),
            Case("export", ["export", f"run={run}", "out=model.onnx", "check=16", "overwrite=true"]),
        ]
        return {case.name: case for case in found}

    def start(self, case: Case, folder: Path, user: int = 0) -> int:
        """The process id of the case's command in a folder."""
        folder.mkdir(parents=True, exist_ok=True)
        logs = folder.with_name(f"{folder.name}.logs")
        logs.mkdir(exist_ok=True)

        def run() -> object:
            signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores it
            os.environ["HEMLEARN_CACHE"] = str(folder / "cache")
            if user:
                os.environ["HOME"] = "/"
                os.setgroups([])
                os.setgid(user)
                os.setuid(user)
            return hemlearn(case.argv)()

        with (logs / "stdout").open("ab") as out, (logs / "stderr").open("ab") as err:
            return spawn(run, folder, out, err)

    def wait(self, pid: int, seconds: float) -> None:
        """Return when a process and those that it has waited for have used so much processor time, or have ended."""
        while True:
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            if fields[0] == "Z" or sum(map(int, fields[11:15])) / os.sysconf("SC_CLK_TCK") >= seconds:
                return
            time.sleep(0.003)

    def finish(self, pid: int, seconds: float = 300) -> tuple[int, float]:
        """Exit status and seconds of processor time, of the process and of those that it has waited for."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            done, code, usage = os.wait4(pid, os.WNOHANG)
            if done:
                return os.waitstatus_to_exitcode(code), usage.ru_utime + usage.ru_stime
            time.sleep(0.005)
        os.killpg(pid, signal.SIGKILL)
        os.wait4(pid, 0)
        return 999, seconds


def moments(seed: int, count: int, seconds: float) -> list[tuple[float, ...]]:
    """When to strike, in seconds of processor time; each fourth try is struck twice."""
    draw = random.Random(seed)
    return [tuple(draw.uniform(0, seconds) for _ in range(2 if index % 4 == 3 else 1)) for index in range(count)]
