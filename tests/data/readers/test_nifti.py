from __future__ import annotations

import gzip
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
from nibabel.orientations import axcodes2ornt, inv_ornt_aff, ornt_transform
from numpy.typing import NDArray

from hemlearn.data.geometry import series_geometry
from hemlearn.data.readers import nifti as module
from hemlearn.data.readers import nifti_header
from hemlearn.data.readers.nifti import read_geometry, read_nifti
from hemlearn.data.scan import read_headers
from hemlearn.util.errors import DataError
from tests.data.readers.files import gzip_bomb, head_hu, nifti, nifti_head
from tests.datamodules.slices import module as datamodule

# (slices from below, rows from anterior, columns from the patient's right), as it is read.
VOLUME = np.random.default_rng(0).integers(-1000, 1500, (5, 12, 10)).astype(np.int16)
SPACING = (0.5, 0.5, 4.0)  # right, anterior, superior; mm


def ras() -> tuple[NDArray[np.int16], NDArray[np.float64]]:
    """VOLUME with right-anterior-superior axes, its first voxel at (-10, -20, 30) mm."""
    affine = np.diag([*SPACING, 1.0])
    affine[:3, 3] = (-10, -20, 30)
    return VOLUME.transpose(2, 1, 0)[::-1, ::-1], affine


def turned(codes: str) -> tuple[NDArray[np.int16], NDArray[np.float64]]:
    """The same volume, stored along other axes."""
    voxels, affine = ras()
    change = ornt_transform(axcodes2ornt("RAS"), axcodes2ornt(codes))
    return nibabel.orientations.apply_orientation(voxels, change), affine @ inv_ornt_aff(change, voxels.shape)


def rotated(degrees: float, axis: int = 0) -> NDArray[np.float64]:
    """The affine of ``ras``, turned about one axis."""
    affine = ras()[1]
    first, second = [item for item in range(3) if item != axis]
    cosine, sine = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    turn = np.eye(4)
    turn[first, first] = turn[second, second] = cosine
    turn[first, second], turn[second, first] = -sine, sine
    return turn @ affine


@pytest.mark.parametrize("codes", ["RAS", "LAS", "LPS", "RAI", "LPI", "SRA", "PIR", "AIL"])
@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
def test_every_orientation_is_seen_as_on_a_radiological_screen(tmp_path: Path, codes: str, suffix: str) -> None:
    path = nifti(tmp_path / f"a{suffix}", *turned(codes))
    for frame in range(5):
        found = read_nifti(path, frame, "CT")
        assert found.dtype == np.int16
        assert np.array_equal(found, VOLUME[frame])
    geometry = read_geometry(path)
    assert geometry.shape == (5, 12, 10)
    assert geometry.pixel_mm == (0.5, 0.5)
    assert geometry.spacing_mm == pytest.approx(4)
    assert geometry.z_mm == pytest.approx(30)
    assert geometry.normal == pytest.approx((0, 0, 1))
    assert geometry.tilt_deg == pytest.approx(0)
    stored = nibabel.load(path)
    axis = [code in "SI" for code in nibabel.aff2axcodes(stored.affine)].index(True)
    for index in range(5):
        slab = np.take(np.asarray(stored.dataobj), index, axis)
        assert sorted(slab.ravel()) == sorted(VOLUME[geometry.frame_of(index)].ravel())


def test_oblong_voxels_become_square(tmp_path: Path) -> None:
    voxels, affine = ras()
    affine[1, 1] = 1.0  # rows lie twice as far apart as columns
    path = nifti(tmp_path / "a.nii", voxels, affine)
    assert read_geometry(path).pixel_mm == (1.0, 0.5)
    found = read_nifti(path, 2, "CT")
    table = read_headers(["a.nii"], tmp_path, progress=False)
    assert found.shape == (24, 10) == (table["rows"][2], table["columns"][2])
    assert table["pixel_mm"][2] == (0.5, 0.5)
    assert table["remark"][2] == "oblong voxels of 1 x 0.5 mm, resampled to square ones"
    upper, lower = VOLUME[2, :-1].astype(float), VOLUME[2, 1:]
    assert np.abs(found[1:-1:2] - (0.75 * upper + 0.25 * lower)).max() <= 0.51
    assert np.abs(found[2:-1:2] - (0.25 * upper + 0.75 * lower)).max() <= 0.51
    labels = nifti(tmp_path / "labels.nii", (voxels > 0).astype(np.int16), affine)
    assert np.array_equal(read_nifti(labels, 2, "OT", labels=True), np.repeat(VOLUME[2] > 0, 2, axis=0))


def test_headers_of_a_volume(tmp_path: Path) -> None:
    nifti(tmp_path / "v/a.nii.gz", *turned("LPI"))
    table = read_headers(["v/a.nii.gz"], tmp_path, cache_dir=tmp_path / "cache", progress=False)
    assert table["frame"].tolist() == [0, 1, 2, 3, 4]
    assert table["z_mm"].tolist() == pytest.approx([30, 34, 38, 42, 46])
    assert (table["series_id"] == "v/a.nii.gz").all()
    assert (table[["set_aside", "reason"]] == "").all(axis=None)
    assert table["pixel_mm"].tolist() == [(0.5, 0.5)] * 5
    assert table["rows"].tolist() == [12] * 5
    assert table["columns"].tolist() == [10] * 5
    sagittal = ras()[1] @ np.diag([12, 1, 0.2, 1])
    nifti(tmp_path / "s.nii", ras()[0], sagittal)
    aside = read_headers(["s.nii"], tmp_path, progress=False)["set_aside"]
    assert aside.str.startswith("not axial: voxels of 0.50 x 6.00 mm").all()


@pytest.mark.parametrize("degrees", [-30.0, -12.0, 5.0, 30.0])
def test_a_tilted_volume_is_read_and_its_tilt_told(tmp_path: Path, degrees: float) -> None:
    path = nifti(tmp_path / "a.nii", ras()[0], rotated(degrees))
    assert np.array_equal(read_nifti(path, 2), VOLUME[2])
    geometry = read_geometry(path)
    assert geometry.tilt_deg == pytest.approx(degrees, abs=1e-3)
    assert geometry.spacing_mm == pytest.approx(4)


def test_a_sheared_stack_has_its_spacing_along_the_normal(tmp_path: Path) -> None:
    voxels, affine = ras()
    affine[1, 2] = 1.5  # slices of a tilted gantry, pushed forwards
    geometry = read_geometry(nifti(tmp_path / "a.nii", voxels, affine))
    assert geometry.spacing_mm == pytest.approx(4)
    assert geometry.tilt_deg == pytest.approx(0, abs=1e-4)


def form(*diagonal: float, turn: float = 0.0) -> NDArray[np.float64]:
    """An affine for ``nifti_head``: signed voxel sizes, mm; ``turn``: about the left-right axis, degrees."""
    out = np.diag([*diagonal, 1.0])
    cosine, sine = np.cos(np.radians(turn)), np.sin(np.radians(turn))
    out[:3, :3] = np.array([[1, 0, 0], [0, cosine, -sine], [0, sine, cosine]]) @ out[:3, :3]
    out[:3, 3] = -54, -54, -50
    return out


@pytest.mark.parametrize(
    ("sform", "qform", "remark"),
    [
        (form(2, 2, 5), form(2, 2, 5), ""),
        (form(2, 2, 5), form(-2, 2, 5), "its sform and qform contradict each other about left and right"),
        (form(2, 2, 5), form(2, 2, 5, turn=15), "its sform and qform lie 15 degrees apart: the sform is used"),
        (form(1, 1, 1), form(2, 2, 5), "voxels of 1 x 1 x 1 by its sform, of 2 x 2 x 5 by its pixdim"),
    ],
)
def test_forms_that_disagree_are_remarked(
    tmp_path: Path, sform: NDArray[Any], qform: NDArray[Any], remark: str
) -> None:
    nifti_head(tmp_path / "a.nii", sform, qform)
    table = read_headers(["a.nii"], tmp_path, progress=False)
    assert (table["reason"] == "").all()
    assert table["remark"].nunique() == 1
    assert table["remark"].iloc[0].startswith(remark)
    assert bool(remark) == bool(table["remark"].iloc[0])
    assert np.array_equal(read_nifti(tmp_path / "a.nii", 5), head_hu()[5])
    notes = series_geometry(table.assign(patient_id="p"))["problems"].item()
    assert notes.endswith(table["remark"].iloc[0])


def test_an_identity_sform_gives_way_to_the_qform(tmp_path: Path) -> None:
    SimpleITK = pytest.importorskip("SimpleITK")
    path = nifti_head(tmp_path / "a.nii", np.eye(4), form(2, -2, 5, turn=10), sform_code=2)
    found, theirs = read_geometry(path), SimpleITK.ReadImage(str(path))
    assert (*found.pixel_mm, found.spacing_mm) == pytest.approx(theirs.GetSpacing(), rel=1e-5)
    assert found.normal == pytest.approx(np.array(theirs.GetDirection()).reshape(3, 3)[:, 2], abs=1e-5)
    assert abs(found.tilt_deg) == pytest.approx(10, abs=1e-3)
    assert found.remark == "its sform is the identity, its qform is not: the qform is used"
    assert np.array_equal(read_nifti(path, 5), head_hu()[5][::-1])


def test_forms_that_disagree_about_the_top_are_refused(tmp_path: Path) -> None:
    path = nifti_head(tmp_path / "a.nii", form(2, 2, 5), form(2, 2, -5))
    with pytest.raises(DataError, match="its sform says that the axes run towards RAS, its qform RAI"):
        read_geometry(path)


def test_an_unknown_unit_is_taken_for_millimetres_and_told(tmp_path: Path) -> None:
    nifti_head(tmp_path / "a.nii", xyzt_units=7)
    nifti_head(tmp_path / "b.nii")
    table = read_headers(["a.nii", "b.nii"], tmp_path, progress=False)
    assert (table["reason"] == "").all()
    assert table.groupby("path")["remark"].first().tolist() == [
        "the unit code 7 of its header is none: lengths are taken for mm",
        "",
    ]
    assert table["pixel_mm"].tolist() == [(2.0, 2.0)] * 24


@pytest.mark.parametrize("scale", [1e-3, 1e3])
def test_units_that_lie_are_refused(tmp_path: Path, scale: float) -> None:
    affine = form(0.5 * scale, 0.5 * scale, 5 * scale)
    nifti_head(tmp_path / "a.nii", affine, affine, xyzt_units=2)
    with pytest.raises(DataError, match=r"impossible voxels of .* mm: the unit of its header"):
        read_geometry(tmp_path / "a.nii")
    right = {1e-3: 1, 1e3: 3}[scale]  # metres, micrometres
    assert read_geometry(nifti_head(tmp_path / "b.nii", affine, affine, xyzt_units=right)).pixel_mm == pytest.approx(
        (0.5, 0.5)
    )


@pytest.mark.parametrize(
    ("slope", "intercept"), [(-1, 0), (np.inf, 0), (-np.inf, 0), (1, np.inf), (1, np.nan), (0, -1024), (np.nan, -1024)]
)
def test_a_scale_that_is_none_is_refused(tmp_path: Path, slope: float, intercept: float) -> None:
    path = nifti_head(tmp_path / "a.nii", scl_slope=slope, scl_inter=intercept)
    with pytest.raises(DataError, match="are no scale"):
        read_nifti(path, 0, "CT")
    assert "are no scale" in read_headers(["a.nii"], tmp_path, progress=False)["reason"].item()


@pytest.mark.parametrize(("slope", "intercept"), [(0, 0), (np.nan, np.nan), (0, np.nan), (1, 0)])
def test_no_scale_at_all_keeps_the_values(tmp_path: Path, slope: float, intercept: float) -> None:
    path = nifti_head(tmp_path / "a.nii", scl_slope=slope, scl_inter=intercept)
    assert np.array_equal(read_nifti(path, 5, "CT"), head_hu()[5])


def test_a_compressed_file_unpacks_to_what_its_header_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bomb = gzip_bomb(tmp_path / "a.nii.gz", 16 << 20)
    monkeypatch.setattr(nifti_header, "SPARE", 1 << 20)
    assert len(read_headers(["a.nii.gz"], tmp_path, progress=False)) == 12  # the header alone is sound
    with pytest.raises(DataError, match=r"unpacks to more than .* bytes, its header says"):
        read_nifti(bomb, 0)
    nifti(tmp_path / "b.nii.gz", np.zeros((100, 100, 100), np.int16))
    monkeypatch.setattr(nifti_header, "FREE", 1 << 20)
    with pytest.raises(DataError, match="would unpack to 2000000, more than 200 to 1"):
        read_nifti(tmp_path / "b.nii.gz", 0)
    raw = bytearray(nifti_head(tmp_path / "c.nii").read_bytes())
    raw[108:112] = np.float32(2e9).tobytes()  # vox_offset
    (tmp_path / "c.nii.gz").write_bytes(gzip.compress(bytes(raw)))
    assert "vox_offset" in read_headers(["c.nii.gz"], tmp_path, progress=False)["reason"].item()


def test_a_bad_volume_is_unpacked_once_and_told_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = nifti_head(tmp_path / "a.nii", voxels=(head_hu() + 1000).astype(np.uint16))
    nifti_head(tmp_path / "b.nii")
    opened = []
    real = module._load
    monkeypatch.setattr(module, "_load", lambda *arguments: opened.append(1) or real(*arguments))
    for frame in range(12):
        with pytest.raises(DataError, match="no CT in HU"):
            read_nifti(path, frame, "CT")
    assert len(opened) == 1
    manifest = datamodule("dicom", tmp_path).read(tmp_path)
    assert manifest.skipped["item"].tolist() == ["a.nii"]
    assert len(manifest.table) == 12


@pytest.mark.parametrize(
    ("field", "value", "told"),
    [("vox_offset", 0, "vox_offset 0"), ("vox_offset", 340, "offset 340"), ("sizeof_hdr", 0, "348 bytes (sizeof_hdr)")],
)
def test_headers_that_contradict_themselves_are_refused(tmp_path: Path, field: str, value: int, told: str) -> None:
    nifti_head(tmp_path / "a.nii", **{field: value})
    assert told in read_headers(["a.nii"], tmp_path, progress=False)["reason"].item()


def test_whether_a_volume_is_compressed_is_told_by_its_content(tmp_path: Path) -> None:
    plain = nifti_head(tmp_path / "a.nii").read_bytes()
    (tmp_path / "b.nii.gz").write_bytes(plain)
    (tmp_path / "c.nii").write_bytes(gzip.compress(plain))
    for name in ("b.nii.gz", "c.nii"):
        assert np.array_equal(read_nifti(tmp_path / name, 5), head_hu()[5])


@pytest.mark.parametrize(
    ("voxels", "reason"),
    [
        ((head_hu() + 1000).astype(np.uint16), "no CT in HU: values from 0 to 1900, no air: stored as HU.*1024"),
        (np.clip(head_hu() * (255 / 80), 0, 255).astype(np.uint8), "8-bit grey levels, windowed already"),
        (np.clip(head_hu() * (255 / 80), 0, 255).astype(np.int16), "8-bit grey levels, windowed already"),
    ],
)
def test_ct_that_is_not_in_hu_is_refused(tmp_path: Path, voxels: NDArray[Any], reason: str) -> None:
    path = nifti_head(tmp_path / "a.nii", voxels=voxels)
    with pytest.raises(DataError, match=reason):
        read_nifti(path, 5, "CT")
    assert read_nifti(path, 5, "MR").max() == voxels[5].max()


def test_a_brain_cut_out_of_its_skull_is_hu_still(tmp_path: Path) -> None:
    brain = np.where((head_hu() > 0) & (head_hu() < 100), head_hu(), 0).astype(np.int16)
    assert np.array_equal(read_nifti(nifti_head(tmp_path / "a.nii", voxels=brain), 5, "CT"), brain[5])


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_volume_too_oblique_is_refused(tmp_path: Path, axis: int) -> None:
    path = nifti(tmp_path / "a.nii", ras()[0], rotated(40, axis))
    with pytest.raises(DataError, match=r"oblique: its axes lie .*40.* degrees .* at most 35"):
        read_nifti(path, 0)
    assert "oblique" in read_headers(["a.nii"], tmp_path, progress=False)["reason"].item()


def test_metres_are_told_from_millimetres(tmp_path: Path) -> None:
    voxels, affine = ras()
    image = nibabel.Nifti1Image(voxels, np.diag([0.001, 0.001, 0.001, 1]) @ affine)
    image.header.set_xyzt_units("meter")
    nibabel.save(image, tmp_path / "a.nii")
    assert read_geometry(tmp_path / "a.nii").spacing_mm == pytest.approx(4)


def test_other_shapes(tmp_path: Path) -> None:
    voxels, affine = ras()
    assert np.array_equal(read_nifti(nifti(tmp_path / "a.nii", voxels[..., None], affine), 1), VOLUME[1])
    flat = nifti(tmp_path / "b.nii", voxels[:, :, 0], affine)
    assert np.array_equal(read_nifti(flat, 0), VOLUME[0])
    for name, shape in (("c.nii", (10, 12, 5, 2)), ("d.nii", (10, 12, 5, 1, 3))):
        with pytest.raises(DataError, match=f"{len(shape)}D volume of {' x '.join(map(str, shape))}"):
            read_nifti(nifti(tmp_path / name, np.zeros(shape, np.int16), affine), 0)
    with pytest.raises(DataError, match="no frame 5: the volume holds 5"):
        read_nifti(tmp_path / "a.nii", 5)
    with pytest.raises(DataError, match="too small"):
        read_nifti(nifti(tmp_path / "e.nii", voxels[:4], affine), 0)


def test_scaling_and_rounding(tmp_path: Path) -> None:
    voxels, affine = ras()
    image = nibabel.Nifti1Image((voxels + 1024).astype(np.uint16), affine)
    image.header.set_slope_inter(1, -1024)
    nibabel.save(image, tmp_path / "a.nii")
    assert np.array_equal(read_nifti(tmp_path / "a.nii", 3), VOLUME[3])
    path = nifti(tmp_path / "b.nii", voxels + np.float32(0.3), affine)
    assert np.array_equal(read_nifti(path, 3), VOLUME[3])


def test_nan_and_infinity_are_refused_where_they_are(tmp_path: Path) -> None:
    voxels, affine = ras()
    holes = voxels.astype(np.float32)
    holes[0, 0, 1], holes[3, 3, 1], holes[2, 2, 4] = np.nan, np.inf, np.nan
    path = nifti(tmp_path / "a.nii.gz", holes, affine)
    with pytest.raises(DataError, match="2 voxels of slice 1 are NaN or infinite"):
        read_nifti(path, 1)
    with pytest.raises(DataError, match="1 voxel of slice 4 is NaN"):
        read_nifti(path, 4)
    assert np.array_equal(read_nifti(path, 2), VOLUME[2])


@pytest.mark.parametrize(
    ("voxels", "reason"),
    [
        (np.linspace(0, 1, 600).reshape(10, 12, 5), "values from 0 to 1 are no HU"),
        (np.full((10, 12, 5), 40.0), "blank: every voxel is 40 HU"),
        (np.linspace(0, 60000, 600).reshape(10, 12, 5), "do not fit 16 bits"),
        (np.zeros((10, 12, 5), np.complex64), "complex"),
        (np.zeros((10, 12, 5), [("R", "u1"), ("G", "u1"), ("B", "u1")]), "colour"),
    ],
)
def test_what_is_no_hu_is_refused(tmp_path: Path, voxels: NDArray[Any], reason: str) -> None:
    with pytest.raises(DataError, match=reason):
        read_nifti(nifti(tmp_path / "a.nii", voxels, ras()[1]), 0, "CT")


def test_signal_is_scaled_as_a_whole_where_rounding_would_blank_it(tmp_path: Path) -> None:
    voxels, affine = ras()
    positive = (voxels + 1000).astype(np.float32)
    path = nifti(tmp_path / "a.nii", positive, affine)
    assert np.array_equal(read_nifti(path, 0, "MR"), VOLUME[0] + 1000)
    for name, factor in (("b.nii", 1e-4), ("c.nii", 100.0)):
        found = np.stack([read_nifti(nifti(tmp_path / name, positive * factor, affine), k, "MR") for k in range(5)])
        expected = (VOLUME + 1000.0) * (20_000 / (VOLUME.max() + 1000.0))
        assert np.abs(found - expected).max() <= 0.51


def test_a_volume_without_orientation_is_refused(tmp_path: Path) -> None:
    image = nibabel.Nifti1Image(ras()[0], None)
    nibabel.save(image, tmp_path / "a.nii")
    with pytest.raises(DataError, match="no orientation: sform_code and qform_code are 0"):
        read_nifti(tmp_path / "a.nii", 0)


def test_broken_files(tmp_path: Path) -> None:
    whole = nifti(tmp_path / "a.nii.gz", *ras()).read_bytes()
    plain = gzip.decompress(whole)
    broken = {
        "cut.nii.gz": whole[: len(whole) // 2],
        "cut.nii": plain[: len(plain) // 2],
        "head.nii": plain[:100],
        "text.nii": b"hello " * 200,
        "text.nii.gz": b"hello " * 200,
        "empty.nii": b"",
        "empty.nii.gz": b"",
        "flipped.nii.gz": whole[:400] + bytes(8) + whole[408:],
    }
    for name, content in broken.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(DataError, match=r"not a NIfTI file|truncated or damaged"):
            read_nifti(tmp_path / name, 0)
    with pytest.raises(DataError, match=r"no such file|No such file"):
        read_nifti(tmp_path / "absent.nii", 0)
    huge = bytearray(plain)
    huge[40:56] = np.array([3, 30000, 30000, 30000, 1, 1, 1, 1], "<i2").tobytes()
    (tmp_path / "huge.nii").write_bytes(huge)
    with pytest.raises(DataError, match="impossible size 30000"):
        read_nifti(tmp_path / "huge.nii", 0)


def test_a_volume_is_decompressed_once_until_it_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = nifti(tmp_path / "a.nii.gz", *ras())
    loaded = []
    real = module._load
    monkeypatch.setattr(module, "_load", lambda *arguments: loaded.append(1) or real(*arguments))
    for frame in (0, 3, 1, 4):
        read_nifti(path, frame)
    assert len(loaded) == 1
    nifti(path, ras()[0] + 7, ras()[1])
    assert np.array_equal(read_nifti(path, 2), VOLUME[2] + 7)
    assert len(loaded) == 2
