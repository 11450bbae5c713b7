"""Zip archives, as `predict` takes them, and folders that are no folders."""

from __future__ import annotations

import io
import os
import stat
import zipfile
from collections.abc import Callable
from pathlib import Path

from tests.attack import series
from tests.attack.case import Case, Judge, Trained, refused, same, same_or_told, told

KIND = "archives"


def zipped(
    path: Path, change: Callable[[zipfile.ZipFile, list[Path]], None] | None = None, prefix: str = "study/"
) -> None:
    """The series in an archive; ``change`` adds to it."""
    files = series.dicom(path.parent / "series")
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for file in files:
            archive.write(file, f"{prefix}{file.name}")
        if change:
            change(archive, files)
    for file in files:
        file.unlink()
    (path.parent / "series").rmdir()


def _bomb(archive: zipfile.ZipFile, files: list[Path]) -> None:
    info = zipfile.ZipInfo("study/zeros.dcm")
    info.compress_type = zipfile.ZIP_DEFLATED
    with archive.open(info, "w", force_zip64=True) as member:
        block = bytes(16 << 20)
        for _ in range(192):  # 3 GiB
            member.write(block)


def _nested(archive: zipfile.ZipFile, files: list[Path]) -> None:
    inner = b""
    for _ in range(50):
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w") as deeper:
            deeper.writestr("inner.zip", inner)
        inner = buffer.getvalue()
    archive.writestr("inner.zip", inner)


def _link(archive: zipfile.ZipFile, files: list[Path]) -> None:
    info = zipfile.ZipInfo("study/link.dcm")
    info.external_attr = (stat.S_IFLNK | 0o777) << 16
    archive.writestr(info, "/etc/passwd")


def _many(archive: zipfile.ZipFile, files: list[Path]) -> None:
    for place in range(20_000):
        archive.writestr(f"study/{place}.txt", "")


def _encrypted(path: Path) -> None:
    zipped(path)
    raw = bytearray(path.read_bytes())
    at = 0
    while (at := raw.find(b"PK\1\2", at)) >= 0:
        raw[at + 8] |= 1
        at += 4
    raw[6] |= 1
    path.write_bytes(bytes(raw))


def _flipped(path: Path) -> None:
    zipped(path)
    raw = bytearray(path.read_bytes())
    raw[3000] ^= 255
    path.write_bytes(bytes(raw))


def _cut(path: Path) -> None:
    zipped(path)
    path.write_bytes(path.read_bytes()[:-2000])


def _lying(path: Path) -> None:
    """A member whose size in the directory is a thousandth of what it unpacks to."""
    zipped(path, lambda archive, files: archive.writestr("study/long.dcm", bytes(64 << 20)))
    raw = bytearray(path.read_bytes())
    at = raw.find(b"PK\1\2")
    while raw[at + 46 : at + 60] != b"study/long.dcm":
        at = raw.find(b"PK\1\2", at + 4)
    raw[at + 24 : at + 28] = (64 << 10).to_bytes(4, "little")
    path.write_bytes(bytes(raw))


ARCHIVES: dict[str, tuple[Callable[[Path], object], Judge]] = {
    "a study": (zipped, same()),
    "names that climb": (lambda p: zipped(p, lambda a, f: a.writestr("../../../evil.dcm", b"x")), same_or_told("evil")),
    "absolute names": (lambda p: zipped(p, lambda a, f: a.writestr("/tmp/evil.dcm", b"x")), same_or_told("evil")),
    "names with escapes": (
        lambda p: zipped(p, lambda a, f: a.writestr("study/\x1b[31m.dcm", b"x")),
        same_or_told("study"),
    ),
    "one name twice": (lambda p: zipped(p, lambda a, f: a.write(f[0], "study/000.dcm")), same_or_told("000.dcm")),
    "a member of 3 GB": (lambda p: zipped(p, _bomb), told("zeros|large|GB|GiB|bytes")),
    "archives in archives": (lambda p: zipped(p, _nested), same_or_told("inner")),
    "a symbolic link": (lambda p: zipped(p, _link), same_or_told("link")),
    "20000 empty members": (lambda p: zipped(p, _many), same_or_told("members|txt")),
    "a size that lies": (_lying, told("long")),
    "encrypted": (_encrypted, told("password|encrypt")),
    "a flipped byte": (_flipped, told("CRC|damaged|cannot|unread|decompress")),
    "cut": (_cut, refused("zip|archive")),
    "text": (lambda p: p.write_bytes(b"no archive"), refused("zip|archive")),
    "empty": (lambda p: p.write_bytes(b""), refused("zip|archive|empty")),
    "an archive of nothing": (lambda p: zipfile.ZipFile(p, "w").close(), refused("no|empty")),
    "Mac's double files": (
        lambda p: zipped(p, lambda a, f: a.writestr("__MACOSX/study/._000.dcm", b"\0\5\26\7")),
        same_or_told("MACOSX"),
    ),
}


def _loop(path: Path) -> None:
    (path.parent / "other").symlink_to(path)
    path.symlink_to(path.parent / "other")


PLACES: dict[str, tuple[Callable[[Path], object], Judge]] = {
    "missing": (lambda p: None, refused("in")),
    "a pipe": (lambda p: os.mkfifo(p), refused("pipe|regular|file|folder")),
    "a link to itself": (_loop, refused("link|loop|in")),
    "a device": (lambda p: p.symlink_to("/dev/zero"), refused("zero|regular|file|folder")),
    "an empty folder": (lambda p: p.mkdir(), refused("no|empty")),
    "a folder of text": (lambda p: p.mkdir() or (p / "a.txt").write_text("x"), refused("no ")),
    "a text": (lambda p: p.write_text("x"), refused("in")),
    "a folder nobody may read": (lambda p: p.mkdir(0o000), refused("no|perm|read|empty")),
    "folders 300 deep": (lambda p: (p / "/".join(["d"] * 300)).mkdir(parents=True), refused("no|empty")),
}


def cases() -> list[Case]:
    """By ``predict``; places by ``index`` too."""
    found = []
    for name, (make, judge) in ARCHIVES.items():

        def archived(folder: Path, trained: Trained, make: Callable[[Path], object] = make) -> list[str]:
            make(folder / "in.zip")
            return ["predict", f"run={trained.runs['ct']}", f"input={folder / 'in.zip'}", "out=out"]

        found.append(Case(KIND, name, archived, judge))
    for name, (make, judge) in PLACES.items():

        def placed(folder: Path, trained: Trained, make: Callable[[Path], object] = make) -> list[str]:
            make(folder / "in")
            return series.predict(trained, folder)

        def looked_at(folder: Path, trained: Trained, make: Callable[[Path], object] = make) -> list[str]:
            make(folder / "in")
            return series.index(folder)

        found += [Case(KIND, f"{name}: predict", placed, judge), Case(KIND, f"{name}: index", looked_at, judge)]
    return found
