"""Which ``task.aggregate`` gives patients the best probabilities: nested validation of finished runs.

Run: ``python experiments/benchmarks/patient_scores.py RUNS... [--label any]``, where RUNS are folders of runs of one
recipe that test every patient once (five folds). No network is trained; it prints a Markdown table.

**Validation** chooses: each validation patient of each run is taken out in turn, the maps of slices, the weights of
``logistic`` and the maps of patients are fitted on the other validation patients of that run, and the patient is
judged by them; patients of all runs together. **Test** is what the run reports, for reading beside it: fitted on all
its validation patients. Rates of training patients come in as in a run. The network has not trained on validation
patients, but its last epoch may have been chosen on them, alike for all aggregates.

Differences are paired, with 95 % percentile intervals of 2000 bootstrap samples of patients.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.special import expit, logit

from hemlearn.compare.runs import find_runs
from hemlearn.config.schema import TaskConfig
from hemlearn.evaluation.auroc import auroc_interval
from hemlearn.evaluation.bootstrap import CLIP
from hemlearn.evaluation.calibration import Calibration
from hemlearn.evaluation.predictions import label_array, prob_array, read_predictions
from hemlearn.training.run import Run
from hemlearn.util.errors import ConfigError

CHOICES: dict[str, dict[str, object]] = {
    "mean": {"aggregate": "mean"},
    "max": {"aggregate": "max"},
    "top_k, 3": {"aggregate": "top_k", "top_k": 3},
    "top_k, 5": {"aggregate": "top_k", "top_k": 5},
    "noisy_or": {"aggregate": "noisy_or"},
    "logistic": {"aggregate": "logistic"},
}
REPLICATES = 2000
Floats = NDArray[np.float64]


@dataclass
class Fold:
    """One run: raw slices of validation and test, and labels of training slices."""

    task: TaskConfig
    rows: pd.DataFrame
    train: pd.DataFrame


def read_folds(runs: Sequence[Run]) -> list[Fold]:
    """The runs with the slices' probabilities as the network gave them.

    Raises:
        ConfigError: The runs do not test every patient of each other's training part, or their maps have no inverse.
    """
    tables = [read_predictions(run.path / "predictions.parquet") for run in runs]
    tested = pd.concat([table[table["split"] == "test"] for table in tables], ignore_index=True)
    found = []
    for run, table in zip(runs, tables, strict=True):
        assigned = run.split.assignment.astype({"patient_id": str})
        train = tested[tested["patient_id"].isin(assigned["patient_id"][assigned["split"] == "train"])]
        if train["patient_id"].nunique() < (assigned["split"] == "train").sum():
            raise ConfigError(f"{run.shown}: training patients that no run tests", remedy="give all folds")
        maps = {} if run.calibration is None else run.calibration.maps.get("slice", {})
        for label, own in maps.items():
            if own.steps:
                raise ConfigError(f"{run.shown}: isotonic maps have no inverse", remedy="train with temperature")
            z = logit(np.clip(table[f"prob_{label}"].to_numpy(), CLIP, 1 - CLIP))
            table[f"prob_{label}"] = expit(own.centre + (z - own.centre - own.shift) / own.slope)
        found.append(Fold(run.config.task, table, train))
    return found


def judged(fold: Fold, choice: dict[str, object]) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Validation patients, each by maps of the others, and test patients."""
    task = fold.task.model_copy(update=choice)
    val, test = (fold.rows[fold.rows["split"] == part] for part in ("val", "test"))
    parts = []
    for patient in val["patient_id"].unique():
        out = val["patient_id"] == patient
        parts.append(_patients(val[~out], val[out], task, fold.train))
    return pd.concat(parts, ignore_index=True), _patients(val, test, task, fold.train)


def _patients(fitted: pd.DataFrame, rows: pd.DataFrame, task: TaskConfig, train: pd.DataFrame) -> pd.DataFrame:
    maps = Calibration.fit(fitted, task, train)
    return maps.aggregate(maps.apply(rows), "patient", task.aggregate)


def losses(y: Floats, p: Floats) -> tuple[Floats, Floats]:
    """Log loss and Brier score of each patient; shapes (N,)."""
    q = np.clip(p, CLIP, 1 - CLIP)
    return -(y * np.log(q) + (1 - y) * np.log(1 - q)), (p - y) ** 2


def table(folds: Sequence[Fold], label: str) -> list[str]:
    """Rows of the Markdown table."""
    lines = [
        "| aggregate | log loss | minus that of mean | Brier | AUROC | all labels' log loss |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    rng = np.random.default_rng(0)
    found = {
        name: [pd.concat(part) for part in zip(*(judged(f, c) for f in folds), strict=True)]
        for name, c in CHOICES.items()
    }
    labels = folds[0].task.labels
    for index, part in enumerate(("validation", "test")):
        first = found["mean"][index]
        y = first[f"label_{label}"].to_numpy(float)
        _, who = np.unique(first["patient_id"], return_inverse=True)
        draws = rng.multinomial(who.max() + 1, np.full(who.max() + 1, 1 / (who.max() + 1)), REPLICATES)[:, who]
        lines.append(f"| **{part}**, {who.max() + 1} patients, {len(y)} judgements | | | | | |")
        base = losses(y, first[f"prob_{label}"].to_numpy())[0]
        for name in CHOICES:
            units = found[name][index]
            p = units[f"prob_{label}"].to_numpy()
            log, brier = losses(y, p)
            gap = (draws * (log - base)).sum(axis=1) / draws.sum(axis=1)
            low, high = np.quantile(gap, (0.025, 0.975))
            area = auroc_interval(y, p, units["patient_id"].to_numpy())
            every = np.nanmean(losses(label_array(units, labels), prob_array(units, labels))[0])
            lines.append(
                f"| `{name}` | {log.mean():.3f} | {(log - base).mean():+.3f} ({low:+.3f} to {high:+.3f}) | "
                f"{brier.mean():.3f} | {area.value:.3f} ({area.low:.3f}-{area.high:.3f}) | {every:.3f} |"
            )
    return lines


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path)
    parser.add_argument("--label", help="label of the table; by default the last of the task")
    given = parser.parse_args(arguments)
    folds = read_folds([Run(run.path) for run in find_runs([str(folder) for folder in given.runs]).runs])
    print("\n".join(table(folds, given.label or folds[0].task.labels[-1])))
    return 0


if __name__ == "__main__":
    sys.exit(main())
