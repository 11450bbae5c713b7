"""The private layouts: what is written is what the label tables and the truth say, and their data modules read it."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from hemlearn.config.compose import compose
from hemlearn.phantom import patients as hydrocephalus_mri
from hemlearn.phantom.files import is_abnormal
from hemlearn.phantom.layouts import write_phantom
from hemlearn.phantom.patients import CLASSES, IMAGES, SIDES, class_of_patient, side_of
from hemlearn.training.build import build_datamodule
from tests.phantom.conftest import SETS, prunable

LAYOUTS = ("basal_ganglia", "six_class", "hydrocephalus_mri")
TASKS = {
    "basal_ganglia": ["task=basal_ganglia", "loss=cross_entropy"],
    "six_class": ["task=six_class", "loss=cross_entropy"],
    "hydrocephalus_mri": ["task=hydrocephalus", "channels=mr"],
}


def _module(layout, root, *overrides):
    return build_datamodule(compose([f"data={layout}", f"data.root={root}", *TASKS[layout], *overrides]))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_data_module_reads_every_file_and_the_labels_of_the_truth(write, layout):
    out, summary, rows = write(layout)
    data = _module(layout, out, *([] if layout == "six_class" else ["data.band=null"]))
    manifest = data.manifest
    assert manifest.synthetic
    assert len(manifest.table) == len(rows) == summary.images
    assert manifest.skipped.empty
    assert manifest.notes == ()
    assert manifest.table["patient_id"].nunique() == SETS[layout][0]
    assert data.store.unit == ("signal" if layout == "hydrocephalus_mri" else "HU")
    truth = {}
    for row in rows:
        word = row.get("side") or row.get("class")
        truth[row["file"]] = (
            {name: float(name == word) for name in manifest.labels}
            if word
            else {"hydrocephalus": float(row["hydrocephalus"])}
        )
    for path, *labels in manifest.table[["path", *manifest.labels]].itertuples(index=False):
        assert dict(zip(manifest.labels, labels, strict=True)) == truth[path]
    assert not np.isnan(data.labels).any()


@pytest.mark.parametrize("layout", ["basal_ganglia", "hydrocephalus_mri"])
def test_the_band_of_the_configuration_keeps_some_slices_of_every_series(write, layout):
    out, _, rows = write(layout)
    manifest = _module(layout, out).manifest
    assert manifest.table["patient_id"].nunique() == SETS[layout][0]
    assert 0.2 < len(manifest.table) / len(rows) < 0.6
    assert set(manifest.summary()["skipped"]) == {"outside the band"}


# Basal ganglia ------------------------------------------------------------------------------------------------------


def test_every_three_patients_have_three_sides():
    sides = [side_of(1, k) for k in range(60)]
    assert all(sorted(sides[k : k + 3]) == sorted(SIDES) for k in range(0, 60, 3))
    assert len({tuple(sides[k : k + 3]) for k in range(0, 60, 3)}) > 3


def test_blood_lies_in_the_ganglia_of_the_named_side_and_nowhere_near_without(write, drawn_once):
    _, _, rows = write("basal_ganglia")
    table = pd.DataFrame(rows).drop_duplicates("patient_id")
    grid = SETS["basal_ganglia"][1]
    sites = table.set_index("side")["sites"]
    assert all("putamen" in site or "caudate" in site for site in sites[["left", "right"]])
    assert not any("putamen" in site or "caudate" in site or "thalamus" in site for site in sites[["none"]])
    assert sites[["none"]].ne("").any()
    for patient in range(6):
        volume, side = drawn_once["draw_ganglia"](2, patient, grid), side_of(2, patient)
        own = [lesion for lesion in volume.lesions if lesion.site in ("putamen", "caudate head")]
        assert len(own) == (side != "none")
        for lesion in own:
            centre = volume.head.to_world(lesion.centre)
            k = int(np.argmin(np.abs(np.array(volume.z_mm) - centre[2])))
            columns = (np.arange(grid.cols) - (grid.cols - 1) / 2) * grid.pixel_mm  # to the patient's left
            near = np.abs(columns - centre[0]) < 25
            mask = volume.masks["intraparenchymal"][k][:, near]
            assert mask.any()
            assert (centre[0] > 0) == (side == "left")


# Six classes --------------------------------------------------------------------------------------------------------


def test_images_lie_in_the_folder_of_the_only_thing_they_show(write):
    out, summary, rows = write("six_class")
    for row in rows:
        assert row["file"].split("/")[0] == row["class"] == (row["subtypes"] or "normal")
    assert sorted(path.name for path in out.iterdir() if path.is_dir()) == sorted(CLASSES)
    per_patient = pd.DataFrame(rows).groupby("patient_id")["file"].size()
    assert per_patient.between(4, IMAGES[1] + 2).all()
    assert 6.0 <= per_patient.mean() <= IMAGES[1] + 1
    assert all(name in summary.subtypes for name in CLASSES[1:])
    assert pd.DataFrame(rows).groupby("patient_id")["class"].nunique().max() == 2  # some have normal slices as well
    assert sorted({class_of_patient(2, k) for k in range(6)}) == sorted(CLASSES)


# Hydrocephalus ------------------------------------------------------------------------------------------------------


def test_the_table_of_labels_is_the_anatomy_and_the_truth_keeps_the_index_apart(write):
    out, summary, rows = write("hydrocephalus_mri")
    labels = pd.read_csv(out / "labels.csv")
    assert list(labels.columns) == ["patient_id", "hydrocephalus"]
    truth = pd.DataFrame(rows).drop_duplicates("patient_id").set_index("patient_id")
    assert (labels.set_index("patient_id")["hydrocephalus"].astype(str) == truth["hydrocephalus"]).all()
    assert ((truth["evans_index"].astype(float) > 0.3) == (truth["hydrocephalus"] == "1")).all()
    assert [row == "1" for row in truth["hydrocephalus"]] == [
        is_abnormal(2, k) for k in range(SETS["hydrocephalus_mri"][0])
    ]
    assert summary.finding == "of patients with hydrocephalus"
    assert summary.positives == sum(row["hydrocephalus"] == "1" for row in rows)
    assert {"atrophy", "hydrocephalus", "normal"} == set(summary.subtypes)
    assert {row["contrast"] for row in rows} == {"T1", "T2"}


def test_dicom_and_nifti_hold_the_same_slices(drawn_once, tmp_path, monkeypatch):
    tables = []
    for share in (0.0, 1.0):
        monkeypatch.setattr(hydrocephalus_mri, "NIFTI_SHARE", share)
        out = tmp_path / str(share)
        write_phantom("hydrocephalus_mri", out, patients=2, seed=2, grid=SETS["hydrocephalus_mri"][1])
        data = _module("hydrocephalus_mri", out, "data.band=null", "data.image_size=64")
        tables.append((data.manifest.table, np.array(data.store.array)))
    (dicom, first), (nifti, second) = tables
    assert dicom["path"].str.endswith(".dcm").all()
    assert nifti["path"].str.endswith(".nii.gz").all()
    order = [table.assign(name=table["path"].str[:8]).sort_values(["name", "z_mm"]).index for table in (dicom, nifti)]
    assert np.allclose(dicom["z_mm"].to_numpy()[order[0]], nifti["z_mm"].to_numpy()[order[1]], atol=0.01)
    assert (first[order[0]] == second[order[1]]).all()


def test_truth_is_no_table_of_labels(write):
    out, _, _ = write("hydrocephalus_mri")
    manifest = _module("hydrocephalus_mri", out, "data.band=null").manifest
    assert manifest.labels == ("hydrocephalus",)
    assert "evans_index" not in manifest.table


@pytest.mark.parametrize("layout", LAYOUTS)
def test_prune_knows_every_file(write, layout, tmp_path):
    assert prunable(write(layout)[0], layout, tmp_path)
