"""Pixels of every transfer syntax, equal to what was stored and to what SimpleITK (GDCM) reads."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from hemlearn.data.readers.dicom import read_dicom
from tests.data.readers.files import write
from tests.data.readers.pixel_cases import PixelCase, pixel_cases


def gdcm(path: Path) -> NDArray[Any] | None:
    """The slice as SimpleITK reads it, in HU; None where it cannot."""
    sitk = pytest.importorskip("SimpleITK")
    sitk.ProcessObject.SetGlobalWarningDisplay(False)
    try:
        return np.asarray(sitk.GetArrayFromImage(sitk.ReadImage(str(path)))[0])
    except RuntimeError:
        return None


@pytest.mark.parametrize("case", [pytest.param(case, id=case.name) for case in pixel_cases()])
def test_pixels_are_those_that_were_stored(case: PixelCase, tmp_path: Path) -> None:
    path = write(tmp_path / "a.dcm", case.make())
    found = read_dicom(path, 0, "CT")
    assert np.abs(found - case.hu).max() <= case.off
    theirs = gdcm(path)
    assert theirs is not None
    step = 12 if case.bits == 8 and case.off else 1  # HU; two decoders of cosines may round one level apart
    assert np.abs(found - np.rint(theirs)).max() <= (step if case.off else 0)
