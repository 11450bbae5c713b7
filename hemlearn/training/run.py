"""The run folder ``OUTPUT_DIR/NAME/HASH``: :class:`RunFolder` writes it, :class:`Run` is the one door to it.

A stranger's run is data: its configuration is read as plain YAML, ``${...}`` is never resolved, checkpoints are read
without unpickling code, and code outside hemlearn that it names is imported only where the run was made by this user
(its provenance is signed with a key in the cache folder) or ``trust`` is set.
"""

from __future__ import annotations

import hmac
import json
import logging
import os
import secrets
import shlex
import shutil
import sys
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import cache, cached_property, lru_cache
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from hemlearn import __version__
from hemlearn.config.schema import MONITORS
from hemlearn.util.documents import load_json, load_yaml
from hemlearn.util.errors import ConfigError, HemlearnError, RunBusyError, RunError, WeightsError
from hemlearn.util.files import cache_dir, now, sha256, write_json, write_text

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd
    from numpy.typing import NDArray

    from hemlearn.config.schema import Config
    from hemlearn.data.splits import Split
    from hemlearn.evaluation.calibration import Calibration
    from hemlearn.tasks.base import Classification

logger = logging.getLogger(__name__)
_PACKAGES = (
    *("hemlearn", "torch", "torchvision", "pytorch-lightning", "timm", "hydra-core", "omegaconf", "monai"),
    *("torchmetrics", "kornia", "wandb", "numpy", "pandas", "scikit-learn"),
)
_FILES = ("config.yaml", "provenance.json", "split.csv", "checkpoints/best.ckpt", "predictions.parquet", "metrics.json")
_RESULTS = {"predictions": "predictions.parquet", "metrics": "metrics.json"}  # key of its checksum -> file
_AGAIN = "copy the run folder again, or train again"
_KEY = "run.key"
MODALITY_OF = {"ct": "CT", "mr": "MR"}  # channels.kind -> DICOM (0008,0060)


def damaged_files(path: Path) -> list[str]:
    """Files of a complete run that are missing or empty, and ``metrics.json`` when it is not JSON."""
    lost = [name for name in _FILES if not (path / name).is_file() or not (path / name).stat().st_size]
    if "metrics.json" not in lost:
        try:
            json.loads((path / "metrics.json").read_text(encoding="utf-8"))
        except ValueError:
            lost.append("metrics.json")
    return lost


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
        return self.path / "checkpoints" / "best.ckpt"

    @property
    def last(self) -> Path:
        """Checkpoint after the newest finished epoch."""
        return self.path / "checkpoints" / "last.ckpt"

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
        damaged = damaged_files(self.path)
        if damaged:
            logger.warning("%s: complete, but without %s: made again from what is left", self.path, ", ".join(damaged))
        return not damaged

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
        message = str(error) if isinstance(error, HemlearnError) else f"{type(error).__name__}: {error}"
        try:
            self._write_status(state="failed", finished=now(), error=message)
        except OSError as disk:  # a full disk must not hide the first error
            logger.error("%s: status could not be written (%s)", self.path, disk)

    def write_provenance(self, **facts: Any) -> None:
        """Write ``provenance.json``: what the run was made from, versions, the command, and this user's signature."""
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
        if (signature := _signature(file, make=True)) is not None:
            content["signature"] = signature
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


def _signature(config: Path, *, make: bool = False) -> str | None:
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


# --- reading ------------------------------------------------------------------------------------------------------


def read_json(file: Path, *, remedy: str = _AGAIN) -> dict[str, Any]:
    """A JSON object.

    Raises:
        RunError: The file is missing, not JSON or no object.
    """
    try:
        content = load_json(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise RunError(f"{file}: cannot be read, or is damaged: {_line(error)}", remedy=remedy) from error
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


class Run:
    """A run folder; each of its files is read on first use, so that ten thousand runs are listed in seconds.

    Args:
        path: ``OUTPUT_DIR/NAME/HASH``.
        trust: Import code outside hemlearn that the run names, although it was made elsewhere.

    >>> Run("runs/head_ct/0123456789ab")
    Run('runs/head_ct/0123456789ab')
    """

    def __init__(self, path: str | Path, trust: bool = False) -> None:
        self.path = Path(path)
        self.trust = trust

    def __repr__(self) -> str:
        return f"Run({self.shown!r})"

    @property
    def shown(self) -> str:
        """Its name in messages: the path as the user gave it."""
        return self.path.as_posix()

    # --- small files ---
    @cached_property
    def status(self) -> dict[str, Any]:
        """Content of ``status.json``; empty where there is none."""
        file = self.path / "status.json"
        return read_json(file) if file.exists() else {}

    @property
    def hash(self) -> str:
        """Name of the run: a digest of everything that determines its result."""
        return str(self.status.get("hash") or self.path.name)

    @cached_property
    def settings(self) -> dict[str, Any]:
        """Content of ``config.yaml`` as it stands there: ``${...}`` is text.

        Raises:
            RunError: The file is missing or not a YAML mapping.
        """
        file = self.path / "config.yaml"
        try:
            return parse_yaml(file.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise RunError(f"{file}: {str(error).splitlines()[0]}", remedy=_AGAIN) from error

    @cached_property
    def config(self) -> Config:
        """The typed configuration.

        Raises:
            RunError: ``config.yaml`` is damaged, or of another version of hemlearn.
        """
        from hemlearn.config.schema import from_dict

        file, (problem, remedy) = self.path / "config.yaml", self._another_version
        try:
            return from_dict(self.settings)
        except (ConfigError, RunError, AttributeError, TypeError) as error:
            raise RunError(f"{file}: {problem}, or damaged: {_line(error)}", remedy=remedy) from error

    @property
    def _another_version(self) -> tuple[str, str]:
        made = self.status.get("version", "unknown")
        return (
            f"of another version of hemlearn ({made}, this is {__version__})",
            "predict with the version in provenance.json, or train again",
        )

    @cached_property
    def metrics(self) -> dict[str, Any]:
        """Content of ``metrics.json``."""
        return read_json(self.path / "metrics.json")

    @cached_property
    def provenance(self) -> dict[str, Any]:
        """Content of ``provenance.json``, empty when there is none."""
        file = self.path / "provenance.json"
        return read_json(file) if file.exists() else {}

    @property
    def thresholds(self) -> dict[str, dict[str, float]]:
        """Level -> label -> operating point chosen on validation; no labels in multiclass tasks."""
        points: dict[str, dict[str, Any]] = self.metrics.get("thresholds", {})
        return {level: {label: float(item["value"]) for label, item in own.items()} for level, own in points.items()}

    @property
    def assumed(self) -> dict[str, set[str]]:
        """Level -> labels whose operating point is a default, because validation held no case of a class."""
        points: dict[str, dict[str, Any]] = self.metrics.get("thresholds", {})
        return {level: {label for label, item in own.items() if item.get("note")} for level, own in points.items()}

    @cached_property
    def calibration(self) -> Calibration | None:
        """Maps fitted on the validation patients; None where the run has none."""
        from hemlearn.evaluation.calibration import Calibration

        file = self.path / "calibration.json"
        return Calibration.from_dict(read_json(file)) if file.is_file() else None

    @cached_property
    def split(self) -> Split:
        """Which patients trained, validated and tested it (``split.csv``)."""
        from hemlearn.data.splits import Split

        return Split.load(self.path / "split.csv")

    def card(self, export: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """Content of its model card, ready for ``json.dump``; ``export``: what is said of an exported file."""
        from hemlearn.reports.model_card import model_card

        return model_card(
            {"name": self.path.parent.name, "hash": self.path.name},
            self.settings,
            self.metrics,
            self.status,
            self.provenance,
            None if self.calibration is None else self.calibration.to_dict(),
            self.split.assignment["split"].value_counts() if (self.path / "split.csv").is_file() else None,
            export,
        )

    # --- results ---
    @cached_property
    def predictions(self) -> pd.DataFrame:
        """Rows of ``predictions.parquet``: validation and test (see :meth:`read_predictions`)."""
        return self.read_predictions()

    def read_predictions(self, splits: Sequence[str] | None = None, *, check: bool = True) -> pd.DataFrame:
        """Rows of ``predictions.parquet``; None: of all splits. ``check``: refuse results that were changed later.

        Raises:
            RunError: The file is damaged or was changed after the run.
        """
        from hemlearn.evaluation.predictions import read_predictions

        if check:
            self.check_files()
        return read_predictions(self.path / "predictions.parquet", splits)

    def check_files(self) -> None:
        """Compare the files that carry results with the checksums the run wrote down; runs without them pass.

        Raises:
            RunError: A file was changed after the run had ended.
        """
        sums = self.provenance.get("checksums") or {}
        for key, name in _RESULTS.items():
            if (made := sums.get(key)) is None:
                continue
            try:
                found = sha256(self.path / name)
            except OSError as error:
                raise RunError(f"{self.path / name}: {error.strerror}", remedy=_AGAIN) from error
            if found != str(made):
                raise RunError(
                    f"{self.path / name}: changed after the run had ended (its SHA-256 is {found[:12]}, "
                    f"provenance.json says {str(made)[:12]})",
                    remedy="delete that run folder and train it again",
                )

    @cached_property
    def history(self) -> pd.DataFrame:
        """One row per epoch: ``epoch``, ``train/loss`` and the validation metrics."""
        import pandas as pd

        states = _checkpoint(self.path / "checkpoints" / "last.ckpt").get("callbacks", {})
        return pd.DataFrame(next((state["history"] for state in states.values() if "history" in state), []))

    @property
    def spacing_mm(self) -> float:
        """Median distance of slices in the run's own data, mm; NaN where positions are unknown."""
        frame = self.read_predictions(check=False)[["series_id", "z_mm"]]
        steps = frame.sort_values(["series_id", "z_mm"]).groupby("series_id")["z_mm"].diff()
        return float(steps[steps > 0].median())

    # --- the network ---
    @property
    def unit(self) -> str:
        """Unit of the intensities it was trained on: ``HU``, ``signal`` or ``display``."""
        return str(self.model.hparams["unit"])

    @property
    def modality(self) -> str:
        """``CT`` or ``MR``: what it has learnt from; "" where its pictures did not say, or both were among them."""
        kind = MODALITY_OF[self.config.channels.kind]
        known = self.provenance.get("data", {}).get("modality", [kind])  # older runs took pictures for CT
        return str(known[0]) if known in (["CT"], ["MR"]) else "" if kind == "CT" else kind

    @property
    def of_series(self) -> bool:
        """Whether it has a model over the slices of a series."""
        sequence = self.settings.get("sequence") or {}
        return bool(sequence.get("_target_") or sequence.get("name", "none") != "none")

    @cached_property
    def model(self) -> Classification:
        """The LightningModule with the best checkpoint's weights, in evaluation mode; on the CPU when first read.

        Raises:
            RunError: The run is not finished, or a file of it is missing, damaged or of another version.
        """
        from hemlearn.training.build import load_task

        self.check()
        config = self.config
        file, (problem, remedy) = self.path / "checkpoints" / "best.ckpt", self._another_version
        content = _checkpoint(file)
        try:
            return load_task(content, config)
        except (KeyError, TypeError, RuntimeError, ConfigError) as error:
            raise RunError(f"{file}: {problem}: {_line(error)}", remedy=remedy) from error

    def check(self) -> Run:
        """Refuse a run that cannot predict; returns itself.

        Raises:
            RunError: It is not finished, a file is missing, or it names code that is not trusted or has changed.
        """
        state = self.status.get("state", "no run folder")
        damaged = damaged_files(self.path) if state == "complete" else []
        if state != "complete" or damaged:
            lost = f", without {', '.join(damaged)}" if damaged else ""
            raise RunError(f"run={self.path}: {state}{lost}", remedy="give OUTPUT_DIR/NAME/HASH of a finished run")
        self._check_code()
        return self

    def _check_code(self) -> None:
        """Refuse code outside hemlearn that was named by somebody else, is not installed, or has changed."""
        from hemlearn.plugins import fingerprints, load_plugins, untrusted_targets

        named, told = untrusted_targets(self.settings), self.provenance.get("code") or {}
        if not named and not told:
            return
        signed = _signature(self.path / "config.yaml")
        ours = signed is not None and hmac.compare_digest(signed, str(self.provenance.get("signature", "")))
        if named and not (self.trust or ours):
            raise RunError(
                f"run={self.path}: made elsewhere, and it names code outside hemlearn's parts: {', '.join(named)}",
                remedy="read that code; trust=true imports it",
            )
        remedy = "install what provenance.json names under `code`, or train again"
        try:
            load_plugins(map(str, self.settings.get("plugins") or ()))
            found = fingerprints(self.settings)
        except ConfigError as error:
            problem = f"run={self.path}: code that it names cannot be imported: {error.problem}"
            raise RunError(problem, remedy=remedy) from error
        for name, made in told.items():
            is_now = found.get(name, {})
            if is_now.get("sha256") != made.get("sha256"):
                then, now = made.get("version", "unknown"), is_now.get("version", "unknown")
                which = "" if then == now else f" (version {then} then, {now} now)"
                raise RunError(f"run={self.path}: {name} has changed since the run{which}", remedy=remedy)

    def predict(self, source: str | Path, *, calibrated: bool = False, device: str = "auto") -> pd.DataFrame:
        """Probabilities of a DICOM, NIfTI or picture file, a folder, an archive or a table of files.

        Args:
            source: As ``hemlearn predict input=``; of each study the axial head series is taken.
            calibrated: Apply the run's calibration.
            device: auto, cpu or cuda.

        Returns:
            One row per slice: patient_id, study_id, series_id, slice_id, path, frame, z_mm (mm) and ``prob_<label>``.

        Raises:
            DataError: Nothing can be predicted.
        """
        from hemlearn.reading.predict import predict_frame

        return predict_frame(self, Path(source), calibrated=calibrated, device=device)

    def embed(self, source: str | Path, *, device: str = "auto") -> NDArray[np.float32]:
        """Backbone embeddings ``(N, D)`` of the slices that :meth:`predict` lists, in its order."""
        from hemlearn.reading.predict import embed_input

        return embed_input(self, Path(source), device=device)


def load(path: str | Path, *, trust: bool = False) -> Run:
    """A finished run.

    Args:
        path: ``OUTPUT_DIR/NAME/HASH``, or ``OUTPUT_DIR/NAME/best`` or ``.../latest``.
        trust: Import code outside hemlearn that the run names, although it was made elsewhere.

    Raises:
        RunError: No finished run, or one that names code which is not trusted, not installed or has changed.
    """
    return Run(pick_run(Path(path).expanduser()), trust).check()


def load_runs(paths: Sequence[Path], *, trust: bool = False) -> list[Run]:
    """Load the runs of an ensemble.

    Raises:
        ConfigError: No run, or one given twice.
        RunError: See :func:`load`; or the runs predict different labels.
    """
    if not paths:
        raise ConfigError("run is not set", remedy="give run=OUTPUT_DIR/NAME/HASH, several joined by commas")
    runs: list[Run] = []
    for path in paths:
        run = load(path, trust=trust)
        _ = run.model, run.metrics, run.provenance
        same = [other.path for other in runs if other.hash == run.hash]
        if same:
            raise ConfigError(f"run={path}: the same run as {same[0]} ({run.hash})", remedy="name every run once")
        runs.append(run)
    first = runs[0].config
    for run in runs[1:]:
        task, known = run.config.task, first.task
        if (task.kind, list(task.labels), task.level) != (known.kind, list(known.labels), known.level):
            raise RunError(
                f"run={run.path}: {task.kind} {', '.join(task.labels)} (labels of a {task.level}), but "
                f"{runs[0].path}: {known.kind} {', '.join(known.labels)} (of a {known.level})",
                remedy="average runs of one task; predict with the others separately",
            )
        for key, own, other, remedy in (
            ("modality", run.modality, runs[0].modality, "average runs of one modality"),
            ("channels.kind", run.config.channels.kind, first.channels.kind, "average runs of one modality"),
            ("data.band", run.config.data.band, first.data.band, "average runs of the same slices"),
            ("data.geometry", run.config.data.geometry, first.data.geometry, "average runs of the same slices"),
        ):
            if own != other:
                raise RunError(f"run={run.path}: {key}={own}, but {runs[0].path} has {other}", remedy=remedy)
    return runs


def pick_run(path: Path) -> Path:
    """``DIR/best`` (monitored validation metric) or ``DIR/latest`` as one of the finished runs below DIR.

    Raises:
        RunError: DIR holds no finished run.
    """
    if path.name not in ("best", "latest") or path.exists() or not path.parent.is_dir():
        return path
    found = [Run(file.parent) for file in sorted(path.parent.rglob("status.json"))]
    found = [run for run in found if run.status.get("state") == "complete" and (run.path / "metrics.json").is_file()]
    if path.name == "best":
        found = [run for run in found if _objective(run) is not None]
    if not found:
        raise RunError(f"run={path}: no finished run in {path.parent}", remedy="train one, or name another folder")
    if path.name == "best":
        return max(found, key=lambda run: cast(float, _objective(run))).path
    return max(found, key=lambda run: str(run.status.get("finished"))).path


def _objective(run: Run) -> float | None:
    """The monitored metric on validation, larger being better."""
    task = run.settings.get("task") or {}
    name = str(task.get("monitor", "log_loss")).replace("last", "log_loss")
    level = "series" if task.get("level") == "series" else "slice"
    value = run.metrics.get("val", {}).get(level, {}).get(name, {}).get("value")
    mode = MONITORS.get(name) or run.metrics.get("monitor", {}).get("mode")
    return None if value is None else float(value) * (1 if mode == "max" else -1)


def _checkpoint(file: Path) -> dict[str, Any]:
    from hemlearn.models.loading import read_checkpoint

    try:
        content: dict[str, Any] = read_checkpoint(file)
    except WeightsError as error:
        raise RunError(f"{error.problem}; it is damaged", remedy=_AGAIN) from error
    return content


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__
