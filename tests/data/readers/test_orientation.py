"""A head in every way an axial series is stored, equal to what dcm2niix and SimpleITK make of it."""

from __future__ import annotations

import itertools
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from hemlearn.config.schema import GeometryConfig
from hemlearn.data.geometry import arrange
from hemlearn.data.readers.dicom import read_dicom
from hemlearn.data.readers.nifti import read_geometry, read_nifti
from hemlearn.data.series import usable_headers
from tests.data.readers.files import stored_head, turned_head

# Directions in which columns and rows are counted, ImageOrientationPatient (0020,0037): all that are axial.
ARRANGEMENTS = [
    (*first, *second)
    for (a, b), (one, other) in itertools.product([(0, 1), (1, 0)], itertools.product([1, -1], repeat=2))
    for first, second in [(tuple(one * (k == a) for k in range(3)), tuple(other * (k == b) for k in range(3)))]
]
POSITIONS = ["HFS", "HFP", "FFS", "FFP"]  # PatientPosition (0018,5100): head or feet first, supine or prone
SPACING = 0.5  # mm


def ours(folder: Path) -> NDArray[np.int16]:
    names = sorted(path.name for path in folder.glob("*.dcm"))
    headers, _ = usable_headers(names, folder, cache_dir=None, progress=False, n_jobs=1)
    rows = arrange(headers, GeometryConfig()).rows
    return np.stack([read_dicom(folder / name, 0) for name in rows["path"]])


def simple_itk(folder: Path) -> NDArray[Any]:
    sitk = pytest.importorskip("SimpleITK")
    sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(1)
    names = sitk.ImageSeriesReader.GetGDCMSeriesFileNames(str(folder))
    return np.asarray(sitk.GetArrayFromImage(sitk.DICOMOrient(sitk.ReadImage(names), "LPS")))


def dcm2niix(folder: Path) -> NDArray[np.int16]:
    """What hemlearn reads of the NIfTI file that dcm2niix makes of the series in ``folder/in``."""
    beside = Path(sys.executable).with_name("dcm2niix")
    program = str(beside) if beside.is_file() else shutil.which("dcm2niix")
    if program is None:
        pytest.skip("dcm2niix is not installed")
    out = folder / "nifti"
    out.mkdir()
    call = [program, "-b", "n", "-z", "n", "-o", str(out), str(folder / "in")]
    subprocess.run(call, check=True, capture_output=True)
    (path,) = out.glob("*.nii")
    geometry = read_geometry(path)
    assert geometry.pixel_mm == pytest.approx((SPACING, SPACING))
    return np.stack([read_nifti(path, frame, "CT") for frame in range(geometry.shape[0])])


def test_there_are_eight_arrangements() -> None:
    assert len(set(ARRANGEMENTS)) == 8


@pytest.mark.parametrize("position", POSITIONS)
@pytest.mark.parametrize("orientation", ARRANGEMENTS)
def test_a_head_is_the_same_however_it_is_stored(tmp_path: Path, orientation: tuple[int, ...], position: str) -> None:
    head = turned_head()
    # Scanners count feet-first slices downwards, and names and numbers with them.
    stored_head(tmp_path, head, orientation, position, downwards=position.startswith("FF"))
    assert np.array_equal(ours(tmp_path), head)
    assert np.array_equal(simple_itk(tmp_path), head)


@pytest.mark.parametrize("orientation", ARRANGEMENTS)
def test_dcm2niix_makes_the_same_of_it(tmp_path: Path, orientation: tuple[int, ...]) -> None:
    head = turned_head()
    stored_head(tmp_path / "in", head, orientation, "HFS")
    assert np.array_equal(dcm2niix(tmp_path), head)
    assert np.array_equal(ours(tmp_path / "in"), head)


@pytest.mark.parametrize("degrees", [-20, 20])
@pytest.mark.parametrize("tag", [None, 0, -20, 20])
def test_the_tilt_is_that_of_the_geometry(tmp_path: Path, degrees: int, tag: int | None) -> None:
    """Philips writes the other sign into (0018,1120), others leave it at 0 (dcm2niix issues 253, 590, 782)."""
    turn = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    orientation = (1, 0, 0, 0, float(turn[0]), float(-turn[1]))
    stored_head(tmp_path, turned_head(), orientation, "HFS", GantryDetectorTilt=tag)
    names = sorted(path.name for path in tmp_path.glob("*.dcm"))
    headers, _ = usable_headers(names, tmp_path, cache_dir=None, progress=False, n_jobs=1)
    series = arrange(headers, GeometryConfig()).series
    assert series["tilt_deg"].tolist() == pytest.approx([degrees], abs=0.01)
    assert series["problems"].tolist() == [f"gantry tilt {degrees:.1f} degrees"]
    assert np.array_equal(ours(tmp_path), turned_head())
