"""What the tests and intervals of hemlearn promise, by simulation, and how long they take.

Run: ``python experiments/benchmarks/statistics_checks.py [type1] [coverage] [speed] [--pairs 2000] [--sets 500]``; no
name runs all three. Every figure is printed beside its Monte-Carlo standard error and the band it must lie in; the exit
status is 1 when one lies outside.

* **type1**: rejections at 0.05 of true null hypotheses. ``paired``: two models, 60 positives and 90 negatives, one case
  per patient. ``clustered``: 100 patients of 5 to 40 slices, positives and negatives within one patient, each model
  erring on whole patients; the slice-level DeLong test beside the patient-clustered one, and the same for McNemar.
* **coverage**: 95 % intervals of a known AUROC: the patient bootstrap on independent cases and on patients of several
  slices (four times as many data sets), and the closed forms (DeLong, Obuchowski on the logit scale) on the same data.
* **speed**: wall and processor seconds of DeLong on 20 models x 100,000 slices (3,000 patients), and of 2,000
  patient-clustered bootstrap replicates of AUROC on as many.
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from collections.abc import Callable, Sequence

import numpy as np
from scipy.stats import norm

from hemlearn.evaluation.auroc import Floats, auroc_interval, contrast, obuchowski_covariance
from hemlearn.evaluation.bootstrap import LabelCases, block_size, draws, percentile, strata_of, units_of
from hemlearn.evaluation.significance import mcnemar, paired_auroc_matrix

Codes = np.ndarray
_wrong: list[str] = []


def report(name: str, hits: int, runs: int, low: float, high: float) -> None:
    """Print a share with its standard error, and keep it when it lies outside ``[low, high]``."""
    share = hits / runs
    inside = low <= share <= high
    print(
        f"{name:66} {share:.4f} +- {math.sqrt(share * (1 - share) / runs):.4f}  ({low} to {high})"
        f"{'' if inside else '  OUTSIDE'}",
        flush=True,
    )
    if not inside:
        _wrong.append(name)


# --- type I error -----------------------------------------------------------------------------------------------------


def clustered_null(rng: np.random.Generator, patients: int = 100) -> tuple[Floats, Floats, Codes]:
    """Labels, two models of equal worth that err on whole patients, and patient codes."""
    who = np.repeat(np.arange(patients), rng.integers(5, 41, patients))
    sick = rng.normal(size=patients)[who]
    y = (sick + rng.normal(size=len(who)) > 0.9).astype(float)
    shared, own = rng.normal(size=patients)[who], rng.normal(size=(2, patients))[:, who]
    return y, 1.2 * y + 0.5 * shared + 0.7 * own + rng.normal(size=(2, len(who))), who


def type1(pairs: int) -> None:
    """Rejections of true null hypotheses."""
    rng = np.random.default_rng(2024)
    y = np.r_[np.ones(60), np.zeros(90)]
    hits = 0
    for _ in range(pairs):
        scores = 1.2 * y + rng.normal(size=150) + rng.normal(size=(2, 150))
        hits += contrast(*obuchowski_covariance(y, np.stack(scores)), 0, 1).p < 0.05
    report("paired DeLong, independent cases", hits, pairs, 0.04, 0.06)
    naive = clustered = naive_rate = clustered_rate = 0
    for _ in range(pairs):
        truth, scores, who = clustered_null(rng)
        naive += contrast(*obuchowski_covariance(truth, np.stack(scores)), 0, 1).p < 0.05
        clustered += contrast(*obuchowski_covariance(truth, np.stack(scores), who), 0, 1).p < 0.05
        right = (scores > 0.6) == (truth == 1)
        naive_rate += mcnemar(*right).p < 0.05
        clustered_rate += mcnemar(*right, who).p < 0.05
    report("DeLong on slices as if independent (inflated)", naive, pairs, 0.10, 1.0)
    report("clustered by patient (Obuchowski)", clustered, pairs, 0.035, 0.065)
    report("McNemar on slices as if independent (inflated)", naive_rate, pairs, 0.10, 1.0)
    report("clustered by patient (Obuchowski 1998)", clustered_rate, pairs, 0.035, 0.065)


# --- coverage ---------------------------------------------------------------------------------------------------------


def bootstrap_interval(y: Floats, score: Floats, who: Codes, seed: int, replicates: int) -> tuple[float, float]:
    """Percentile interval of the AUROC over patients, as the metrics have it."""
    p = 1 / (1 + np.exp(-score))
    label = LabelCases.build(y, p, p > 0.5, who, int(who.max()) + 1)
    strata = strata_of(y[:, None], who)
    point = float(label.values(np.ones((1, label.patients)))["auroc"][0])
    size = block_size(len(y))
    values = np.concatenate([label.values(w)["auroc"] for w in draws(strata, replicates, seed, size)])
    low, high = percentile(values, point, units=units_of("auroc", y, who))
    return low, high


def mixed_area(
    rng: np.random.Generator,
    sample: Callable[[np.random.Generator, int], tuple[Floats, Floats, Codes]],
    patients: int = 60_000,
) -> float:
    """AUROC of the population that ``sample`` draws patients from, from one very large sample."""
    y, score, _ = sample(rng, patients)
    return float(obuchowski_covariance(y, score)[0][0])


def slices_of_patients(rng: np.random.Generator, patients: int) -> tuple[Floats, Floats, Codes]:
    """Patients of 5 to 20 slices with positives and negatives within one patient; scores shift with the patient."""
    who = np.repeat(np.arange(patients), rng.integers(5, 21, patients))
    y = (rng.normal(size=patients)[who] + rng.normal(size=len(who)) > 0.9).astype(float)
    return y, 1.6 * y + 0.7 * rng.normal(size=patients)[who] + rng.normal(size=len(who)), who


def coverage(sets: int, replicates: int) -> None:
    """Share of data sets whose 95 % interval holds the true AUROC."""
    rng = np.random.default_rng(7)
    for area in (0.75, 0.85, 0.92):
        shift = math.sqrt(2) * norm.ppf(area)
        y = np.r_[np.ones(80), np.zeros(120)]
        who = np.arange(200)
        hits = [0, 0]
        for run in range(sets):
            score = rng.normal(size=200) + shift * y
            low, high = bootstrap_interval(y, score, who, run, replicates)
            hits[0] += low <= area <= high
            found = auroc_interval(y, score)
            hits[1] += found.low <= area <= found.high
        report(f"bootstrap, 200 independent cases, AUROC {area}", hits[0], sets, 0.93, 0.97)
        report(f"DeLong on the logit scale, the same, AUROC {area}", hits[1], sets, 0.93, 0.97)
    area = mixed_area(np.random.default_rng(8), slices_of_patients)
    rng, hits = np.random.default_rng(9), [0, 0, 0]
    sets *= 4  # a share of 0.94 of 500 sets has a standard error of 0.011: half the band
    for run in range(sets):
        y, score, who = slices_of_patients(rng, 100)
        low, high = bootstrap_interval(y, score, who, run, replicates)
        hits[0] += low <= area <= high
        found = auroc_interval(y, score, who)
        hits[1] += found.low <= area <= found.high
        naive = auroc_interval(y, score)
        hits[2] += naive.low <= area <= naive.high
    report(f"patient bootstrap, 100 patients of 5-20 slices, AUROC {area:.3f}", hits[0], sets, 0.93, 0.97)
    report("Obuchowski on the logit scale, the same", hits[1], sets, 0.93, 0.97)
    report("DeLong on slices as if independent (too narrow)", hits[2], sets, 0.0, 0.92)


# --- speed ------------------------------------------------------------------------------------------------------------


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
        for weights in draws(strata_of(y[:, None], who), 2000, 0, block_size(cases)):
            label.values(weights)

    timed("2,000 patient bootstrap replicates of AUROC and all else", 60, bootstrap)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the parts named and return 1 when a figure lies outside its band."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", choices=["type1", "coverage", "speed", []], default=[])
    parser.add_argument("--pairs", type=int, default=2000, help="simulated null pairs")
    parser.add_argument("--sets", type=int, default=500, help="simulated data sets")
    parser.add_argument("--replicates", type=int, default=1000, help="of each bootstrap in the coverage")
    options = parser.parse_args(argv)
    parts = options.parts or ["speed", "type1", "coverage"]
    if "speed" in parts:
        speed()
    if "type1" in parts:
        type1(options.pairs)
    if "coverage" in parts:
        coverage(options.sets, options.replicates)
    print(f"outside their bands: {', '.join(_wrong)}" if _wrong else "all inside their bands")
    return 1 if _wrong else 0


if __name__ == "__main__":
    sys.exit(main())
