"""The run folder ``OUTPUT_DIR/NAME/HASH`` as it is made: state, lock, log, and where everything came from.

``hemlearn train`` makes again what is missing or was changed (:mod:`hemlearn.util.run_files` says how that is seen).
``status.json``, written last, is signed; by the checksums in it and in ``provenance.json`` that covers every file.
"""

from __future__ import annotations

import json
import logging
import os
import shlex
import shutil
import sys
import traceback
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import cache, cached_property
from importlib import metadata
from pathlib import Path
from typing import Any

from hemlearn import __version__
from hemlearn.util import interrupts
from hemlearn.util.documents import dump_yaml
from hemlearn.util.errors import HemlearnError, Pruned, RunError
from hemlearn.util.files import (
    cache_dir,
    full_disk,
    known_sha256,
    now,
    remove_drafts,
    sha256,
    whole_file,
    write_json,
    write_text,
    writing,
)
from hemlearn.util.notes import note
from hemlearn.util.privacy import Pseudonyms
from hemlearn.util.run_files import (
    BEST,
    LAST,
    PROVENANCE,
    READ,
    STATUS,
    UNSEALED,
    checkpoint_signature,
    is_ours,
    kept,
    let_go,
    own_checkpoints,
    parse_yaml,
    problems,
    read_json,
    read_provenance,
    signature,
)
from hemlearn.util.secrets import masked

logger = logging.getLogger(__name__)
_PACKAGES = (
    *("hemlearn", "torch", "torchvision", "pytorch-lightning", "timm", "hydra-core", "omegaconf", "monai"),
    *("torchmetrics", "kornia", "wandb", "numpy", "pandas", "scikit-learn"),
)
_WRITTEN = (".lock", "train.log", "checkpoints", "figures")  # what is opened where it lies; other files are replaced
_SEAL = ("provenance", "before", "signature", "hash")  # keys of status.json that are written anew
_UNSIGNED = (
    "changed since, written under another run.key (see README), or by an earlier version of hemlearn, which signed none"
)


class _Log(logging.FileHandler):
    """A run does not end because its log cannot be written; what fills the disk is told by the run itself."""

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 - logging's own name
        if not isinstance(sys.exc_info()[1], OSError):
            super().handleError(record)


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
        self._lock: Any = None
        self._checkpoints: dict[str, str] = {}  # signatures of those that have their names
        self._sign = True

    @cached_property
    def names(self) -> Pseudonyms:
        """The pseudonyms of the run's log and of what trackers are sent."""
        return Pseudonyms(self.path)

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
        """What is wrong with a run that has ended once: file -> problem; empty while it is being made."""
        status = self.status()
        if (run := status.get("hash", self.hash)) != self.hash:
            return {STATUS: f"of run {run}, not of {self.hash}: copied over it"}
        complete = status.get("state") == "complete"
        if not complete and not (self.path / PROVENANCE).exists():
            return {}
        try:
            provenance = read_provenance(self.path, sealed=False)
            found = problems(self.path, provenance) if complete or provenance.get("files") else {}
            # What a run that goes on has lost is told, and made, where it is wanted.
            return found if complete else {n: told for n, told in found.items() if told not in ("empty", "missing")}
        except RunError as error:
            return {PROVENANCE: error.problem}

    @contextmanager
    def alone(self) -> Iterator[bool]:
        """Hold the folder against other processes that make the same run; yields whether one had to be waited for.

        Raises:
            RunError: The folder cannot be written.
        """
        from filelock import FileLock, Timeout

        for name in _WRITTEN:
            if (self.path / name).is_symlink():
                raise RunError(
                    f"{self.path / name}: a link: what the run writes would land elsewhere", remedy="delete the link"
                )
        waited = False
        with writing(self.path, "choose a writable folder with output_dir=DIR"):
            self.path.mkdir(parents=True, exist_ok=True)
            if self._lock is None:
                self._lock = FileLock(self.path / ".lock")
            try:
                self._lock.acquire(timeout=0)
            except Timeout:
                waited = True
                logger.info("%s: process %s makes this run; waiting", self.path, self.status().get("pid", "unknown"))
                self._lock.acquire()
        try:
            yield waited
        finally:
            self._lock.release()

    def aside(self) -> RunFolder:
        """A hidden folder beside this one, in which a complete run is made anew (``force=true``)."""
        made = RunFolder(self.path.parent.parent, self.path.parent.name, f".{self.hash}.anew")
        made.hash = self.hash  # what is written down there stays true when it takes this one's place
        return made

    def take(self, anew: RunFolder) -> None:
        """Put the complete run of :meth:`aside` in place of the old one."""
        shutil.rmtree(self._old, ignore_errors=True)
        self.path.rename(self._old)
        self.finish_taking(anew)

    def finish_taking(self, anew: RunFolder) -> None:
        """Do what a killed :meth:`take` has left undone; nothing where none was."""
        if not self._old.exists():
            return
        if not self.path.exists():
            anew.path.rename(self.path)
        shutil.rmtree(self._old, ignore_errors=True)

    @property
    def _old(self) -> Path:
        return self.path.with_name(f".{self.hash}.old")

    def _write_status(self, **changes: Any) -> None:
        """Change ``status.json``; that of a complete run is sealed by the process that has made the run alone."""
        before = {key: value for key, value in self.status().items() if key not in _SEAL}
        status = {"hash": self.hash, "version": __version__, **before, **changes}
        if status["state"] == "complete" and (self.path / PROVENANCE).is_file():
            status["provenance"] = known_sha256(self.path / PROVENANCE)
            status["signature"] = signature(status) if self._sign else None
        write_json(self.path / STATUS, status, indent=2)

    @contextmanager
    def open(self, config: dict[str, Any]) -> Iterator[RunFolder]:
        """Hold the folder while the run is made: state ``running``, then ``complete``, ``failed`` or ``pruned``.

        The log file ``train.log`` receives everything logged meanwhile, and the traceback of a failure.

        Raises:
            RunError: The folder cannot be written.
        """
        with self.alone():
            note("folder", folder=str(self.path))
            checkpoints = self.path / "checkpoints"
            with writing(self.path, "choose a writable folder with output_dir=DIR"):
                checkpoints.mkdir(exist_ok=True)
                self.figures.mkdir(exist_ok=True)
                handler = _Log(self.path / "train.log", encoding="utf-8")
            self.names.show = bool(config.get("logger", {}).get("show_patient"))
            for key, name in (("root", "DATA"), ("cache_dir", "CACHE")):
                if place := config.get("data", {}).get(key):
                    self.names.place(place, name)
            handler.setFormatter(_Formatter(self.names))
            roots = [logging.getLogger(), *(logging.getLogger(n) for n in ("pytorch_lightning", "lightning.pytorch"))]
            roots = [item for item in roots if item.name == "root" or not item.propagate]
            for item in roots:
                item.addHandler(handler)
            try:
                remove_drafts(self.path, checkpoints, self.figures)
                for draft in checkpoints.glob(".*.ckpt"):
                    draft.unlink()
                self._drop_damaged()
                write_text(self.path / "config.yaml", dump_yaml(masked(config)))
                began = {"pid": os.getpid(), "started": now(), "finished": None, "error": None}
                told = {name: [own] for name, own in self._checkpoints.items()}
                self._write_status(state="running", **began, checkpoints=told)
                yield self
                interrupts.check()
                self._write_status(state="complete", finished=now())
                self.drop_let_go()
            except BaseException as error:
                self._fail(error, handler)
                known = isinstance(error, HemlearnError)
                if not known and (full := full_disk(error, RunError, self.path, cache_dir(None))) is not None:
                    raise full from error
                raise
            finally:
                for item in roots:
                    item.removeHandler(handler)
                handler.close()

    def _drop_damaged(self) -> None:
        """Take away what the run cannot keep; without its checkpoints it trains from the start.

        Those of an older run, whose provenance has no checksum, stay where they are what that says: it is not signed.
        """
        damaged = self.damaged()
        if self.status().get("state") != "complete":  # of a complete run that was told
            for name, problem in damaged.items():
                logger.warning("%s: %s: %s; it is made again", self.path, name, problem)
        if STATUS in damaged:
            damaged |= dict.fromkeys((*READ, PROVENANCE), "")
        self._checkpoints, others = own_checkpoints(self.path, self.hash)
        self._sign = not others or damaged.get(PROVENANCE) != UNSEALED
        if self._sign and (named := [name for name in others if name not in damaged]):
            told = ", ".join(named)
            logger.warning("%s: %s: no signature of yours fits: %s; trained from the start", self.path, told, _UNSIGNED)
            damaged |= dict.fromkeys(named, "")
        if BEST in damaged or LAST in damaged or damaged.get(PROVENANCE, UNSEALED) != UNSEALED:
            damaged |= dict.fromkeys((BEST, LAST), "")
        for name in damaged.keys() - {STATUS}:
            remove(self.path / name)
        self._checkpoints = {name: own for name, own in self._checkpoints.items() if name not in damaged}

    def announce(self, files: Iterable[Path], draft: Path) -> None:
        """Sign in ``status.json`` checkpoints that are about to get their names; those there stay signed until then.

        Args:
            files: The names.
            draft: The content of all of them.
        """
        names = [file.relative_to(self.path).as_posix() for file in files]
        digest = sha256(draft)
        made = {name: own for name in names if (own := checkpoint_signature(self.hash, name, digest)) is not None}
        told = {name: [*filter(None, (self._checkpoints.get(name), made.get(name)))] for name in (BEST, LAST)}
        self._write_status(checkpoints=told)
        self._checkpoints |= made

    def _fail(self, error: BaseException, log: logging.Handler) -> None:
        # The traceback goes into the run's own log alone; the command says to the user what he can do.
        pruned = isinstance(error, Pruned)
        text = f"run {self.hash}: {error}" if pruned else f"run {self.hash} failed:\n{traceback.format_exc()}"
        log.handle(logger.makeRecord(logger.name, logging.ERROR, __file__, 0, text, (), None))
        message = str(error) if isinstance(error, HemlearnError) else f"{type(error).__name__}: {error}"
        if (number := interrupts.received()) is not None:
            message = f"{interrupts.describe(number)}; the same command goes on from the last checkpoint"
        try:
            message = self.names.text(message)
            note("error", error=message)
            self._write_status(state="pruned" if pruned else "failed", finished=now(), error=message)
        except OSError as disk:  # a full disk must not hide the first error
            logger.error("%s: status could not be written (%s)", self.path, disk)

    def write_provenance(self, *, keep: str | None = "both", **facts: Any) -> None:
        """Write ``provenance.json``: what the run was made from, versions and the command.

        ``keep``: as ``checkpoints.keep``; the files are what they will stay, and their checksums are written down.
        None: the run has not ended.
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
        if keep is not None:
            content |= kept(self.path, keep)
        write_json(self.path / PROVENANCE, masked(content), indent=2, default=str)

    def drop_let_go(self) -> None:
        """Remove the checkpoints that a complete run does without."""
        for name in let_go(read_provenance(self.path).get("keep")):
            if (self.path / name).exists():
                (self.path / name).unlink()

    def make_whole(self) -> None:
        """Put into the checkpoints of a complete run what they leave out; the run stays the same to whoever names it.

        Raises:
            HemlearnError: The weights that it started from are not here or have changed; or the disk is full.
        """
        import torch

        from hemlearn.models.lean import make_whole
        from hemlearn.models.loading import KEY, read_checkpoint

        with self.alone():
            told = read_provenance(self.path)
            for file in (self.best, self.last):
                name = file.relative_to(self.path).as_posix()
                if name not in told["files"] or not file.is_file() or KEY not in (content := read_checkpoint(file)):
                    continue
                make_whole(content, file)
                with writing(file), whole_file(file) as draft:
                    torch.save(content, draft)
                    told["before"] = {name: told["files"][name], **(told.get("before") or {})}
                    told["files"][name] = sha256(draft)
                    # First: until the file has its name, the digest of the old one is known too.
                    self._reseal(told)
                logger.info("%s: holds all weights now", file)

    def _reseal(self, provenance: dict[str, Any]) -> None:
        """Change ``provenance.json`` of a complete run; until it has its name, that of the old one is told too."""
        text, status = json.dumps(provenance, indent=2) + "\n", self.status()
        status |= {"provenance": sha256(text), "before": status["provenance"]}
        status["signature"] = signature(status) if is_ours(self.path) else None
        write_json(self.path / STATUS, status, indent=2)
        write_text(self.path / PROVENANCE, text)


def remove(path: Path) -> None:
    """Take away a file, or a folder that somebody has put in its place."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


class _Formatter(logging.Formatter):
    """Lines of ``train.log``: a run's log is read by others, so it names no patient and no place."""

    def __init__(self, names: Pseudonyms) -> None:
        super().__init__("%(asctime)s %(levelname)s %(name)s: %(message)s")
        self.names = names

    def format(self, record: logging.LogRecord) -> str:
        return self.names.text(super().format(record))


def command_line(instead: Mapping[str, str] | None = None) -> str:
    """The command this process was started with, as a shell would read it; ``instead``: other values of some keys."""
    program, *arguments = sys.argv
    for index, text in enumerate(arguments):
        if (key := text.partition("=")[0]) in (instead or {}):
            arguments[index] = f"{key}={(instead or {})[key]}"
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
