"""A run's errors to look at: the most confident ones and the borderline cases as pictures on one page.

Each case is shown as the slice that tells most of it, in the windows of its unit and with the run's map (Grad-CAM),
beside the probability of every slice of its series; a page per case has the whole series.
"""

from __future__ import annotations

import base64
import io
import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from PIL import Image

from hemlearn import __version__
from hemlearn.compare.page import Pictures, assets
from hemlearn.config.requests import ErrorsRequest
from hemlearn.evaluation.predictions import is_leaky, prob_array
from hemlearn.evaluation.scoring import decide
from hemlearn.evaluation.significance import FEW_CLUSTERS
from hemlearn.reading.case import NOTE
from hemlearn.reading.error_pictures import BORDERLINE, KINDS, MISSED, Pick, Shown, case_figure, draw, units_of
from hemlearn.reading.explain.cams import find_layer
from hemlearn.reading.explain.drawing import label_places, layer_text
from hemlearn.reading.explain.study import Subject, open_subject
from hemlearn.reading.pages import run_card
from hemlearn.reports.figures import inline_svg
from hemlearn.reports.tables import render
from hemlearn.training.run import pick_run
from hemlearn.util.console import NOTICED, track
from hemlearn.util.errors import DataError, RunError, count
from hemlearn.util.files import check_writable, nothing_left, refuse_to_replace, save_figure, write_text, writing
from hemlearn.util.privacy import Pseudonyms
from hemlearn.util.tables import csv_text

if TYPE_CHECKING:
    from hemlearn.compare.comparison import Comparison

logger = logging.getLogger(__name__)
COLUMNS = (
    *("number", "kind", "level", "case", "series", "patient", "slice", "label", "truth", "probability", "threshold"),
    *("figure", "page"),
)
PAGE, TABLE = "errors.html", "errors.csv"
_CLIP = 1e-6  # of probabilities, before their log odds are taken


@dataclass(frozen=True)
class ErrorStudy:
    """What :func:`study_errors` wrote."""

    folder: Path
    counts: str  # how many cases were judged and wrong, in words
    cautions: list[str]
    shown: list[Shown]
    files: list[Path]


def choose_cases(
    units: pd.DataFrame, labels: Sequence[str], label: str, thresholds: Sequence[float], kind: str, each: int
) -> pd.DataFrame:
    """At most ``each`` missed cases, false alarms and borderline cases of one label.

    Missed cases and false alarms are those whose probability contradicts the label most. Borderline ones are right or
    wrong and lie nearest to the threshold in log odds; of classes that exclude each other, where the label and the next
    class have most nearly the same probability.

    Args:
        units: Rows of one level with ``label_*`` and ``prob_*``.
        labels: All labels.
        label: The one that is judged.
        thresholds: Of each label; empty where classes exclude each other.
        kind: binary | multilabel | multiclass.
        each: Cases of each kind.

    Returns:
        The rows with columns ``kind`` and ``distance``, kinds in the order of :data:`KINDS`.

    >>> rows = pd.DataFrame({"label_a": [1, 1, 0, 0], "prob_a": [0.1, 0.9, 0.8, 0.45]})
    >>> choose_cases(rows, ["a"], "a", [0.5], "binary", 1)["kind"].to_dict()
    {0: 'missed', 2: 'false alarm', 3: 'borderline'}
    """
    p, j = prob_array(units, labels), list(labels).index(label)
    called, truth = decide(p, thresholds, kind)[:, j], units[f"label_{label}"].to_numpy(dtype=np.float64)
    if kind == "multiclass":
        distance = np.abs(p[:, j] - np.delete(p, j, axis=1).max(axis=1))
    else:
        distance = np.abs(_log_odds(p[:, j]) - _log_odds(np.array(thresholds[j])))
    rows = units.assign(distance=distance)
    missed = rows[(truth == 1) & ~called].sort_values(f"prob_{label}", kind="stable")[:each]
    false = rows[(truth == 0) & called].sort_values(f"prob_{label}", ascending=False, kind="stable")[:each]
    near = rows.drop(index=[*missed.index, *false.index]).sort_values("distance", kind="stable")[:each]
    parts = zip(KINDS, (missed, false, near), strict=True)
    return pd.concat([part.assign(kind=name) for name, part in parts])


def _log_odds(p: NDArray[Any]) -> NDArray[Any]:
    clipped = np.clip(p, _CLIP, 1 - _CLIP)
    return np.asarray(np.log(clipped / (1 - clipped)))


# --- the command --------------------------------------------------------------------------------------------------


def study_errors(request: ErrorsRequest) -> ErrorStudy:
    """Write ``errors.html``, ``errors.csv``, ``figures/`` and, unless told otherwise, a page per series.

    Raises:
        ConfigError: An unknown label, or a network of whose slices there are no maps.
        RunError: No finished run, or its data have changed since.
        DataError: No case to show, or ``out`` cannot be written.
    """
    path = pick_run(request.run)
    out = request.out or path.parent.parent / f"{path.parent.name}_errors" / path.name
    refuse_to_replace(out, (PAGE, TABLE), TABLE)
    with nothing_left(out):
        names = Pseudonyms(out, show=request.show_patient)
        subject = open_subject(request, out, names)
        label, level = _label(subject, request.label), request.level or _level(subject)
        picks, counts = pick_cases(subject, label, level, request.each)
        if not picks:
            raise DataError(f"{request.part}: no case of {label} to show", remedy="give another part or data set")
        check_writable(out, f"out={out}", DataError)
        shown = draw(picks, out, pages="pages" if request.pages else None, show_patient=request.show_patient)
        cautions = _cautions(subject, label)
        with writing(f"out={out}", "free some space", DataError):
            files = _write(request, out, subject, shown, counts, cautions, label)
    return ErrorStudy(out, counts, cautions, shown, files)


def _label(subject: Subject, wanted: str | None) -> str:
    labels = list(subject.run.config.task.labels)
    label = wanted or ("any" if "any" in labels else labels[0])
    label_places(labels, [label])  # which refuses an unknown one
    return label


def _level(subject: Subject) -> str:
    return "series" if subject.run.of_series or subject.frame["series_id"].duplicated().any() else "slice"


def pick_cases(subject: Subject, label: str, level: str, each: int) -> tuple[list[Pick], str]:
    """The cases of one run to look at, and how many were judged and wrong, in words."""
    run, frame = subject.run, subject.frame
    task, units = run.config.task, units_of(subject, level)
    labels = list(task.labels)
    own = run.thresholds.get(level, {})
    thresholds = [] if task.kind == "multiclass" else [float(own.get(c, 0.5)) for c in labels]
    chosen = choose_cases(units, labels, label, thresholds, task.kind, each)
    threshold = thresholds[labels.index(label)] if thresholds else math.nan
    rows_of = frame.groupby("series_id", sort=False).groups
    place = {name: row for row, name in frame["slice_id"].items()}
    picks = []
    for item in chosen.to_dict("records"):
        series = str(item["series_id"])
        case = series if level == "series" else str(item["slice_id"])
        row = _telling(frame.loc[rows_of[item["series_id"]]], label, item["kind"]) if level == "series" else place[case]
        ids = (case, series, str(item["patient_id"]), label)
        values = (float(item[f"label_{label}"]), float(item[f"prob_{label}"]), threshold, float(item["distance"]))
        picks.append(Pick(item["kind"], level, *ids, *values, int(row), subject))
    return picks, _counts(units, labels, label, thresholds, task.kind, level)


def _telling(slices: pd.DataFrame, label: str, kind: str) -> int:
    """The slice to show of a series: of a missed one the clearest with the label, else the one called most clearly."""
    with_label = slices[slices[f"label_{label}"] == 1]
    pool = with_label if kind == MISSED and len(with_label) else slices
    return int(pool[f"prob_{label}"].fillna(-1.0).idxmax())


def _counts(
    units: pd.DataFrame, labels: Sequence[str], label: str, thresholds: Sequence[float], kind: str, level: str
) -> str:
    called = decide(prob_array(units, labels), thresholds, kind)[:, list(labels).index(label)]
    truth = units[f"label_{label}"].to_numpy(dtype=np.float64)
    missed, false = int(((truth == 1) & ~called).sum()), int(((truth == 0) & called).sum())
    return (
        f"{missed} missed of {int((truth == 1).sum())} {level}{'' if level == 'series' else 's'} with {label}, "
        f"{count(false, 'false alarm')} among {int((truth == 0).sum())} without"
    )


def _cautions(subject: Subject, label: str) -> list[str]:
    """What forbids to read the page at face value."""
    told = ["SYNTHETIC data: these errors say nothing about patients"] if subject.data.manifest.synthetic else []
    if is_leaky(subject.run.path / "predictions.parquet"):
        who = subject.data.manifest.person
        told.append(f"LEAKY run: its test {who}s are also in training, and it makes fewer errors than it would")
    frame = subject.frame
    sides = [frame.loc[frame[f"label_{label}"] == c, "patient_id"].nunique() for c in (1, 0)]
    if min(sides) < FEW_CLUSTERS:  # of either class, as compare says it
        known = subject.data.manifest.patients_known
        without = f"{sides[1]} with images without it" if known else f"{sides[1]} without"
        told.append(f"Few {'patients' if known else 'images'}: {sides[0]} with {label}, {without}")
    return told


# --- the files ----------------------------------------------------------------------------------------------------


def _number(value: float) -> str:
    return "unknown" if value != value else f"{value:g}"


def rows_of(shown: Sequence[Shown]) -> list[dict[str, Any]]:
    """A row per case, in the columns of ``errors.csv``; ids are pseudonyms unless they are shown."""
    rows = []
    for number, item in enumerate(shown, 1):
        pick, names = item.pick, item.pick.subject.names
        slice_id = pick.subject.data.manifest.table["slice_id"].iloc[pick.row]
        ids = (names.of(pick.case, pick.level), names.of(pick.series, "series"), names.of(pick.patient, "patient"))
        values = (names.of(slice_id, "slice"), pick.label, pick.truth, pick.probability, pick.threshold)
        figure = f"figures/{number:03d}_{pick.kind.replace(' ', '_')}.png"
        cells = (number, pick.kind, pick.level, *ids, *values, figure, item.page)
        rows.append(dict(zip(COLUMNS, cells, strict=True)))
    return rows


def cards(shown: Sequence[Shown]) -> str:
    """The cases as HTML, kind by kind."""
    rows = rows_of(shown)
    kinds = [
        (kind, [(row, item) for row, item in zip(rows, shown, strict=True) if row["kind"] == kind]) for kind in KINDS
    ]
    return render(
        "hemlearn.reading",
        "errors_cards.html.j2",
        kinds=[(kind, own) for kind, own in kinds if own],
        png=_png,
        svg=lambda figure: inline_svg(figure),
        number=_number,
    )


def _png(image: NDArray[np.uint8]) -> str:
    """An image as a data address; small ones are enlarged, so that a browser need not smooth them."""
    made = Image.fromarray(image)
    factor = max(1, round(256 / max(image.shape[:2])))
    made = made.resize((made.width * factor, made.height * factor), Image.Resampling.NEAREST)
    file = io.BytesIO()
    made.save(file, format="PNG", optimize=True)
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"


def _write(
    request: ErrorsRequest,
    out: Path,
    subject: Subject,
    shown: Sequence[Shown],
    counts: str,
    cautions: Sequence[str],
    label: str,
) -> list[Path]:
    rows = rows_of(shown)
    run = subject.run
    style, script, digest = assets()
    layer = layer_text(find_layer(run.model.backbone, None))
    text = render(
        "hemlearn.reading",
        "errors.html.j2",
        title=f"Errors: {label}",
        counts=counts,
        cautions=cautions,
        facts={
            "Run": run.hash,
            "Data": f"{subject.data.manifest.source}, {request.part if request.data is None else 'all of it'}",
            **{name: value for name, value in run_card([run]).items() if name != "Run"},
            "Maps": f"Grad-CAM, layer {layer}",
        },
        rows=rows,
        people=subject.data.manifest.patients_known,
        number=_number,
        cards=cards(shown),
        style=style + cards_style(),
        script=script,
        digest=digest,
        note=NOTE,
        version=__version__,
    )
    (out / "figures").mkdir(parents=True, exist_ok=True)
    write_text(out / TABLE, csv_text(pd.DataFrame(rows, columns=list(COLUMNS)), decimals="%.6f"))
    write_text(out / PAGE, text)
    files = [out / PAGE, out / TABLE]
    for row, item in zip(rows, shown, strict=True):
        title = f"{row['kind']}: {row['label']}, probability {row['probability']:.3f}"
        title += "" if math.isnan(row["threshold"]) else f" (threshold {row['threshold']:.3f})"
        figure = case_figure(item, title)
        for form in ("png", *request.figures):
            save_figure(figure, (out / row["figure"]).with_suffix(f".{form}"), dpi=200 if form == "png" else None)
        if item.chart is not None:
            name = out / row["figure"].replace(".png", "_by_slice.png")
            for form in ("png", *request.figures):
                save_figure(item.chart, name.with_suffix(f".{form}"), dpi=200 if form == "png" else None)
    return files


def cards_style() -> str:
    """CSS of the cards."""
    from importlib.resources import files

    return files("hemlearn.reading").joinpath("templates/errors.css").read_text(encoding="utf-8")


# --- on the page of a comparison ----------------------------------------------------------------------------------


def pictures_of(
    result: Comparison, out: Path, names: Pseudonyms, *, each: int = 4, trust: bool = False, show_patient: bool = False
) -> Pictures:
    """The errors of a comparison's best group as pictures, with pages of their series in ``out/cases``.

    Of each of its runs the test cases are judged at that run's threshold; of all together the most confident and the
    nearest are shown.

    Raises:
        RunError: The runs' data have changed or weights are lost.
        DataError: The data are not where the runs had them.
    """
    entry = result.ranked[0]
    level, cases = entry.first
    picks: list[Pick] = []
    for run in track(cases.used, "Reading the data of runs", len(cases.used), after=NOTICED):
        request = ErrorsRequest(run=run.path, trust=trust, show_patient=show_patient)
        subject = open_subject(request, out, names)
        picks += pick_cases(subject, _label(subject, None), level, each)[0]
    chosen: list[Pick] = []
    for kind in KINDS:
        seen: set[str] = set()
        ranked = sorted(
            (p for p in picks if p.kind == kind), key=lambda p: p.distance * (1 if kind == BORDERLINE else -1)
        )
        for pick in ranked:
            if pick.case not in seen and len(seen) < each:
                seen.add(pick.case)
                chosen.append(pick)
    if not chosen:
        raise RunError(f"pictures=true: no test case of {entry.name}", remedy="leave pictures out")
    shown = draw(chosen, out, pages="cases", show_patient=show_patient)
    links = {names.of(item.pick.case, item.pick.level): item.page for item in shown}
    return Pictures(cards(shown), cards_style(), links)
