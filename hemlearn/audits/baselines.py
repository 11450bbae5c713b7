"""What a model reaches that sees no brain: only file facts, only image size, or only the image's border.

Where hospitals, scanners or export programs differ between the classes, such a model separates them, and so may any
network. Its AUROC therefore stands beside every result. Each null is the mean log odds of a ridge logistic regression
and a small random forest: the first is the better one on few images and smooth relations, the second sees
combinations (on Kaggle Head-CT, 5 folds: image size 0.80 and 0.79, together 0.81; file facts 0.80 and 0.86, 0.85;
border 0.80 and 0.86, 0.84). A patient counts as five cases at most, however many slices there are.

Sources: Zech et al. 2018, PLoS Med 15:e1002683 (networks that recognise the hospital); DeGrave, Janizek and Lee 2021,
Nat Mach Intell 3:610 (shortcuts outside the anatomy).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.special import expit, logit, ndtri

from hemlearn.audits.facts import FACTS
from hemlearn.data.splits import ranks, share, unit_features
from hemlearn.evaluation.auroc import (
    CONFIDENCE,
    NAN,
    Floats,
    auroc_interval,
    contrast,
    is_clustered,
    logit_interval,
    macro_auroc_covariance,
    none_if_nan,
    obuchowski_covariance,
    variance_of_difference,
)
from hemlearn.evaluation.predictions import aggregate, as_predictions, label_array, prob_array
from hemlearn.util.errors import DataError

Rows = NDArray[np.int64]
Fit = Callable[[Rows, Rows], Floats]  # training rows, rows to predict -> (n, L) probabilities
_PLAIN = ("tilt_deg",)  # facts whose logarithm makes no sense
_CASES = 5.0  # cases that a patient's slices count as, at most
_MOST = 5000  # slices a null is fitted on; of more, each patient gives the same number, evenly spaced
_TREES, _LEAF = 64, 3  # of the forest; patients (not slices) in a leaf
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
    """Fit the null on some slices and predict others. Shapes: y (N, L), patients (N,)."""
    train = thinned(patients, train)
    truth = y[train]
    counts = np.unique(patients[train].astype(str), return_inverse=True, return_counts=True)
    own = counts[2][counts[1]]
    weight = np.minimum(own, _CASES) / own
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
        x, z = _encoded(features.iloc[train[mask]], features.iloc[target], leaf)
        out[:, labels] = _two_models(x, truth[mask][:, labels], weight[mask], z, leaf)
    return out


def thinned(patients: NDArray[Any], rows: Rows) -> Rows:
    """Of more than 5000 slices, evenly spaced ones of each patient (five at least): enough to fit a null on."""
    if len(rows) <= _MOST:
        return rows
    code = np.unique(patients[rows].astype(str), return_inverse=True)[1]
    order = np.argsort(code, kind="stable")
    most = max(int(_CASES), _MOST // (int(code.max()) + 1))
    parts = np.split(order, np.flatnonzero(np.diff(code[order])) + 1)
    kept = [part[np.linspace(0, len(part) - 1, min(most, len(part))).round().astype(int)] for part in parts]
    chosen: Rows = rows[np.sort(np.concatenate(kept))]
    return chosen


def _encoded(train: pd.DataFrame, target: pd.DataFrame, least: int) -> tuple[Floats, Floats]:
    """Standardised numbers (unknown: the training median, and a column that says so), one column per frequent word."""
    from sklearn.impute import SimpleImputer
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import OneHotEncoder, StandardScaler

    numbers = [name for name in train if pd.api.types.is_numeric_dtype(train[name])]
    words = [name for name in train if name not in numbers]
    parts: list[tuple[Floats, Floats]] = []
    if numbers:
        steps = make_pipeline(
            SimpleImputer(strategy="median", add_indicator=True, keep_empty_features=True), StandardScaler()
        )
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


def folds_of(y: Floats, patients: NDArray[Any], units: Rows, folds: int = 5) -> Rows:
    """(N,) fold of every slice: whole units (patients joined by duplicates), labels spread evenly."""
    count = int(units.max()) + 1 if len(units) else 0
    if count < 2:
        raise DataError(f"shortcut nulls: {count} patient", remedy="cross-validation needs two or more")
    folds = min(folds, count)
    names, member = np.unique(patients.astype(str), return_inverse=True)
    home = np.empty(len(names), dtype=np.int64)
    home[member] = units
    first = [str(names[item]) for item in np.unique(home, return_index=True)[1]]
    part = share(unit_features(units, member.astype(np.int64), y), [1 / folds] * folds, ranks(first, "nulls"))
    return part[units]


def cross_validated(fit: Fit, y: Floats, fold: Rows) -> Floats:
    """(N, L) out-of-fold probabilities of a null.

    The rate of a label differs a little between folds, and a model that knows nothing but the rate of its training
    slices would score below chance once folds are pooled. Log odds are therefore taken relative to that rate.
    Shapes: y (N, L), fold (N,).
    """
    out = np.full(y.shape, 0.5)
    every = _rate(y)
    for k in np.unique(fold):
        train, target = np.flatnonzero(fold != k), np.flatnonzero(fold == k)
        found = np.clip(fit(train, target), 1e-4, 1 - 1e-4)
        out[target] = expit(logit(found) - logit(_rate(y[train])) + logit(every))
    return out


def _rate(y: Floats) -> Floats:
    known = ~np.isnan(y)
    positive, total = (y == 1).sum(axis=0), known.sum(axis=0)
    found = np.divide(positive, total, out=np.full(y.shape[1], 0.5), where=total > 0)
    return np.asarray(np.clip(found, 1e-4, 1 - 1e-4))


def null_aurocs(
    df: pd.DataFrame,
    labels: Sequence[str],
    kind: str,
    aggregation: str,
    levels: Sequence[str],
    family: str,
    *,
    beside: bool = False,
) -> dict[str, Any]:
    """AUROC of a null at every level, per label and over labels."""
    blind = as_predictions(df, labels, family)
    found: dict[str, Any] = {}
    for level in levels:
        rows = aggregate(blind, level, "max" if aggregation == "max" else "mean", kind)
        y, p = label_array(rows, labels), prob_array(rows, labels)
        if kind == "multiclass":
            y[np.isnan(y).any(axis=1)] = np.nan
        own = prob_array(aggregate(df, level, aggregation, kind), labels) if beside else None
        who = rows["patient_id"].to_numpy()
        tables: dict[str, Any] = {}
        for j, label in enumerate(labels):
            known = ~np.isnan(y[:, j])
            tables[label] = {"auroc": _area(y[known, j], p[known, j], who[known])}
            if own is not None:
                tables[label]["gain"] = _gain(y[known, j], own[known, j], p[known, j], who[known])
        found[level] = {"auroc": tables[labels[0]]["auroc"] if len(labels) == 1 else _macro(y, p, who)}
        found[level]["labels"] = tables
    return found


def _method(who: NDArray[Any]) -> str:
    return "obuchowski" if is_clustered(who, len(who)) else "delong"


def _area(y: Floats, p: Floats, who: NDArray[Any]) -> dict[str, Any]:
    area = auroc_interval(y, p, who)
    return _entry(area.value, area.low, area.high, len(y), _method(who))


def _macro(y: Floats, p: Floats, who: NDArray[Any]) -> dict[str, Any]:
    found = macro_auroc_covariance(y, p, who)
    value, variance = float(found.macro[0]), float(found.covariance[0, 0])
    low, high = logit_interval(value, variance, CONFIDENCE) if variance > 0 and 0 < value < 1 else (NAN, NAN)
    known = ~np.isnan(y).all(axis=1)
    entry = _entry(value, low, high, int(known.sum()), _method(who[known]))
    return entry | {"n_defined": found.n_defined, "n_labels": y.shape[1]}


def _gain(y: Floats, own: Floats, null: Floats, who: NDArray[Any]) -> dict[str, Any]:
    areas, covariance = obuchowski_covariance(y, np.stack([own, null]), who)
    test = contrast(areas, covariance, 0, 1)
    reach = float(ndtri(0.5 + CONFIDENCE / 2)) * math.sqrt(variance_of_difference(covariance, 0, 1))
    found = _entry(test.difference, test.difference - reach, test.difference + reach, len(y), _method(who))
    return found | {"p": none_if_nan(test.p)}


def _entry(value: float, low: float, high: float, n: int, method: str) -> dict[str, Any]:
    named = method if math.isfinite(low) else None
    found = {"value": float(value), "low": float(low), "high": float(high), "n": int(n), "method": named}
    return {key: none_if_nan(item) for key, item in found.items()}
