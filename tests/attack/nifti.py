"""NIfTI: affines, units, scales, types, bombs, damage."""

from __future__ import annotations

import gzip
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel
import numpy as np

from tests.attack import series
from tests.attack.case import Case, Judge, same, same_or_told, told
from tests.attack.series import PIXEL, SPACING, both_commands, head

KIND = "NIfTI"
FIELDS = {  # NIfTI-1 header: offset, format
    "sizeof_hdr": (0, "<i"),
    "dim0": (40, "<h"),
    "dim1": (42, "<h"),
    "dim3": (46, "<h"),
    "dim4": (48, "<h"),
    "datatype": (70, "<h"),
    "bitpix": (72, "<h"),
    "pixdim0": (76, "<f"),
    "pixdim1": (80, "<f"),
    "pixdim3": (88, "<f"),
    "vox_offset": (108, "<f"),
    "scl_slope": (112, "<f"),
    "scl_inter": (116, "<f"),
    "xyzt_units": (123, "<B"),
    "qform_code": (252, "<h"),
    "sform_code": (254, "<h"),
    "srow_x": (280, "<ffff"),
    "srow_y": (296, "<ffff"),
    "srow_z": (312, "<ffff"),
    "magic": (344, "<4s"),
}


def written(name: str = "head.nii", **fields: Any) -> Callable[[Path], object]:
    """The head, its header then changed byte for byte."""

    def make(root: Path) -> None:
        series.volume(root / "plain.nii")
        raw = bytearray((root / "plain.nii").read_bytes())
        (root / "plain.nii").unlink()
        for key, value in fields.items():
            at, form = FIELDS[key]
            struct.pack_into(form, raw, at, *(value if isinstance(value, tuple) else (value,)))
        (root / name).write_bytes(gzip.compress(bytes(raw), mtime=0) if name.endswith(".gz") else bytes(raw))

    return make


def voxels(change: Callable[[np.ndarray[Any, Any]], np.ndarray[Any, Any]], **header: Any) -> Callable[[Path], object]:
    """The head with other voxels, (slices, rows, columns)."""
    return lambda root: series.volume(root / "head.nii", change(head()), **header)


def forms(sform: np.ndarray[Any, Any] | None, qform: np.ndarray[Any, Any] | None) -> Callable[[Path], object]:
    """Affines after (or instead of) the right one."""

    def make(root: Path) -> None:
        image = nibabel.load(series.volume(root / "head.nii"), mmap=False)
        right = image.affine
        data = np.asarray(image.dataobj)
        new = nibabel.Nifti1Image(data, None)
        new.header.set_zooms((PIXEL, PIXEL, SPACING))
        for setter, matrix in ((new.set_sform, sform), (new.set_qform, qform)):
            setter(None if matrix is None else right @ matrix, 0 if matrix is None else 1)
        nibabel.save(new, root / "head.nii")

    return make


def bomb(gigabytes: float, tail: bytes = b"") -> Callable[[Path], object]:
    """A right header, then zeros without end."""

    def make(root: Path) -> None:
        written()(root)
        raw = (root / "head.nii").read_bytes()
        (root / "head.nii").unlink()
        packer = zlib.compressobj(9, zlib.DEFLATED, 31)
        (start, block) = (packer.compress(data) + packer.flush(zlib.Z_FULL_FLUSH) for data in (raw, bytes(16 << 20)))
        # A block after a full flush stands for itself: it is repeated as it is, and the checksum at the end is wrong.
        (root / "head.nii.gz").write_bytes(start + block * int(gigabytes * 64) + packer.flush() + tail)

    return make


def cut(share: float, name: str = "head.nii.gz") -> Callable[[Path], object]:
    def make(root: Path) -> None:
        written(name)(root)
        raw = (root / name).read_bytes()
        (root / name).write_bytes(raw[: int(len(raw) * share)])

    return make


def flipped_byte(root: Path) -> None:
    written("head.nii.gz")(root)
    raw = bytearray((root / "head.nii.gz").read_bytes())
    raw[len(raw) // 2] ^= 0x55
    (root / "head.nii.gz").write_bytes(bytes(raw))


def reoriented(codes: str) -> Callable[[Path], object]:
    """The same head with its axes stored in another order."""

    def make(root: Path) -> None:
        image = nibabel.load(series.volume(root / "head.nii"), mmap=False)
        wanted = nibabel.orientations.axcodes2ornt(tuple(codes))
        turned = image.as_reoriented(nibabel.orientations.ornt_transform(nibabel.io_orientation(image.affine), wanted))
        nibabel.save(turned, root / "head.nii")

    return make


def rotation(degrees: float, axis: int = 0) -> np.ndarray[Any, Any]:
    """About an axis of the array."""
    out = np.eye(4)
    a, b = [i for i in range(3) if i != axis]
    angle = np.radians(degrees)
    out[a, a] = out[b, b] = np.cos(angle)
    out[a, b], out[b, a] = -np.sin(angle), np.sin(angle)
    return out


def _beside(name: str, content: bytes) -> Callable[[Path], object]:
    def make(root: Path) -> None:
        written()(root)
        (root / name).write_bytes(content)

    return make


FLIP = np.diag([-1.0, 1, 1, 1])
FOUR = {"dim0": 4, "dim4": 1}
CASES: dict[str, tuple[Callable[[Path], object], Judge]] = {
    "as written": (written(), same("nifti")),
    "gzipped": (written("head.nii.gz"), same("nifti")),
    "one time point": (written(**FOUR), same("nifti")),
    **{f"axes {codes}": (reoriented(codes), same("nifti")) for codes in ("LPS", "RAS", "PIR", "ASL", "SRA", "LAI")},
    "float64": (voxels(lambda v: v.astype(np.float64)), same("nifti")),
    "int32": (voxels(lambda v: v.astype(np.int32)), same("nifti")),
    "NaN outside": (voxels(lambda v: np.where(v < -900, np.nan, v).astype(np.float32)), told("NaN|finite")),
    "infinite voxels": (voxels(lambda v: np.where(v < -900, -np.inf, v).astype(np.float32)), told("finite|inf")),
    "complex": (voxels(lambda v: v.astype(np.complex64)), told("complex")),
    "RGB": (written(datatype=128, bitpix=24), told("RGB|type|length|trunc|damaged|size")),
    "bits that disagree with the type": (written(bitpix=8), same_or_told("bit", key="nifti")),
    "unknown type": (written(datatype=999), told("type|999")),
    "slope negative": (written(scl_slope=-1.0), told("slope")),
    "slope infinite": (written(scl_slope=float("inf")), told("slope")),
    "slope NaN": (written(scl_slope=float("nan")), same_or_told("slope", key="nifti")),
    "slope 0": (written(scl_slope=0.0), same("nifti")),
    "slope 1e30": (written(scl_slope=1e30), told("slope|HU")),
    "intercept 1e30": (written(scl_slope=1.0, scl_inter=1e30), told("inter|HU")),
    "intercept NaN": (written(scl_slope=1.0, scl_inter=float("nan")), told("inter|slope")),
    "intercept 1024": (written(scl_slope=1.0, scl_inter=1024.0), told("HU|air")),
    "HU + 1024": (voxels(lambda v: v + np.int16(1024)), told("HU|air")),
    "eight bits": (
        voxels(lambda v: np.clip((v.astype(float)) * 255 / 80, 0, 255).astype(np.uint8)),
        told("HU|8 bit|uint8"),
    ),
    "all air": (voxels(lambda v: np.full_like(v, -1000)), told("air|nothing|brain|tissue")),
    "all water": (voxels(lambda v: np.zeros_like(v)), told("air|nothing|brain|tissue|one value|constant")),
    "MR signal": (voxels(lambda v: np.clip(v.astype(int) + 1000, 0, 900).astype(np.int16)), told("HU|CT")),
    "sform mirrored": (forms(FLIP, np.eye(4)), told("sform|qform")),
    "qform mirrored": (forms(np.eye(4), FLIP), told("sform|qform")),
    "sform turned by 15 degrees": (forms(rotation(15), np.eye(4)), told("sform|qform")),
    "sform turned by 15 degrees in plane": (forms(rotation(15, 2), np.eye(4)), told("sform|qform")),
    "qform alone": (forms(None, np.eye(4)), same("nifti")),
    "sform alone": (forms(np.eye(4), None), same("nifti")),
    "no forms": (forms(None, None), told("orientation|form|affine")),
    "identity sform beside a right qform": (
        written(srow_x=(1.0, 0, 0, 0), srow_y=(0.0, 1, 0, 0), srow_z=(0.0, 0, 1, 0), qform_code=1),
        told("sform|qform"),
    ),
    "sform of zeros": (
        written(srow_x=(0.0, 0, 0, 0), srow_y=(0.0, 0, 0, 0), srow_z=(0.0, 0, 0, 0), qform_code=0),
        told("affine|form|orientation"),
    ),
    "sform NaN": (written(srow_x=(float("nan"), 0, 0, 0), qform_code=0), told("affine|form|orientation")),
    "sform singular": (written(srow_y=(PIXEL, 0.0, 0, 0), qform_code=0), told("affine|form|orientation")),
    "spacing negative": (written(pixdim3=-8.0), same_or_told("spacing|pixdim|form", key="nifti")),
    "spacing NaN": (written(pixdim3=float("nan")), same_or_told("spacing|pixdim|form", key="nifti")),
    "units unknown": (written(xyzt_units=0), same_or_told("unit", key="nifti")),
    "units of code 5": (written(xyzt_units=5), same_or_told("unit", key="nifti")),
    "units of code 255": (written(xyzt_units=255), same_or_told("unit", key="nifti")),
    "units metres": (written(xyzt_units=1), told("unit|metre|mm")),
    "units micrometres": (written(xyzt_units=3), told("unit|micro|mm")),
    "no dimensions": (written(dim0=0), told("dim")),
    "eight dimensions": (written(dim0=8), told("dim")),
    "negative width": (written(dim1=-64), told("dim|size|shape")),
    "width 0": (written(dim1=0), told("dim|size|shape|empty|no voxels|slices")),
    "width 32767": (written(dim1=32767), told("size|trunc|bytes|shape|voxels|memory")),
    "five time points": (written(dim0=4, dim4=5), told("time|4|volumes|trunc|size")),
    "data before the header's end": (written(vox_offset=0.0), same_or_told("offset", key="nifti")),
    "data beyond the end": (written(vox_offset=1e9), told("offset|trunc|size|bytes")),
    "magic of something else": (written(magic=b"ABC\0"), told("head.nii")),
    "header size 0": (written(sizeof_hdr=0), told("head.nii")),
    "bomb of 2 GB": (bomb(2), told("head.nii.gz")),
    "bomb of 20 GB": (bomb(20), told("head.nii.gz")),
    "bomb with a tail": (bomb(2, b"tail"), told("head.nii.gz")),
    **{f"gzip cut at {share:.0%}": (cut(share), told("head.nii.gz")) for share in (0.01, 0.5, 0.99)},
    "cut at 50%": (cut(0.5, "head.nii"), told("head.nii")),
    "gzip with a flipped byte": (flipped_byte, told("head.nii.gz")),
    "not gzip": (lambda root: _write(root / "head.nii.gz", b"no gzip"), told("head.nii.gz")),
    "empty": (lambda root: _write(root / "head.nii", b""), told("head.nii")),
    "an Analyze pair's header": (_beside("other.hdr", b"\0" * 348), same_or_told("other.hdr", key="nifti")),
    "a bad one beside a good one": (_beside("bad.nii", b"bad"), told("bad.nii")),
}


def _write(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


def cases() -> list[Case]:
    """All of them, by ``predict`` and ``index``."""
    found: list[Case] = []
    for name, (make, judge) in CASES.items():
        found += both_commands(KIND, name, _in_folder(make), judge, judge)
    return found


def _in_folder(make: Callable[[Path], object]) -> Callable[[Path], object]:
    def inside(root: Path) -> None:
        root.mkdir(parents=True, exist_ok=True)
        make(root)

    return inside
