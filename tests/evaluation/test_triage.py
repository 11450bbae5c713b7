from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from hemlearn.config.identity import run_hash
from hemlearn.config.schema import Config, TaskConfig
from hemlearn.evaluation.metrics import evaluate
from hemlearn.evaluation.predictions import aggregate
from hemlearn.evaluation.triage import (
    ANSWERS,
    answers,
    conformal_cuts,
    fit_triage,
    patients_for_error,
    patients_for_value,
    triage_cuts,
    triage_metrics,
    value_cuts,
)
from hemlearn.reports.tables import print_run
from hemlearn.training.checks import check_triage
from hemlearn.util.errors import ConfigError

# 25 patients with and 35 without the finding, 25 new ones, and the sets that crepes 0.9.1 gives (ConformalClassifier
# by class, hinge, smoothing=False): n and p where the other class's p value is at most the error, u where neither is.
POSITIVES = "500 372 635 772 874 713 562 504 825 919 745 393 461 917 732 282 672 410 543 577 522 795 676 552 770"
NEGATIVES = (
    "507 080 258 144 274 110 314 302 249 136 232 131 104 360 129 592 479 057 371 130 317 319 058 262 258 540 121 485 "
    "130 244 162 657 442 836 461"
)
CREPES = {0.05: "nnnnnnnuuuuuuuuuuuuuupppp", 0.1: "nnnnnnnnnuuuuuupppppppppp", 0.2: "nnnnnnnnnnnnppppppppppppp"}


def task(error=None, value=None, **more):
    return TaskConfig(triage_error=error, triage_value=value, **more)


def units(y, p, who=None):
    return pd.DataFrame(
        {
            "patient_id": np.arange(len(y)).astype(str) if who is None else who,
            "label_hemorrhage": np.asarray(y, dtype=float),
            "prob_hemorrhage": p,
        }
    )


def drawn(rng, patients, slices=1):
    """Slices of patients, of whom 40 % have the finding on half of their slices; scores shift with the patient."""
    who = np.repeat(np.arange(patients), rng.integers(1, slices + 1, patients))
    sick = (rng.random(patients) < 0.4)[who]
    y = (sick & ((rng.random(len(who)) < 0.5) | (slices == 1))).astype(float)
    return y, rng.normal(size=len(who)) + 0.7 * rng.normal(size=patients)[who] + 2 * y, who


@pytest.mark.parametrize("error", CREPES)
def test_equal_to_crepes(error):
    p = np.array([*POSITIVES.split(), *NEGATIVES.split()], dtype=float) / 1000
    y = np.r_[np.ones(25), np.zeros(35)]
    below, above = conformal_cuts(y, p, np.arange(60), error)
    new = np.round(np.linspace(0.02, 0.98, 25), 3)
    said = "".join("nup"[place] for place in answers(new, {"negative_below": below, "positive_above": above}))
    assert said == CREPES[error]


@pytest.mark.parametrize("slices", [1, 8])
def test_errors_keep_their_rate(slices):
    """The mean over many draws of validation patients; patients with several slices count by their worst."""
    rng, found = np.random.default_rng(1), []
    y, p, who = drawn(rng, 4000, slices)
    positive, negative = (pd.Series(p[y == c]).groupby(who[y == c]) for c in (1, 0))
    worst = positive.min().to_numpy(), negative.max().to_numpy()
    for _ in range(200):
        below, above = conformal_cuts(*drawn(rng, 60, slices), 0.1)
        found.append([(worst[0] < below).mean(), (worst[1] > above).mean()])
    for mean, spread in zip(np.mean(found, axis=0), np.std(found, axis=0), strict=True):
        assert 0.06 < mean < 0.1 + 3 * spread / np.sqrt(200)


def test_few_patients_are_told_how_many_are_needed():
    assert (patients_for_error(0.05), patients_for_error(0.3), patients_for_value(0.8)) == (19, 3, 21)
    y = np.r_[np.ones(18), np.zeros(40)]
    (cut,) = fit_triage(units(y, np.linspace(1, 0, 58)), task(0.05)).values()
    assert "needs 19 validation patients with the finding and 19 without; there are 18 and 40" in cut["note"]
    assert (cut["negative_below"], cut["positive_above"]) == (None, None)
    assert set(answers(np.array([0.0, 0.5, 1.0]), cut)) == {ANSWERS.index("undecided")}
    (cut,) = fit_triage(units(np.r_[1, y], np.linspace(1, 0, 59)), task(0.05)).values()
    assert cut["note"] == ""
    # Patients and not slices are counted.
    (cut,) = fit_triage(
        units(np.repeat(y, 2), np.linspace(1, 0, 116), np.repeat(np.arange(58), 2)), task(0.05)
    ).values()
    assert "there are 18 and 40" in cut["note"]
    (cut,) = fit_triage(units(y, np.linspace(1, 0, 58)), task(value=0.95)).values()
    assert "needs 90 validation patients called without an error; there are 58 in all" in cut["note"]


def test_where_both_classes_could_be_excluded_nobody_is_undecided():
    y = np.r_[np.ones(20), np.zeros(20)]
    (cut,) = fit_triage(units(y, np.linspace(1, 0, 40)), task(0.2)).values()
    assert cut["negative_below"] == cut["positive_above"]
    low, high = conformal_cuts(y, np.linspace(1, 0, 40), np.arange(40), 0.2)
    assert high < cut["positive_above"] < low


def test_predictive_values():
    rng, right = np.random.default_rng(2), {"ppv": 0, "npv": 0}
    y, p, who = drawn(rng, 5000)
    for _ in range(40):
        (cut,) = fit_triage(units(*drawn(rng, 200)[:2]), task(value=0.8)).values()
        found = triage_metrics(y, p, who, cut)
        for name in right:
            value = found[name]["value"]
            right[name] += value is None or value >= 0.8
    assert min(right.values()) >= 37  # 95 % of 40, less chance
    (cut,) = fit_triage(units(y[:400], p[:400]), task(value=0.8)).values()
    assert found["npv"]["n"] > 100
    (strict,) = fit_triage(units(y[:400], p[:400]), task(0.02, 0.8)).values()
    assert strict["positive_above"] >= cut["positive_above"]
    assert strict["positive_above"] in value_cuts(y[:400], p[:400], 0.8)  # of those that were tested
    (noise,) = fit_triage(units(y[:400], rng.random(400)), task(value=0.9)).values()
    assert noise["positive_above"] is None
    assert "44 must be called so without an error" in noise["note"]
    (several,) = fit_triage(units(y[:400], p[:400], np.arange(400) // 2), task(value=0.8)).values()
    assert "one case per patient" in several["note"]


def test_a_run_that_asks_for_triage(tmp_path, capsys):
    rng = np.random.default_rng(3)
    parts = []
    for split in ("val", "test"):
        y, z, who = drawn(rng, 80, 4)
        ids = np.char.add(split, who.astype(str))
        part = pd.DataFrame({"split": split, "patient_id": ids, "series_id": ids, "z_mm": 0.0})
        part["slice_id"] = [f"{split}-{i}" for i in range(len(y))]
        parts.append(part.assign(label_hemorrhage=y, prob_hemorrhage=1 / (1 + np.exp(1 - z))))
    df = pd.concat(parts, ignore_index=True)
    config = task(0.1)
    found = evaluate(df, config, replicates=0)
    assert "triage" not in evaluate(df, task(), replicates=0)
    cuts = triage_cuts(found, config.labels)
    assert set(cuts) == {"slice", "series", "patient"}
    own = found["triage"]["test"]["patient"]["hemorrhage"]
    rows = aggregate(df[df["split"] == "test"], "patient")
    said = answers(rows["prob_hemorrhage"].to_numpy(), cuts["patient"]["hemorrhage"])
    y = rows["label_hemorrhage"].to_numpy()
    assert own["missed"]["value"] == pytest.approx((said[y == 1] == 0).mean())
    assert own["undecided_negative"]["value"] == pytest.approx((said[y == 0] == 1).mean())
    assert own["undecided"]["n"] == len(rows)
    again = evaluate(df[df["split"] == "test"], config, thresholds=found["thresholds"], triage=cuts, replicates=0)
    assert again["triage"]["test"] == found["triage"]["test"]
    # Points of the decision curve stand beside it, for levels that have probabilities.
    assert set(found["net_benefit"]["test"]) == {"slice"}
    entry = found["net_benefit"]["test"]["slice"]["hemorrhage"][1]
    rows = df[df["split"] == "test"]
    y, called = rows["label_hemorrhage"].to_numpy(), rows["prob_hemorrhage"].to_numpy() >= 0.1
    assert (entry["threshold"], entry["n"], entry["low"]) == (0.1, len(rows), None)
    assert entry["value"] == pytest.approx((y[called].sum() - (1 - y[called]).sum() / 9) / len(y))
    assert entry["treat_all"] == pytest.approx(y.mean() - (1 - y.mean()) / 9)
    print_run(tmp_path, found)
    out = capsys.readouterr().out
    assert "triage of test cases" in out
    assert "triage: of patients with the finding at most 10 % are called negative" in out
    assert "on average over sets of validation patients" in " ".join(out.split())
    for bad in ({"hemorrhage": {"negative_below": "x", "positive_above": 1}}, {}, {"hemorrhage": 3}):
        with pytest.raises(ValueError, match="is no cut"):
            triage_cuts({"triage": {"cuts": {"patient": bad}}}, config.labels)


def test_validation_patients_are_counted_before_training(caplog):
    val = units(np.r_[np.ones(5), np.zeros(30)], 0.5)
    val["series_id"] = val["patient_id"]
    with pytest.raises(ConfigError, match=r"task\.triage_error=0\.1: hemorrhage: .* needs 9 .* there are 5 and 30"):
        check_triage(task(0.1), val)
    with pytest.raises(ConfigError, match=r"task\.triage_value=0\.99999999: .* value of 0\.99999999 needs"):
        check_triage(task(value=0.99999999), val)
    with pytest.raises(ConfigError, match="needs 9999999"):
        check_triage(task(1e-320), val)
    check_triage(task(0.2), val)
    check_triage(task(), val, leaky=True)
    with pytest.raises(ConfigError, match=r"task\.triage_error=0\.2: a LEAKY split: .* no error rate"):
        check_triage(task(0.2), val, leaky=True)
    both = val.assign(label_other=np.r_[np.ones(15), np.zeros(20)])
    check_triage(task(0.1, kind="multilabel", labels=["hemorrhage", "other"]), both)
    assert "triage: hemorrhage stays undecided" in caplog.text


def test_keys():
    for name in ("triage_error", "triage_value"):
        for bad in (0, 1, -0.1, "much"):
            with pytest.raises(ConfigError, match=rf"task\.{name}='?{bad}"):
                Config(task={name: bad})
        with pytest.raises(ConfigError, match="exclusive classes"):
            Config(task={name: 0.1, "kind": "multiclass", "labels": ["a", "b", "c"]})

    def digest(**keys):
        return run_hash(Config(task=keys), manifest="m", weights=None, split_file=None)

    assert digest() == digest(triage_error=None, triage_value=None)
    assert len({digest(), digest(triage_error=0.1), digest(triage_value=0.9)}) == 3
