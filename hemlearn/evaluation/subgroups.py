"""Whether a classifier does as well in every group of patients: figures per subgroup, and tests of interaction.

* ``auroc``: interval as everywhere (:func:`~.auroc.auroc_interval`); tested by Welch's test of the groups' areas with
  their variances, which of two groups is that of :func:`~.significance.unpaired_auroc`.
* ``sensitivity``, ``specificity``: Wilson, on effective cases where patients have several; tested by chi-squared on the
  same effective cases (Rao and Scott).
* ``observed_minus_predicted``: mean of label minus probability, over patients, with the quantile of t; Welch's test.

The last is calibration in the large: 0 where as many cases are positive as was predicted. ECE is not compared between
groups: its bias grows as a group shrinks. Where patients lie in several groups (a covariate of series or slices), the
groups' figures are correlated: the tests then use the covariance over patients, and Hotelling's F.

A group with fewer than ``FEWEST`` positive or negative patients is named and not judged. Cases whose covariate is not
known are a group of their own, which has figures and takes no part in the tests.

Sources: Welch 1951, Biometrika 38:330 (several means of unequal variance); Hotelling 1931, Ann. Math. Stat. 2:360
(correlated ones); Rao and Scott 1992, Biometrics 48:577 (clustered proportions); Obuchowski 1997 and DeLong 1988, as in
:mod:`hemlearn.evaluation.auroc`; Holm 1979.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy.special import chdtrc, fdtrc

from hemlearn.evaluation.auroc import (
    CONFIDENCE,
    FEWEST,
    NAN,
    NOTHING,
    Floats,
    Interval,
    auroc_interval,
    cluster_sums,
    clustered_wilson,
    codes,
    degrees_of_freedom,
    effective,
    quantile,
    too_few,
)
from hemlearn.evaluation.significance import holm
from hemlearn.util.errors import count

METRICS = ("auroc", "sensitivity", "specificity", "observed_minus_predicted")
CALIBRATION = METRICS[-1]
UNKNOWN = "unknown"
MOST = 20  # different texts that make groups; more are ids or free text
_FEW_VALUES = 5  # different numbers that are groups as they are
_SAME = 1e-12
Codes = npt.NDArray[np.intp]


class Estimate(NamedTuple):
    """A metric of one group."""

    value: float
    low: float  # lower end of its interval; NaN where there is none
    high: float  # upper end
    n: int  # cases it rests on


@dataclass(frozen=True)
class Subgroup:
    """One group: who is in it, and how the classifier does there."""

    name: str
    n: int  # cases with a known label
    patients: int  # among them
    positives: int  # patients with a positive case
    negatives: int  # patients with a negative case; a patient may be both
    refused: str = ""  # why it is not judged; empty where it is
    auroc: Estimate | None = None  # None of all metrics where it is not judged
    sensitivity: Estimate | None = None
    specificity: Estimate | None = None
    observed_minus_predicted: Estimate | None = None  # None too where the scores are no probabilities


@dataclass(frozen=True)
class Interaction:
    """Test of whether a metric is the same in every judged group with a known covariate."""

    metric: str  # one of ``METRICS``
    groups: int  # that were compared
    statistic: float = NAN  # F where ``df2`` is finite, else chi-squared
    df1: int = 0  # groups less 1
    df2: float = math.inf  # of the denominator; infinite: chi-squared
    p: float = NAN
    p_holm: float = NAN  # corrected for all tests that are made together
    smallest: str = ""  # group of the lowest value
    largest: str = ""  # group of the highest value
    spread: float = NAN  # highest minus lowest value
    low: float = NAN  # lower end of its interval by the same statistic; of two groups only
    high: float = NAN  # upper end
    note: str = ""  # what a reader must know, or why there is no test

    @property
    def differs(self) -> bool:
        """Whether the corrected p is below 0.05."""
        return self.p_holm < 1 - CONFIDENCE


@dataclass(frozen=True)
class Subgroups:
    """Every group of one covariate and the tests between them; made by :func:`compare_subgroups`."""

    covariate: str
    groups: list[Subgroup]
    tests: list[Interaction]
    note: str = ""  # how the groups were made, such as the cut points of a number

    @property
    def small(self) -> list[Subgroup]:
        """The groups that are not judged."""
        return [group for group in self.groups if group.refused]

    @property
    def table(self) -> pd.DataFrame:
        """One row per group: counts, then ``auroc``, ``auroc_low``, ``auroc_high``, ``auroc_n`` and so on."""
        rows = []
        for group in self.groups:
            row: dict[str, Any] = {"covariate": self.covariate, "group": group.name}
            row |= {key: getattr(group, key) for key in ("n", "patients", "positives", "negatives")}
            for metric in METRICS:
                found = getattr(group, metric) or Estimate(NAN, NAN, NAN, 0)
                row |= {metric: found.value, f"{metric}_low": found.low, f"{metric}_high": found.high}
                row[f"{metric}_n"] = found.n
            rows.append({**row, "refused": group.refused})
        return pd.DataFrame(rows)

    @property
    def test_table(self) -> pd.DataFrame:
        """One row per test of interaction, with the fields of :class:`Interaction`."""
        return pd.DataFrame([{"covariate": self.covariate, **asdict(test)} for test in self.tests])


def compare_subgroups(
    y: npt.ArrayLike,
    p: npt.ArrayLike,
    group: Sequence[str] | npt.NDArray[Any],
    patient: npt.ArrayLike | None = None,
    *,
    calls: npt.ArrayLike | None = None,
    threshold: float = 0.5,
    covariate: str = "",
    scores: bool = False,
    names: Sequence[str] = (),
    note: str = "",
    confidence: float = CONFIDENCE,
) -> Subgroups:
    """One label's figures in each group of cases, and the tests of interaction.

    Args:
        y: (N,) labels 0, 1 or NaN (unknown: the case counts nowhere).
        p: (N,) probabilities.
        group: (N,) name of each case's group; ``UNKNOWN`` where the covariate is not known. Numbers are made groups by
            :func:`cut`.
        patient: (N,) identifiers; None: every case is a patient of its own.
        calls: (N,) whether each case was called positive; None: those at or above ``threshold``.
        threshold: Operating point, where there are no ``calls``.
        covariate: What the groups are groups of.
        scores: ``p`` ranks the cases and is no probability: nothing is said about its calibration.
        names: Groups to list even where they hold no case, in their order; others follow by name, ``UNKNOWN`` last.
        note: How the groups were made.
        confidence: Of the intervals.

    Raises:
        ValueError: Arguments of different lengths.

    Example:
        >>> rng = np.random.default_rng(0)
        >>> sex = np.repeat(["F", "M"], 100)
        >>> y = rng.integers(0, 2, 200)
        >>> p = 1 / (1 + np.exp(-rng.normal(2 * y - 1)))
        >>> found = compare_subgroups(y, p, sex, covariate="sex")
        >>> found.table[["group", "n", "positives", "auroc"]].round(3).values.tolist()
        [['F', 100, 56, 0.901], ['M', 100, 55, 0.915]]
        >>> found.test_table[["metric", "p"]].round(3).values.tolist()[0]
        ['auroc', 0.753]
    """
    truth, score = np.asarray(y, dtype=float), np.asarray(p, dtype=float)
    label = np.asarray(group, dtype=object)
    called = score >= threshold if calls is None else np.asarray(calls, dtype=bool)
    if not truth.shape == score.shape == label.shape == called.shape or truth.ndim != 1:
        shapes = ", ".join(str(item.shape) for item in (truth, score, label, called))
        raise ValueError(f"y, p, group and calls have shapes {shapes}: expected (N,)")
    code = codes(patient, len(truth))
    known = ~np.isnan(truth)
    others = sorted(set(label) - {*names, UNKNOWN}, key=str)
    listed = [*names, *others, *([UNKNOWN] if UNKNOWN in label and UNKNOWN not in names else [])]
    parts, groups = [], []
    for name in listed:
        rows = known & (label == name)
        part = _Part(str(name), truth[rows], score[rows], called[rows], code[rows])
        groups.append(_described(part, scores, confidence))
        if not groups[-1].refused and name != UNKNOWN:
            parts.append(part)
    patients = int(code.max()) + 1 if len(code) else 0
    wanted = [metric for metric in METRICS if not (scores and metric == CALIBRATION)]
    tests = adjusted(_interaction(metric, parts, patients) for metric in wanted)
    return Subgroups(covariate, groups, tests, note)


def adjusted(tests: Iterable[Interaction]) -> list[Interaction]:
    """The tests with Holm's p, corrected for all of them together."""
    listed = list(tests)
    return [replace(test, p_holm=float(p)) for test, p in zip(listed, holm([test.p for test in listed]), strict=True)]


# --- One group.


class _Part(NamedTuple):
    name: str
    y: Floats
    p: Floats
    calls: npt.NDArray[np.bool_]
    code: Codes  # patients, numbered over all groups

    def of(self, metric: str) -> tuple[Floats, Codes]:
        """The values whose mean the metric is, and the patients of these cases."""
        if metric == CALIBRATION:
            return self.y - self.p, self.code
        rows = self.y == (1 if metric == "sensitivity" else 0)
        return (self.calls[rows] == (metric == "sensitivity")).astype(float), self.code[rows]


def _described(part: _Part, scores: bool, confidence: float) -> Subgroup:
    ill, well = (len(np.unique(part.code[part.y == c])) for c in (1, 0))
    found = Subgroup(part.name, len(part.y), len(np.unique(part.code)), ill, well)
    if refused := too_few(ill, well) if len(part.y) else "no case with a known label":
        return replace(found, refused=refused)
    area = auroc_interval(part.y, part.p, part.code, confidence)
    made: dict[str, Any] = {"auroc": Estimate(area.value, area.low, area.high, len(part.y))}
    for metric in ("sensitivity", "specificity"):
        hit, code = part.of(metric)
        made[metric] = Estimate(float(hit.mean()), *clustered_wilson(hit, code, confidence)[0], len(hit))
    if not scores:
        mean, variance, df = _mean(part)
        reach = quantile(confidence, df) * math.sqrt(variance)
        bounds = Interval(max(mean - reach, -1.0), min(mean + reach, 1.0))
        made[CALIBRATION] = Estimate(mean, *bounds, len(part.y))
    return replace(found, **made)


def _mean(part: _Part) -> tuple[float, float, float]:
    """Mean of label minus probability, its variance over patients and degrees of freedom."""
    values, code = part.of(CALIBRATION)
    mean, patients = float(values.mean()), len(np.unique(code))
    pull = np.bincount(code, weights=(values - mean) / len(values))
    variance = float((pull**2).sum()) * patients / (patients - 1)
    return mean, variance, max(effective(code) - 1, 1.0)


# --- All groups together.


class _Figures(NamedTuple):
    """A metric of K groups."""

    values: Floats  # (K,)
    variances: Floats  # (K,)
    df: Floats  # (K,) degrees of freedom of each variance
    pulls: Floats  # (K, P) each patient's pull on each value, from which the correlations come
    factor: float = 1.0  # on the statistic
    notes: tuple[str, ...] = ()


def _interaction(metric: str, parts: Sequence[_Part], patients: int) -> Interaction:
    made = Interaction(metric, len(parts))
    if len(parts) < 2:
        return replace(made, note="fewer than two groups that can be judged")
    found = _areas(parts, patients) if metric == "auroc" else _means(metric, parts, patients)
    low, high = int(found.values.argmin()), int(found.values.argmax())
    spread = float(found.values[high] - found.values[low])
    made = replace(made, df1=len(parts) - 1, spread=spread, note="; ".join(found.notes))
    if spread < _SAME:
        return replace(made, statistic=0.0, p=1.0)
    made = replace(made, smallest=parts[low].name, largest=parts[high].name)
    square, shared = _wald(found)
    if square != square:
        return replace(made, note="a group's figure has no variance")
    if shared:
        notes = [*found.notes, f"{count(shared, 'patient lies', 'patients lie')} in several groups"]
        made = replace(made, note="; ".join(notes))
        least = min(float(found.df.min()), *(len(np.unique(part.code)) - 1 for part in parts))
        made = replace(made, **_hotelling(square * found.factor, len(parts), least))
    else:
        made = replace(made, **_welch(square * found.factor, found.variances, found.df))
    if len(parts) == 2:
        reach = quantile(CONFIDENCE, made.df2) * spread / math.sqrt(made.statistic)
        made = replace(made, low=max(spread - reach, -1.0), high=min(spread + reach, 1.0))
    return made


def _wald(found: _Figures) -> tuple[float, int]:
    """Squared distance of the values from a common one, in their covariance, and the patients in several groups.

    Of independent groups it is the sum of weighted squares around the weighted mean.
    """
    sizes = np.sqrt((found.pulls**2).sum(axis=1))
    scaled = np.divide(found.pulls, sizes[:, None], out=np.zeros_like(found.pulls), where=sizes[:, None] > 0)
    correlation = scaled @ scaled.T
    np.fill_diagonal(correlation, 1.0)
    deviation = np.sqrt(found.variances)
    contrast = np.diff(np.eye(len(deviation)), axis=0)
    middle = contrast @ (correlation * np.outer(deviation, deviation)) @ contrast.T
    difference = contrast @ found.values
    shared = int(((found.pulls != 0).sum(axis=0) > 1).sum())
    if not np.isfinite(middle).all() or np.linalg.cond(middle) > 1 / _SAME:
        return NAN, shared
    return float(difference @ np.linalg.solve(middle, difference)), shared


def _welch(square: float, variances: Floats, df: Floats) -> dict[str, Any]:
    """Welch's F of K groups; of two it is his t squared, without finite degrees of freedom chi-squared."""
    k, weight = len(variances), 1 / variances
    spread = float(((1 - weight / weight.sum()) ** 2 / df).sum())
    if spread == 0:
        return {"statistic": square, "p": float(chdtrc(k - 1, square))}
    statistic = square / (k - 1) / (1 + 2 * (k - 2) / (k**2 - 1) * spread)
    second = (k**2 - 1) / (3 * spread)
    return {"statistic": statistic, "df2": second, "p": float(fdtrc(k - 1, second, statistic))}


def _hotelling(square: float, k: int, df: float) -> dict[str, Any]:
    """Hotelling's F of K correlated groups, whose covariance has the degrees of freedom of the smallest."""
    second = max(df - k + 2, 1.0)
    statistic = square / (k - 1) * second / df
    return {"statistic": statistic, "df2": second, "p": float(fdtrc(k - 1, second, statistic))}


def _areas(parts: Sequence[_Part], patients: int) -> _Figures:
    values, variances, df, pulls, flat = [], [], [], [], []
    for part in parts:
        area = auroc_interval(part.y, part.p, part.code)
        variance = area.variance
        if area.method == "newcombe":  # separable or constant scores: DeLong's variance is 0 and says nothing
            variance = (max(area.value - area.low, area.high - area.value) / quantile(CONFIDENCE)) ** 2
            flat.append(part.name)
        own = cluster_sums(part.y, part.p[None], part.code, patients)
        sides = [(own.positive[0], own.with_positive), (own.negative[0], own.with_negative)]
        values.append(area.value)
        variances.append(variance)
        df.append(min(degrees_of_freedom(part.y, part.code), len(part.y) - 1))
        pulls.append(np.sum([pull * math.sqrt(n / (n - 1)) for pull, n in sides], axis=0))
    told = f"no variance in {', '.join(flat)} (perfect separation or constant scores): Newcombe's taken"
    notes = (told,) if flat else ()
    return _Figures(np.array(values), np.array(variances), np.array(df), np.array(pulls), notes=notes)


def _means(metric: str, parts: Sequence[_Part], patients: int) -> _Figures:
    values, pulls, sizes, units, moments = [], [], [], [], []
    for part in parts:
        value, code = part.of(metric)
        values.append(float(value.mean()))
        pulls.append(np.bincount(code, weights=(value - value.mean()) / len(value), minlength=patients))
        if metric == CALIBRATION:
            moments.append(_mean(part)[1:])
        else:
            sizes.append(clustered_wilson(value, code)[1])
            several = len(np.unique(code)) < len(code)
            units.append(max(effective(code) - 1, 1.0) if several else math.inf)
    if metric == CALIBRATION:
        variances, df = np.array(moments).T
        return _Figures(np.array(values), np.maximum(variances, NOTHING), df, np.array(pulls))
    # The variance were all groups alike, as the score test of two proportions has it.
    rates, trials = np.array(values), np.array(sizes)
    common = float((rates * trials).sum() / trials.sum())
    factor = float((trials.sum() - 1) / trials.sum())
    return _Figures(rates, common * (1 - common) / trials, np.array(units), np.array(pulls), factor)


# --- Numbers made groups.


def cut(
    values: npt.ArrayLike, cuts: Sequence[float] | None = None, patient: npt.ArrayLike | None = None
) -> tuple[npt.NDArray[np.object_], list[str], str]:
    """Bands of a number: the group of each case, the groups in order, and a sentence that tells the cut points.

    Args:
        values: (N,) numbers; NaN: unknown.
        cuts: Rising lower ends of all bands but the first. None: up to five different values that at least ``FEWEST``
            patients have each are groups as they are; else the tertiles of patients, rounded as far as no patient
            changes sides, so that a cut point tells no one's own value.
        patient: (N,) identifiers; None: every case is a patient of its own.

    Raises:
        ValueError: Cut points that do not rise.

    Example:
        >>> groups, names, told = cut([3, 30, 70, 41, float("nan")], cuts=[18, 65])
        >>> groups.tolist()
        ['under 18', '18 to under 65', '65 or more', '18 to under 65', 'unknown']
    """
    number = np.asarray(values, dtype=float)
    code, known = codes(patient, len(number)), ~np.isnan(number)
    if cuts is not None:
        edges = [float(c) for c in cuts]
        if not edges or not np.isfinite(edges).all() or any(b <= a for a, b in pairwise(edges)):
            raise ValueError(f"cut points {', '.join(f'{c:g}' for c in edges) or 'none'}: give numbers that rise")
        told = ""
    else:
        distinct = np.unique(number[known])
        holders = [len(np.unique(code[number == value])) for value in distinct]
        if len(distinct) < 2 or (len(distinct) <= _FEW_VALUES and min(holders) >= FEWEST):
            names = [f"{value:g}" for value in distinct]
            if len(distinct) == 1 and holders[0] < FEWEST:
                names = ["one value"]
            index = np.searchsorted(distinct, number[known])
            return _named(known, names, index), names, ""
        middle = pd.Series(number[known]).groupby(code[known]).median().to_numpy()
        edges = _tertiles(distinct, middle)
        told = f"cut at {' and '.join(f'{edge:.12g}' for edge in edges)}, the tertiles of patients"
        if len(edges) == 1:
            told = f"cut at {edges[0]:.12g}, where both tertiles of patients fall"
    below = [f"under {edges[0]:.12g}"]
    between = [f"{low:.12g} to under {high:.12g}" for low, high in pairwise(edges)]
    names = [*below, *between, f"{edges[-1]:.12g} or more"]
    return _named(known, names, np.searchsorted(edges, number[known], side="right")), names, told


def _named(known: npt.NDArray[np.bool_], names: Sequence[str], index: npt.NDArray[Any]) -> npt.NDArray[np.object_]:
    found = np.full(len(known), UNKNOWN, dtype=object)
    found[known] = np.array(names, dtype=object)[index]
    return found


def _tertiles(distinct: Floats, middle: Floats) -> list[float]:
    """Cut points between values that occur, with as few digits as separate them; one where two would coincide."""
    edges: list[float] = []
    for share in (1 / 3, 2 / 3):
        place = int(np.clip(np.searchsorted(distinct, np.quantile(middle, share), side="left"), 1, len(distinct) - 1))
        below, above = float(distinct[place - 1]), float(distinct[place])
        middle_of = (below + above) / 2
        rounded = [float(f"{middle_of:.{digits}g}") for digits in range(1, 16)]
        edge = next((value for value in rounded if below < value < above), middle_of)
        if not edges or edge > edges[-1]:
            edges.append(edge)
    return edges
