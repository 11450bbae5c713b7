"""The run folder ``OUTPUT_DIR/NAME/HASH``: who writes it, what state it is in, where its files are."""

from __future__ import annotations

import json
import logging
import os
import shlex
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

from hemlearn import __version__
from hemlearn.util.errors import HemlearnError, RunBusyError, RunError
from hemlearn.util.files import now, write_json, write_text

logger = logging.getLogger(__name__)
_PACKAGES = (
    "hemlearn",
    "torch",
    "torchvision",
    "pytorch-lightning",
    "timm",
    "hydra-core",
    "omegaconf",
    "monai",
    "torchmetrics",
    "kornia",
    "wandb",
    "numpy",
    "pandas",
    "scikit-learn",
)

_FILES = ("config.yaml", "provenance.json", "split.csv", "checkpoints/best.ckpt", "predictions.parquet", "metrics.json")


class RunFolder:
    """One run's folder and its state.

    Args:
        output_dir: Root of all runs.
        name: Name of the experiment or sweep.
        run_hash: See :func:`hemlearn.config.identity.run_hash`.
    """

    def __init__(self, output_dir: str | Path, name: str, run_hash: str) -> None:
        self.path = Path(output_dir) / name / run_hash
        self.hash = run_hash

    # --- where things are ---
    @property
    def best(self) -> Path:
        """Checkpoint with the best monitored validation metric."""
        return self.path / "checkpoints" / "best.ckpt"

    @property
    def last(self) -> Path:
        """Checkpoint after the newest finished epoch."""
        return self.path / "checkpoints" / "last.ckpt"

    @property
    def figures(self) -> Path:
        """Folder of PNG figures."""
        return self.path / "figures"

    # --- state ---
    def status(self) -> dict[str, Any]:
        """Content of ``status.json``; empty before the first start."""
        file = self.path / "status.json"
        if not file.exists():
            return {}
        try:
            content = json.loads(file.read_text(encoding="utf-8"))
        except (json.JSONDecodeError, UnicodeDecodeError) as error:
            raise RunError(f"{file}: not JSON ({error})", remedy="delete that run folder and train again") from error
        if not isinstance(content, dict):
            raise RunError(f"{file}: not an object", remedy="delete that run folder and train again")
        return content

    @property
    def is_complete(self) -> bool:
        """Whether the run ended well and its files are there; such a run is never repeated."""
        if self.status().get("state") != "complete":
            return False
        damaged = self.damaged()
        if damaged:
            logger.warning("%s: complete, but without %s: made again from what is left", self.path, ", ".join(damaged))
        return not damaged

    def damaged(self) -> list[str]:
        """Files of a complete run that are missing or empty, and ``metrics.json`` when it is not JSON."""
        lost = [name for name in _FILES if not (self.path / name).is_file() or not (self.path / name).stat().st_size]
        if "metrics.json" not in lost:
            try:
                json.loads((self.path / "metrics.json").read_text(encoding="utf-8"))
            except ValueError:
                lost.append("metrics.json")
        return lost

    def _write_status(self, **changes: Any) -> None:
        status = {"hash": self.hash, "version": __version__, **self.status(), **changes}
        write_json(self.path / "status.json", status, indent=2)

    @contextmanager
    def open(self, config: dict[str, Any]) -> Iterator[RunFolder]:
        """Hold the folder while the run is made: state ``running``, then ``complete`` or ``failed``.

        The log file ``train.log`` receives everything logged meanwhile, and the traceback of a failure.

        Raises:
            RunError: The folder cannot be written, or another process is making the same run.
        """
        from filelock import FileLock, Timeout
        from omegaconf import OmegaConf

        try:
            (self.path / "checkpoints").mkdir(parents=True, exist_ok=True)
            self.figures.mkdir(exist_ok=True)
            lock = FileLock(self.path / ".lock", timeout=0)
            lock.acquire()
            handler = logging.FileHandler(self.path / "train.log", encoding="utf-8")
        except Timeout as error:
            owner = self.status().get("pid", "unknown")
            raise RunBusyError(
                f"{self.path}: process {owner} is making this run now", remedy="wait for it, or stop it"
            ) from error
        except OSError as error:
            raise RunError(
                f"{self.path}: cannot be written ({error.strerror})",
                remedy="choose a writable folder with output_dir=DIR",
            ) from error
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
        roots = [logging.getLogger(), *(logging.getLogger(n) for n in ("pytorch_lightning", "lightning.pytorch"))]
        roots = [item for item in roots if item.name == "root" or not item.propagate]
        for item in roots:
            item.addHandler(handler)
        try:
            write_text(self.path / "config.yaml", OmegaConf.to_yaml(OmegaConf.create(config), sort_keys=False))
            self._write_status(state="running", pid=os.getpid(), started=now(), finished=None, error=None)
            yield self
            self._write_status(state="complete", finished=now())
        except BaseException as error:
            self._fail(error, handler)
            raise
        finally:
            for item in roots:
                item.removeHandler(handler)
            handler.close()
            lock.release()

    def _fail(self, error: BaseException, log: logging.Handler) -> None:
        # The traceback goes into the run's own log alone; the command says to the user what he can do.
        text = f"run {self.hash} failed:\n{traceback.format_exc()}"
        log.handle(logger.makeRecord(logger.name, logging.ERROR, __file__, 0, text, (), None))
        kind = type(error).__name__
        message = str(error) if isinstance(error, HemlearnError) else f"{kind}: {error}"
        try:
            self._write_status(state="failed", finished=now(), error=message)
        except OSError as disk:  # a full disk must not hide the first error
            logger.error("%s: status could not be written (%s)", self.path, disk)

    def write_provenance(self, **facts: Any) -> None:
        """Write ``provenance.json``: what the run was made from, beside versions and the command."""
        content = {
            "command": command_line(),
            "git_commit": git_commit(),
            "python": sys.version.split()[0],
            "packages": versions(),
            **facts,
        }
        write_json(self.path / "provenance.json", content, indent=2, default=str)


def command_line() -> str:
    """The command this process was started with, as a shell would read it."""
    program, *arguments = sys.argv
    name = "hemlearn" if Path(program).name in ("hemlearn", "__main__.py") else program
    return shlex.join([name, *arguments])


@cache
def versions() -> dict[str, str]:
    """Installed versions of the packages that can change a result."""
    installed = {}
    for name in _PACKAGES:
        try:
            installed[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            installed[name] = "not installed"
    return installed


@cache
def git_commit() -> str | None:
    """Commit of the checkout hemlearn runs from (``-dirty`` when changed), None outside a checkout."""
    import subprocess

    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():
        return None
    try:
        call = ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
        return subprocess.run(call, capture_output=True, text=True, check=True, timeout=20).stdout.strip()
    except (OSError, subprocess.SubprocessError) as error:
        logger.warning("git commit of %s is unknown: %s", root, error)
        return None
