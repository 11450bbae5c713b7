"""Finished runs, ready to predict: one, or several that are averaged."""

from __future__ import annotations

import json
import pickle
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
import yaml

from hemlearn import __version__
from hemlearn.config.schema import Config, from_dict
from hemlearn.evaluation.calibration import Calibration
from hemlearn.tasks.base import Classification
from hemlearn.training.build import load_task
from hemlearn.training.run import RunFolder
from hemlearn.util.errors import ConfigError, RunError


class Loaded(NamedTuple):
    """A finished run.

    Attributes:
        config: Its configuration.
        task: Its network with the best checkpoint's weights, on the CPU, in evaluation mode.
        calibration: Maps fitted on its validation patients; None where it has none.
    """

    config: Config
    task: Classification
    calibration: Calibration | None


@dataclass(frozen=True)
class Member:
    """A loaded run with what its folder says besides.

    Args:
        folder: The run folder.
        hash: Its name: a digest of everything that determines the run.
        run: Configuration, network, calibration.
        thresholds: Level -> label -> operating point chosen on validation; no labels in multiclass tasks.
        assumed: Level -> labels whose operating point is a default, because validation held no case of a class.
        provenance: Content of ``provenance.json``.
    """

    folder: Path
    hash: str
    run: Loaded
    thresholds: dict[str, dict[str, float]]
    assumed: dict[str, set[str]]
    provenance: dict[str, Any]

    @property
    def unit(self) -> str:
        """Unit of the intensities it was trained on: ``HU``, ``signal`` or ``display``."""
        return str(self.run.task.hparams["unit"])

    @property
    def of_series(self) -> bool:
        """Whether it has a model over the slices of a series."""
        return self.run.config.sequence.name != "none"


def load_run(folder: Path) -> Loaded:
    """Configuration, network and calibration of a finished run.

    Raises:
        RunError: The folder is no finished run, or a file of it is missing, damaged or of another version.
    """
    run = RunFolder(folder.parent.parent, folder.parent.name, folder.name)
    status = run.status()
    state = status.get("state", "no run folder")
    if state != "complete" or run.damaged():
        lost = f", without {', '.join(run.damaged())}" if state == "complete" else ""
        raise RunError(f"run={folder}: {state}{lost}", remedy="give OUTPUT_DIR/NAME/HASH of a finished run")
    other = f"of another version of hemlearn ({status.get('version', 'unknown')}, this is {__version__})"
    remedy = "predict with the version in provenance.json, or train again"
    try:
        config = from_dict(yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8")))
    except (ConfigError, yaml.YAMLError, UnicodeDecodeError, AttributeError, TypeError) as error:
        raise RunError(f"{folder / 'config.yaml'}: {other}, or damaged: {_line(error)}", remedy=remedy) from error
    try:
        content = torch.load(run.best, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, pickle.UnpicklingError, EOFError, ValueError, KeyError) as error:
        raise RunError(
            f"{run.best}: cannot be read, or is damaged: {_line(error)}",
            remedy="copy the run folder again, or train again",
        ) from error
    try:
        task = load_task(content)
    except (KeyError, TypeError, RuntimeError, ConfigError) as error:
        raise RunError(f"{run.best}: {other}: {_line(error)}", remedy=remedy) from error
    file = folder / "calibration.json"
    calibration = Calibration.from_dict(_json(file)) if file.is_file() else None
    return Loaded(config, task.eval(), calibration)


def load_members(folders: Sequence[Path]) -> list[Member]:
    """Load the runs of an ensemble.

    Raises:
        ConfigError: No run, or one given twice.
        RunError: See :func:`load_run`; or the runs predict different labels.
    """
    if not folders:
        raise ConfigError("run is not set", remedy="give run=OUTPUT_DIR/NAME/HASH, several joined by commas")
    members: list[Member] = []
    for folder in folders:
        run = load_run(folder)
        metrics, status = _json(folder / "metrics.json"), _json(folder / "status.json")
        points: dict[str, dict[str, Any]] = metrics.get("thresholds", {})
        thresholds = {
            level: {label: float(item["value"]) for label, item in found.items()} for level, found in points.items()
        }
        assumed = {
            level: {label for label, item in found.items() if item.get("note")} for level, found in points.items()
        }
        name = str(status.get("hash") or folder.name)
        same = [member.folder for member in members if member.hash == name]
        if same:
            raise ConfigError(f"run={folder}: the same run as {same[0]} ({name})", remedy="name every run once")
        members.append(Member(folder, name, run, thresholds, assumed, _json(folder / "provenance.json")))
    first = members[0].run.config.task
    for member in members[1:]:
        task = member.run.config.task
        if (task.kind, list(task.labels), task.level) != (first.kind, list(first.labels), first.level):
            raise RunError(
                f"run={member.folder}: {task.kind} {', '.join(task.labels)} (labels of a {task.level}), but "
                f"{members[0].folder}: {first.kind} {', '.join(first.labels)} (of a {first.level})",
                remedy="average runs of one task; predict with the others separately",
            )
        if member.run.config.channels.kind != members[0].run.config.channels.kind:
            raise RunError(
                f"run={member.folder}: channels.kind={member.run.config.channels.kind}, but "
                f"{members[0].folder} has {members[0].run.config.channels.kind}",
                remedy="average runs of one modality",
            )
    return members


def _json(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise RunError(
            f"{file}: cannot be read, or is damaged: {_line(error)}", remedy="copy the run folder again, or train again"
        ) from error
    if not isinstance(content, dict):
        raise RunError(f"{file}: not a JSON object", remedy="copy the run folder again, or train again")
    return content


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__
