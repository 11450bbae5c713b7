"""What was predicted already: one line per series in the output folder, so that a call goes on where one stopped."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from hemlearn import __version__
from hemlearn.data.readers import reader_for
from hemlearn.errors import RunError
from hemlearn.inference.forward import Output
from hemlearn.inference.loading import Member
from hemlearn.inference.series import Series

LOGGER = logging.getLogger(__name__)
FORMAT = 1  # raised when the same files and runs would give other lines
NAME = "journal.jsonl"


def series_key(series: Series, members: Sequence[Member]) -> str:
    """Digest of the runs and of the files' names, sizes and times: equal keys, equal predictions."""
    stamps: dict[str, str] = {}
    place = "" if series.stamp else str(series.root.resolve())  # equal names, sizes and times elsewhere: other files
    for name in series.rows["path"].unique():
        if series.stamp:
            stamps[name] = series.stamp
            continue
        try:
            info = (series.root / name).stat()
            stamps[name] = f"{info.st_size}:{info.st_mtime_ns}:{reader_for(name).key}"
        except OSError as error:
            stamps[name] = str(error.strerror)
    rows = [
        [*row, stamps[row[1]]]
        for row in series.rows[["slice_id", "path", "frame", "modality"]].itertuples(index=False, name=None)
    ]
    z_mm = [None if z != z else z for z in series.rows["z_mm"].tolist()]
    identity = [
        FORMAT,
        __version__,
        [_stamp(member) for member in members],
        place,
        series.series_id,
        series.patient_id,
        rows,
        z_mm,
    ]
    return hashlib.sha256(json.dumps(identity, default=str).encode()).hexdigest()[:24]


def _stamp(member: Member) -> str:
    info = (member.folder / "checkpoints" / "best.ckpt").stat()
    return f"{member.hash}:{info.st_size}:{info.st_mtime_ns}"


class Journal:
    """The lines of an output folder.

    Args:
        folder: The output folder; it exists.

    Raises:
        RunError: The file cannot be read.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / NAME
        self._places: dict[str, int] = {}
        if not self.path.exists():
            return
        end = 0
        with self._open("rb") as file:
            for line in file:
                try:
                    self._places[str(json.loads(line)["key"])] = end
                except (ValueError, KeyError, TypeError):
                    LOGGER.warning(
                        "%s: a line is damaged, as a killed call leaves it; its series is predicted again", self.path
                    )
                    if not line.endswith(b"\n"):
                        break
                end += len(line)
        if end < self.path.stat().st_size:  # cut the torn line off, or the next one would be glued to it
            with self._open("r+b") as file:
                file.truncate(end)

    def _open(self, mode: str) -> Any:
        try:
            return self.path.open(mode)
        except OSError as error:
            raise RunError(f"{self.path}: {error.strerror or error}", remedy="choose another out=DIR") from error

    def __contains__(self, key: str) -> bool:
        return key in self._places

    def add(self, key: str, series: Series, output: Output, failures: Sequence[tuple[str, str]]) -> None:
        """Write one series down, at once.

        Raises:
            RunError: The disk is full, or the file cannot be written.
        """
        rows = series.rows
        content = {
            "key": key,
            "patient_id": series.patient_id,
            "study_id": series.study_id,
            "series_id": series.series_id,
            "slice_id": rows["slice_id"].tolist(),
            "path": rows["path"].tolist(),
            "frame": rows["frame"].tolist(),
            "z_mm": [None if z != z else z for z in rows["z_mm"].tolist()],
            "slices": output.slices.tolist(),
            "whole": [None if item is None else item.tolist() for item in output.whole],
            "failures": [list(item) for item in failures],
        }
        line = json.dumps(content).encode() + b"\n"
        with self._open("ab") as file:
            place = file.tell()
            try:
                file.write(line)
                file.flush()
            except OSError as error:
                raise RunError(
                    f"{self.path}: cannot be written ({error.strerror or error})",
                    remedy="free some space; the same command goes on from here",
                ) from error
        self._places[key] = place

    def get(self, key: str) -> dict[str, Any]:
        """The line of a series; ``slices`` and the members of ``whole`` as arrays."""
        with self._open("rb") as file:
            file.seek(self._places[key])
            content: dict[str, Any] = json.loads(file.readline())
        content["slices"] = np.array(content["slices"], dtype=np.float64)
        content["whole"] = [None if item is None else np.array(item, dtype=np.float64) for item in content["whole"]]
        content["z_mm"] = [float("nan") if z is None else float(z) for z in content["z_mm"]]
        return content
