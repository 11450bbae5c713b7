from __future__ import annotations

import io
import os
import stat
import zipfile
from pathlib import Path

import numpy as np
import pytest

from hemlearn.data import sources as archives
from hemlearn.data.readers import reader_for
from hemlearn.data.readers.dicom import read_dicom
from hemlearn.data.readers.image import read_image
from hemlearn.data.scan import read_headers
from hemlearn.data.sources import discover, extract
from hemlearn.util.errors import DataError
from tests.data.readers.files import ct, nifti, slice_hu, write


@pytest.fixture
def raw(tmp_path: Path) -> bytes:
    return write(tmp_path / "made/slice.dcm", ct(slice_hu(), RescaleIntercept=0)).read_bytes()


def packed(path: Path, members: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(zipfile.ZipInfo(name) if content is None else name, content)
    return path


def test_slices_are_unpacked_in_their_places(tmp_path: Path, raw: bytes) -> None:
    volume = nifti(tmp_path / "v.nii.gz", np.zeros((9, 9, 3), np.int16)).read_bytes()
    members = {"b/IM0001": raw, "a/x.dcm": raw, "v.nii.gz": volume, "readme.txt": b"hello", "__MACOSX/._x.dcm": b"note"}
    into = tmp_path / "out"
    found = extract(packed(tmp_path / "a.zip", members), into)
    assert [path.relative_to(into.resolve()).as_posix() for path in found] == ["a/x.dcm", "b/IM0001", "v.nii.gz"]
    assert sorted(path.name for path in into.rglob("*") if path.is_file()) == ["IM0001", "v.nii.gz", "x.dcm"]
    assert np.array_equal(reader_for(found[1]).decode(found[1], 0, "CT"), slice_hu())


@pytest.mark.parametrize(
    "name",
    ["../evil.dcm", "a/../../evil.dcm", "/etc/evil.dcm", "C:\\evil.dcm", "..\\evil.dcm", "C:/evil.dcm", "//h/x.dcm"],
)
def test_paths_that_leave_the_folder_are_refused(tmp_path: Path, raw: bytes, name: str) -> None:
    path = packed(tmp_path / "a.zip", {"good.dcm": raw, name: raw})
    with pytest.raises(DataError, match=r"unsafe path.*nothing was unpacked"):
        extract(path, tmp_path / "sub/out")
    assert not (tmp_path / "sub").exists()
    assert not list(tmp_path.rglob("evil.dcm"))


def test_links_are_refused(tmp_path: Path, raw: bytes) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        link = zipfile.ZipInfo("link.dcm")
        link.external_attr = (stat.S_IFLNK | 0o777) << 16
        archive.writestr(link, "/etc/passwd")
        archive.writestr("good.dcm", raw)
    with pytest.raises(DataError, match=r"'link.dcm' is a link"):
        extract(tmp_path / "a.zip", tmp_path / "out")
    # A link that was in the folder before must not lead out of it either.
    (tmp_path / "out").mkdir()
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "out/in").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(DataError, match="leads out of"):
        extract(packed(tmp_path / "b.zip", {"good.dcm": raw, "in/x.dcm": raw}), tmp_path / "out")
    assert list((tmp_path / "elsewhere").iterdir()) == []
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["in"]


def test_encrypted_members_are_refused(tmp_path: Path, raw: bytes) -> None:
    path = packed(tmp_path / "a.zip", {"x.dcm": raw})
    content = bytearray(path.read_bytes())
    for mark, place in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):  # the flag in both headers
        content[content.index(mark) + place] |= 1
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"'x.dcm' is encrypted"):
        extract(path, tmp_path / "out")


def test_archives_in_archives_are_told(tmp_path: Path, raw: bytes) -> None:
    inner = packed(tmp_path / "inner.zip", {"x.dcm": raw}).read_bytes()
    with pytest.raises(DataError, match=r"an archive within the archive: 'inner.zip'"):
        extract(packed(tmp_path / "a.zip", {"y.dcm": raw, "inner.zip": inner}), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_bombs_are_refused(tmp_path: Path, raw: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    bomb = packed(tmp_path / "a.zip", {"x.dcm": bytes(20 << 20)})
    assert bomb.stat().st_size < 30_000
    with pytest.raises(DataError, match=r"zip bomb: 'x.dcm' unpacks .* to 20971520, more than 200 to 1"):
        extract(bomb, tmp_path / "out")
    monkeypatch.setattr(archives, "MAX_FILES", 3)
    with pytest.raises(DataError, match="zip bomb: 4 files, at most 3"):
        extract(packed(tmp_path / "b.zip", {f"{item}.dcm": raw for item in range(4)}), tmp_path / "out")
    monkeypatch.setattr(archives, "MAX_BYTES", 5000)
    with pytest.raises(DataError, match=r"zip bomb: \d+ bytes unpacked, at most 5000"):
        extract(packed(tmp_path / "c.zip", {f"{item}.dcm": raw for item in range(3)}), tmp_path / "out")
    monkeypatch.setattr(archives, "MAX_BYTES", 1 << 30)
    monkeypatch.setattr(archives, "_FREE_TOTAL", 5000)
    with pytest.raises(DataError, match=r"zip bomb: \d+ bytes unpack to 3000000, more than 200 to 1"):
        extract(packed(tmp_path / "d.zip", {f"{item}.dcm": bytes(1_000_000) for item in range(3)}), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_slice_of_air_is_no_bomb(tmp_path: Path) -> None:
    air = write(tmp_path / "air.dcm", ct(np.zeros((512, 512), np.int16))).read_bytes()
    (found,) = extract(packed(tmp_path / "a.zip", {"air.dcm": air}), tmp_path / "out")
    assert (read_dicom(found, 0) == -1024).all()


def test_an_archive_that_lies_about_sizes_is_refused(tmp_path: Path, raw: bytes) -> None:
    path = packed(tmp_path / "a.zip", {"x.dcm": bytes(20 << 20)})
    content = bytearray(path.read_bytes())
    start = content.index(b"PK\x01\x02")
    content[start + 24 : start + 28] = (1000).to_bytes(4, "little")
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"damaged|bomb"):
        extract(path, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_broken_archives(tmp_path: Path, raw: bytes) -> None:
    good = packed(tmp_path / "a.zip", {"x.dcm": raw, "y.dcm": raw}).read_bytes()
    broken = bytearray(good)
    broken[60:80] = bytes(20)
    for name, content in {"cut": good[:-30], "text": b"hello", "empty": b"", "broken": bytes(broken)}.items():
        (tmp_path / f"{name}.zip").write_bytes(content)
        with pytest.raises(DataError, match="no zip archive, or a damaged one"):
            extract(tmp_path / f"{name}.zip", tmp_path / "out")
        assert not (tmp_path / "out").exists()
    with pytest.raises(DataError, match="no such file"):
        extract(tmp_path / "absent.zip", tmp_path / "out")
    with pytest.raises(DataError, match="no DICOM or NIfTI file among its 1 file"):
        extract(packed(tmp_path / "b.zip", {"a.txt": b"text"}), tmp_path / "out")
    with pytest.raises(DataError, match="two members are called"):
        extract(packed(tmp_path / "c.zip", {"a.dcm": raw, "A.DCM": raw}), tmp_path / "out")


def test_nothing_is_overwritten(tmp_path: Path, raw: bytes) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out/y.dcm").write_bytes(b"mine")
    with pytest.raises(DataError, match=r"y.dcm exists already"):
        extract(packed(tmp_path / "a.zip", {"x.dcm": raw, "y.dcm": raw}), tmp_path / "out")
    assert (tmp_path / "out/y.dcm").read_bytes() == b"mine"
    assert not (tmp_path / "out/x.dcm").exists()


def test_what_a_folder_holds(tmp_path: Path, raw: bytes) -> None:
    files = {
        "a/1.dcm": raw,
        "a/2.DCM": raw,
        "a/1.2.840.3": raw,
        "b/IM001": raw,
        "b/DICOMDIR": raw,
        "b/LICENSE": b"text",
        "c.nii.gz": b"",
        "c/x.IMA": raw,
        "notes.txt": b"",
        ".hidden": b"",
        "._1.dcm": b"",
        "p.png": b"",
    }
    for name, content in files.items():
        (tmp_path / "set" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "set" / name).write_bytes(content)
    found = discover(tmp_path / "set")
    assert found.files == ("a/1.2.840.3", "a/1.dcm", "a/2.DCM", "b/IM001", "c.nii.gz", "c/x.IMA")
    reasons = dict(found.skipped)
    assert set(reasons) | set(found.files) == set(files)
    assert reasons["b/DICOMDIR"].startswith("a table of contents")
    assert reasons["b/LICENSE"].startswith("no DICOM mark")
    assert reasons["notes.txt"] == "neither DICOM nor NIfTI: *.txt"
    with pytest.raises(DataError, match="no such folder"):
        discover(tmp_path / "absent")
    assert io.BytesIO(raw).read(132)[128:] == b"DICM"


def test_what_is_no_file_is_named_and_not_opened(tmp_path: Path, raw: bytes) -> None:
    root = tmp_path / "set"
    (root / "inner").mkdir(parents=True)
    (root / "good.dcm").write_bytes(raw)
    for name in ("pipe.dcm", "IM0001", "pipe.png"):
        os.mkfifo(root / name)
    (root / "links").symlink_to(root / "inner")
    (root / "inner" / "loop").symlink_to(root)
    (root / "broken.dcm").symlink_to(root / "nothing")
    (root / "alias.dcm").symlink_to(root / "good.dcm")
    (root / "circle.dcm").symlink_to(root / "circle.dcm")
    found = discover(root)
    assert found.files == ("alias.dcm", "good.dcm")
    assert found.pictures == ()
    reasons = dict(found.skipped)
    assert [reasons[name] for name in ("pipe.dcm", "IM0001", "pipe.png")] == ["a named pipe (FIFO), not a file"] * 3
    assert [reasons[name] for name in ("links", "inner/loop")] == ["a link to a folder: not followed"] * 2
    assert reasons["broken.dcm"].startswith("cannot be opened: No such file")
    assert reasons["circle.dcm"].startswith("cannot be opened: Too many levels of symbolic links")
    scanned = read_headers(["pipe.dcm", "good.dcm"], root, progress=False).set_index("path")["reason"]
    assert scanned.to_dict() == {"pipe.dcm": "a named pipe (FIFO), not a file", "good.dcm": ""}
    with pytest.raises(DataError, match="a named pipe"):
        read_dicom(root / "pipe.dcm", 0)
    with pytest.raises(DataError, match="a named pipe"):
        read_image(root / "pipe.png")


def test_names_that_a_terminal_would_obey_are_told_in_escapes(tmp_path: Path, raw: bytes) -> None:
    odd = {"a\r.dcm": r"a\r.dcm", "b\x1b[2J.png": r"b\x1b[2J.png", "c\u202egnp.dcm": r"c\u202egnp.dcm"}
    (tmp_path / "set").mkdir()
    for name in (*odd, "good.dcm"):
        (tmp_path / "set" / name).write_bytes(raw)
    found = discover(tmp_path / "set")
    assert (found.files, found.pictures) == (("good.dcm",), ())
    assert dict(found.skipped) == dict.fromkeys(odd.values(), "its name holds a control character: rename it")
    with pytest.raises(DataError, match="unsafe name"):
        extract(packed(tmp_path / "a.zip", {"a\r.dcm": raw}), tmp_path / "out")
