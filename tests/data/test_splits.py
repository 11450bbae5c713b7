from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from hemlearn.config.compose import option
from hemlearn.config.schema import SplitConfig
from hemlearn.data.duplicates import duplicate_groups
from hemlearn.data.manifest import Manifest
from hemlearn.data.splits import (
    PART,
    Holdout,
    KFold,
    MonteCarlo,
    Split,
    SplitFile,
    assert_disjoint,
    given_split,
    make_split,
)
from hemlearn.util.errors import ConfigError, SplitError
from hemlearn.util.tables import csv_text
from tests.data.heads import bare_manifest


def config(**keys: Any) -> SplitConfig:
    return SplitConfig(**({"duplicates": "exact"} | keys))


def volumes(patients: int = 60, seed: int = 0, rates: tuple[float, ...] = (0.5,)) -> Manifest:
    """Patients of 1 to 9 slices; a patient has label k with rate k, in about half of the slices."""
    rng = np.random.default_rng(seed)
    counts = rng.integers(1, 10, patients)
    owner = np.repeat(np.arange(patients), counts)
    has = rng.random((patients, len(rates))) < np.array(rates)
    labels = has[owner] & (rng.random((len(owner), len(rates))) < 0.6)
    labels[np.searchsorted(owner, np.arange(patients))] = has  # at least one slice shows it
    table = pd.DataFrame(labels.astype(float), columns=[f"l{item}" for item in range(len(rates))])
    return bare_manifest(table, [f"p{item:03d}" for item in owner])


def two_hundred() -> Manifest:
    """Like Head-CT: 100 positive and 100 negative people of one slice, and some copies."""
    contents = [f"c{item}" for item in range(200)]
    for a, b in ((5, 22), (22, 58), (11, 61), (188, 189), (198, 199), (40, 140)):
        contents[b] = contents[a]
    labels = pd.DataFrame({"bleed": np.repeat([1.0, 0.0], 100)})
    return bare_manifest(labels, [f"p{item}" for item in range(200)], contents)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_folds_partition_and_are_stratified(seed: int) -> None:
    manifest = two_hundred()
    groups = duplicate_groups(manifest, "exact")
    tested: list[str] = []
    for fold in range(5):
        split = make_split(manifest, config(name="kfold", fold=fold, seed=seed), groups=groups)
        parts = split.apply(manifest)
        counts = pd.crosstab(parts, manifest.table["bleed"])
        assert (counts.loc["test"] - 20).abs().max() <= 2  # patients; units differ by one
        assert (counts.loc["val"] - 12).abs().max() <= 2
        tested += manifest.table.loc[(parts == "test").to_numpy(), "patient_id"].tolist()
        assert parts.groupby(groups).nunique().max() == 1
    assert sorted(tested) == sorted(manifest.table["patient_id"])


@pytest.mark.parametrize("name", ["holdout", "monte_carlo", "kfold"])
def test_patients_stay_whole_and_labels_even(name: str) -> None:
    manifest = volumes(200, rates=(0.4, 0.1, 0.05))
    split = make_split(manifest, config(name=name))
    parts = split.apply(manifest)
    assert parts.groupby(manifest.table["patient_id"]).nunique().max() == 1
    patients = manifest.table.groupby("patient_id")[list(manifest.labels)].max()
    of_patient = split.assignment.set_index("patient_id")["split"].reindex(patients.index)
    shares = {"train": 0.68, "val": 0.12, "test": 0.2}
    for part, share in shares.items():
        inside = patients[of_patient == part]
        assert abs(len(inside) - 200 * share) <= 2
        for label in manifest.labels:
            assert abs(inside[label].sum() - share * patients[label].sum()) <= 1.5
        assert abs((parts == part).mean() - share) < 0.03


def test_a_split_depends_on_ids_and_seed_only() -> None:
    manifest = volumes(50)
    split = make_split(manifest, config())
    shuffled = Manifest(
        manifest.table.sample(frac=1, random_state=3).reset_index(drop=True),
        manifest.skipped,
        manifest.labels,
        Path("/elsewhere"),
        "other",
    )
    assert make_split(shuffled, config()).checksum == split.checksum
    assert make_split(manifest, config(seed=1)).checksum != split.checksum
    assert make_split(manifest, config(fold=3)).checksum == split.checksum


def test_folds_are_the_same_on_every_machine() -> None:
    labels = pd.DataFrame({"bleed": [item % 3 == 0 for item in range(30)]})
    manifest = bare_manifest(labels, [f"p{item:02d}" for item in range(30)])
    parts = make_split(manifest, config(name="kfold")).assignment.set_index("patient_id")["split"]
    # Written down once: a change here would change every published fold.
    assert parts.index[parts == "test"].tolist() == ["p08", "p12", "p15", "p17", "p25", "p28"]
    assert parts.index[parts == "val"].tolist() == ["p13", "p19", "p24"]


def test_repetitions_differ() -> None:
    manifest = volumes(50)
    sums = {make_split(manifest, config(name="monte_carlo", fold=fold)).checksum for fold in range(5)}
    assert len(sums) == 5


def test_rare_labels_are_spread_over_folds() -> None:
    manifest = volumes(80, seed=0, rates=(0.3, 0.1))
    patients = manifest.table.groupby("patient_id")["l1"].max()
    assert 6 <= patients.sum() <= 9
    for fold in range(5):
        split = make_split(manifest, config(name="kfold", fold=fold), required=("train", "test"))
        test = split.assignment.query("split == 'test'")["patient_id"]
        assert abs(patients[test].sum() - patients.sum() / 5) < 1


def test_unknown_labels_do_not_hinder() -> None:
    manifest = volumes(60)
    table = manifest.table.copy()
    table.loc[table["patient_id"].isin([f"p{item:03d}" for item in range(20)]), "l0"] = np.nan
    split = make_split(Manifest(table, manifest.skipped, manifest.labels, manifest.root, "x"), config())
    unknown = split.assignment.set_index("patient_id")["split"].iloc[:20]
    assert (unknown == "test").sum() in (3, 4, 5)


def test_saved_loaded_and_used_again(tmp_path: Path) -> None:
    manifest = volumes()
    split = make_split(manifest, config())
    split.save(tmp_path / "split.csv")
    assert (tmp_path / "split.csv").read_text().splitlines()[0] == "patient_id,split"
    again = make_split(manifest, config(name="file", file=str(tmp_path / "split.csv")))
    assert again.checksum == split.checksum
    assert again.apply(manifest).equals(split.apply(manifest))


def file_of(tmp_path: Path, manifest: Manifest, extra: str = "", drop: str = "") -> SplitConfig:
    text = csv_text(make_split(manifest, config()).assignment)
    lines = [line for line in text.splitlines() if not (drop and line.startswith(drop))]
    path = tmp_path / "given.csv"
    path.write_text("\n".join(lines) + "\n" + extra)
    return config(name="file", file=str(path))


@pytest.mark.parametrize(
    ("extra", "drop", "parts"),
    [
        ("ghost,train\nspirit,test\n", "", ["names 2 patient_ids", "'ghost', 'spirit'", "given.csv"]),
        ("p003,train\n", "", ["'p003'", "more than once"]),
        ("", "p003,", ["lacks 1", "'p003'"]),
        ("ghost,dev\n", "", ["split 'dev'", "'ghost'", "train, val, test"]),
    ],
)
def test_split_files_that_do_not_fit(tmp_path: Path, extra: str, drop: str, parts: list[str]) -> None:
    manifest = volumes()
    with pytest.raises(SplitError) as caught:
        make_split(manifest, file_of(tmp_path, manifest, extra, drop))
    for part in parts:
        assert part in str(caught.value)


def test_a_split_file_without_its_columns(tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_text("patient,part\n1,train\n")
    with pytest.raises(SplitError, match=r"x\.csv: the split has no column 'patient_id'; it has patient, part"):
        Split.load(tmp_path / "x.csv")


@pytest.mark.parametrize(
    ("table", "parts"),
    [
        ({"patient_id": ["a", "b", "a"], "split": ["train", "val", "test"]}, ["'a' in data row 1 (train), data row 3"]),
        ({"patient_id": ["a", "b"], "split": ["train", "dev"]}, ["data row 2", "split 'dev' of patient_id 'b'"]),
        ({"patient_id": ["a", " "], "split": ["train", "val"]}, ["data row 2 of the split has no patient_id"]),
        ({"series_id": ["a"], "split": ["train"]}, ["no column 'patient_id'; it has series_id, split"]),
        ({"patient_id": [], "split": []}, ["no rows"]),
        (["train"], ["a list, not a table"]),
    ],
)
def test_a_table_that_is_no_split(table: Any, parts: list[str]) -> None:
    with pytest.raises(SplitError) as caught:
        Split(pd.DataFrame(table) if isinstance(table, dict) else table)
    for part in parts:
        assert part in str(caught.value)


def test_a_split_of_numbers_and_further_columns_is_one_of_text() -> None:
    split = Split(pd.DataFrame({"age": [3, 4], "patient_id": [10, 9], "split": ["test", "train"]}))
    assert split.assignment.to_dict("list") == {"patient_id": ["10", "9"], "split": ["test", "train"]}
    assert Split(pd.DataFrame({"slice_id": ["x"], "split": ["train"]})).leaky


def test_the_remedy_of_a_wrong_argument_holds_in_python() -> None:
    with pytest.raises(ConfigError, match=r"split\.fold=7: 0 to 4") as caught:
        KFold(fold=7)
    assert "hemlearn.KFold" in caught.value.remedy
    assert "--cfg" not in caught.value.remedy


def test_a_file_that_parts_copies_is_refused(tmp_path: Path) -> None:
    manifest = two_hundred()
    split = make_split(manifest, config())
    table = split.assignment.set_index("patient_id")
    table.loc["p188"], table.loc["p189"] = "train", "test"
    Split(table.reset_index()).save(tmp_path / "s.csv")
    given = config(name="file", file=str(tmp_path / "s.csv"))
    with pytest.raises(SplitError, match=r"copies of one picture.*s0188 \(train\), s0189 \(test\)"):
        make_split(manifest, given)
    given.duplicates = "none"
    assert make_split(manifest, given).apply(manifest).iloc[189] == "test"


def test_disjointness_is_checked_at_run_time() -> None:
    manifest = volumes(10)
    parts = pd.Series("train", index=manifest.table.index)
    assert_disjoint(manifest, parts)
    owner = manifest.table["patient_id"].value_counts().index[0]
    parts[manifest.table.index[manifest.table["patient_id"] == owner][0]] = "test"
    with pytest.raises(SplitError, match=f"patient '{owner}' stands on two sides"):
        assert_disjoint(manifest, parts)
    assert_disjoint(manifest, parts, leaky=True)


def test_fewer_patients_than_folds() -> None:
    manifest = volumes(4)
    with pytest.raises(SplitError, match=r"split\.folds=5, but the data set has 4 patient_ids"):
        make_split(manifest, config(name="kfold"))
    copies = bare_manifest(pd.DataFrame({"x": [0, 1] * 3}), list("abcdef"), ["k", "k", "c", "d", "e", "e"])
    with pytest.raises(
        SplitError, match="copies of pictures join its 6 patient_ids to 4 groups, each kept on one side"
    ):
        make_split(copies, config(name="kfold"))


def test_a_part_of_a_table_is_left_out_by_its_number() -> None:
    """A covariate of numbers; it is part of the run's identity, of which the manifest's checksum knows nothing."""
    flags = pd.DataFrame({"bleed": [0.0, 1.0] * 10})
    manifest = bare_manifest(flags, [f"p{k}" for k in range(20)])
    how = config(name="leave_one_out", left_out="2")
    owner = np.repeat([1.0, 2.0, np.nan], [12, 6, 2])
    told = replace(manifest, table=manifest.table.assign(**{PART: owner}))
    parts = make_split(told, how).apply(told)
    assert ((parts == "test") == (owner == 2)).all()
    with pytest.raises(SplitError, match=r"split\.left_out=3: no part of this name") as caught:
        make_split(told, config(name="leave_one_out", left_out="3"))
    assert caught.value.remedy.endswith("1, 2")
    with pytest.raises(SplitError, match=r"val holds no") as caught:
        make_split(told, how.model_copy(update={"val_fraction": 1e-9}))
    assert "raise split.val_fraction (now 1e-09)" in caught.value.remedy
    moved = replace(told, table=told.table.assign(**{PART: owner[::-1]}))
    assert len({given_split(how, item) for item in (told, moved, manifest)}) == 3
    assert given_split(config(), told) is None


def test_what_cannot_be_divided_is_told_with_its_reason() -> None:
    flags = pd.DataFrame({"bleed": [0.0, 1.0] * 6})
    with pytest.raises(SplitError, match=r"no patient in .*: the data set has 1 patient_id\n") as caught:
        make_split(bare_manifest(flags, ["p"] * 12), config())
    assert "tells patients apart" in caught.value.remedy
    people = [f"p{k}" for k in range(12)]
    with pytest.raises(SplitError, match="copies of pictures join its 12 patient_ids to 1 group, each") as caught:
        make_split(bare_manifest(flags, people, ["k"] * 12), config())
    assert "split.duplicates=none" in caught.value.remedy
    # Where patients are there, the key of the part that lacks them is named.
    with pytest.raises(SplitError, match="val holds no") as caught:
        make_split(bare_manifest(flags, people), config(val_fraction=1e-9))
    assert "raise split.val_fraction (now 1e-09)" in caught.value.remedy


@pytest.mark.parametrize(
    ("labels", "text", "remedy"),
    [
        (
            [1.0] * 2 + [0.0] * 28,
            "has one in 2 patients, which cannot stand in each of train, val, test",
            "add patients",
        ),
        (
            [1.0] * 30,
            "train holds no negative slice of 'bleed'; the whole data set has one in 0 patients",
            "add patients",
        ),
        ([np.nan] * 30, "train holds no positive slice of 'bleed'", "add patients with it"),
    ],
)
def test_a_class_absent_from_a_part(labels: list[float], text: str, remedy: str) -> None:
    manifest = bare_manifest(pd.DataFrame({"bleed": labels}), [f"p{item}" for item in range(30)])
    with pytest.raises(SplitError) as caught:
        make_split(manifest, config())
    assert text in str(caught.value)
    assert remedy in caught.value.remedy
    assert "a task without this label" in caught.value.remedy


def test_an_absent_class_may_be_accepted_outside_training(caplog: pytest.LogCaptureFixture) -> None:
    labels = pd.DataFrame({"bleed": [1.0] * 2 + [0.0] * 28})
    manifest = bare_manifest(labels, [f"p{item}" for item in range(30)])
    make_split(manifest, config(seed=1), required=("train",))
    assert "its metrics there are undefined" in caplog.text


def test_a_split_by_slice_must_be_asked_for_twice(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    manifest = volumes()
    with pytest.raises(ConfigError, match=r"split\.by='slice'"):
        make_split(manifest, config(by="slice"))
    split = make_split(manifest, config(by="slice", allow_leak=True))
    assert split.leaky
    assert list(split.assignment) == ["slice_id", "split"]
    assert "optimistic" in caplog.text
    assert split.apply(manifest).groupby(manifest.table["patient_id"]).nunique().max() > 1
    split.save(tmp_path / "s.csv")
    stamped = pd.read_csv(tmp_path / "s.csv")
    assert list(stamped) == ["slice_id", "split", "leaky"]
    assert stamped["leaky"].all()
    assert len(stamped) == len(manifest.table)
    assert Split.load(tmp_path / "s.csv").checksum == split.checksum
    with pytest.raises(SplitError, match="divides by slice"):
        make_split(manifest, config(name="file", file=str(tmp_path / "s.csv")))
    leak = config(name="file", file=str(tmp_path / "s.csv"), allow_leak=True)
    assert make_split(manifest, leak).checksum == split.checksum
    honest = make_split(manifest, config())
    honest.save(tmp_path / "p.csv")
    assert list(pd.read_csv(tmp_path / "p.csv")) == ["patient_id", "split"]


def test_labels_of_series_cannot_be_split_by_slice() -> None:
    manifest = volumes()
    whole = manifest.table.groupby("series_id")["l0"].transform("max")
    series = replace(manifest, table=manifest.table.assign(l0=whole), label_level="series")
    with pytest.raises(SplitError, match="describe whole series"):
        make_split(series, config(by="slice", allow_leak=True))
    assert not make_split(series, config()).leaky


@pytest.mark.parametrize(
    ("keys", "text"),
    [
        ({"name": "loo"}, "split.name='loo'"),
        ({"by": "study"}, "split.by='study'"),
        ({"name": "kfold", "fold": 5}, "split.fold=5: 0 to 4"),
        ({"test_fraction": 1.0}, "split.test_fraction=1.0: strictly between"),
        ({"name": "file"}, "split=file needs a CSV"),
        ({"duplicates": "all"}, "split.duplicates='all'"),
    ],
)
def test_impossible_settings(keys: dict[str, Any], text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        make_split(volumes(10), config(**keys))
    assert text in str(caught.value)


def test_the_yaml_files_fit_the_schema() -> None:
    folder = Path(__file__).resolve().parents[2] / "conf/split"
    files = {path.stem: path for path in folder.glob("*.yaml")}
    needs = {"file": r"split\.file=FILE", "leave_one_out": r"split\.left_out=NAME"}
    assert set(files) == {"holdout", "kfold", "monte_carlo", *needs}
    for name in set(files) - set(needs):
        assert option("split", name).by == "patient"
    for name, told in needs.items():
        with pytest.raises(ConfigError, match=told):
            option("split", name)


def test_real_head_ct(head_ct: Manifest, head_ct_pairs: pd.DataFrame) -> None:
    groups = duplicate_groups(head_ct, pairs=head_ct_pairs)
    for fold in range(5):
        parts = make_split(head_ct, config(name="kfold", fold=fold, duplicates="near"), groups=groups).apply(head_ct)
        counts = pd.crosstab(parts, head_ct.table["hemorrhage"])
        assert (counts.loc["test"] - 20).abs().max() <= 3  # pictures; sets of copies differ by one
        for a, b in ((188, 189), (198, 199), (11, 61)):
            assert parts[a] == parts[b]


def test_the_classes_mean_what_the_group_means() -> None:
    pairs = [
        (Holdout(test_fraction=0.3, seed=4), {"name": "holdout", "test_fraction": 0.3, "seed": 4}),
        (KFold(folds=4, fold=1), {"name": "kfold", "folds": 4, "fold": 1}),
        (MonteCarlo(fold=2, test_fraction=0.1), {"name": "monte_carlo", "fold": 2, "test_fraction": 0.1}),
        (SplitFile(file="a.csv", allow_leak=True), {"name": "file", "file": "a.csv", "allow_leak": True}),
    ]
    for made, keys in pairs:
        assert dict(made) == dict(SplitConfig(**keys))
    with pytest.raises(ConfigError, match=r"split\.fold=5.*0 to 4"):
        KFold(folds=5, fold=5)
