"""Zip archives of slices, unpacked without trusting them."""

from __future__ import annotations

import os
import shutil
import stat
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO

from hemlearn.data.readers import is_bare, kind_of, undecided
from hemlearn.util.errors import DataError, count, name_problem, printable
from hemlearn.util.files import special_file

# --- The image files in a folder of mixed files.

SCANS = ("dicom", "nifti")  # kinds of file with headers


@dataclass(frozen=True)
class Found:
    """What a folder holds.

    Args:
        files: DICOM and NIfTI files, POSIX paths relative to the folder, sorted.
        skipped: (path, reason) of everything else, sorted: pictures too, links to folders, what is no file.
        pictures: PNG, JPEG and other pictures, sorted.
    """

    files: tuple[str, ...]
    skipped: tuple[tuple[str, str], ...]
    pictures: tuple[str, ...]


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
    pictures: list[str] = []
    skipped: list[tuple[str, str]] = []
    for item, path, odd in _walk(os.fspath(base)):
        name, head = item.rpartition("/")[2], b""
        odd = odd or name_problem(item)
        if not odd and undecided(name):
            try:
                with open(path, "rb") as file:  # noqa: PTH123
                    head = file.read(132)
            except OSError as error:
                odd = f"cannot be opened: {error.strerror or error}"
        kind = "" if odd else kind_of(name, head)
        if kind in SCANS:
            files.append(item)
            continue
        skipped.append((printable(item), odd or _reason(name, head)))
        if kind == "image" and not name.startswith("."):
            pictures.append(item)
    return Found(tuple(sorted(files)), tuple(sorted(skipped)), tuple(sorted(pictures)))


def _walk(base: str) -> Iterator[tuple[str, str, str]]:
    """Everything below a folder that is no folder: POSIX path below it, path, "" or why it is not looked at."""
    folders = [("", base)]
    while folders:
        inside, folder = folders.pop()
        try:
            entries = list(os.scandir(folder))
        except OSError as error:
            yield inside.rstrip("/") or ".", folder, f"cannot be opened: {error.strerror or error}"
            continue
        for entry in entries:
            item, odd = inside + entry.name, ""
            if entry.is_dir(follow_symlinks=False):
                folders.append((f"{item}/", entry.path))
                continue
            if not entry.is_file(follow_symlinks=False):  # a link, or what is not to be opened
                try:
                    mode = os.stat(entry.path).st_mode  # noqa: PTH116
                    odd = "a link to a folder: not followed" if stat.S_ISDIR(mode) else special_file(mode)
                except OSError as error:
                    odd = f"cannot be opened: {error.strerror or error}"
            yield item, entry.path, odd


def _reason(name: str, head: bytes) -> str:
    lower = name.lower()
    if lower == "dicomdir":
        return "a table of contents (DICOMDIR), not an image"
    if lower.startswith("."):
        return "a hidden file"
    if is_bare(lower):
        return f"no DICOM mark in a file without an ending (first bytes {head[:4]!r})"
    return f"neither DICOM nor NIfTI: *{Path(lower).suffix}"


MAX_BYTES = 16 << 30  # unpacked; a thin-slice head CT study is below 1 GiB
MAX_FILES = 50_000
MAX_RATIO = 200  # unpacked to packed bytes of one member; deflate reaches 1032, a slice of pure air about 100
_FREE_RATIO = 1 << 20  # bytes up to which a member may be packed to any ratio
_FREE_TOTAL = 256 << 20  # the same for the whole archive
_STEP = 1 << 20


def extract(zip_path: Path, into: Path) -> list[Path]:
    """Unpack the DICOM and NIfTI files of a zip archive.

    Everything is checked before anything is written, sizes are counted again while unpacking (an archive can lie
    about them), and what was written is removed when the archive turns out to be bad.

    Args:
        zip_path: The archive.
        into: Folder for its files; made where missing. Their places in the archive are kept.

    Returns:
        The unpacked files, sorted. Members that are no DICOM or NIfTI files are not written.

    Raises:
        DataError: No zip archive, or a damaged one; a member that is absolute, leads out of the folder, is a link or
            encrypted; an archive in the archive; a member unpacked to more than 200 times its packed size, more than
            16 GiB or 50,000 files in all; no DICOM or NIfTI file in it.
    """
    try:
        with zipfile.ZipFile(zip_path) as archive:
            members = [member for member in archive.infolist() if not member.is_dir()]
            _check(zip_path, members)
            return _unpack(zip_path, archive, members, into)
    except FileNotFoundError as error:
        raise DataError(f"{zip_path}: cannot be opened: no such file", remedy="check the path") from error
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, UnicodeDecodeError) as error:
        raise DataError(
            f"{zip_path}: no zip archive, or a damaged one: {error}", remedy="copy or pack the archive again"
        ) from error


_DISTRUST = "do not trust this archive; ask its sender for another"


def _refuse(zip_path: Path, problem: str, remedy: str = _DISTRUST) -> DataError:
    return DataError(f"{zip_path}: {problem}; nothing was unpacked", remedy=remedy)


def _check(zip_path: Path, members: list[zipfile.ZipInfo]) -> None:
    """Refuse an archive by what its directory says, before anything is written."""
    if len(members) > MAX_FILES:
        raise _refuse(zip_path, f"zip bomb: {len(members)} files, at most {MAX_FILES} are unpacked")
    total = sum(member.file_size for member in members)
    if total > MAX_BYTES:
        raise _refuse(zip_path, f"zip bomb: {total} bytes unpacked, at most {MAX_BYTES} are")
    packed = sum(member.compress_size for member in members)
    if total > max(_FREE_TOTAL, MAX_RATIO * packed):
        raise _refuse(zip_path, f"zip bomb: {packed} bytes unpack to {total}, more than {MAX_RATIO} to 1")
    seen: set[str] = set()
    for member in members:
        # orig_filename: ZipInfo.filename is already cut at a zero byte.
        name = member.orig_filename.replace("\\", "/")
        parts = PurePosixPath(name).parts
        if name_problem(name) or not parts:
            raise _refuse(zip_path, f"unsafe name {name!r}")
        if name.startswith("/") or parts[0].endswith(":"):
            raise _refuse(zip_path, f"unsafe path: {name!r} is absolute")
        if ".." in parts:
            raise _refuse(zip_path, f"unsafe path: {name!r} leads out of the folder")
        kind = stat.S_IFMT(member.external_attr >> 16)
        if kind not in (0, stat.S_IFREG):
            raise _refuse(zip_path, f"{name!r} is a {'link' if kind == stat.S_IFLNK else 'special file'}")
        if member.flag_bits & 0x1:
            raise _refuse(zip_path, f"{name!r} is encrypted", "unpack it with its password and give the folder")
        if name.lower().endswith((".zip", ".tar", ".tgz", ".tar.gz", ".7z", ".rar")):
            raise _refuse(zip_path, f"an archive within the archive: {name!r}", "unpack the inner archive and give it")
        if name.lower() in seen:
            raise _refuse(zip_path, f"two members are called {name!r}")
        seen.add(name.lower())
        if member.file_size > max(_FREE_RATIO, MAX_RATIO * member.compress_size):
            raise _refuse(
                zip_path,
                f"zip bomb: {name!r} unpacks {member.compress_size} bytes to {member.file_size}, "
                f"more than {MAX_RATIO} to 1",
            )


def _unpack(zip_path: Path, archive: zipfile.ZipFile, members: list[zipfile.ZipInfo], into: Path) -> list[Path]:
    made = not into.exists()
    into.mkdir(parents=True, exist_ok=True)
    root, written = into.resolve(), []
    try:
        for member in members:
            target = (root / PurePosixPath(member.filename.replace("\\", "/"))).resolve()
            if not target.is_relative_to(root):  # a link that stood in the folder before
                raise _refuse(zip_path, f"unsafe path: {member.filename!r} leads out of {into}")
            with archive.open(member) as packed:
                head = packed.read(_STEP)
                if kind_of(member.filename, head[:132]) not in SCANS:
                    continue
                target.parent.mkdir(parents=True, exist_ok=True)
                with target.open("xb") as file:
                    written.append(target)
                    _copy(zip_path, member, head, packed, file)
    except FileExistsError as error:
        _remove(written, root, made)
        raise _refuse(zip_path, f"{error.filename} exists already", "give an empty folder") from error
    except OSError as error:
        _remove(written, root, made)
        raise DataError(
            f"{zip_path}: cannot be unpacked into {into}: {error.strerror or error}",
            remedy="give a folder that can be written, with enough space",
        ) from error
    except BaseException:
        _remove(written, root, made)
        raise
    if not written:
        _remove(written, root, made)
        raise _refuse(
            zip_path, f"no DICOM or NIfTI file among its {count(len(members), 'file')}", "give an archive of slices"
        )
    return sorted(written)


def _copy(zip_path: Path, member: zipfile.ZipInfo, head: bytes, packed: IO[bytes], file: IO[bytes]) -> None:
    done, told = 0, member.file_size
    while head:
        done += len(head)
        if done > told:
            raise _refuse(zip_path, f"zip bomb: {member.filename!r} unpacks to more than the {told} bytes told")
        file.write(head)
        head = packed.read(_STEP)


def _remove(written: list[Path], root: Path, made: bool) -> None:
    if made:
        shutil.rmtree(root, ignore_errors=True)
        return
    for path in written:
        path.unlink(missing_ok=True)
        for parent in path.parents:
            if parent == root or any(parent.iterdir()):
                break
            parent.rmdir()
