"""What a model reaches that sees no brain: only file facts, only image size, or only the image's border.

Where hospitals, scanners or export programs differ between the classes, such a model separates them, and so may any
network. Its AUROC therefore stands beside every result. Each is the mean log odds of a ridge logistic regression and a
small random forest: the first is the better one on few images and smooth relations, the second sees
combinations (on Kaggle Head-CT, 5 folds: image size 0.80 and 0.79, together 0.81; file facts 0.80 and 0.86, 0.85;
border 0.80 and 0.86, 0.84). A patient counts as five cases at most, however many slices there are.

Sources: Zech et al. 2018, PLoS Med 15:e1002683 (networks that recognise the hospital); DeGrave, Janizek and Lee 2021,
Nat Mach Intell 3:610 (shortcuts outside the anatomy).
"""

from __future__ import annotations

import hashlib
import logging
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.special import expit, logit

from hemlearn.audits.facts import FACTS
from hemlearn.evaluation.auroc import (
    NAN,
    NOTHING,
    Floats,
    Interval,
    auroc_interval,
    codes,
    degrees_of_freedom,
    macro_auroc_covariance,
    method_of,
    none_if_nan,
    two_sided,
)
from hemlearn.evaluation.calibration import Calibration
from hemlearn.evaluation.predictions import POSITION, aggregate, as_predictions, label_array, prob_array
from hemlearn.evaluation.scoring import as_entry
from hemlearn.evaluation.significance import holm, paired_auroc_matrix
from hemlearn.util.errors import DataError, count

logger = logging.getLogger(__name__)
Rows = NDArray[np.int64]
_PLAIN = ("tilt_deg",)  # facts whose logarithm makes no sense
CASES = 5.0  # cases that a patient's slices count as, at most
_MOST = 5000  # slices a baseline is fitted on; of more, each patient gives the same number, evenly spaced
_KEPT = 32  # models remembered: three of each split of a ten-fold sweep
_FITTED: dict[bytes, Floats] = {}
_TREES, _LEAF = 64, 3  # of the forest; patients (not slices) in a leaf
_KNOTS = np.linspace(0.0, 1.0, 5)  # of the relative position
_WIDTH = 0.2  # standard deviation of the bump around each
FEW = 5  # patients with a label, and without, below which nothing is said of a baseline
_ID_COLUMNS = ("patient_id", "series_id", "slice_id", "z_mm")
_EDGE = 0.01  # probabilities of each model are bounded to 0.01-0.99 before their log odds are averaged


def metadata_features(facts: pd.DataFrame, columns: Sequence[str] = FACTS) -> pd.DataFrame:
    """Facts as a model reads them: logarithms of sizes, text as it is, columns that tell nothing left out."""
    found: dict[str, Any] = {}
    for name in columns:
        values = facts[name]
        if values.nunique(dropna=False) < 2:
            continue
        if pd.api.types.is_numeric_dtype(values):
            number = values.to_numpy(dtype=np.float64)
            positive = np.where(number > 0, number, np.nan)
            found[name] = number if name in _PLAIN else np.log(positive)
        else:
            found[name] = values.to_numpy(dtype=object)
    return pd.DataFrame(found, index=pd.RangeIndex(len(facts)))


def fit_predict(features: pd.DataFrame, y: Floats, patients: NDArray[Any], train: Rows, target: Rows) -> Floats:
    """Fit the baseline on some slices and predict others. Shapes: y (N, L), patients (N,)."""
    train = thinned(patients, train)
    truth = y[train]
    counts = np.unique(patients[train].astype(str), return_inverse=True, return_counts=True)
    own = counts[2][counts[1]]
    weight = np.minimum(own, CASES) / own
    leaf = max(_LEAF, round(_LEAF * float(np.mean(counts[2])))) if len(train) else _LEAF
    out = np.full((len(target), y.shape[1]), 0.5)
    known = ~np.isnan(truth)
    open_labels: dict[bytes, list[int]] = {}  # labels known of the same slices share one forest
    for j, mask in enumerate(known.T):
        values = truth[mask, j]
        if len(values) and values.min() == values.max():
            out[:, j] = values[0]
        elif len(values) and not features.shape[1]:
            out[:, j] = np.average(values, weights=weight[mask])
        elif len(values):
            open_labels.setdefault(mask.tobytes(), []).append(j)
    for labels in open_labels.values():
        mask = known[:, labels[0]]
        x, z = encoded(features.iloc[train[mask]], features.iloc[target], leaf)
        out[:, labels] = _remembered(x, truth[mask][:, labels], weight[mask], z, leaf)
    return out


def _remembered(x: Floats, y: Floats, weight: Floats, z: Floats, leaf: int) -> Floats:
    """:func:`_two_models`, fitted once for the jobs of a sweep, which differ in the network alone."""
    digest = hashlib.sha256(f"{x.shape} {y.shape} {z.shape} {leaf}".encode())
    for array in (x, y, weight, z):
        digest.update(array.tobytes())
    key = digest.digest()
    if key not in _FITTED:
        if len(_FITTED) >= _KEPT:
            del _FITTED[next(iter(_FITTED))]
        _FITTED[key] = _two_models(x, y, weight, z, leaf)
    return _FITTED[key]


def thinned(patients: NDArray[Any], rows: Rows) -> Rows:
    """Of more than 5000 slices, evenly spaced ones of each patient (five at least): enough to fit a baseline on."""
    if len(rows) <= _MOST:
        return rows
    code = np.unique(patients[rows].astype(str), return_inverse=True)[1]
    order = np.argsort(code, kind="stable")
    most = max(int(CASES), _MOST // (int(code.max()) + 1))
    parts = np.split(order, np.flatnonzero(np.diff(code[order])) + 1)
    kept = [part[np.linspace(0, len(part) - 1, min(most, len(part))).round().astype(int)] for part in parts]
    chosen: Rows = rows[np.sort(np.concatenate(kept))]
    return chosen


def encoded(train: pd.DataFrame, target: pd.DataFrame, least: int) -> tuple[Floats, Floats]:
    """Standardised numbers (unknown: the training median, and a column that says so), one column per frequent word."""
    from sklearn.impute import SimpleImputer
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import OneHotEncoder, StandardScaler

    numbers = [name for name in train if pd.api.types.is_numeric_dtype(train[name])]
    words = [name for name in train if name not in numbers]
    parts: list[tuple[Floats, Floats]] = []
    if numbers:
        imputer = SimpleImputer(strategy="median", add_indicator=True, keep_empty_features=True)
        steps = make_pipeline(imputer, StandardScaler())
        fitted = steps.fit_transform(train[numbers].to_numpy(dtype=np.float64))
        parts.append((fitted, steps.transform(target[numbers].to_numpy(dtype=np.float64))))
    if words:
        coder = OneHotEncoder(handle_unknown="infrequent_if_exist", min_frequency=least, sparse_output=False)
        fitted = coder.fit_transform(train[words].to_numpy(dtype=object))
        parts.append((fitted, coder.transform(target[words].to_numpy(dtype=object))))
    return np.hstack([part[0] for part in parts]), np.hstack([part[1] for part in parts])


def _two_models(x: Floats, y: Floats, weight: Floats, z: Floats, leaf: int) -> Floats:
    """(M, L) mean log odds of a logistic regression per label and one forest for all, as probabilities."""
    from sklearn.ensemble import RandomForestClassifier
    from sklearn.linear_model import LogisticRegression

    forest = RandomForestClassifier(_TREES, min_samples_leaf=leaf, random_state=0)
    forest.fit(x, y if y.shape[1] > 1 else y[:, 0], sample_weight=weight)
    found = forest.predict_proba(z)
    votes = found if isinstance(found, list) else [found]
    linear = [LogisticRegression(max_iter=1000).fit(x, column, sample_weight=weight) for column in y.T]
    both = [
        [np.clip(p[:, 1], _EDGE, 1 - _EDGE) for p in (model.predict_proba(z), vote)]
        for model, vote in zip(linear, votes, strict=True)
    ]
    return np.stack([expit((logit(first) + logit(second)) / 2) for first, second in both], axis=1)


def baseline_aurocs(
    df: pd.DataFrame,
    labels: Sequence[str],
    kind: str,
    aggregation: str,
    levels: Sequence[str],
    family: str,
    beside: Calibration | None = None,
) -> dict[str, Any]:
    """AUROC of a baseline at every level, per label and over labels, and the gain of the run whose maps are given."""
    blind = as_predictions(df, labels, family)
    found: dict[str, Any] = {}
    for level in levels:
        rows = aggregate(blind, level, "max" if aggregation == "max" else "mean", kind)
        y, p = label_array(rows, labels), prob_array(rows, labels)
        if kind == "multiclass":
            y[np.isnan(y).any(axis=1)] = np.nan
        own = None if beside is None else prob_array(beside.aggregate(df, level, aggregation), labels)
        who = rows["patient_id"].to_numpy()
        tables: dict[str, Any] = {}
        for j, label in enumerate(labels):
            known = ~np.isnan(y[:, j])
            area = auroc_interval(y[known, j], p[known, j], who[known])
            bounds, chance = Interval(area.low, area.high), chance_p(y[known, j], p[known, j], who[known])
            tables[label] = {"auroc": as_entry(area.value, bounds, known.sum(), area.method, p=chance)}
            if own is not None:
                tables[label]["gain"] = _gain(y[known, j], own[known, j], p[known, j], who[known])
        found[level] = {"auroc": tables[labels[0]]["auroc"] if len(labels) == 1 else _macro(y, p, who)}
        found[level]["labels"] = tables
    return found


def chance_p(y: Floats, p: Floats, who: NDArray[Any], inflation: float = 1.0) -> float:
    """Two-sided p of an AUROC of 0.5, with the standard error and degrees of freedom of its interval.

    NaN with fewer than five patients of a class. ``inflation`` multiplies the variance. Shapes: y, p, who (N,), where
    ``who`` are patients.
    """
    code = codes(who, len(y))
    positives, negatives = (len(np.unique(code[y == value])) for value in (1, 0))
    if min(positives, negatives) < FEW:
        return NAN
    area = auroc_interval(y, p, who)
    if area.variance > NOTHING and 0 < area.value < 1:
        spread = math.sqrt(inflation * area.variance) / (area.value * (1 - area.value))
        return two_sided(float(logit(area.value)) / spread, degrees_of_freedom(y, code))
    spread = math.sqrt(
        inflation * (positives + negatives + 1) / (12 * positives * negatives)
    )  # of Mann and Whitney's statistic
    return two_sided((area.value - 0.5) / spread)


def adjust(audits: Mapping[str, Any]) -> None:
    """Correct the p of the AUROCs under ``test`` for all labels and baselines of a level (Holm)."""
    tables = [audits[name]["test"] for name in BASELINES if audits.get(name, {}).get("test")]
    for level in dict.fromkeys(level for table in tables for level in table):
        entries = [found["auroc"] for table in tables for found in table.get(level, {"labels": {}})["labels"].values()]
        values = [NAN if entry.get("p") is None else entry["p"] for entry in entries]
        for entry, value in zip(entries, holm(values).tolist(), strict=True):
            entry["p_adjusted"] = none_if_nan(value)


def _macro(y: Floats, p: Floats, who: NDArray[Any]) -> dict[str, Any]:
    found = macro_auroc_covariance(y, p, who)
    area, known = found.interval(), int((~np.isnan(y).all(axis=1)).sum())
    several = {"n_defined": found.n_defined, "n_labels": y.shape[1]}
    return as_entry(area.value, Interval(area.low, area.high), known, area.method, **several)


def _gain(y: Floats, own: Floats, blind: Floats, who: NDArray[Any]) -> dict[str, Any]:
    test = paired_auroc_matrix(y, np.stack([own, blind]), who)[0, 1]
    return as_entry(test.difference, Interval(test.low, test.high), len(y), method_of(who, len(who)), p=test.p)


# --- Where in its series a slice lies, without any pixel. Hemorrhage is rare at the vertex and the skull base, so
# position alone separates slices; it says little about patients.


def relative_position(df: pd.DataFrame) -> Floats:
    """(N,) place of each slice in its series, 0 lowest to 1 highest; 0.5 where unknown or of one slice.

    It is the rank of ``z_mm`` among the series' slices, not millimetres, which would tell scanners and protocols apart.
    """
    groups = df.groupby(["patient_id", "series_id"], sort=False)["z_mm"]
    known = groups.transform("count").to_numpy(dtype=np.float64)
    rank = groups.rank(method="average").to_numpy(dtype=np.float64) - 1
    place = np.divide(rank, known - 1, out=np.full(len(df), 0.5), where=known > 1)
    return np.where(np.isnan(place), 0.5, place)


def position_basis(df: pd.DataFrame) -> Floats:
    """(N, 5) smooth bumps along the series, whose weighted sum is the log odds of a label by position."""
    place = df["place"].to_numpy(dtype=np.float64) if "place" in df else relative_position(df)
    return np.asarray(np.exp(-(((place[:, None] - _KNOTS) / _WIDTH) ** 2) / 2))


def with_position(df: pd.DataFrame, train: pd.DataFrame, labels: Sequence[str]) -> pd.DataFrame:
    """``df`` with the columns ``position_prob_<c>`` of the position baseline fitted on ``train``."""
    probs = fit_position(train, df, labels)
    return df.assign(**{f"{POSITION}_{name}": probs[:, j] for j, name in enumerate(labels)})


def fit_position(train: pd.DataFrame, test: pd.DataFrame, labels: Sequence[str]) -> Floats:
    """(N, L) probabilities of the labels of ``test`` by slice position: a logistic regression on the rows of ``train``.

    Both have one row per slice: patient_id, series_id, slice_id, z_mm and ``label_<c>`` (0, 1 or NaN; of ``test`` not
    looked at). A column ``place`` gives the relative position where rows of the series are missing here (unlabelled
    slices, slices of another part of a leaky split). A label of one class in ``train`` gets its constant, one that is
    known of no slice there 0.5 (logged).
    """
    from sklearn.linear_model import LogisticRegression

    for where, frame in (("training", train), ("evaluation", test)):
        missing = [c for c in (*_ID_COLUMNS, *(f"label_{c}" for c in labels)) if c not in frame]
        if missing:
            raise DataError(
                f"position-only baseline, {where} rows: no column {', '.join(missing)}",
                remedy="give one row per slice with ids, z_mm and label_* columns",
            )
    x, target = position_basis(train), position_basis(test)
    y = label_array(train, labels)
    out = np.empty((len(test), len(labels)))
    for j, name in enumerate(labels):
        known = ~np.isnan(y[:, j])
        truth = y[known, j]
        if not len(truth):
            logger.warning("position-only baseline: no training slice has a known label %r: 0.5 taken", name)
            out[:, j] = 0.5
            continue
        if truth.min() == truth.max():
            out[:, j] = truth[0]
            continue
        model = LogisticRegression(C=1.0, max_iter=300).fit(x[known], truth)
        out[:, j] = model.predict_proba(target)[:, 1]
    return out


# --- What the audits mean, in plain sentences.


BASELINES = ("size", "metadata", "border", "position", "csf", "evans")
_SUBJECT = {
    "size": ("image size alone", "reaches", "is"),
    "metadata": ("file facts alone (size, bytes, encoding, scanner)", "reach", "are"),
    "border": ("the image border alone", "reaches", "is"),
    "position": ("slice position alone", "reaches", "is"),
    "csf": ("the share of fluid around the centre of the head (no network)", "reaches", "is"),
    "evans": ("the Evans index of a plain segmentation", "reaches", "is"),
}
READ_BESIDE = 0.6  # AUROC from which, when it is not chance, results must be read beside a baseline
ALPHA = 0.05  # of p, corrected for all labels and baselines


_BESIDE = "read every result beside it"


def figure(entry: Mapping[str, Any]) -> str:
    """``0.80 (0.73-0.86)``, or ``undefined``."""
    if entry.get("value") is None:
        return "undefined"
    text = f"{entry['value']:.2f}"
    return text if entry.get("low") is None else f"{text} ({entry['low']:.2f}-{entry['high']:.2f})"


def is_unremarkable(verdict: str) -> bool:
    """Whether a sentence of the verdict is about a baseline beside which results need not be read.

    >>> is_unremarkable("the image border alone is not clearly above chance: AUROC 0.51 per slice")
    True
    """
    return verdict.startswith(tuple(who for who, _, _ in _SUBJECT.values())) and _BESIDE not in verdict


def baseline_verdict(name: str, table: Mapping[str, Any], level: str, person: str = "patient") -> str:
    """One sentence about a baseline at one level."""
    who, reaches, is_ = _SUBJECT[name]
    labels: Mapping[str, Any] = table["labels"]
    known = {c: found["auroc"] for c, found in labels.items() if found["auroc"].get("value") is not None}
    if not known:
        return f"{who}: undefined per {level} (a class is absent)"
    sure = {c: entry for c, entry in known.items() if entry.get("p_adjusted") is not None}
    if not sure:
        return f"{who}: not judged per {level} (fewer than {FEW} {person}s with, or without, each label)"
    out = {c: entry for c, entry in sure.items() if stands_out(entry)}
    best = max(out or sure, key=lambda c: known[c]["value"])
    p = known[best]["p_adjusted"]
    chance = f"p {'<0.001' if p < 0.001 else f'{p:.3f}'} corrected for all labels and baselines"
    if str(known[best].get("method")).startswith("range"):
        chance = f"{known[best]['method']}, {chance}"
    if not out:
        told = f"; {best}, the highest of {count(len(sure), 'label')}" if len(labels) > 1 else ""
        area = f"AUROC {figure(known[best])} per {level} ({chance}{told})"
        if known[best]["p_adjusted"] < ALPHA:  # a clear figure, of which nothing follows for the results
            side = f"above chance, but below {READ_BESIDE}" if known[best]["value"] > 0.5 else "below chance"
            return f"{who} {reaches} {area}: {side}"
        return f"{who} {is_} not clearly above chance: {area}"
    named = [best] if "any" not in out else list(dict.fromkeys(("any", best)))
    areas = ", ".join(figure(known[c]) + (f" for {c}" if len(labels) > 1 else "") for c in named)
    beside = _against(labels[best])
    return f"{who} {reaches} AUROC {areas} per {level} ({chance}): {_BESIDE}{beside}"


def stands_out(entry: Mapping[str, Any]) -> bool:
    """Whether an AUROC is one that results must be read beside: 0.6 at least, and not by chance."""
    return bool(entry["value"] >= READ_BESIDE and entry["p_adjusted"] < ALPHA)


def _against(found: Mapping[str, Any]) -> str:
    """How the run stands to the baseline, where that is known."""
    gain = found.get("gain")
    if gain is None or gain.get("low") is None:
        return ""
    verdict = "above it by" if gain["low"] > 0 else "NOT shown to be better, difference"
    return f"; the run is {verdict} {gain['value']:+.2f} ({gain['low']:+.2f} to {gain['high']:+.2f})"


def duplicate_verdict(found: Mapping[str, Any]) -> str:
    """One sentence about duplicates and the split."""
    pairs = found["exact"] + found["near"]
    if not pairs:
        return f"no duplicated image found ({count(found['sought'], 'copy', 'copies')} sought)"
    named = f"{count(pairs, 'pair')} of duplicated images ({found['exact']} exact, {found['near']} near)"
    if found.get("straddling") is None:
        return named
    if not found["straddling"]:
        return f"{named}, none on two sides of the split"
    return f"{named}, {found['straddling']} on two sides of the split: results on them are memory, not diagnosis"


def person_of(split: Mapping[str, Any]) -> str:
    """What the split of some audits has divided: ``patient``, or ``image`` where nobody knows whose the images are.

    >>> person_of({"patients": 3}), person_of({"patients": 3, "patients_known": False}), person_of({"images": 3})
    ('patient', 'image', 'image')
    """
    return "image" if split.get("patients_known") is False or "images" in split else "patient"


def leak_verdict(split: Mapping[str, Any]) -> str:
    """The sentence that marks a leaky run."""
    seen, word = split.get("seen_by_weights"), person_of(split)
    # Runs of one version without patient ids wrote images, images_on_two_sides.
    both = split.get("patients_on_two_sides", split.get("images_on_two_sides"))
    tested = split.get("patients", split.get("images"))
    if not seen and not both:
        return f"LEAKY by its settings (split by slice), though here no test {word} stands on two sides"
    why = f"{both} of {count(tested or 0, f'test {word}')} also train or validate"
    if seen:
        why = f"the weights come from a run that has learnt from {seen} of the {word}s that validate or test here"
    return f"LEAKY: {why}; these figures say nothing about new patients"


def verdicts(audits: Mapping[str, Any], part: str, person: str = "") -> list[str]:
    """All sentences of one set of audits: the leak first, duplicates, then the baselines.

    Args:
        audits: The audits.
        part: Whose AUROCs are told: ``test``, or ``cv`` of a whole data set.
        person: Whom the figures count; "": as the audits' split says.
    """
    said: list[str] = []
    split = audits.get("split")
    person = person or person_of(split or {})
    if split and split["leaky"]:
        said.append(leak_verdict(split))
    said.append(duplicate_verdict(audits["duplicates"]))
    for name in BASELINES:
        found = audits.get(name, {})
        note = f" ({found['note']})" if found.get("note") else ""
        if found.get(part):
            levels = different_levels(found[part])
            said += [baseline_verdict(name, found[part][level], level, person) + note for level in levels]
    return said


def different_levels(levels: Mapping[str, Any]) -> Sequence[str]:
    """Levels that judge different cases: where a patient has one slice, slices stand for patients."""
    if not levels:
        return []
    sizes = {level: found["auroc"].get("n") for level, found in levels.items()}
    first = next(iter(levels))
    return [first, "patient"] if sizes.get("patient", sizes[first]) != sizes[first] else [first]
