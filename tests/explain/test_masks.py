from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
from PIL import Image

from hemlearn.config.compose import compose
from hemlearn.data.preprocess import head_squares, shown_box
from hemlearn.data.store import has_masks, lesion_masks
from hemlearn.datamodules.base import SliceDataModule
from hemlearn.phantom.layouts import write_phantom
from hemlearn.phantom.pictures import head_ct_slice
from hemlearn.phantom.slab import Grid
from hemlearn.training.build import build_datamodule
from hemlearn.util.errors import DataError

GRID = Grid(rows=64, cols=64, pixel_mm=3.6, slices=8, samples=1)
COARSE = Grid(rows=96, cols=96, pixel_mm=2.4, samples=1)


@pytest.fixture(scope="module")
def ct_ich(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("masks") / "ct_ich"
    write_phantom("ct_ich_nifti", out, patients=2, seed=4, grid=GRID)
    return out


def module(root: Path, *overrides: str) -> SliceDataModule:
    return build_datamodule(
        compose(["data=ct_ich", f"data.root={root}", "data.image_size=64", "task.labels=[any]", *overrides])
    )


@pytest.mark.parametrize("fit", ["letterbox", "head", "crop", "squash"])
def test_masks_lie_on_the_blood_of_the_networks_input(ct_ich: Path, fit: str) -> None:
    data = module(ct_ich, f"data.fit={fit}")
    assert has_masks(data.manifest)
    table = data.manifest.table
    rows = np.flatnonzero(table["any"] == 1)
    masks = lesion_masks(data.manifest, rows, 64, fit)
    assert masks.any(axis=(1, 2)).mean() > 0.8
    # The same resampling of the scan itself: blood is brighter than the brain around it.
    grey = data.store.array[rows].astype(float)
    inside = grey[masks].mean()
    around = np.stack([np.roll(mask, 9, axis=1) for mask in masks]) & ~masks & (grey > 0) & (grey < 100)
    assert inside > grey[around].mean() + 8


def test_slices_without_blood_have_an_empty_mask(ct_ich: Path) -> None:
    data = module(ct_ich)
    rows = np.flatnonzero(data.manifest.table["any"] == 0)
    assert not lesion_masks(data.manifest, rows, 64, "letterbox").any()


def test_a_mask_of_another_size_is_refused(ct_ich: Path, tmp_path: Path) -> None:
    import shutil

    root = tmp_path / "copy"
    shutil.copytree(ct_ich, root)
    file = sorted((root / "masks").iterdir())[0]
    old = nib.load(file)
    small = nib.Nifti1Image(np.array(old.dataobj)[:32, :32], old.affine)
    file.unlink()  # its voxels are mapped into memory
    nib.save(small, file)
    data = module(root)
    with pytest.raises(DataError, match="its mask has 32 x 32 pixels, the slice 64 x 64"):
        lesion_masks(data.manifest, np.arange(3), 64, "letterbox")
    file.unlink()
    assert not has_masks(data.manifest)
    with pytest.raises(DataError, match="no lesion mask"):
        lesion_masks(data.manifest, np.arange(3), 64, "letterbox")


def test_squares_are_what_the_store_cut(ct_ich: Path) -> None:
    table = module(ct_ich, "data.fit=head").manifest.table
    sides = pd.Series([side for _, _, side in head_squares(table)])
    assert (sides.groupby(table["series_id"]).nunique() == 1).all()
    assert shown_box((40, 100), "letterbox") == (-30, 0, 100, 100)
    assert shown_box((40, 100), "crop") == (0, 30, 40, 40)
    assert shown_box((40, 100), "squash") == (0, 0, 40, 100)


def test_masks_of_the_phantoms_pictures_fit_them(tmp_path: Path) -> None:
    out = tmp_path / "head_ct"
    write_phantom("head_ct", out, patients=4, seed=2, grid=COARSE)
    truth = pd.read_csv(out / "phantom.csv")
    for row in truth.itertuples():
        picture = np.asarray(Image.open(out / "head_ct" / "head_ct" / f"{row.id:03d}.png"))
        mask = np.asarray(Image.open(out / "masks" / f"{row.id:03d}.png")) > 0
        assert mask.shape == picture.shape
        assert mask.any() == bool(row.hemorrhage) or row.area_mm2 < 30
        if mask.sum() > 30:
            # Where the mask lies the bleeding head is brighter than the same head without blood.
            normal, _, _ = head_ct_slice(2, int(row.id), COARSE, abnormal=False)
            change = picture.astype(float) - normal
            assert change[mask].mean() > 3 + change[~mask].mean()
    data = build_datamodule(compose(["data=head_ct", f"data.root={out}", "data.image_size=64"]))
    assert has_masks(data.manifest)
    positive = np.flatnonzero(data.manifest.table["hemorrhage"] == 1)
    assert lesion_masks(data.manifest, positive, 64, "letterbox").shape == (len(positive), 64, 64)
