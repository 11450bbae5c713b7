"""How far a hydrocephalus score follows the size of the ventricles: its correlation with the Evans index.

python experiments/hemlearn_mri/evans.py runs/hemlearn_mri [truth=FILE] [column=evans_index]

The runs' test patients are put together (five folds: every patient once) and joined with a table that has
``patient_id`` and the column: by default ``phantom.csv`` of the synthetic set that the runs were trained on. For real
data give a CSV of measured indices. The measures of :mod:`hemlearn.audits.ventricles`, without a network, stand beside
the network. Intervals are 95 % BCa bootstrap intervals over patients (scipy).
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import stats

from hemlearn.compare.runs import find_runs
from hemlearn.evaluation.pooling import Pool
from hemlearn.evaluation.predictions import CSF, EVANS, aggregate, as_predictions, has_family, read_predictions
from hemlearn.training.run import Run
from hemlearn.util.errors import ConfigError, DataError, HemlearnError
from hemlearn.util.tables import read_csv

MEASURES = {"Spearman": stats.spearmanr, "Pearson": stats.pearsonr}
REPLICATES = 2000
LEAST = 10  # patients below which no correlation is given
SOURCES = {"network": "prob", "CSF share": CSF, "Evans index of a segmentation": EVANS}


def patient_scores(runs: Sequence[Run]) -> pd.DataFrame:
    """The tested patients' label and the score of each source, one row each; a patient of several runs has the mean.

    Raises:
        DataError: Runs of another task than one binary label.
    """
    parts = []
    for run in runs:
        task = run.settings["task"]
        if task["kind"] != "binary":
            raise DataError(f"{run.shown}: a {task['kind']} task has no single score", remedy="give runs of one label")
        frame = read_predictions(run.path / "predictions.parquet", ["test"])
        label = task["labels"][0]
        pool = Pool() if run.calibration is None else run.calibration.pool("patient")
        found: dict[str, Any] = {}
        for source, family in SOURCES.items():
            if family == "prob" or has_family(frame, family):
                how, rows = (
                    (task["aggregate"], frame) if family == "prob" else ("mean", as_predictions(frame, [label], family))
                )
                patients = aggregate(rows, "patient", how, pool=pool)
                found |= {"patient_id": patients["patient_id"], "label": patients[f"label_{label}"]}
                found[source] = patients[f"prob_{label}"]
        parts.append(pd.DataFrame(found))
    return pd.concat(parts).groupby("patient_id", as_index=False).mean()


def truth_of(file: Path, column: str) -> pd.DataFrame:
    """``patient_id`` and the column's number, one row per patient.

    Raises:
        DataError: No such file or column, a value that is no number, a patient with two values.
    """
    table = read_csv(file)
    for name in ("patient_id", column):
        if name not in table:
            raise DataError(
                f"{file}: no column {name!r} (found: {', '.join(table.columns)})",
                remedy="give column=NAME, and patient_id as in the runs",
            )
    table = table[["patient_id", column]].drop_duplicates()
    twice = table["patient_id"].duplicated()
    if twice.any():
        raise DataError(
            f"{file}: patient {table['patient_id'][twice].iloc[0]!r} has two values of {column}",
            remedy="give one value per patient",
        )
    numbers = pd.to_numeric(table[column], errors="coerce")
    wrong = numbers.isna() & (table[column] != "")
    if wrong.any():
        patient, value = table[wrong].iloc[0]
        raise DataError(
            f"{file}: {column}={value!r} of patient {patient!r} is no number", remedy="correct it, or leave it empty"
        )
    return pd.DataFrame({"patient_id": table["patient_id"], "truth": numbers})


def correlation(score: NDArray[np.float64], truth: NDArray[np.float64], measure: str) -> tuple[float, float, float]:
    """A correlation with its 95 % interval; NaN where it is not defined (fewer than ten patients, or no spread)."""
    if len(score) < LEAST or np.ptp(score) == 0 or np.ptp(truth) == 0:
        return np.nan, np.nan, np.nan
    of = MEASURES[measure]
    found = stats.bootstrap(
        (score, truth),
        lambda x, y: of(x, y).statistic,
        paired=True,
        vectorized=False,
        n_resamples=REPLICATES,
        rng=np.random.default_rng(0),
    )
    return float(of(score, truth).statistic), found.confidence_interval.low, found.confidence_interval.high


def _truth_file(runs: Sequence[Run], given: str | None) -> Path:
    if given is not None:
        return Path(given)
    roots = {str(run.provenance["data"]["root"]) for run in runs}
    if len(roots) != 1:
        raise ConfigError(f"the runs have different data folders: {', '.join(sorted(roots))}", remedy="give truth=FILE")
    return Path(roots.pop()) / "phantom.csv"


def report(folders: Sequence[str], truth: str | None, column: str) -> list[dict[str, Any]]:
    """Rows of the table: all patients, then those with and those without the finding.

    Raises:
        HemlearnError: No finished run, or what :func:`truth_of` raises.
    """
    runs = find_runs(folders).runs
    if not runs:
        raise ConfigError(f"no finished run in {', '.join(folders)}", remedy="give the folder of an experiment")
    scores = patient_scores(runs)
    joined = scores.merge(truth_of(_truth_file(runs, truth), column), on="patient_id", how="left")
    known = joined.dropna(subset=["truth"])
    print(f"{len(runs)} runs, {len(joined)} tested patients, {len(joined) - len(known)} of them without {column}")
    rows = []
    groups = [("all", known), *((f"label {value}", known[known["label"] == value]) for value in (1, 0))]
    for name, source, part in ((name, source, part) for name, part in groups for source in SOURCES if source in part):
        for measure in MEASURES:
            found = correlation(part[source].to_numpy(), part["truth"].to_numpy(), measure)
            rows.append(
                {
                    "patients": name,
                    "source": source,
                    "n": len(part),
                    "measure": measure,
                    **dict(zip(("value", "low", "high"), found, strict=True)),
                }
            )
    return rows


def main(arguments: Sequence[str]) -> int:
    """Print the table; 0 if it could be made."""
    options = dict(text.split("=", 1) for text in arguments if "=" in text)
    folders = [text for text in arguments if "=" not in text]
    unknown = sorted(set(options) - {"truth", "column"})
    if unknown or not folders:
        print(__doc__, file=sys.stderr)
        return 2
    try:
        rows = report(folders, options.get("truth"), options.get("column", "evans_index"))
    except HemlearnError as error:
        print(f"ERROR {error}", file=sys.stderr)
        return 1
    for row in rows:
        print(
            f"{row['patients']:8} {row['source']:29} n={row['n']:<4} {row['measure']:9} {row['value']:.3f} "
            f"({row['low']:.3f} to {row['high']:.3f})"
        )
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
