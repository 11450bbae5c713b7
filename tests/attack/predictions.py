"""Tables of predictions that no run has written, sealed in a run folder: refused by name where they are read."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from tests.attack.case import Case, Judge, Trained, either, refused, told
from tests.attack.runs import COMMANDS, DAMAGES, Damage, content, copied, seal, table

KIND = "predictions"
FILE = "predictions.parquet"
P, Y = "prob_hemorrhage", "label_hemorrhage"


def at(row: int, column: str, value: Any) -> Damage:
    def change(frame: pd.DataFrame) -> pd.DataFrame:
        frame = frame.astype({column: str}) if isinstance(value, str) else frame
        frame.loc[frame.index[row], column] = value
        return frame

    return table(change)


def swapped(first: str, second: str) -> Damage:
    return table(lambda frame: frame.rename(columns={first: second, second: first}))


def _patients_swapped(frame: pd.DataFrame) -> pd.DataFrame:
    """Two test patients of different truth under each other's name."""
    test = frame[frame["split"] == "test"]
    one, two = (test.loc[test[Y] == value, "patient_id"].iloc[0] for value in (0, 1))
    return frame.assign(patient_id=frame["patient_id"].replace({one: two, two: one}))


def _patients_joined(frame: pd.DataFrame) -> pd.DataFrame:
    return frame.assign(patient_id="p")


# Change; the word to be told; "": nothing is wrong with such a table.
TABLES: dict[str, tuple[Damage, str]] = {
    "as it was": (lambda file, other: None, ""),
    "rows in another order": (table(lambda t: t.iloc[::-1]), ""),
    "columns in another order": (table(lambda t: t[t.columns[::-1]]), ""),
    "a column more": (table(lambda t: t.assign(more=1)), ""),
    "labels and probabilities swapped": (swapped(P, Y), f"{FILE}"),
    "splits and ids swapped": (swapped("split", "slice_id"), FILE),
    "z and probability swapped": (table(lambda t: t.rename(columns={"z_mm": P, P: "z_mm"})), FILE),
    "a slice twice": (table(lambda t: pd.concat([t, t.iloc[:1]])), FILE),
    "every slice twice": (table(lambda t: pd.concat([t, t])), FILE),
    "NaN probability": (at(0, P, np.nan), FILE),
    "a probability of 1.5": (at(0, P, 1.5), FILE),
    "a probability of -0.1": (at(0, P, -0.1), FILE),
    "an infinite probability": (at(0, P, np.inf), FILE),
    "a probability in words": (at(0, P, "high"), FILE),
    "all probabilities as texts": (table(lambda t: t.assign(**{P: t[P].astype(str)})), FILE),
    "a label of 2": (at(0, Y, 2), FILE),
    "a label of a half": (at(0, Y, 0.5), FILE),
    "labels unknown": (table(lambda t: t.assign(**{Y: np.nan})), "undefined|unknown|no label|no known|-"),
    "no label column": (table(lambda t: t.drop(columns=Y)), FILE),
    "no probability column": (table(lambda t: t.drop(columns=P)), FILE),
    "no ids": (table(lambda t: t.drop(columns="slice_id")), FILE),
    "an id null": (at(0, "slice_id", None), FILE),
    "a patient null": (at(0, "patient_id", None), FILE),
    "ids as numbers": (table(lambda t: t.assign(slice_id=np.arange(len(t)))), FILE),
    "ids as bytes": (table(lambda t: t.assign(slice_id=[s.encode() for s in t["slice_id"]])), FILE),
    "an unknown split": (at(0, "split", "holdout"), FILE),
    "no test rows": (table(lambda t: t[t["split"] != "test"]), FILE + "|no test"),
    "no rows": (table(lambda t: t.iloc[:0]), FILE + "|no test"),
    "another label's columns": (
        table(lambda t: t.rename(columns={P: "prob_stroke", Y: "label_stroke"})), FILE),
    "z infinite": (at(0, "z_mm", np.inf), ""),
    "CSV": (lambda file, other: file.write_text(pd.read_parquet(file).to_csv()), FILE),
    "text": (lambda file, other: file.write_text("<html>404</html>"), FILE),
    "cut": (DAMAGES["cut"], FILE),
    "a third zeroed": (DAMAGES["a third zeroed"], FILE),
}  # fmt: skip
ASKED = ("compare", "plan", "explain")


def sealed(name: str, command: str, change: Damage, judge: Judge) -> Case:
    def build(folder: Path, trained: Trained) -> Sequence[str]:
        run = copied(folder, trained, ours=False)
        change(run / FILE, run / FILE)
        seal(run)
        return COMMANDS[command][0](folder, trained, run)

    return Case(KIND, f"{command}: {name}", build, judge)


def _tables() -> Iterator[Case]:
    for i, (name, (change, word)) in enumerate(TABLES.items()):
        for command in (ASKED[i % 2], *ASKED[2:][: i % 4 == 0]):
            yield sealed(name, command, change, told(word) if word else told(""))


def _against(name: str, change: Callable[[Path, Trained], object], judge: Judge) -> Case:
    """Two copies of a run in one group, of which the second was changed after a fold or a seed of its own."""

    def build(folder: Path, trained: Trained) -> Sequence[str]:
        runs = []
        for place, seed in (("one", 0), ("two", 1)):
            run = folder / "runs" / place / (str(seed) * 12)
            shutil.copytree(trained.runs["calibrated"], run)
            text = (run / "config.yaml").read_text().replace("\nseed: 0", f"\nseed: {seed}")
            (run / "config.yaml").write_text(text)
            for name in ("status.json", "provenance.json"):
                content(lambda tree, run=run: {**tree, "hash": run.name})(run / name, run)
            runs.append(run)
        change(runs[1], trained)
        for run in runs:
            seal(run)
        return ["compare", *map(str, runs), "out=out"]

    return Case(KIND, f"compare with a twin: {name}", build, judge)


def _other_run(run: Path, trained: Trained) -> None:
    shutil.copyfile(trained.runs["volumes"] / FILE, run / FILE)


TWINS: dict[str, tuple[Callable[[Path, Trained], object], Judge]] = {
    "as it was": (lambda run, trained: None, told("2 runs")),
    "patients swapped": (lambda run, trained: table(_patients_swapped)(run / FILE, run), refused("different|patient")),
    "patients joined": (lambda run, trained: table(_patients_joined)(run / FILE, run), refused("different|patient")),
    "labels turned": (
        lambda run, trained: table(lambda t: t.assign(**{Y: 1 - t[Y]}))(run / FILE, run), refused("different|label")),
    "fewer slices": (
        lambda run, trained: table(lambda t: t.drop(t.index[t["split"] == "test"][0]))(run / FILE, run),
        told("cases|slices|different|differ|not all")),
    "other slices": (
        lambda run, trained: table(lambda t: t.assign(slice_id="x" + t["slice_id"]))(run / FILE, run),
        told("cases|slices|different|differ")),
    "the table of a run with other labels": (_other_run, told(FILE)),
    "no thresholds": (
        lambda run, trained: (run / "metrics.json").write_text("{}"), told("metrics.json")),
    "leaky, which its provenance hides": (
        lambda run, trained: (run / "config.yaml").write_text(
            (run / "config.yaml").read_text().replace("by: patient", "by: slice")), told("leak|split by slice")),
}  # fmt: skip


def cases() -> list[Case]:
    """One table in ``compare``, ``plan`` and ``explain``; two beside each other."""
    twins = [_against(name, change, either(judge)) for name, (change, judge) in TWINS.items()]
    return [*_tables(), *twins]
