""":class:`Run`, the one door to a run folder that is there (:mod:`hemlearn.training.folder` says how one is made).

A stranger's run is data: its configuration is read as plain YAML, ``${...}`` is never resolved, checkpoints are read
without unpickling code; code outside hemlearn that it names is imported, and a folder that it names is read, only where
the run was made by this user (``status.json`` is signed with a key in the cache folder) or ``trust`` is set.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from hemlearn import __version__
from hemlearn.config.schema import MONITORS, NETWORKS_3D
from hemlearn.util.documents import read_document
from hemlearn.util.errors import ConfigError, RunError, WeightsError
from hemlearn.util.privacy import shown
from hemlearn.util.run_files import (
    AGAIN,
    ALL,
    LAST,
    PROVENANCE,
    REMADE,
    UNSIGNED,
    is_ours,
    line,
    misplaced,
    parse_yaml,
    problems,
    read_json,
    read_provenance,
    signs,
    tested,
)

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd
    from numpy.typing import NDArray

    from hemlearn.config.schema import Config
    from hemlearn.data.splits import Split
    from hemlearn.evaluation.calibration import Calibration
    from hemlearn.tasks.base import Classification

logger = logging.getLogger(__name__)
MODALITY_OF = {"ct": "CT", "mr": "MR"}  # channels.kind -> DICOM (0008,0060)
_WEIGHTS = "the command in provenance.json with force=true checkpoints.keep=both trains it again"


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
            return parse_yaml(read_document(file))
        except (OSError, ValueError) as error:
            raise RunError(f"{file}: {str(error).splitlines()[0]}", remedy=AGAIN) from error

    @cached_property
    def config(self) -> Config:
        """The typed configuration.

        Raises:
            RunError: ``config.yaml`` was changed after the run, or is of another version of hemlearn.
        """
        from hemlearn.config.schema import from_dict

        file, (problem, remedy) = self.path / "config.yaml", self._another_version
        self.verify("config.yaml")
        try:
            found = from_dict(self.settings)
            # Somebody else's run does not say where files are written on this machine.
            return found if self.ours else found.changed({"data.cache_dir": None, "data.cache_limit": None})
        except (ConfigError, RunError, AttributeError, TypeError) as error:
            raise RunError(f"{file}: {problem}: {line(error)}", remedy=remedy) from error

    @property
    def _another_version(self) -> tuple[str, str]:
        made = self.status.get("version", "unknown")
        if made == __version__:
            return "edited or damaged", AGAIN
        return (
            f"of another version of hemlearn ({made}, this is {__version__}), or damaged",
            "predict with the version in provenance.json, or train again",
        )

    @cached_property
    def metrics(self) -> dict[str, Any]:
        """Content of ``metrics.json``."""
        self.verify("metrics.json")
        return read_json(self.path / "metrics.json")

    @cached_property
    def provenance(self) -> dict[str, Any]:
        """Content of ``provenance.json``; empty where a run that is not complete has none.

        Raises:
            RunError: It is missing, damaged, or not what the run wrote when it ended.
        """
        there = self.status.get("state") == "complete" or (self.path / PROVENANCE).exists()
        return read_provenance(self.path) if there else {}

    def checksum(self, what: str) -> str:
        """Checksum of what it was made from: manifest, split or store.

        Raises:
            RunError: The provenance does not say; whoever asks cannot tell then whether something has changed.
        """
        found = (self.provenance.get("checksums") or {}).get(what)
        if not found:
            raise RunError(f"{self.path / 'provenance.json'}: holds no checksum of the run's {what}", remedy=AGAIN)
        return str(found)

    @cached_property
    def points(self) -> dict[str, dict[str, dict[str, Any]]]:
        """Level -> label -> operating point chosen on validation, as ``metrics.json`` describes it.

        Raises:
            RunError: A label has none, or one that is no probability.
        """
        from hemlearn.evaluation.metrics import operating_points

        try:
            return operating_points(self.metrics, self.settings.get("task") or {})
        except ValueError as error:
            raise RunError(f"{self.path / 'metrics.json'}: {error}", remedy=AGAIN) from error

    @property
    def thresholds(self) -> dict[str, dict[str, float]]:
        """Level -> label -> operating point; no labels in multiclass tasks."""
        return {level: {c: float(item["value"]) for c, item in own.items()} for level, own in self.points.items()}

    @property
    def assumed(self) -> dict[str, set[str]]:
        """Level -> labels whose operating point is a default, because validation held no case of a class."""
        return {level: {c for c, item in own.items() if item.get("note")} for level, own in self.points.items()}

    @cached_property
    def triage(self) -> dict[str, dict[str, dict[str, Any]]]:
        """Level -> label -> cuts of triage (:mod:`hemlearn.evaluation.triage`); empty where it was not asked for.

        Raises:
            RunError: A label has none.
        """
        from hemlearn.evaluation.triage import triage_cuts

        try:
            return triage_cuts(self.metrics, self.config.task.labels)
        except (ValueError, AttributeError) as error:
            raise RunError(f"{self.path / 'metrics.json'}: {error}", remedy=AGAIN) from error

    @cached_property
    def calibration(self) -> Calibration | None:
        """Maps fitted on the validation patients; None where the run has none."""
        from hemlearn.evaluation.calibration import Calibration

        self.verify("calibration.json")
        file = self.path / "calibration.json"
        if not file.is_file():
            return None
        found, task = Calibration.from_dict(read_json(file), str(file)), self.config.task
        if (found.kind, list(found.labels)) != (task.kind, task.labels):
            told = f"{found.kind} {', '.join(found.labels)}, but config.yaml of {task.kind} {', '.join(task.labels)}"
            raise RunError(f"{file}: of {told}", remedy=AGAIN)
        return found

    @cached_property
    def split(self) -> Split:
        """Which patients trained, validated and tested it (``split.csv``)."""
        from hemlearn.data.splits import Split

        self.verify("split.csv")
        return Split.load(self.path / "split.csv")

    def card(self, export: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """Content of its model card, ready for ``json.dump``; ``export``: what is said of an exported file."""
        from hemlearn.reports.model_card import model_card

        card = model_card(
            {"name": self.path.parent.name, "hash": self.path.name},
            self.settings,
            self.metrics,
            self.status,
            self.provenance,
            None if self.calibration is None else self.calibration.to_dict(),
            self.split.assignment["split"].value_counts() if (self.path / "split.csv").is_file() else None,
            export,
        )
        return dict(shown(card))

    @cached_property
    def ours(self) -> bool:
        """Whether this user made it, and its provenance and configuration are what he signed when it ended."""
        return is_ours(self.path)

    @property
    def misplaced(self) -> str:
        """What is wrong with a run in a folder that is named as another; "" where nothing is."""
        return misplaced(self.path, self.hash)

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
            self.verify("config.yaml", "predictions.parquet")
        return read_predictions(self.path / "predictions.parquet", splits)

    def problems(self, *names: str) -> dict[str, str]:
        """What is wrong with files of it (all where none is named): file -> missing, empty, changed, no checksum.

        Of a run whose provenance is not what it wrote nothing else can be told.
        """
        try:
            return problems(self.path, self.provenance, names or ALL)
        except RunError as error:
            return {PROVENANCE: error.problem.removeprefix(f"{self.path / PROVENANCE}: ")}

    def verify(self, *names: str) -> None:
        """Compare files with the checksums that the run wrote down when it ended.

        Raises:
            RunError: One is missing, empty, has no checksum or was changed since.
        """
        for name, problem in self.problems(*names).items():
            raise RunError(f"{self.path / name}: {problem}", remedy=REMADE)

    @cached_property
    def history(self) -> pd.DataFrame:
        """One row per epoch: ``epoch``, ``train/loss`` and the validation metrics."""
        import pandas as pd

        self.verify(LAST)
        if not (self.path / LAST).is_file():
            raise RunError(f"{self.path / LAST}: was not kept", remedy=_WEIGHTS)
        states = _checkpoint(self.path / LAST).get("callbacks", {})
        return pd.DataFrame(next((state["history"] for state in states.values() if "history" in state), []))

    @property
    def spacing_mm(self) -> float:
        """Median distance of slices in the run's own data, mm; NaN where positions are unknown."""
        frame = self.read_predictions()[["series_id", "z_mm"]]
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
        """Whether it has an output of whole series: a model over their slices, or a 3D network."""
        sequence, backbone = (self.settings.get(group) or {} for group in ("sequence", "backbone"))
        if backbone.get("name") in NETWORKS_3D and not backbone.get("_target_"):
            return True
        return bool(sequence.get("_target_") or sequence.get("name", "none") != "none")

    @property
    def weights(self) -> Path:
        """The checkpoint with the weights that were tested.

        Raises:
            RunError: It was not kept.
        """
        if (name := tested(self.provenance)) is None:
            told = f"keeps predictions and metrics, not the weights (checkpoints.keep={self.provenance.get('keep')})"
            raise RunError(f"run={self.path}: {told}", remedy=_WEIGHTS)
        return self.path / name

    @cached_property
    def model(self) -> Classification:
        """The LightningModule with the best checkpoint's weights, in evaluation mode; on the CPU when first read.

        Raises:
            RunError: The run is not finished, or a file of it is missing, damaged or of another version.
        """
        from hemlearn.training.build import load_task

        self.check()
        config = self.config
        file, (problem, remedy) = self.weights, self._another_version
        content = _checkpoint(file)
        self._make_whole(content)
        try:
            return load_task(content, config, file)
        except WeightsError as error:
            raise RunError(error.problem, remedy=AGAIN) from error
        except (KeyError, TypeError, ValueError, AttributeError, RuntimeError, ConfigError) as error:
            raise RunError(f"{file}: {problem}: {line(error)}", remedy=remedy) from error

    def frozen_layers(self) -> str:
        """What its checkpoint leaves out, in words; "" where it holds everything, or was not kept.

        Raises:
            RunError: The checkpoint is damaged, or what it leaves out is not here or has changed.
        """
        from hemlearn.models.loading import KEY

        if tested(self.provenance) is None:
            return ""
        content = _checkpoint(self.weights)
        if not (isinstance(content, dict) and KEY in content):
            return ""
        self._make_whole(content)
        return f"those of {self.provenance.get('weights')}, as they were; checkpoints.whole=true puts them into the run"

    def _make_whole(self, content: Any) -> None:
        from hemlearn.models.lean import make_whole

        try:
            make_whole(content, self.weights, trust=self.trust)
        except WeightsError as error:
            raise RunError(error.problem, remedy=error.remedy) from error

    def check(self) -> Run:
        """Refuse a run that cannot predict; returns itself.

        Raises:
            RunError: It is not finished, a file is missing or was changed, or it names code that is not trusted or has
                changed.
        """
        if (state := self.status.get("state", "no run folder")) != "complete":
            raise RunError(f"run={self.path}: {state}", remedy="give OUTPUT_DIR/NAME/HASH of a finished run")
        if told := self.provenance.get("pretraining"):
            raise RunError(
                f"run={self.path}: pretraining ({told}), which predicts nothing",
                remedy=f"train from its weights: hemlearn train backbone.weights={self.path}",
            )
        self.verify()
        self.check_code()
        return self

    def check_code(self) -> None:
        """Refuse code or an address that somebody else named, and code that is not installed or has changed."""
        from hemlearn.models.weights import is_address
        from hemlearn.plugins import fingerprints, load_plugins, untrusted_targets

        backbone = self.settings.get("backbone")
        name = str(backbone.get("name")) if isinstance(backbone, dict) else ""
        if is_address(name) and not (self.trust or self.ours):  # building it would read that folder, or ask the hub
            raise RunError(
                f"run={self.path}: made elsewhere, and its backbone is described at {name}",
                remedy="trust=true looks there",
            )
        named, told = untrusted_targets(self.settings), self.provenance.get("code") or {}
        if not named and not told:
            return
        if named and not (self.trust or self.ours):
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
        for name in found:
            if name not in told:
                problem = f"{self.path / 'provenance.json'}: does not say which {name} the run was made with"
                raise RunError(problem, remedy=AGAIN)
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
    run = _load(path, trust)
    _tell([run])
    return run


def _load(path: str | Path, trust: bool) -> Run:
    return Run(pick_run(Path(path).expanduser()), trust).check()


def unsigned(runs: Sequence[Run]) -> str:
    """What is said of the finished runs that this user has not signed; "" where there is none, or he cannot sign."""
    found = [run.hash for run in runs if not run.ours] if signs() else []
    more = f" and {len(found) - 1} more" if len(found) > 1 else ""
    return f"run {found[0]}{more}: {UNSIGNED}" if found else ""


def _tell(runs: Sequence[Run]) -> None:
    told = [unsigned(runs), *(f"{run.shown}: {wrong}" for run in runs if (wrong := run.misplaced))]
    for text in filter(None, told):
        logger.warning("%s", text)


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
        run = _load(path, trust)
        _ = run.model, run.metrics, run.provenance
        same = [other.path for other in runs if other.hash == run.hash]
        if same:
            raise ConfigError(f"run={path}: the same run as {same[0]} ({run.hash})", remedy="name every run once")
        runs.append(run)
    _tell(runs)
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
        raise RunError(f"{error.problem}; it is damaged", remedy=AGAIN) from error
    return content
