"""The image files in a folder of mixed files."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from hemlearn.data.readers import DICOM_SUFFIXES, NIFTI_SUFFIXES, is_bare
from hemlearn.errors import DataError


@dataclass(frozen=True)
class Found:
    """What a folder holds.

    Args:
        files: DICOM and NIfTI files, POSIX paths relative to the folder, sorted.
        left_out: (path, reason) of every other file, sorted.
    """

    files: tuple[str, ...]
    left_out: tuple[tuple[str, str], ...]


def kind_of(name: str, head: bytes) -> str:
    """Return ``dicom``, ``nifti`` or "" (neither).

    Args:
        name: Name of the file; its ending decides. A name without one, or with a number for one, is that of a DICOM
            file where the DICM mark follows the 128 bytes of the preamble (PS3.10 7.1).
        head: The first 132 bytes.
    """
    last = PurePosixPath(name.replace("\\", "/")).name
    lower = last.lower()
    if lower.startswith("._") or lower == "dicomdir":  # another system's notes beside a file; a table of contents
        return ""
    if lower.endswith(DICOM_SUFFIXES):
        return "dicom"
    if lower.endswith(NIFTI_SUFFIXES):
        return "nifti"
    return "dicom" if is_bare(lower) and head[128:132] == b"DICM" else ""


def discover(root: str | os.PathLike[str]) -> Found:
    """Look through a folder and its subfolders; links to folders are not followed.

    Raises:
        DataError: The folder does not exist or is none.
    """
    base = Path(root)
    if not base.is_dir():
        raise DataError(
            f"{base}: {'not a folder' if base.exists() else 'no such folder'}",
            remedy="give the folder that holds the images",
        )
    files: list[str] = []
    left_out: list[tuple[str, str]] = []
    for folder, _, names in os.walk(base):
        for name in names:
            path = os.path.join(folder, name)  # noqa: PTH118 - hundreds of thousands of files
            item = os.path.relpath(path, base).replace(os.sep, "/")
            head = b""
            if is_bare(name.lower()):
                try:
                    with open(path, "rb") as file:  # noqa: PTH123
                        head = file.read(132)
                except OSError as error:
                    left_out.append((item, f"cannot be opened: {error.strerror or error}"))
                    continue
            if kind_of(name, head):
                files.append(item)
            else:
                left_out.append((item, _reason(name, head)))
    return Found(tuple(sorted(files)), tuple(sorted(left_out)))


def find_files(root: str | os.PathLike[str]) -> list[str]:
    """Return the DICOM and NIfTI files of a folder; :func:`discover` also tells what was left out and why.

    Returns:
        POSIX paths relative to ``root``, sorted.

    Raises:
        DataError: The folder does not exist or is none.
    """
    return list(discover(root).files)


def _reason(name: str, head: bytes) -> str:
    lower = name.lower()
    if lower == "dicomdir":
        return "a table of contents (DICOMDIR), not an image"
    if lower.startswith("."):
        return "a hidden file"
    if is_bare(lower):
        return f"no DICOM mark in a file without an ending (first bytes {head[:4]!r})"
    return f"neither DICOM nor NIfTI: *{Path(lower).suffix}"
