"""What the tests and intervals of hemlearn promise, by simulation, and how long they take.

Run: ``python experiments/benchmarks/statistics_checks.py [type1] [coverage] [contradictions] [triage] [audit]
[subgroups] [readers] [speed] [conformal --runs DIR] [--sets 2000]``; no name runs all but the last two. It prints
Markdown tables with one column per number of patients; a figure outside its band is bold, and the exit status is then
1. ``--shard K/N`` runs every N-th set of ``audit`` from the K-th on and prints counts, so that several may run side by
side.

Every test must reject a true null hypothesis at 0.05 in 4 to 6 % of sets at 57 and 200 patients and in at most 6 % at
20; every 95 % interval must hold the truth in 93 to 97 % at 57 and 200, and in at least 92 % at 20. Sets whose
test or interval is refused (fewer than three patients of a class, ECE of fewer than 200 cases) are not counted.
Populations:

* **single**: one case per patient, 37 % positive, as patients of CT-ICH are negative; binormal scores.
* **slices**: 3 to 12 slices per patient, positives and negatives within a patient, scores that shift with the patient.
* **audit**: slices, six labels as frequent as CT-ICH's, and three baselines of noise that a patient's slices share in
  part: how often "read every result beside it" is said of any label of any baseline, which must be at most 5 %. Of a
  third of the sets, in three partitions and 39 permutations, as ``hemlearn index`` says it with ten and 99.
* **subgroups**: single and slices, in two or three groups of patients, and in two groups of slices of the same
  patients, that the model does not tell apart: tests of interaction.
* **readers**: four readers of unequal skill, decisions or scores, and a model as good as they are on average; one case
  or five per patient. The model's sensitivity at a reader's specificity is resampled in half of the sets.
* **conformal**: no simulation, but the folds of a finished cross-validation: cuts of triage from the out-of-fold
  predictions of the other folds, judged on the fold that is left out.
* **labels**: three labels, held by 40, 25 and 10 % of cases, one case or 3 to 12 slices per patient.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import pandas as pd
from scipy.special import expit
from scipy.stats import norm

from hemlearn.audits.baselines import ALPHA, READ_BESIDE, adjust, baseline_aurocs, chance_p, stands_out
from hemlearn.audits.partitions import repeated
from hemlearn.compare.groups import ANY
from hemlearn.compare.pairs import t_of_pulls
from hemlearn.compare.runs import find_runs
from hemlearn.config.schema import TaskConfig
from hemlearn.evaluation.auroc import (
    Floats,
    auroc_interval,
    contrast,
    degrees_of_freedom,
    macro_auroc_covariance,
    obuchowski_covariance,
    too_few,
)
from hemlearn.evaluation.bootstrap import LabelCases, block_size, draws
from hemlearn.evaluation.calibration import Calibration
from hemlearn.evaluation.readers import matched_sensitivity, model_against_readers
from hemlearn.evaluation.scoring import Scorer, summarise
from hemlearn.evaluation.significance import (
    Test,
    difference_of_intervals,
    holm,
    mcnemar,
    non_inferiority,
    paired_auroc_matrix,
    paired_macro_matrix,
    two_proportions,
    unpaired_auroc,
)
from hemlearn.evaluation.subgroups import compare_subgroups
from hemlearn.evaluation.triage import (
    answers,
    conformal_cuts,
    fit_triage,
    patients_for_error,
    triage_metrics,
    value_cuts,
)
from hemlearn.reports.tables import format_entry

Codes = np.ndarray
Sample = tuple[Floats, Floats, Codes]  # labels (N, L), scores of two models (2, N, L), patient of each case
SIZES = (20, 57, 200)
_wrong: list[str] = []


class Table:
    """Shares of sets by name and number of patients, against a band for 57 patients and more and one for fewer."""

    def __init__(self, title: str, band: tuple[float, float], few: tuple[float, float]) -> None:
        self.title, self.band, self.few = title, band, few
        self.counts: dict[str, dict[int, list[int]]] = defaultdict(lambda: defaultdict(lambda: [0, 0]))

    def add(self, name: str, size: int, hit: bool | None) -> None:
        """One set; None where there was no answer."""
        if hit is not None:
            self.counts[name][size][0] += bool(hit)
            self.counts[name][size][1] += 1

    def show(self) -> None:
        """Print it, and keep what lies outside."""
        print(f"\n| {self.title} | {' | '.join(f'{n} patients' for n in SIZES)} | sets |")
        print(f"|---|{'---:|' * (len(SIZES) + 1)}")
        for name, row in self.counts.items():
            cells = [self._cell(name, size, *row[size]) for size in SIZES]
            sets = sorted({row[size][1] for size in SIZES})
            print(f"| {name} | {' | '.join(cells)} | {sets[0]:,} to {sets[-1]:,} |", flush=True)

    def _cell(self, name: str, size: int, hits: int, sets: int) -> str:
        if not sets:
            return ""
        share, (low, high) = hits / sets, self.few if size < 57 else self.band
        if name.startswith("("):  # for comparison, promised by nobody
            return f"{share:.3f}"
        if low <= share <= high:
            return f"{share:.3f}"
        _wrong.append(f"{self.title}: {name}, {size} patients, {share:.3f}")
        return f"**{share:.3f}**"


# --- Populations.


def single(rng: np.random.Generator, patients: int, gap: float = 0.0) -> Sample:
    """One case per patient; the second model's signal is weaker by ``gap``."""
    y = (rng.random(patients) < 0.37).astype(float)
    shared = rng.normal(size=patients)
    signal = np.array([[1.6], [1.6 - gap]])
    score = signal * y + 0.6 * shared + 0.8 * rng.normal(size=(2, patients))
    return y[:, None], score[:, :, None], np.arange(patients)


def slices(rng: np.random.Generator, patients: int, gap: float = 0.0) -> Sample:
    """Patients of several slices; each model errs on whole patients."""
    who = np.repeat(np.arange(patients), rng.integers(3, 13, patients))
    y = (rng.normal(size=patients)[who] + rng.normal(size=len(who)) > 0.9).astype(float)
    own = 0.5 * rng.normal(size=patients)[who] + 0.5 * rng.normal(size=(2, patients))[:, who]
    score = np.array([[1.6], [1.6 - gap]]) * y + own + rng.normal(size=(2, len(who)))
    return y[:, None], score[:, :, None], who


def labels(several: bool) -> Callable[..., Sample]:
    """Three labels, the rarest held by a tenth of the cases."""
    cut = norm.ppf(1 - np.array([0.4, 0.25, 0.1]))

    def sample(rng: np.random.Generator, patients: int, gap: float = 0.0) -> Sample:
        who = np.repeat(np.arange(patients), rng.integers(3, 13, patients) if several else 1)
        n, own = len(who), rng.normal(size=(patients, 3))[who]
        noise = rng.normal(size=(n, 3)) if several else 0.0
        y = (own + noise > cut * (math.sqrt(2) if several else 1)).astype(float)
        shift = 0.7 * rng.normal(size=(2, patients, 3))[:, who] if several else 0.5 * rng.normal(size=(n, 3))
        signal = np.array([1.6, 1.6 - gap])[:, None, None]
        return y, signal * y + shift + rng.normal(size=(2, n, 3)), who

    return sample


def probability(score: Floats) -> Floats:
    """Scores as probabilities, overconfident as networks are."""
    return np.asarray(expit(2.4 * score - 2.2))


# --- Type I error.


def unpaired(one: Sample, two: Sample) -> Test:
    """Two areas of different patients, as a comparison tests them."""
    parts = []
    for y, score, who in (one, two):
        truth, n = y[:, 0], len(y)
        areas, covariance = obuchowski_covariance(truth, score[0, :, 0], who)
        few = too_few(*(len(np.unique(who[truth == c])) for c in (1, 0)))
        df = min(degrees_of_freedom(truth, who), n - 1)
        parts.append((float(areas[0]), math.nan if few else float(covariance[0, 0]), df))
    (area1, var1, df1), (area2, var2, df2) = parts
    return unpaired_auroc(area1, var1, area2, var2, df=(df1, df2))


def leak(y: Floats, score: Floats, who: Codes) -> Test:
    """The first model on half of the slices against the second on the other half, of partly the same patients."""
    side = np.arange(len(y)) % 2 == 0
    pull, values, worth = np.zeros(int(who.max()) + 1), [], []
    for sign, rows, model in ((1, side, 0), (-1, ~side, 1)):
        found = macro_auroc_covariance(y[rows], score[model, rows], who[rows])
        pull[np.unique(who[rows])] += sign * found.pulls[0]
        values.append(float(found.macro[0]))
        worth.append(found.units if not np.isnan(found.covariance).any() else 0.0)
    return t_of_pulls(values[0] - values[1], pull, min(worth))


def every_test(rng: np.random.Generator, patients: int, gap: float = 0.0) -> Iterator[tuple[str, Test]]:
    """Every printed test on fresh data; with a ``gap`` the second model is the worse one."""
    y, score, who = single(rng, patients, gap)
    right = (score[:, :, 0] > 0.8) == (y[:, 0] == 1)
    yield "paired AUROC, DeLong", paired_auroc_matrix(y[:, 0], score[:, :, 0])[0, 1]
    yield "paired accuracy, McNemar", mcnemar(*right)
    other = single(rng, patients, gap)
    other = other[0], other[1][::-1], other[2]
    yield "unpaired AUROC, Welch", unpaired((y, score, who), other)
    wrong = (other[1][0, :, 0] > 0.8) == (other[0][:, 0] == 1)
    counts = int(right[0].sum()), patients, int(wrong.sum()), patients
    yield "two proportions, Miettinen and Nurminen", two_proportions(*counts)
    areas = [auroc_interval(t[:, 0], s[0, :, 0]) for t, s, _ in ((y, score, who), other)]
    if all(area.low == area.low for area in areas):
        one, two = ((area.value, area.low, area.high) for area in areas)
        yield "two AUROCs by their intervals", difference_of_intervals(one, two)
    y, score, who = slices(rng, patients, gap)
    right = (score[:, :, 0] > 0.8) == (y[:, 0] == 1)
    yield "paired AUROC of slices, Obuchowski, t", paired_auroc_matrix(y[:, 0], score[:, :, 0], who)[0, 1]
    yield "paired accuracy of slices, clustered McNemar", mcnemar(right[0], right[1], who)
    other = slices(rng, patients, gap)
    yield "unpaired AUROC of slices, Welch", unpaired((y, score, who), (other[0], other[1][::-1], other[2]))
    yield "leak, other slices of the same patients, t", leak(y, score, who)
    for several, name in ((False, "macro AUROC, paired"), (True, "macro AUROC of slices, paired")):
        truth, score, who = labels(several)(rng, patients, gap)
        yield name, paired_macro_matrix(truth, score, who)[0, 1]


def type1(sets: int) -> None:
    """Rejections of true null hypotheses."""
    table, rng = Table("rejections at 0.05", (0.04, 0.06), (0.0, 0.06)), np.random.default_rng(2024)
    plain = Table("for comparison: slices as if independent", (0.0, 1.0), (0.0, 1.0))
    for size in SIZES:
        for _ in range(sets):
            for name, test in every_test(rng, size):
                table.add(name, size, None if test.p != test.p else test.p < 0.05)
            y, score, _ = slices(rng, size)
            p = contrast(*obuchowski_covariance(y[:, 0], score[:, :, 0]), 0, 1).p
            plain.add("paired AUROC, DeLong", size, p < 0.05)
    table.show()
    plain.show()


# --- Coverage.


def truths(sample: Callable[..., Sample], patients: int) -> tuple[dict[str, float], dict[str, float]]:
    """Metrics of a population from one very large sample: over labels, and of the first label."""
    y, score, who = sample(np.random.default_rng(8), patients)
    p = probability(score[0])
    kind = "multilabel" if y.shape[1] > 1 else "binary"
    top, each = Scorer(y, p, p > 0.5, who, kind).values(np.ones((1, int(who.max()) + 1)))
    return {k: float(v[0]) for k, v in top.items()}, {k: float(v[0]) for k, v in each[0].items()}


def inside(entry: dict[str, float | None], truth: float) -> bool | None:
    """Whether an entry's interval holds the truth; None without one."""
    low, high = entry["low"], entry["high"]
    return None if low is None or high is None else low <= truth <= high


METRICS = ("auroc", "accuracy", "sensitivity", "specificity", "ap", "f1", "brier", "ece", "log_loss")
PARTS = ("brier_reliability", "brier_resolution")


def coverage(sets: int, replicates: int) -> None:
    """Share of sets whose 95 % interval holds the truth."""
    table, rng = Table("coverage of 95 % intervals", (0.93, 0.97), (0.92, 1.0)), np.random.default_rng(7)
    for name, sample, kind, wanted in (
        ("one case", single, "binary", (*METRICS, *PARTS)),
        ("slices", slices, "binary", (*METRICS, *PARTS)),
        ("mean over labels", labels(False), "multilabel", (*METRICS, "weighted_log_loss")),
        ("mean over labels, slices", labels(True), "multilabel", (*METRICS, "weighted_log_loss")),
    ):
        truth = truths(sample, 60_000 if "slices" not in name else 40_000)[0]
        for size in SIZES:
            for run in range(sets):
                y, score, who = sample(rng, size)
                p = probability(score[0])
                names = [str(j) for j in range(y.shape[1])]
                found = summarise(y, p, p > 0.5, who, names, kind, intervals=wanted, replicates=replicates, seed=run)
                for metric in wanted:
                    table.add(f"{metric}, {name}", size, inside(found[metric], truth[metric]))
    table.show()


def differences(sets: int) -> None:
    """The same for the intervals of differences, where the second model is the worse one."""
    table, rng = Table("coverage of differences", (0.93, 0.97), (0.92, 1.0)), np.random.default_rng(17)
    gap, many = 0.5, 20_000
    truth = {name: test.difference for name, test in every_test(np.random.default_rng(8), many, gap)}
    for size in SIZES:
        for _ in range(sets):
            for name, test in every_test(rng, size, gap):
                table.add(name, size, None if test.low != test.low else test.low <= truth[name] <= test.high)
    table.show()


# --- A p below 0.05 beside an interval over no difference, or the reverse.


def contradictions(sets: int) -> None:
    """Sets in which p and interval disagree, of every test; and of a margin."""
    rng = np.random.default_rng(1)
    found: defaultdict[str, int] = defaultdict(int)
    made: defaultdict[str, int] = defaultdict(int)
    for _ in range(sets):
        gap = rng.uniform(0, 1.6)
        tests = list(every_test(rng, int(rng.integers(8, 40)), gap))
        n, m = (int(rng.integers(1, 40)) for _ in range(2))
        counts = int(rng.binomial(n, rng.random())), n, int(rng.binomial(m, rng.random())), m
        tests.append(("two proportions, any table", two_proportions(*counts)))
        right = rng.random((2, n)) < rng.random((2, 1))
        tests.append(("McNemar, any table", mcnemar(*right)))
        who = np.repeat(np.arange(rng.integers(2, 12)), rng.integers(2, 6))
        right = rng.random((2, len(who))) < rng.beta(2, 1, size=(2, int(who.max()) + 1))[:, who] * rng.random((2, 1))
        tests.append(("clustered McNemar, any table", mcnemar(right[0], right[1], who)))
        for name, test in tests:
            if test.p == test.p and test.low == test.low:
                made[name] += 1
                found[name] += (test.p < 0.05) == (test.low <= 0 <= test.high)
                margin = non_inferiority(test, 0.05)
                found["margin of non-inferiority"] += (margin.p < 0.025) != margin.non_inferior
                made["margin of non-inferiority"] += 1
    print("\n| p against its own interval | sets | contradictions |\n|---|---:|---:|")
    for name, number in made.items():
        print(f"| {name} | {number:,} | {found[name]} |")
        if found[name]:
            _wrong.append(f"contradictions: {name}, {found[name]}")


# --- Readers beside a model.


def readers(sets: int) -> None:
    """Rejections of a model that is as good as readers are, one case or five per patient.

    Four readers say little of how readers vary: 3 to 7 % are within what Hillis' degrees of freedom promise.
    """
    table, rng = Table("readers: rejections at 0.05", (0.04, 0.06), (0.0, 0.06)), np.random.default_rng(11)
    rough = Table("readers, half of the sets: rejections at 0.05", (0.04, 0.06), (0.0, 0.06))
    for size in SIZES:
        for each, kind in ((1, ""), (5, " of slices")):
            for k in range(sets):
                y, who = np.repeat(rng.random(size) < 0.4, each).astype(float), np.repeat(np.arange(size), each)
                case = 1.3 * y + 0.7 * rng.normal(size=len(y)) + (0.5 * rng.normal(size=size)[who] if each > 1 else 0)
                skill = np.vstack([np.zeros(1), rng.normal(0, 0.25, (4, 1))])  # the model's is their mean
                score = case + skill * y + rng.normal(size=(5, len(y)))
                test = model_against_readers(y, score[0], np.round(2 * score[1:]), cluster=who).test
                table.add(f"AUROC{kind}, Obuchowski-Rockette", size, None if test.p != test.p else test.p < 0.05)
                if k % 2 == 0:
                    equal = case + rng.normal(size=len(y)) > 1.0
                    test = matched_sensitivity(y, score[0], equal, who, seed=k)
                    name = f"sensitivity{kind} at the reader's specificity"
                    rough.add(name, size, None if test.p != test.p else test.p < 0.05)
    table.show()
    rough.show()


# --- Triage.


def triage_patients(rng: np.random.Generator, patients: int, slices: int) -> tuple[Floats, Floats, Codes]:
    """Slices of patients, of whom 40 % have the finding, on half of their slices where they have several."""
    who = np.repeat(np.arange(patients), rng.integers(1, slices + 1, patients))
    sick = (rng.random(patients) < 0.4)[who]
    y = (sick & ((rng.random(len(who)) < 0.5) | (slices == 1))).astype(float)
    return y, rng.normal(size=len(who)) + 0.7 * rng.normal(size=patients)[who] + 2 * y, who


def triage(sets: int) -> None:
    """Errors of new patients beside the rate that was asked, and how often a predictive value is promised wrongly."""
    rng = np.random.default_rng(5)
    print("\n| triage | asked | validation patients | missed | false alarms |\n|---|---:|---:|---:|---:|")
    for slices in (1, 20):
        y, p, who = triage_patients(rng, 20_000, slices)
        worst = [np.full(int(who.max()) + 1, np.nan) for _ in range(2)]
        np.fmin.at(worst[1], who[y == 1], p[y == 1])
        np.fmax.at(worst[0], who[y == 0], p[y == 0])
        negatives, positives = (w[~np.isnan(w)] for w in worst)
        for patients, error in ((60, 0.1), (200, 0.05)):
            errors: list[list[float]] = []
            while len(errors) < sets:
                drawn = triage_patients(rng, patients, slices)
                if min(len(np.unique(drawn[2][drawn[0] == c])) for c in (0, 1)) >= patients_for_error(error):
                    below, above = conformal_cuts(*drawn, error)
                    errors.append([(positives < below).mean(), (negatives > above).mean()])
            rates, spread = np.mean(errors, axis=0), np.std(errors, axis=0) / math.sqrt(sets)
            _wrong.extend(["triage"] * int((rates > error + 3 * spread).sum()))
            print(f"| 1 to {slices} slices | {error} | {patients} | {rates[0]:.4f} | {rates[1]:.4f} |", flush=True)
    y, p, _ = triage_patients(rng, 100_000, 1)
    print("\n| predictive value | asked | validation patients | promised wrongly | had |\n|---|---:|---:|---:|---:|")
    for patients, value in ((100, 0.8), (300, 0.9)):
        for name, sign in (("positive", 1), ("negative", -1)):
            wrong = had = 0
            for _ in range(sets):
                truth, score, _ = triage_patients(rng, patients, 1)
                cuts = value_cuts(truth if sign > 0 else 1 - truth, sign * score, value)
                had += bool(cuts)
                wrong += any((y[sign * p > cut] == (sign > 0)).mean() < value for cut in cuts)
            _wrong.extend(["predictive value"] * (wrong > 0.05 * sets + 3 * math.sqrt(0.0475 * sets)))
            print(f"| {name} | {value} | {patients} | {wrong / sets:.4f} | {had / sets:.4f} |", flush=True)


def conformal(folders: Sequence[str]) -> None:
    """Triage of the folds of a cross-validation: each fold by the out-of-fold predictions of all others.

    The cuts come from patients whom their models have not seen, but those are other models than the fold's own: the
    rate is that of cross-conformal prediction (Vovk 2015), at most twice the asked one for sure (Barber et al. 2021).
    """
    runs = find_runs(folders).runs
    config = runs[0].config
    print("\n| label | per | asked | patients to calibrate +, - | answered | missed | false alarms |")
    print("|---|---|---:|---:|---:|---:|---:|")
    for level in ("patient", "slice"):
        parts = []
        for run in runs:
            maps = run.calibration or Calibration.none(config.task)
            parts.append(maps.aggregate(run.read_predictions(["test"]), level, config.task.aggregate))
        for label in sorted(config.task.labels, key=lambda name: name != ANY):
            for error in (0.1, 0.2):
                task = TaskConfig(labels=[label], triage_error=error)
                found = [(pd.concat([o for o in parts if o is not part]), part) for part in parts]
                cuts = [fit_triage(rest, task)[label] for rest, _ in found]
                sizes = [[cut[side] for cut in cuts] for side in ("positives", "negatives")]
                counts = ", ".join(f"{min(side)} to {max(side)}" for side in sizes)
                if any(cut["note"] for cut in cuts):
                    continue
                said = [
                    answers(part[f"prob_{label}"].to_numpy(), cut) / 2
                    for (_, part), cut in zip(found, cuts, strict=True)
                ]
                every = pd.concat(parts)
                given = (every[f"label_{label}"].to_numpy(float), np.concatenate(said), every["patient_id"].to_numpy())
                made = triage_metrics(*given, {"negative_below": 0.25, "positive_above": 0.75})
                open_ = made["undecided"]
                left = {"value": 1 - open_["value"], "low": 1 - open_["high"], "high": 1 - open_["low"]}
                shares = [format_entry("sensitivity", own) for own in (left, made["missed"], made["false_alarm"])]
                numbers = ["", f" of {made['missed']['n']}", f" of {made['false_alarm']['n']}"]
                cells = " | ".join(share + n for share, n in zip(shares, numbers, strict=True))
                print(f"| {label} | {level} | {100 * error:g} % | {counts} | {cells} |", flush=True)


# --- the audits -------------------------------------------------------------------------------------------------------

CT_ICH = np.array([3, 11, 5, 15, 3]) / 57  # patients with each subtype
FAMILIES = {"size": "size_prob", "metadata": "metadata_prob", "border": "border_prob"}


def audited(rng: np.random.Generator, patients: int) -> tuple[pd.DataFrame, Floats, Codes, dict[str, pd.DataFrame]]:
    """Slices of patients, their labels, and three baselines' features: noise, of each patient and of each slice."""
    depth = 10 if patients < 100 else 4
    who, place = np.repeat(np.arange(patients), depth), np.tile(np.arange(depth), patients)
    start, length = rng.integers(0, depth, (2, patients, 5))
    inside = (place[:, None] >= start[who]) & (place[:, None] <= (start + length)[who])
    y = (inside & (rng.random((patients, 5)) < CT_ICH)[who]).astype(float)
    y = np.c_[y, y.max(axis=1)]
    table = pd.DataFrame({"split": "test", "patient_id": who.astype(str), "series_id": who.astype(str)})
    table = table.assign(slice_id=np.arange(len(who)).astype(str), z_mm=place.astype(float))
    noise = {k: rng.normal(size=(patients, 4))[who] + rng.normal(size=(len(who), 4)) for k in FAMILIES}
    return table, y, who, {name: pd.DataFrame(values) for name, values in noise.items()}


def audit(sets: int, shard: tuple[int, int] = (1, 1)) -> None:
    """Share of sets in which noise is said to be a shortcut."""
    table = Table("noise is said to stand out, of six labels and three baselines", (0.0, 0.05), (0.0, 0.05))
    names, levels = [*"abcde", "any"], ("slice", "patient")
    for size in SIZES:
        for run in range(shard[0] - 1, sets, shard[1]):
            rows, y, who, features = audited(np.random.default_rng([17, size, run]), size)
            frame = rows.assign(**{f"label_{c}": y[:, j] for j, c in enumerate(names)})
            for name, family in FAMILIES.items():
                p = expit(features[name].to_numpy()[:, :1] + 0 * y)
                frame = frame.assign(**{f"{family}_{c}": p[:, j] for j, c in enumerate(names)})
            how = (names, "multilabel", "mean", levels)
            found = {k: {"test": baseline_aurocs(frame, *how, family)} for k, family in FAMILIES.items()}
            adjust(found)
            old = [one["test"]["slice"]["labels"][c]["auroc"] for one in found.values() for c in names]
            fired = [e["low"] is not None and e["value"] >= 0.6 and e["low"] > 0.5 for e in old]
            table.add("(uncorrected, interval over 0.5, per slice: as it was)", size, any(fired))
            for level in levels:
                table.add(f"a run's test patients, per {level}", size, noise_stands_out(found, "test", level))
            if run % 3 == 0:
                given = (rows, y, who, names, levels)
                drawn = repeated(features, *given, partitions=3, permutations=39)
                crossed = {name: {"cv": one} for name, one in drawn.items()}
                for level in levels:
                    table.add(
                        f"random partitions of a data set, per {level}", size, noise_stands_out(crossed, "cv", level)
                    )
            fold = np.random.default_rng(run).permutation(np.arange(size) % 5)
            ill = pd.Series(y[:, -1]).groupby(who).max().to_numpy()
            pooled = np.full((3, size), 0.0)
            for out, part in zip(pooled, features.values(), strict=True):
                x = np.c_[np.ones(size), part.groupby(who).mean().to_numpy()]
                for k in range(5):
                    out[fold == k] = x[fold == k] @ np.linalg.lstsq(x[fold != k], ill[fold != k], rcond=None)[0]
            for name, factor in (
                ("five folds pooled (compare), per patient", 2.25),
                ("(the same, as if independent)", 1),
            ):
                p = holm([chance_p(ill, row, np.arange(size), factor) for row in pooled])
                areas = [auroc_interval(ill, row).value for row in pooled]
                hit = [a >= READ_BESIDE and q < ALPHA for a, q in zip(areas, p, strict=True)]
                table.add(name, size, any(hit))
    table.show()
    if shard[1] > 1:
        print(f"\ncounts: {json.dumps(table.counts)}")


def noise_stands_out(audits: dict[str, Any], part: str, level: str) -> bool:
    """Whether a label of a baseline is said to stand out."""
    entries = [one["auroc"] for found in audits.values() for one in found[part][level]["labels"].values()]
    return any(stands_out(entry) for entry in entries if entry["p_adjusted"] is not None)


def subgroups(sets: int) -> None:
    """Rejections of a true null hypothesis by tests of interaction."""
    table = Table("interaction, no group differs", (0.04, 0.06), (0.0, 0.06))
    rng = np.random.default_rng(13)
    for size in SIZES:
        cases = [(population, groups, "patients") for population in (single, slices) for groups in (2, 3)]
        for population, groups, of in [*cases, (slices, 2, "slices")]:
            for _ in range(sets):
                y, score, who = population(rng, size)
                group = rng.integers(0, groups, size)[who] if of == "patients" else rng.integers(0, groups, len(who))
                p = probability(score[0, :, 0])
                found = compare_subgroups(y[:, 0], p, group.astype(str), who, threshold=float(np.quantile(p, 0.6)))
                for test in found.tests:
                    hit = None if math.isnan(test.p) else test.p < 0.05
                    table.add(f"{test.metric}, {population.__name__}, {groups} groups of {of}", size, hit)
    table.show()


# --- Speed.


def timed(name: str, limit: float, work: Callable[[], object]) -> None:
    """Print wall and processor seconds; the processor's must keep to the limit, whatever else the machine does."""
    wall, cpu = time.perf_counter(), time.process_time()
    work()
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    inside = cpu < limit
    print(
        f"{name:66} wall {wall:6.2f} s  processor {cpu:6.2f} s  (below {limit} s){'' if inside else '  OUTSIDE'}",
        flush=True,
    )
    if not inside:
        _wrong.append(name)


def speed() -> None:
    """Time the two largest jobs."""
    rng = np.random.default_rng(0)
    cases, patients, models = 100_000, 3000, 20
    who = np.r_[np.arange(patients), rng.integers(0, patients, cases - patients)]
    y = (rng.random(cases) < 0.15).astype(float)
    scores = rng.normal(size=(models, cases)) + y
    timed("DeLong covariance, 20 models x 100,000 slices", 5, lambda: obuchowski_covariance(y, scores))
    timed("all 190 paired tests clustered by patient, the same", 5, lambda: paired_auroc_matrix(y, scores, who))
    p = 1 / (1 + np.exp(-scores[0]))

    def bootstrap() -> None:
        label = LabelCases.build(y, p, p > 0.5, who, patients)
        for weights in draws(patients, 2000, 0, block_size(cases)):
            label.values(weights)

    timed("2,000 patient bootstrap replicates of AUROC and all else", 60, bootstrap)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the parts named and return 1 when a figure lies outside its band."""
    parts = ("type1", "coverage", "contradictions", "triage", "audit", "subgroups", "readers", "speed", "conformal")
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", choices=[*parts, []], default=[])
    parser.add_argument(
        "--sets", type=int, default=2000, help="of a test; half as many of its interval, a fifth of a metric's"
    )
    parser.add_argument("--shard", default="1/1", help="of audit: K/N, every N-th set from the K-th on")
    parser.add_argument("--runs", nargs="+", default=[], help="of conformal: the folders of the folds")
    parser.add_argument("--replicates", type=int, default=1000, help="of each bootstrap")
    options = parser.parse_args(argv)
    chosen = options.parts or parts[:-2]
    start = time.process_time()
    if "speed" in chosen:
        speed()
    if "type1" in chosen:
        type1(options.sets)
    if "coverage" in chosen:
        differences(options.sets // 2)
        coverage(options.sets // 5, options.replicates)
    if "contradictions" in chosen:
        contradictions(options.sets * 5)
    if "triage" in chosen:
        triage(options.sets)
    if "audit" in chosen:
        k, n = map(int, options.shard.split("/"))
        audit(options.sets // 2, (k, n))
    if "conformal" in chosen:
        conformal(options.runs)
    if "subgroups" in chosen:
        subgroups(options.sets // 4)
    if "readers" in chosen:
        readers(options.sets)
    print(f"\n{time.process_time() - start:.0f} s of one processor")
    print(f"{len(_wrong)} outside their bands (bold)" if _wrong else "all inside their bands")
    return 1 if _wrong else 0


if __name__ == "__main__":
    sys.exit(main())
