"""The written set has exactly the layout of the real one, no shortcut to the label, and is never half there."""

from __future__ import annotations

import csv
import io
import os

import numpy as np
import pytest
from PIL import Image
from sklearn.metrics import roc_auc_score

from hemlearn.phantom.files import is_abnormal, window_8bit
from hemlearn.phantom.layouts import LAYOUTS, write_phantom
from hemlearn.phantom.pictures import head_ct_slice
from hemlearn.phantom.slab import Grid
from hemlearn.util.errors import ConfigError, DataError

COARSE = Grid(rows=54, cols=54, pixel_mm=4.2, samples=1)


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    out = tmp_path_factory.mktemp("phantom") / "set"
    seen = []
    summary = write_phantom("head_ct", out, patients=10, seed=5, progress=lambda *done: seen.append(done))
    return out, summary, seen


def _bytes(folder):
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_layout_is_that_of_kaggle(written):
    out, summary, seen = written
    names = [f"{k:03d}.png" for k in range(10)]
    others = {"labels.csv", "phantom.csv", "PHANTOM.txt"}
    assert set(_bytes(out)) == others | {
        f"{folder}/{name}" for name in names for folder in ("head_ct/head_ct", "masks")
    }
    lines = (out / "labels.csv").read_text().splitlines()
    assert lines[0] == "id, hemorrhage"
    assert [line.split(",")[0] for line in lines[1:]] == [str(k) for k in range(10)]
    assert sorted(line.split(",")[1] for line in lines[1:]) == ["0"] * 5 + ["1"] * 5
    for name in names:
        with Image.open(out / "head_ct" / "head_ct" / name) as image:
            assert image.format == "PNG"
            assert image.mode == "L"
            assert min(image.size) > 100
            assert np.asarray(image).max() == 255
    assert "SYNTHETIC" in (out / "PHANTOM.txt").read_text()
    assert (summary.layout, summary.out, summary.images, summary.positives) == ("head_ct", out, 10, 5)
    assert seen == [(k, 10) for k in range(1, 11)]


def test_truth_agrees_with_the_labels(written):
    out, summary, _ = written
    with (out / "phantom.csv").open() as file:
        rows = list(csv.DictReader(file))
    labels = dict(line.split(",") for line in (out / "labels.csv").read_text().splitlines()[1:])
    for row in rows:
        assert row["hemorrhage"] == labels[row["id"]]
        assert bool(row["subtypes"]) == (row["hemorrhage"] == "1")
        assert bool(row["conspicuity"]) == (row["hemorrhage"] == "1")
        assert row["seed"] == "5"
    assert len({row["patient"] for row in rows}) == 10
    named = [name for row in rows for name in row["subtypes"].split("|") if name]
    assert summary.subtypes == {name: named.count(name) for name in set(named)}


def test_patients_do_not_depend_on_their_number(written, tmp_path):
    out, _, _ = written
    write_phantom("head_ct", tmp_path / "few", patients=4, seed=5)
    many, few = _bytes(out), _bytes(tmp_path / "few")
    for k in range(4):
        name = f"head_ct/head_ct/{k:03d}.png"
        assert few[name] == many[name]
    write_phantom("head_ct", tmp_path / "other", patients=2, seed=6)
    assert _bytes(tmp_path / "other")["head_ct/head_ct/000.png"] != many["head_ct/head_ct/000.png"]


def test_classes_are_balanced_and_their_order_is_not_regular():
    labels = [is_abnormal(0, k) for k in range(400)]
    assert sum(labels) == 200
    assert 70 < sum(labels[::2]) < 130
    assert sum(is_abnormal(0, k) for k in range(7)) in (3, 4)


def _features(image, volume):
    png = io.BytesIO()
    Image.fromarray(image).save(png, format="PNG")
    grey = image.astype(float)
    ring = np.concatenate([grey[:3].ravel(), grey[-3:].ravel(), grey[:, :3].ravel(), grey[:, -3:].ravel()])
    size = len(png.getvalue())
    return {
        "width": image.shape[1],
        "height": image.shape[0],
        "aspect": image.shape[0] / image.shape[1],
        "file size": size,
        "bytes per pixel": size / image.size,
        "mean": grey.mean(),
        "spread": grey.std(),
        "border": ring.mean(),
        "bone": (image == 255).mean(),
        "air": (image == 0).mean(),
        "slice position": volume.z_mm[0],
        "noise": volume.scanner.noise_hu,
        "age": volume.head.age,
    }


@pytest.fixture(scope="module")
def features():
    """Crude features of 160 images, the same of their twins without blood, and the labels."""
    seen, twins, labels = [], [], []
    for patient in range(160):
        own = _features(*head_ct_slice(17, patient, COARSE)[::2])
        label = is_abnormal(17, patient)
        seen.append(own)
        twins.append(_features(*head_ct_slice(17, patient, COARSE, abnormal=False)[::2]) if label else own)
        labels.append(int(label))
    assert sum(labels) == 80
    return seen, twins, labels


def _areas(rows, labels):
    return {name: float(roc_auc_score(labels, [row[name] for row in rows])) for name in rows[0]}


def test_nothing_but_the_blood_tells_the_label(features):
    _, twins, labels = features
    # Standard error 0.046. With its blood taken away, an abnormal patient is like any other.
    shortcuts = {name: round(area, 3) for name, area in _areas(twins, labels).items() if abs(area - 0.5) > 0.12}
    assert not shortcuts


def test_crude_features_do_not_replace_looking(features):
    seen, _, labels = features
    # Blood is bright, so it cannot leave the mean and spread of the grey values quite untouched.
    bound = {"mean": 0.17, "spread": 0.21}
    telling = {n: round(a, 3) for n, a in _areas(seen, labels).items() if abs(a - 0.5) > bound.get(n, 0.13)}
    assert not telling


def test_a_twin_shares_everything_but_the_blood():
    patient = next(k for k in range(10) if is_abnormal(3, k))
    image, blood, volume = head_ct_slice(3, patient)
    twin, none, normal = head_ct_slice(3, patient, abnormal=False)
    assert volume.labels()["any"].all()
    assert not normal.labels()["any"].any()
    assert blood.any()
    assert not none.any()
    assert abs(image.shape[0] - twin.shape[0]) <= 2
    assert image.shape[1] == twin.shape[1]
    assert volume.z_mm == normal.z_mm


def test_images_differ_in_size(features):
    seen, _, _ = features
    assert len({row["width"] for row in seen}) > 50
    assert 1.0 < np.median([row["aspect"] for row in seen]) < 1.4


def test_window():
    hu = np.array([[-1000, 0, 40, 80, 3000]], dtype=np.int16)
    assert window_8bit(hu, 40, 80).tolist() == [[0, 0, 128, 255, 255]]


def test_unknown_layout_lists_those_that_exist(tmp_path):
    with pytest.raises(ConfigError, match="'kaggle'") as caught:
        write_phantom("kaggle", tmp_path / "x")
    assert all(name in caught.value.remedy for name in LAYOUTS)


@pytest.mark.parametrize(
    ("options", "words"), [({"patients": 1}, "patients=1"), ({"seed": -3}, "seed=-3"), ({"n_jobs": 0}, "n_jobs=0")]
)
def test_impossible_requests_are_refused(tmp_path, options, words):
    with pytest.raises(ConfigError, match=words):
        write_phantom("head_ct", tmp_path / "x", **options)
    assert not (tmp_path / "x").exists()


def test_what_is_there_already_is_not_touched(tmp_path):
    out = tmp_path / "mine"
    out.mkdir()
    (out / "thesis.txt").write_text("years of work")
    with pytest.raises(DataError, match="not empty") as caught:
        write_phantom("head_ct", out, patients=2)
    assert str(out) in caught.value.problem
    assert (out / "thesis.txt").read_text() == "years of work"
    with pytest.raises(DataError, match="is a file"):
        write_phantom("head_ct", out / "thesis.txt", patients=2)


def test_an_empty_folder_may_be_filled(tmp_path):
    (tmp_path / "empty").mkdir()
    write_phantom("head_ct", tmp_path / "empty", patients=2)
    assert (tmp_path / "empty" / "labels.csv").is_file()


def test_a_place_that_cannot_hold_folders_is_an_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="cannot be written"):
        write_phantom("head_ct", tmp_path / "file" / "set", patients=2)


def test_a_full_disk_is_an_error_and_leaves_nothing(tmp_path, monkeypatch):
    def full(*_args, **_kwargs):
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(Image.Image, "save", full)
    with pytest.raises(DataError, match="disk is full"):
        write_phantom("head_ct", tmp_path / "set", patients=2)
    assert list(tmp_path.iterdir()) == []


def test_interruption_leaves_no_half_written_set(tmp_path):
    def stop(done, total):
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_phantom("head_ct", tmp_path / "set", patients=6, progress=stop)
    assert list(tmp_path.iterdir()) == []
