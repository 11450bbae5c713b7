"""The run folder ``OUTPUT_DIR/NAME/HASH`` as it is made: state, lock, log, and where everything came from.

When a run has ended, ``provenance.json`` holds the SHA-256 of every file that later commands read; whoever reads one
compares it (:func:`problems`), and ``hemlearn train`` makes again what is missing or was changed.
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
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import cache, lru_cache
from importlib import metadata
from pathlib import Path
from typing import Any

from hemlearn import __version__
from hemlearn.util.documents import load_json, load_yaml
from hemlearn.util.errors import HemlearnError, RunBusyError, RunError
from hemlearn.util.files import cache_dir, now, sha256, write_json, write_text

logger = logging.getLogger(__name__)
_PACKAGES = (
    *("hemlearn", "torch", "torchvision", "pytorch-lightning", "timm", "hydra-core", "omegaconf", "monai"),
    *("torchmetrics", "kornia", "wandb", "numpy", "pandas", "scikit-learn"),
)
BEST, LAST = "checkpoints/best.ckpt", "checkpoints/last.ckpt"
READ = ("config.yaml", "split.csv", BEST, LAST, "predictions.parquet", "metrics.json", "calibration.json")
_NEEDED = ("config.yaml", "provenance.json", "split.csv", BEST, "predictions.parquet", "metrics.json")
AGAIN = "copy the run folder again, or train again"
_KEY = "run.key"


def checksums(path: Path) -> dict[str, str]:
    """SHA-256 of each file of a run folder that later commands read, by its name in the folder."""
    return {name: sha256(path / name) for name in READ if (path / name).is_file()}


def problems(path: Path, told: Mapping[str, str], names: Iterable[str] = READ) -> dict[str, str]:
    """What is wrong with files of a complete run, by their name: missing, empty, changed, or without a checksum.

    Args:
        path: The run folder.
        told: The checksums in its ``provenance.json``.
        names: The files looked at; one that is neither there nor told of is none of the run's.
    """
    found = {}
    for name in names:
        file = path / name
        if not file.is_file() or not file.stat().st_size:
            if name in told or name in _NEEDED:
                found[name] = "empty" if file.is_file() else "missing"
        elif name not in told:
            found[name] = "provenance.json holds no checksum of it"
        elif (digest := sha256(file)) != str(told[name]):
            found[name] = (
                f"changed after the run had ended (its SHA-256 is {digest[:12]}, provenance.json says "
                f"{str(told[name])[:12]})"
            )
    return found


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
            told = read_json(self.path / "provenance.json").get("files") or {}
        except RunError as error:
            return {"provenance.json": error.problem}
        return problems(self.path, told)

    def aside(self) -> RunFolder:
        """A hidden folder beside this one, in which a complete run is made anew (``force=true``)."""
        return RunFolder(self.path.parent.parent, self.path.parent.name, f".{self.hash}.anew")

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
            self._drop_damaged()
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

    def _drop_damaged(self) -> None:
        """Take away what a complete run cannot keep; without its checkpoints it trains from the start."""
        damaged = self.damaged()
        if BEST in damaged or LAST in damaged or "provenance.json" in damaged:
            damaged |= dict.fromkeys((BEST, LAST), "")
        for name in damaged:
            (self.path / name).unlink(missing_ok=True)

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
        return hmac.new(file.read_bytes(), config.read_bytes(), "sha256").hexdigest()
    except (OSError, HemlearnError) as error:
        logger.debug("%s is not signed: %s", config, error)
        return None


# --- its small files ---------------------------------------------------------------------------------------------


def read_json(file: Path, *, remedy: str = AGAIN) -> dict[str, Any]:
    """A JSON object.

    Raises:
        RunError: The file is missing, not JSON or no object.
    """
    try:
        content = load_json(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise RunError(f"{file}: cannot be read, or is damaged: {line(error)}", remedy=remedy) from error
    if not isinstance(content, dict):
        raise RunError(f"{file}: not a JSON object", remedy=remedy)
    return content


def parse_yaml(text: str) -> dict[str, Any]:
    """Parse a block-style mapping, such as ``config.yaml``.

    Runs of one sweep share most of their lines, so each top-level section is parsed once and remembered.

    Raises:
        ValueError: The text is not a YAML mapping.
    """
    if not any(mark in text for mark in ("&", "*", "\t", "---", "%")):
        sections: list[list[str]] = []
        for line in text.splitlines(keepends=True):
            if sections and (line[:1] in " #-\n" or not line.strip()):
                sections[-1].append(line)
            else:
                sections.append([line])
        try:
            parts = [_section("".join(lines)) for lines in sections]
        except ValueError:
            parts = []
        keys = [key for part in parts for key in part]
        if parts and all(len(part) == 1 for part in parts) and len(set(keys)) == len(keys):
            return {key: value for part in parts for key, value in part.items()}
    return _section(text)


@lru_cache(maxsize=4096)
def _section(text: str) -> dict[str, Any]:
    content = load_yaml(text)
    if not isinstance(content, dict):
        raise ValueError("not a YAML mapping")
    return content


def line(error: BaseException) -> str:
    """An error's message in one line."""
    return " ".join(str(error).split())[:300] or type(error).__name__
