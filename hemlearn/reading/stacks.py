"""Series to the squares a run has learnt from: the same steps as in the slice store, in memory, faults kept apart."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hemlearn.config.schema import is_volume3d
from hemlearn.data.preprocess import Preprocess
from hemlearn.data.readers import AIR, DTYPES, NIFTI_SUFFIXES, reader_for, to_display
from hemlearn.data.volumes import volume_problem
from hemlearn.datamodules import trait
from hemlearn.reading.series import Series
from hemlearn.training.run import Run
from hemlearn.util.errors import DataError, count
from hemlearn.util.files import sha256

BRAIN = (40.0, 80.0)
MAX_VOXELS = 1 << 28  # of a volume: 1024 slices of 512 x 512
_SLACK = 64 << 20  # bytes a DICOM file may hold besides its pixels: private elements, overlays
_TISSUE_HU, _TISSUE_SHARE = (-20, 100), 0.005  # a tenth and more of a series of a head is brain, blood and muscle
_NOISE = 0.1  # of the brightest signal of a series: a slice that has less throughout shows no part of a head
_ALIKE = 0.2  # correlation of neighbouring pixels; slices of a head have 0.9
_AIR_HU, _AIR_SHARE = -200, 0.005  # a head in HU has air around it


@dataclass(frozen=True)
class Preprocessing(Preprocess):
    """How a run sees a slice.

    Args:
        kind: ``ct`` or ``mr``: what the run has learnt from; "": its pictures did not say.
        volume: Whether the run reads volumes, for which a series must not be too thin.
        spacing: Of their voxels, mm; None: slices as they stand.
    """

    kind: str = "ct"
    volume: bool = False
    spacing: tuple[float, ...] | None = None

    @classmethod
    def of(cls, run: Run) -> Preprocessing:
        """That of a run; the window turns CT slices into pictures, for runs trained on pictures."""
        config = run.config
        source = str(run.provenance.get("data", {}).get("source", config.data.name))
        window = trait(source, "display_window")
        kind = {"CT": "ct", "MR": "mr"}.get(run.modality, "")
        volume, spacing = is_volume3d(config.backbone), config.volume.spacing
        voxels = tuple(spacing) if volume and spacing else None
        return cls(config.data.image_size, config.data.fit, run.unit, window, kind, volume, voxels)


@dataclass(frozen=True)
class Stack:
    """A decoded series.

    Args:
        series: Where it comes from; its rows are those that could be read.
        squares: Preprocessing -> (S, size, size), int16 (HU, signal) or uint8 (display).
        failures: (item, reason) of the slices that could not be read.
        refused: Why none of it is predicted; "" where it is.
        boxes: Preprocessing -> (S, 4): first row, first column, height and width in the slice of what a square shows.
        pixels: The slices as stored in their files, where they were to be kept.
        remarks: What is odd about the pixels, in words.
    """

    series: Series
    squares: dict[Preprocessing, NDArray[Any]]
    failures: tuple[tuple[str, str], ...]
    refused: str = ""
    boxes: dict[Preprocessing, NDArray[np.float64]] = field(default_factory=dict)
    pixels: tuple[NDArray[Any], ...] = ()
    remarks: tuple[str, ...] = ()

    @property
    def content(self) -> str:
        """Digest of what the networks see; equal pictures have equal ones."""
        return sha256(next(iter(self.squares.values())).tobytes())


def read_stack(series: Series, wanted: Sequence[Preprocessing], *, keep: bool = False) -> Stack:
    """Decode a series once for every kind of preprocessing.

    A slice that cannot be read is left out and told; the series is refused where none is left, where its unit is not
    the run's, and where a NIfTI volume does not hold what the run has learnt from.
    """
    pixels: list[NDArray[Any]] = []
    kept: list[int] = []
    failures: list[tuple[str, str]] = []
    units: set[str] = set()
    problems = _sizes(series)
    paths, frames, modalities = (series.rows[name].tolist() for name in ("path", "frame", "modality"))
    for row, (name, frame, modality) in enumerate(zip(paths, frames, modalities, strict=True)):
        path = series.root / name
        try:
            if name in problems:
                raise DataError(f"{path}: {problems[name]}", remedy="give the slices alone")
            reader = reader_for(path)
            found = reader.decode(path, frame, modality)
        except DataError as error:
            failures.append((_item(name, frame), error.problem.removeprefix(f"{path}: ")))
            continue
        pixels.append(found)
        kept.append(row)
        units.add(reader.unit_of(modality))
    if not kept:
        return Stack(series, {}, (), f"none of {count(len(paths), 'slice')} can be read; the first: {failures[0][1]}")
    left = replace(series, rows=series.rows.iloc[kept].reset_index(drop=True))
    refused = _judge(left, pixels, units, wanted)
    if refused:
        return Stack(series, {}, tuple(failures), refused)
    (unit,) = units
    made = {item: item.series(pixels, unit) for item in dict.fromkeys(wanted)}
    squares, boxes = ({item: pair[k] for item, pair in made.items()} for k in (0, 1))
    remarks = tuple(_remarks(left, pixels, unit, whole=all(item.volume for item in wanted)))
    return Stack(left, squares, tuple(failures), boxes=boxes, pixels=tuple(pixels) if keep else (), remarks=remarks)


def _remarks(series: Series, pixels: Sequence[NDArray[Any]], unit: str, *, whole: bool) -> Iterator[str]:
    """On slices that are odd; air above a head is a part of a ``whole`` volume."""
    empty = _show_nothing(pixels, unit)
    again = [False, *(not no and np.array_equal(*pair) for no, pair in zip(empty[1:], pairwise(pixels), strict=True))]
    told = {"hold the same picture as the slice before": again}
    if not whole:
        told = {"show nothing: air, noise or one value; their probabilities mean nothing": empty, **told}
    for text, which in told.items():
        if any(which) and len(which) > 1:
            first = series.rows.iloc[which.index(True)]
            item = _item(str(first["path"]), int(first["frame"]))
            yield f"{sum(which)} of {len(which)} slices (first {item}) {text}"


def _show_nothing(pixels: Sequence[NDArray[Any]], unit: str) -> list[bool]:
    """Which slices are one value, have nothing within the brain window, or are the noise beside an MR series' head."""
    ends = [(int(item.min()), int(item.max())) for item in pixels]
    darkest, brightest = BRAIN[0] - BRAIN[1] / 2, BRAIN[0] + BRAIN[1] / 2
    noise = _NOISE * max(high for _, high in ends)
    if unit == "HU":
        return [low == high or high <= darkest or low >= brightest for low, high in ends]
    return [low == high or (unit == "signal" and high < noise) for low, high in ends]


def full_pixels(stack: Stack) -> NDArray[Any]:
    """(S, H, W) of a stack whose pixels were kept, as stored in its files; slices below the largest size are padded."""
    sizes = np.array([item.shape for item in stack.pixels]).max(axis=0)
    unit = unit_of(stack.series)
    out = np.full((len(stack.pixels), *sizes), AIR[unit], dtype=DTYPES[unit])
    for place, item in zip(out, stack.pixels, strict=True):
        place[: item.shape[0], : item.shape[1]] = item
    return out


def shown_as(series: Series, wanted: Sequence[Preprocessing]) -> list[str]:
    """What is done to a series whose unit is not that of the runs, in words."""
    unit = unit_of(series)
    told = {
        "HU": "CT slices in HU are shown through a window of centre {0:g} and width {1:g} HU, as the pictures are "
        "that the run has learnt from",
        "signal": "MR slices are shown as 8-bit pictures",
    }
    return [
        told[unit].format(*(item.window or BRAIN))
        for item in dict.fromkeys(wanted)
        if item.unit != unit and unit in told
    ]


def unit_of(series: Series) -> str:
    """Unit of the pixels of a series' files."""
    first = series.rows.iloc[0]
    return reader_for(series.root / str(first["path"])).unit_of(str(first["modality"]))


def _item(name: str, frame: int) -> str:
    return f"{name}#{frame}" if frame else name


def _sizes(series: Series) -> dict[str, str]:
    """Path -> what is wrong with its size, told before a byte of its pixels is read."""
    wrong: dict[str, str] = {}
    for name in series.rows["path"].unique():
        path = series.root / name
        try:
            size = path.stat().st_size
            reader = reader_for(path)
        except (OSError, DataError):
            continue  # decoding tells why
        if text := reader.too_large(size) or (_dicom_size(path, size) if reader.name == "dicom" else ""):
            wrong[name] = text
    return wrong


def _dicom_size(path: Path, size: int) -> str:
    if size <= _SLACK:
        return ""
    headers = reader_for(path).open(path, pixels=False).headers(path.name)  # of a large file alone
    pixels = max(item.rows * item.columns for item in headers) * len(headers)
    if pixels > MAX_VOXELS:
        return f"{pixels} pixels: too large for a head"
    limit = 8 * pixels + _SLACK
    return f"{size} bytes for {pixels} pixels: a damaged or padded file" if size > limit else ""


def _scattered(pixels: NDArray[Any]) -> bool:
    """Whether neighbours have nothing to do with each other: the noise of air, which pictures of a body never are."""
    left, right = (part.ravel().astype(np.float64) for part in (pixels[:, :-1], pixels[:, 1:]))
    spread = left.std() * right.std()
    return bool(spread == 0 or ((left - left.mean()) * (right - right.mean())).mean() < _ALIKE * spread)


_A_VOLUME = "a 3D network needs a whole series whose spacing is known: give DICOM or NIfTI, or use a run of slices"


def _judge(series: Series, pixels: Sequence[NDArray[Any]], units: set[str], wanted: Sequence[Preprocessing]) -> str:
    """Why a series cannot be used by the runs, or ""."""
    if len(units) > 1:
        return f"slices in {' and '.join(sorted(units))} in one series"
    (unit,) = units
    if all(np.ptp(to_display(item, unit)) == 0 for item in pixels):
        return "refused: shows nothing: every pixel alike" + (", in the brain window" if unit == "HU" else "")
    tissue = float(np.mean([np.mean((item > _TISSUE_HU[0]) & (item < _TISSUE_HU[1])) for item in pixels]))
    if unit == "HU" and len(pixels) > 2 and tissue < _TISSUE_SHARE:
        low, high = _TISSUE_HU
        return f"refused: no head in it: {100 * tissue:.2f} % of it has the density of tissue ({low} to {high} HU)"
    for item in wanted:
        if item.volume:
            z_mm, pixel = series.rows["z_mm"].to_numpy(dtype=np.float64), series.pixel_mm or (np.nan, np.nan)
            if text := volume_problem(z_mm, np.array([pixel]), item.spacing):
                return f"refused: {text}; {_A_VOLUME}"
        if unit == item.unit or (item.unit == "display" and (unit == "HU" or item.kind != "ct")):
            continue
        had = {"HU": "CT slices in HU", "signal": "MR signal", "display": "pictures of grey levels"}
        return f"refused: {had[unit]}, but the run has learnt from {had[item.unit]}"
    nifti = str(series.rows["path"].iloc[0]).lower().endswith(NIFTI_SUFFIXES)
    mr = wanted[0].kind == "mr"
    if unit == "signal" and all(_scattered(item) for item in pixels[:: max(1, len(pixels) // 4)]):
        return "refused: no head in it: noise alone"
    share = float(np.mean([np.mean(item <= _AIR_HU) for item in pixels])) if nifti or unit == "signal" else np.nan
    if mr and share >= _AIR_SHARE:
        return (
            f"refused: no MR signal: {100 * share:.1f} % of it lie at -200 and below, as air does in HU; "
            "the run has learnt from MR"
        )
    if nifti and not mr and share < _AIR_SHARE:
        low = min(int(item.min()) for item in pixels)
        return (
            f"refused: no CT in HU: its lowest value is {low}, and {100 * share:.1f} % of it is air (-200 HU "
            "and below); MR signal, or a volume that was windowed or cut out of its surroundings"
        )
    return ""
