"""The commands that are disturbed, and the data and runs that they need."""

from __future__ import annotations

import hmac
import json
import os
import random
import shutil
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
PICTURES = 200  # that predict is killed at
KEY_FILE = "pseudonyms.key"


@dataclass(frozen=True)
class Case:
    """A command.

    Args:
        name: In the table.
        argv: The words after ``hemlearn``; relative paths are those of the try's own folder, which holds its cache too.
        pseudonyms: Files are named by them, so that they can be compared under one key alone.
    """

    name: str
    argv: Sequence[str]
    pseudonyms: bool = False


class Crashes(Session):
    """Data, runs, and commands that are forked from a process with all packages loaded."""

    def __init__(self, work: Path) -> None:
        super().__init__(work)
        preload(MORE)

    def cases(self) -> dict[str, Case]:
        """Draw the data, train the run that predict and export read."""
        heads, pictures = self.phantom("ct_ich_nifti", 8, 1), self.phantom("head_ct", PICTURES, 2)
        run = self.run("known", ["data=head_ct", f"data.root={pictures}"])
        ct = ["data=ct_ich", f"data.root={heads}", "task=subtypes", "channels=brain"]
        few = self.phantom("head_ct", 16, 3)
        fit = [*SMALL, "logger=csv", "trainer.max_epochs=4"]
        two = ["trainer.accelerator=cpu", "trainer.strategy=ddp", "trainer.devices=2"]
        lstm = ["sequence=lstm", "freeze=head", "sequence.hidden=8", "stage.experiment=null"]
        lstm += ["sequence.probabilities=none", "augmentation=none"]
        # A picture on whose network the extraction takes longer than everything else.
        slow = ["backbone.name=resnet18", "data.batch_size=8", "trainer.max_epochs=2"]
        found = [
            Case("prepare", ["prepare", *ct[:2], "data.image_size=192"]),
            Case("sweep", ["train", "-m", "data=head_ct", f"data.root={few}", "name=sweep", "seed=1,2,3", *fit]),
            Case("workers", ["train", "data=head_ct", f"data.root={few}", "name=one", *fit, "data.num_workers=2"]),
            Case("ddp", ["train", "data=head_ct", f"data.root={few}", "name=two", *fit, *two]),
            Case("embeddings", ["train", *ct, "name=lstm", *fit, *lstm, *slow]),
            Case("predict", ["predict", f"run={run}", f"input={pictures / 'head_ct'}", "out=out"]),
            Case("export", ["export", f"run={run}", "out=model.onnx", "check=16", "overwrite=true"]),
        ]
        return {case.name: case for case in found}

    def phantom(self, layout: str, patients: int, seed: int) -> Path:
        """A data set, drawn where it is not there yet."""
        folder = self.work / f"{layout}{patients}"
        if not folder.exists():
            self.must(f"phantom layout={layout} out={folder} patients={patients} seed={seed}".split())
        return folder

    def run(self, name: str, words: Sequence[str]) -> Path:
        """The folder of a finished run, trained where it is not there yet."""
        if not (self.work / "runs" / name).exists():
            self.must(["train", *words, f"name={name}", *SMALL])
        return next((self.work / "runs" / name).glob("*/status.json")).parent

    def start(self, case: Case, folder: Path) -> int:
        """The process id of the case's command in a folder."""
        folder.mkdir(parents=True, exist_ok=True)
        logs = folder.with_name(f"{folder.name}.logs")
        logs.mkdir(exist_ok=True)
        own, salt = folder / "cache/run.key", "0" * 64
        if not own.exists() and os.access(folder, os.W_OK):  # of the user who has made the run that it reads
            own.parent.mkdir(exist_ok=True)
            shutil.copy(self.work / "cache/run.key", own)
            if case.pseudonyms:
                sign = hmac.new(own.read_bytes(), f"pseudonyms\0{salt}".encode(), "sha256")
                (folder / KEY_FILE).write_text(json.dumps({"salt": salt, "signature": sign.hexdigest()}) + "\n")

        def run() -> object:
            signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores it
            os.environ["HEMLEARN_CACHE"] = str(folder / "cache")
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

    def gone(self, group: int, seconds: float = 20) -> bool:
        """Whether all that a command had started ends within so many seconds."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            try:
                os.killpg(group, 0)
            except ProcessLookupError:
                return True
            time.sleep(0.02)
        return False


def moments(seed: int, count: int, seconds: float) -> list[tuple[float, ...]]:
    """When to strike, in seconds of processor time; each fourth try is struck twice."""
    draw = random.Random(seed)
    return [tuple(draw.uniform(0, seconds) for _ in range(2 if index % 4 == 3 else 1)) for index in range(count)]
