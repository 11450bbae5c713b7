"""The run folder ``OUTPUT_DIR/NAME/HASH`` as it is made: state, lock, log, and where everything came from.

``hemlearn train`` makes again what is missing or was changed (:mod:`hemlearn.util.run_files` says how that is seen).
"""

from __future__ import annotations

import hmac
import logging
import os
import secrets
import shlex
import shutil
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

from hemlearn import __version__
from hemlearn.util.documents import dump_yaml, read_document
from hemlearn.util.errors import HemlearnError, RunBusyError, RunError
from hemlearn.util.files import cache_dir, now, write_json, write_text
from hemlearn.util.run_files import BEST, LAST, STATUS, checksums, parse_yaml, problems, read_json, read_provenance

logger = logging.getLogger(__name__)
_PACKAGES = (
    *("hemlearn", "torch", "torchvision", "pytorch-lightning", "timm", "hydra-core", "omegaconf", "monai"),
    *("torchmetrics", "kornia", "wandb", "numpy", "pandas", "scikit-learn"),
)
_KEY = "run.key"
_WRITTEN = (".lock", "train.log", "checkpoints", "figures")  # what is opened where it lies; other files are replaced


class RunFolder:
    """The folder of a run that is being made, and its state.

    Args:
        output_dir: Root of all runs.
        name: Name of the experiment or sweep.
        run_hash: See :func:`hemlearn.config.identity.run_hash`.

    >>> RunFolder("runs", "head_ct", "0123456789ab").best.as_posix()
    'runs/head_ct/0123456789ab/checkpoints/best.ckpt'
    """

    def __init__(self, output_dir: str | Path, name: str, run_hash: str) -> None:
        self.path = Path(output_dir) / name / run_hash
        self.hash = run_hash

    @property
    def best(self) -> Path:
        """Checkpoint with the best monitored validation metric."""
        return self.path / BEST

    @property
    def last(self) -> Path:
        """Checkpoint after the newest finished epoch."""
        return self.path / LAST

    @property
    def figures(self) -> Path:
        """Folder of PNG figures."""
        return self.path / "figures"

    def status(self) -> dict[str, Any]:
        """Content of ``status.json``; empty before the first start."""
        file = self.path / "status.json"
        return read_json(file, remedy="delete that run folder and train again") if file.exists() else {}

    @property
    def is_complete(self) -> bool:
        """Whether the run ended well and its files are there; such a run is never repeated."""
        if self.status().get("state") != "complete":
            return False
        damaged = self.damaged()
        for name, problem in damaged.items():
            logger.warning("%s: complete, but %s: %s; it is made again", self.path, name, problem)
        return not damaged

    def damaged(self) -> dict[str, str]:
        """What is wrong with a complete run: file -> problem; empty while it is being made."""
        if self.status().get("state") != "complete":
            return {}
        try:
            return problems(self.path, read_provenance(self.path))
        except RunError as error:
            return {"provenance.json": error.problem}

    def aside(self) -> RunFolder:
        """A hidden folder beside this one, in which a complete run is made anew (``force=true``)."""
        made = RunFolder(self.path.parent.parent, self.path.parent.name, f".{self.hash}.anew")
        made.hash = self.hash  # what is written down there stays true when it takes this one's place
        return made

    def take(self, anew: RunFolder) -> None:
        """Put the complete run of :meth:`aside` in place of the old one."""
        old = self.path.with_name(f".{self.hash}.old")
        shutil.rmtree(old, ignore_errors=True)
        self.path.rename(old)
        anew.path.rename(self.path)
        shutil.rmtree(old, ignore_errors=True)
        self._write_status(hash=self.hash)

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

        for name in _WRITTEN:
            if (self.path / name).is_symlink():
                raise RunError(
                    f"{self.path / name}: a link: what the run writes would land elsewhere", remedy="delete the link"
                )
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
            self._drop_damaged()
            write_text(self.path / "config.yaml", dump_yaml(config))
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

    def _drop_damaged(self) -> None:
        """Take away what a complete run cannot keep; without its checkpoints it trains from the start."""
        damaged = self.damaged()
        if BEST in damaged or LAST in damaged or "provenance.json" in damaged:
            damaged |= dict.fromkeys((BEST, LAST), "")
        for name in damaged:
            if (file := self.path / name).is_dir() and not file.is_symlink():
                shutil.rmtree(file)
            elif name != STATUS:
                file.unlink(missing_ok=True)

    def _fail(self, error: BaseException, log: logging.Handler) -> None:
        # The traceback goes into the run's own log alone; the command says to the user what he can do.
        text = f"run {self.hash} failed:\n{traceback.format_exc()}"
        log.handle(logger.makeRecord(logger.name, logging.ERROR, __file__, 0, text, (), None))
        message = str(error) if isinstance(error, HemlearnError) else f"{type(error).__name__}: {error}"
        try:
            self._write_status(state="failed", finished=now(), error=message)
        except OSError as disk:  # a full disk must not hide the first error
            logger.error("%s: status could not be written (%s)", self.path, disk)

    def write_provenance(self, *, ended: bool = True, **facts: Any) -> None:
        """Write ``provenance.json``: what the run was made from, versions, the command, and this user's signature.

        ``ended``: the files are what they will stay, and their checksums are written down.
        """
        content = {
            "hash": self.hash,
            "command": command_line(),
            "git_commit": git_commit(),
            "python": sys.version.split()[0],
            "packages": versions(),
            **facts,
        }
        file = self.path / "config.yaml"
        if file.is_file() and (code := _fingerprints(file)):
            content["code"] = code
        if (signed := signature(file, make=True)) is not None:
            content["signature"] = signed
        if ended:
            content["files"] = checksums(self.path)
        write_json(self.path / "provenance.json", content, indent=2, default=str)


def command_line() -> str:
    """The command this process was started with, as a shell would read it."""
    program, *arguments = sys.argv
    name = "hemlearn" if Path(program).name in ("hemlearn", "__main__.py") else program
    return shlex.join([name, *arguments])


@cache
def versions() -> dict[str, str]:
    """Installed versions of the packages that can change a result."""
    installed = dict.fromkeys(_PACKAGES, "not installed")
    for name in _PACKAGES:
        with suppress(metadata.PackageNotFoundError):
            installed[name] = metadata.version(name)
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


def _fingerprints(config: Path) -> dict[str, dict[str, str]]:
    from hemlearn.plugins import fingerprints

    return fingerprints(parse_yaml(config.read_text(encoding="utf-8")))


def signature(config: Path, *, make: bool = False) -> str | None:
    """HMAC of a run's ``config.yaml``, which names the code that it needs, under this user's key."""
    try:
        file = cache_dir(None) / _KEY
        if make and not file.exists():
            part = file.with_name(f".{_KEY}.{os.getpid()}")
            part.touch(mode=0o600)
            part.write_bytes(secrets.token_bytes(32))
            with suppress(FileExistsError):  # another process was faster: its key counts
                os.link(part, file)
            part.unlink()
        return hmac.new(file.read_bytes(), read_document(config).encode(), "sha256").hexdigest()
    except (OSError, ValueError, HemlearnError) as error:
        logger.debug("%s is not signed: %s", config, error)
        return None
