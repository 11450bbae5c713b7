"""A model beside readers of the same cases: each reader by paired tests, and readers as a sample of all readers.

A reader gives decisions (0 or 1) or scores (ordinal or continuous). What one study of several readers says about other
readers and other patients is the analysis of Obuchowski and Rockette with Hillis' degrees of freedom. Both of its
designs are one t test of differences: of a model minus each reader (the readers are the sample, the model is one), or
of each reader's first modality minus the second.

=========================================  ==========================================================================
for a model m and readers j = 1 ... R
=========================================  ==========================================================================
d_j                                        figure of m minus figure of j; mean d
MS                                         variance of the d_j over readers
C                                          mean covariance of d_j and d_k over cases, j not k; 0 where it is negative
standard error of d                        sqrt((MS + R C) / R)
degrees of freedom                         (MS + R C)^2 / (MS^2 / (R - 1))
=========================================  ==========================================================================

The covariances over cases are DeLong's, or Obuchowski's of 1997 where patients have several cases. Rates have the
covariance of means. The degrees of freedom are at most those of the patients, one less than the effective patients of
the class with fewer: Hillis' formula knows of the readers alone, and with 20 patients rejects 8 % of true hypotheses.

Sources: Obuchowski and Rockette 1995, Commun. Stat. Simul. Comput. 24:285; Hillis 2007, Statist. Med. 26:596 (degrees
of freedom; a single modality: section 5.3); Hillis 2014, Statist. Med. 33:330; Hupse et al. 2013, Eur. Radiol. 23:93
(one algorithm beside readers).
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from hemlearn.evaluation.auroc import (
    CONFIDENCE,
    FEWEST,
    NAN,
    NOTHING,
    Floats,
    codes,
    effective,
    obuchowski_covariance,
    quantile,
    too_few,
    two_sided,
)
from hemlearn.evaluation.bootstrap import block_size, draws, ratio, units_of
from hemlearn.evaluation.significance import Test, mcnemar, paired_auroc_matrix
from hemlearn.util.console import NOTICED, track
from hemlearn.util.errors import count

REPLICATES = 1000
RATES = ("sensitivity", "specificity")  # figures of decisions
AUROC = "auroc"  # of scores
MATCHED = "sensitivity_at_specificity"  # the model's sensitivity where its specificity is the reader's


class OverReaders(NamedTuple):
    """Outcome of an Obuchowski-Rockette analysis."""

    test: Test  # mean difference with its interval, t and p
    error: float  # standard error of that mean
    df: float  # degrees of freedom
    readers: int
    means: tuple[float, float] = (NAN, NAN)  # the two figures that are compared, means over readers


def over_readers(
    differences: npt.ArrayLike,
    covariance: npt.ArrayLike,
    *,
    case_df: float = math.inf,
    n: int = 0,
    clusters: int = 0,
    confidence: float = CONFIDENCE,
) -> OverReaders:
    """Test a mean difference for other readers and other cases: Obuchowski and Rockette, with Hillis' t.

    Args:
        differences: (R,) one of each reader: a model's figure minus his, or his figure of one modality minus the other.
        covariance: (R, R) of the differences over cases.
        case_df: Degrees of freedom of that covariance; the test has no more.
        n: Cases it rests on.
        clusters: Patients among them.
        confidence: Coverage of the interval.

    Examples:
        >>> found = over_readers([0.02, 0.06, 0.05], [[4e-4, 1e-4, 1e-4], [1e-4, 4e-4, 1e-4], [1e-4, 1e-4, 4e-4]])
        >>> round(found.test.difference, 4), round(found.error, 4), round(found.df, 1), round(found.test.p, 3)
        (0.0433, 0.0156, 5.7, 0.034)
    """
    d, cases = np.asarray(differences, dtype=float), np.asarray(covariance, dtype=float)
    if d.ndim != 1 or cases.shape != (len(d), len(d)):
        raise ValueError(f"shapes {d.shape} and {cases.shape}: expected (R,) and (R, R)")
    name, readers, mean = "Obuchowski-Rockette", len(d), float(d.mean()) if len(d) else NAN

    def without(why: str) -> OverReaders:
        test = Test(name, mean, NAN, NAN, NAN, NAN, n, clusters, why, confidence)
        return OverReaders(test, NAN, NAN, readers)

    if readers < 2:
        return without(f"{count(readers, 'reader')}: how readers vary is not known")
    if not (np.isfinite(d).all() and np.isfinite(cases).all()):
        return without("a figure or its variance is undefined")
    between = float(d.var(ddof=1))
    shared = readers * max(float(cases.sum() - np.trace(cases)) / (readers * (readers - 1)), 0.0)
    if not between + shared > NOTHING:
        return without("no reader and no case varies")
    df = min((between + shared) ** 2 / (between**2 / (readers - 1)) if between > NOTHING else math.inf, case_df)
    error = math.sqrt((between + shared) / readers)
    reach, t = quantile(confidence, df) * error, mean / error
    note = (
        f"{count(readers, 'reader')}; t with {df:.{1 if df < 100 else 0}f} degrees of freedom"
        if df < math.inf
        else "normal"
    )
    test = Test(name, mean, mean - reach, mean + reach, t, two_sided(t, df), n, clusters, note, confidence)
    return OverReaders(test, error, df, readers)


def figures(
    y: npt.ArrayLike, scores: npt.ArrayLike, metric: str = AUROC, cluster: npt.ArrayLike | None = None
) -> tuple[Floats, Floats, float, str]:
    """Figures of M raters on the same N cases, their covariance over cases, its degrees of freedom, why it has none.

    Args:
        y: (N,) 0 or 1.
        scores: (M, N) scores, or decisions 0 and 1 where the metric is a rate.
        metric: ``auroc``, ``sensitivity`` or ``specificity``.
        cluster: (N,) patients; None: every case is one of its own.

    Examples:
        >>> values, covariance, _, _ = figures([1, 1, 1, 1, 0, 0, 0], [[1, 1, 1, 0, 0, 0, 1]], "sensitivity")
        >>> float(values[0]), float(covariance[0, 0])
        (0.75, 0.0625)
    """
    truth, rows = np.asarray(y), np.atleast_2d(np.asarray(scores, dtype=float))
    code = codes(cluster, len(truth))
    sides = [len(np.unique(code[truth == c])) for c in (1, 0)]
    if metric == AUROC:
        values, covariance = obuchowski_covariance(truth, rows, code)
        why, df = too_few(*sides), min(effective(code[truth == c]) for c in (1, 0)) - 1
    elif metric in RATES:
        wanted = 1 if metric == "sensitivity" else 0
        right, own = (rows == wanted)[:, truth == wanted].astype(float), code[truth == wanted]
        n, groups = right.shape[1], len(np.unique(own))
        values = right.mean(axis=1) if n else np.full(len(rows), NAN)
        pull = np.stack([np.bincount(own, weights=row - row.mean() if n else row) for row in right])
        covariance = pull @ pull.T * (groups / (groups - 1) / n**2 if groups > 1 else NAN)
        why = too_few(*((sides[0], FEWEST) if wanted else (FEWEST, sides[1])))
        df = effective(own) - 1
    else:
        raise ValueError(f"metric {metric!r}: expected one of {', '.join((AUROC, *RATES))}")
    return values, np.full_like(covariance, NAN) if why else covariance, max(df, 1.0), why


def model_against_readers(
    y: npt.ArrayLike,
    model: npt.ArrayLike,
    readers: npt.ArrayLike,
    metric: str = AUROC,
    cluster: npt.ArrayLike | None = None,
    confidence: float = CONFIDENCE,
) -> OverReaders:
    """A model minus the mean of R readers of the same cases, for other readers and cases like these.

    Shapes: y (N,), model (N,), readers (R, N), cluster (N,).

    Examples:
        >>> y = [0, 0, 0, 0, 1, 1, 1, 1]
        >>> readers = [[1, 2, 3, 1, 2, 4, 5, 5], [1, 1, 2, 4, 3, 3, 5, 4], [2, 1, 1, 3, 5, 2, 4, 5]]
        >>> found = model_against_readers(y, [0.1, 0.2, 0.6, 0.3, 0.5, 0.9, 0.8, 0.7], readers)
        >>> [round(value, 3) for value in found.means], round(found.test.p, 3)
        ([0.938, 0.885], 0.571)
    """
    values, covariance, df, why = figures(y, np.vstack([model, readers]), metric, cluster)
    change = np.hstack([np.ones((len(values) - 1, 1)), -np.eye(len(values) - 1)])
    means = (float(values[0]), float(values[1:].mean()))
    return _of_differences(change, values, covariance, df, why, means, y, cluster, confidence)


def between_modalities(
    y: npt.ArrayLike,
    first: npt.ArrayLike,
    second: npt.ArrayLike,
    metric: str = AUROC,
    cluster: npt.ArrayLike | None = None,
    confidence: float = CONFIDENCE,
) -> OverReaders:
    """The first modality minus the second, both read by the same R readers in the same cases.

    Shapes: y (N,), first (R, N), second (R, N), cluster (N,).

    Examples:
        >>> y = [0, 0, 0, 0, 1, 1, 1, 1]
        >>> ct = [[1, 2, 3, 1, 2, 4, 5, 5], [1, 1, 2, 4, 3, 3, 5, 4]]
        >>> mr = [[1, 2, 5, 1, 2, 1, 5, 5], [1, 5, 2, 4, 3, 3, 5, 4]]
        >>> [round(value, 3) for value in between_modalities(y, ct, mr).means]
        [0.875, 0.641]
    """
    values, covariance, df, why = figures(y, np.vstack([first, second]), metric, cluster)
    readers = len(values) // 2
    change = np.hstack([np.eye(readers), -np.eye(readers)])
    means = (float(values[:readers].mean()), float(values[readers:].mean()))
    return _of_differences(change, values, covariance, df, why, means, y, cluster, confidence)


def _of_differences(
    change: Floats,
    values: Floats,
    covariance: Floats,
    df: float,
    why: str,
    means: tuple[float, float],
    y: npt.ArrayLike,
    cluster: npt.ArrayLike | None,
    confidence: float,
) -> OverReaders:
    n = len(np.asarray(y))
    sizes = {"n": n, "clusters": len(np.unique(codes(cluster, n)))}
    found = over_readers(
        change @ values, change @ covariance @ change.T, case_df=df, confidence=confidence, **sizes
    )._replace(means=means)
    return found._replace(test=found.test._replace(note=why)) if why else found


# --- One reader.


def against_reader(
    y: npt.ArrayLike,
    score: npt.ArrayLike,
    call: npt.ArrayLike,
    reader: npt.ArrayLike,
    decides: bool,
    cluster: npt.ArrayLike | None = None,
) -> dict[str, Test]:
    """A model minus one reader on the same cases: metric -> test.

    Of decisions: sensitivity and specificity (McNemar, clustered by patient where patients have several cases), and
    :func:`matched_sensitivity`. Of scores: AUROC (DeLong, or Obuchowski).

    Args:
        y: (N,) 0 or 1.
        score: (N,) of the model.
        call: (N,) decisions of the model at its own threshold.
        reader: (N,) decisions 0 and 1, or scores.
        decides: Whether the reader decided.
        cluster: (N,) patients; None: every case is one of its own.
    """
    truth, own, code = np.asarray(y), np.asarray(reader, dtype=float), codes(cluster, np.size(y))
    if not decides:
        return {AUROC: paired_auroc_matrix(truth, np.stack([np.asarray(score, dtype=float), own]), code)[0, 1]}
    found = {}
    for metric, wanted in zip(RATES, (1, 0), strict=True):
        side = truth == wanted
        right = [np.asarray(calls, dtype=float)[side] == wanted for calls in (call, own)]
        found[metric] = mcnemar(right[0], right[1], code[side])
    return found | {MATCHED: matched_sensitivity(truth, score, own, code)}


def matched_sensitivity(
    y: npt.ArrayLike,
    score: npt.ArrayLike,
    decision: npt.ArrayLike,
    cluster: npt.ArrayLike | None = None,
    confidence: float = CONFIDENCE,
    seed: int = 0,
) -> Test:
    """A model's sensitivity at the specificity of a reader, minus the sensitivity of that reader.

    The point on the model's ROC curve is chosen by the same cases, so the test is not McNemar's: the standard error is
    that of a thousand resamples of patients, of which each has its own point; t with the effective patients of the
    rarer class less 1. Shapes: y (N,), score (N,), decision (N,) of the reader, cluster (N,).

    Examples:
        >>> y, decision = [0, 0, 0, 0, 1, 1, 1, 1], [0, 0, 0, 1, 1, 1, 0, 0]
        >>> matched_sensitivity(y, [0.1, 0.2, 0.6, 0.3, 0.5, 0.9, 0.8, 0.7], decision).difference
        0.5
    """
    truth, p, called = (np.asarray(item, dtype=float) for item in (y, score, decision))
    code = codes(cluster, len(truth))
    n, patients = len(truth), len(np.unique(code))
    name = "at the reader's specificity; patient bootstrap"
    worth, why = units_of(truth, code)
    order = np.argsort(-p, kind="stable")
    truth, called, code = truth[order], called[order], code[order]
    ends = np.append(np.flatnonzero(np.diff(p[order])), n - 1) if n else np.zeros(0, dtype=np.intp)

    def lead(weights: Floats) -> Floats:
        """(R,) differences under weights (R, G) of the patients; on a vertical step its upper end counts."""
        w = weights[:, code]
        hits, alarms = np.cumsum(w * truth, axis=1)[:, ends], np.cumsum(w * (1 - truth), axis=1)[:, ends]
        true, false = (
            np.hstack([np.zeros((len(w), 1)), ratio(part, np.broadcast_to(part[:, -1:], part.shape))])
            for part in (hits, alarms)
        )
        reader = [ratio(w @ (side * called), part[:, -1]) for side, part in ((truth, hits), (1 - truth, alarms))]
        rows, left = np.arange(len(w)), (false <= reader[1][:, None]).sum(axis=1) - 1
        right = np.minimum(left + 1, false.shape[1] - 1)
        run, rest = false[rows, right] - false[rows, left], reader[1] - false[rows, left]
        share = np.divide(rest, run, out=np.zeros(len(w)), where=run > 0)
        return np.asarray(true[rows, left] + share * (true[rows, right] - true[rows, left]) - reader[0])

    if not n or truth.min() == truth.max():
        return Test(name, NAN, NAN, NAN, NAN, NAN, n, patients, why or "no case", confidence)
    groups = int(code.max()) + 1
    difference = float(lead(np.ones((1, groups)))[0])
    if why:
        return Test(name, difference, NAN, NAN, NAN, NAN, n, patients, why, confidence)
    weights = draws(groups, REPLICATES, seed, block_size(n))
    drawn = np.concatenate([lead(w) for w in track(weights, "Resampling patients", after=NOTICED)])
    df = max(worth - 1, 1.0)
    error = float(np.nanstd(drawn, ddof=1)) * math.sqrt((df + 1) / df)  # G units show (G - 1) / G of their variance
    if not error > 1e-9:
        return Test(name, difference, NAN, NAN, NAN, NAN, n, patients, "no resample differs", confidence)
    t, reach = difference / error, quantile(confidence, df) * error
    low, high = difference - reach, difference + reach
    return Test(name, difference, low, high, t, two_sided(t, df), n, patients, "", confidence)
