from __future__ import annotations

import pytest

from hemlearn.audits.baselines import (
    baseline_verdict,
    different_levels,
    duplicate_verdict,
    figure,
    leak_verdict,
    verdicts,
)


def entry(value=None, low=None, high=None, p=None, n=40):
    return {"value": value, "low": low, "high": high, "n": n, "method": "delong", "p_adjusted": p}


def table(**areas):
    """Label -> (value, low, high, p corrected)."""
    labels = {name: {"auroc": entry(*area)} for name, area in areas.items()}
    return {"auroc": next(iter(labels.values()))["auroc"], "labels": labels}


def test_a_null_that_separates_must_be_read_beside():
    text = baseline_verdict("size", table(hemorrhage=(0.8, 0.73, 0.86, 0.0004)), "slice")
    assert text == (
        "image size alone reaches AUROC 0.80 (0.73-0.86) per slice (p <0.001 corrected for all labels and baselines): "
        "read every result beside it"
    )
    text = baseline_verdict("metadata", table(hemorrhage=(0.8, 0.73, 0.86, 0.01)), "slice")
    assert text.startswith("file facts alone (size, bytes, encoding, scanner) reach AUROC 0.80")


@pytest.mark.parametrize(
    ("area", "told"),
    [
        ((0.66, 0.49, 0.8, 0.3), "is not clearly above chance: AUROC 0.66"),
        ((0.7, 0.52, 0.8, 0.06), "is not clearly above chance: AUROC 0.70"),
        ((0.57, 0.52, 0.62, 0.01), "for all labels and baselines): above chance, but below 0.6"),
        ((0.4, 0.3, 0.48, 0.04), "for all labels and baselines): below chance"),
    ],
)
def test_a_null_near_chance_says_so_and_does_not_contradict_its_p(area, told):
    text = baseline_verdict("border", table(bleed=area), "patient")
    assert told in text
    assert ("not clearly" in text) == (area[-1] >= 0.05)
    assert "read every result" not in text


def test_several_labels_name_any_and_the_strongest():
    text = baseline_verdict(
        "border", table(epidural=(0.9, 0.8, 0.95, 0.001), any=(0.62, 0.55, 0.7, 0.03), rare=()), "slice"
    )
    assert "reaches AUROC 0.62 (0.55-0.70) for any, 0.90 (0.80-0.95) for epidural per slice" in text
    text = baseline_verdict("border", table(epidural=(0.6, 0.4, 0.7, 0.4), any=(0.5, 0.4, 0.6, 1.0)), "slice")
    assert "(p 0.400 corrected for all labels and baselines; epidural, the highest of 2 labels)" in text


def test_undefined_and_without_interval():
    assert "undefined per slice (a class is absent)" in baseline_verdict("size", table(bleed=()), "slice")
    # A class of few patients separates by luck: 1.0 without a p is no finding.
    text = baseline_verdict("size", table(bleed=(1.0,), other=(0.55, 0.45, 0.65, 0.4)), "slice")
    assert "not clearly above chance: AUROC 0.55" in text
    assert "not judged per slice (fewer than 5 patients" in baseline_verdict("size", table(bleed=(1.0,)), "slice")


def test_the_run_stands_beside_its_null():
    found = table(bleed=(0.8, 0.7, 0.9, 0.001))
    found["labels"]["bleed"]["gain"] = {"value": 0.15, "low": 0.05, "high": 0.25, "p": 0.01}
    assert baseline_verdict("size", found, "slice").endswith("; the run is above it by +0.15 (+0.05 to +0.25)")
    found["labels"]["bleed"]["gain"] = {"value": 0.05, "low": -0.05, "high": 0.15, "p": 0.3}
    assert "NOT shown to be better, difference +0.05 (-0.05 to +0.15)" in baseline_verdict("size", found, "slice")
    found["labels"]["bleed"]["gain"] = {"value": 0.2, "low": None, "high": None, "p": None}
    assert baseline_verdict("size", found, "slice").endswith("read every result beside it")


def test_duplicates_and_leaks():
    found = {"exact": 1, "near": 2, "straddling": 0, "sought": "exact and near"}
    assert duplicate_verdict(found) == "3 pairs of duplicated images (1 exact, 2 near), none on two sides of the split"
    assert "2 on two sides of the split" in duplicate_verdict(found | {"straddling": 2})
    assert duplicate_verdict(found | {"straddling": None}).endswith("(1 exact, 2 near)")
    assert "no duplicated image" in duplicate_verdict(found | {"exact": 0, "near": 0})
    assert "LEAKY: 9 of 12 test patients" in leak_verdict({"patients_on_two_sides": 9, "patients": 12})
    nameless = {"patients_on_two_sides": 9, "patients": 12, "patients_known": False}
    for split in (nameless, {"images_on_two_sides": 9, "images": 12}):  # today's keys, and those of one version
        assert "LEAKY: 9 of 12 test images" in leak_verdict(split)
    assert "by its settings" in leak_verdict({"patients_on_two_sides": 0, "patients": 12})
    assert "learnt from 4 of the patients" in leak_verdict({"seen_by_weights": 4, "patients_on_two_sides": 0})


def test_all_sentences_in_order():
    one = table(bleed=(0.8, 0.73, 0.86))
    levels = {"slice": one, "series": one, "patient": one}
    audits = {
        "split": {"leaky": True, "patients": 12, "patients_on_two_sides": 9},
        "duplicates": {"exact": 0, "near": 0, "straddling": 0, "sought": "exact"},
        "size": {"test": levels},
        "border": {"test": levels, "note": "on 5 of 9 patients"},
        "metadata": {},
    }
    said = verdicts(audits, "test")
    assert [text.split()[0] for text in said] == ["LEAKY:", "no", "image", "the"]
    assert said[-1].endswith("(on 5 of 9 patients)")
    levels["patient"] = {"auroc": entry(0.5, 0.4, 0.6, 1.0, n=10), "labels": {"bleed": {"auroc": entry(0.5, 0.4, 0.6)}}}
    assert different_levels(levels) == ["slice", "patient"]
    assert len(verdicts(audits, "test")) == 6
    assert len(verdicts(audits, "cv")) == 2
    assert different_levels({}) == []


def test_figures():
    assert figure(entry(0.8, 0.73, 0.86)) == "0.80 (0.73-0.86)"
    assert figure(entry(0.8)) == "0.80"
    assert figure(entry()) == "undefined"
