"""Manifests, label tables and tables of files: ids, values, columns, encodings."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path

from PIL import Image

from tests.attack import series
from tests.attack.case import Case, Judge, Outcome, Trained, accepted, refused, same, told
from tests.attack.pictures import grey

KIND = "tables"
PATIENTS = 20
LABELS = ("epidural", "intraparenchymal", "intraventricular", "subarachnoid", "subdural", "any")
Rows = list[list[str]]


def manifest(root: Path, change: Callable[[Rows], Rows | None] | None = None, columns: Sequence[str] = ()) -> Path:
    """Forty pictures of twenty patients: path, patient_id, hemorrhage, and further columns."""
    from numpy import roll

    root.mkdir(parents=True, exist_ok=True)
    rows: Rows = [["path", "patient_id", "hemorrhage", *columns]]
    for place in range(2 * PATIENTS):
        picture = roll(grey(), (place * 2, place), (0, 1)) // (1 + place % 3)
        picture[place, : place + 5] = 200
        Image.fromarray(picture).save(root / f"{place:03d}.png")
        rows.append([f"{place:03d}.png", f"p{place // 2:02d}", str(place // 2 % 2), *("" for _ in columns)])
    rows = (change(rows) or rows) if change else rows
    (root / "m.csv").write_text("\n".join(",".join(row) for row in rows) + "\n", "utf-8")
    return root / "m.csv"


def index(folder: Path, *words: str) -> list[str]:
    return [
        "index",
        "data=table",
        f"data.manifest={folder / 'in/m.csv'}",
        "data.image_size=64",
        "task.labels=[hemorrhage]",
        *words,
    ]


def cell(row: int, column: int, value: str) -> Callable[[Rows], None]:
    def change(rows: Rows) -> None:
        rows[row][column] = value

    return change


def ids(*values: str) -> Callable[[Rows], None]:
    """The patients of the first rows."""

    def change(rows: Rows) -> None:
        for place, value in enumerate(values):
            rows[1 + place][1] = value

    return change


def column(name: str, *values: str) -> tuple[Callable[[Rows], None], tuple[str, ...]]:
    """A further column that starts with the values; the last goes on."""

    def change(rows: Rows) -> None:
        for place, row in enumerate(rows[1:]):
            row[3] = values[min(place, len(values) - 1)]

    return change, (name,)


def none(rows: Rows) -> None:
    """As it is."""


def without(name: int) -> Callable[[Rows], Rows]:
    return lambda rows: [row[:name] + row[name + 1 :] for row in rows]


def copied(rows: Rows) -> None:
    rows.append(list(rows[1]))


def renamed(old: int, new: str) -> Callable[[Rows], None]:
    return cell(0, old, new)


PLAIN: dict[str, tuple[Callable[[Rows], Rows | None], Judge]] = {
    "good": (none, accepted("20 patients")),
    "ids 3 and 003": (ids("3", "003"), told("'?0*3'?.*003|003.*3")),
    "ids 7, 07 and 007": (ids("7", "07", "007"), told("007")),
    "ids 1 and 1.0": (ids("1", "1.0"), told(r"1\.0")),
    "ids pat1 and PAT1": (ids("pat1", "PAT1"), told("PAT1")),
    "ids 'a b' and 'a  b'": (ids("a b", "a  b"), told("a  b|a b")),
    "ids with a blank behind": (ids("a", "a "), told("'a |blank|one id|same")),
    "ids in two Unicode forms": (ids("caf\u00e9", "cafe\u0301"), told("caf")),
    "ids with a soft hyphen": (ids("ab", "a\u00adb"), told("ab")),
    "an id of digits, others of letters": (ids("12"), accepted()),
    "id N/A": (ids("N/A", "N/A"), told("N/A")),
    "id NA": (ids("NA"), told("NA")),
    "id nan": (ids("nan"), told("nan")),
    "id null": (ids("null"), told("null")),
    "id none": (ids("None"), told("None")),
    "id unknown": (ids("unknown", "unknown"), told("unknown")),
    "id -": (ids("-"), told("'-'")),
    "id empty": (ids(""), told("row|line")),
    "id of blanks": (ids("   "), told("row|line|blank")),
    "id with an escape": (ids("\x1b[31mx"), told("x")),
    "id =cmd": (ids("=cmd()"), accepted()),
    "id like a path": (ids("../../x"), accepted()),
    "one patient for all": (
        lambda rows: [rows[0], *([r[0], "p", r[2]] for r in rows[1:])],
        told("1 patient|one patient"),
    ),
    "label 2": (cell(3, 2, "2"), refused("hemorrhage", "2")),
    "label 0.5": (cell(3, 2, "0.5"), refused("hemorrhage", "0.5")),
    "label yes": (cell(3, 2, "yes"), refused("hemorrhage", "yes")),
    "label nan": (cell(3, 2, "nan"), told("hemorrhage|label|unknown")),
    "label empty": (cell(3, 2, ""), told("hemorrhage|label|unknown")),
    "label -1": (cell(3, 2, "-1"), refused("-1")),
    "label inf": (cell(3, 2, "inf"), refused("inf")),
    "label 1.0": (cell(3, 2, "1.0"), accepted("20 patients")),
    "label True": (cell(3, 2, "True"), told("True|20 patients")),
    "all labels 0": (lambda rows: [rows[0], *([r[0], r[1], "0"] for r in rows[1:])], told("positive|one class|no ")),
    "a path twice": (copied, refused("000.png")),
    "a path twice, labels against each other": (lambda r: r.append(["000.png", "p00", "1"]), refused("000.png")),
    "a path twice, as ./": (lambda r: r.append(["./000.png", "q", "1"]), refused("000.png")),
    "a path twice, as a/..": (lambda r: r.append(["../in/000.png", "q", "1"]), refused("000.png")),
    "a path twice, doubled slash": (lambda r: r.append([".//000.png", "q", "1"]), refused("000.png")),
    "a missing file": (lambda r: r.append(["none.png", "q", "1"]), told("none.png")),
    "a folder as a path": (lambda r: r.append([".", "q", "1"]), told("folder|regular|file")),
    "an empty path": (lambda r: r.append(["", "q", "1"]), told("path")),
    "an absolute path elsewhere": (lambda r: r.append(["/etc/passwd", "q", "1"]), told("passwd")),
    "a null byte in a path": (lambda r: r.append(["a\0b.png", "q", "1"]), told("row|null|NUL|a")),
    "a path of 5000 characters": (lambda r: r.append(["a" * 5000 + ".png", "q", "1"]), told("aaa")),
    "no path column": (without(0), refused("path")),
    "no patient column": (without(1), refused("patient_id")),
    "no label column": (without(2), told("hemorrhage")),
    "path column in capitals": (renamed(0, "Path"), refused("path")),
    "patient column with a blank": (renamed(1, " patient_id"), told("patient_id|20 patients")),
    "a label twice": (lambda r: [[*row, row[2]] for row in r], refused("hemorrhage")),
    "header alone": (lambda r: r[:1], refused("no |empty")),
    "a row too long": (lambda r: r[5].append("x"), refused("line|row|column")),
    "a row too short": (lambda r: r[5].pop() and None, told("line|row|hemorrhage")),
    "a thousand columns": (lambda r: [row + ["0"] * 1000 for row in [r[0][:3]]] and None, accepted()),
}

COLUMNS: dict[str, tuple[tuple[Callable[[Rows], None], tuple[str, ...]], Judge]] = {
    "z_mm inf": (column("z_mm", "inf", "1"), refused("z_mm")),
    "z_mm text": (column("z_mm", "top", "1"), refused("z_mm", "top")),
    "z_mm 1e400": (column("z_mm", "1e400", "1"), refused("z_mm")),
    "frame 1.5": (column("frame", "1.5", "0"), refused("frame", r"1\.5")),
    "frame inf": (column("frame", "inf", "0"), refused("frame")),
    "frame -1": (column("frame", "-1", "0"), refused("frame", "-1")),
    "frame 7": (column("frame", "7", "0"), told("frame|000.png")),
    "frame 1e30": (column("frame", "1e30", "0"), refused("frame")),
    "modality XX": (column("modality", "XX", "CT"), told("XX")),
    "modality MR and CT": (column("modality", "MR", "CT"), told("MR")),
    "slice_id twice": (column("slice_id", "a", "a", "b"), refused("slice_id|'a'")),
    "study of two patients": (column("study_id", "s"), told("stud")),
    "series of two patients": (column("series_id", "s"), told("series")),
}


def _bytes(change: Callable[[bytes], bytes]) -> Callable[[Path], None]:
    def make(root: Path) -> None:
        file = manifest(root)
        file.write_bytes(change(file.read_bytes()))

    return make


def _unicode(encoding: str) -> Callable[[bytes], bytes]:
    return lambda raw: raw.decode().replace("p00", "p\u00e9").encode(encoding)


FILES: dict[str, tuple[Callable[[Path], None], Judge]] = {
    "UTF-8 with a mark": (_bytes(_unicode("utf-8-sig")), accepted("20 patients")),
    "UTF-16": (_bytes(_unicode("utf-16")), told("UTF-16|20 patients")),
    "UTF-16 without a mark": (_bytes(_unicode("utf-16-le")), told("UTF|encod|20 patients|path")),
    "UTF-32": (_bytes(_unicode("utf-32")), told("UTF|encod|20 patients|path")),
    "Latin-1": (_bytes(_unicode("latin-1")), told("UTF-8|encod|20 patients")),
    "Windows line ends": (_bytes(lambda raw: raw.replace(b"\n", b"\r\n")), accepted("20 patients")),
    "old Mac line ends": (_bytes(lambda raw: raw.replace(b"\n", b"\r")), told("20 patients|line|row|column")),
    "semicolons": (_bytes(lambda raw: raw.replace(b",", b";")), told("20 patients|;|semicolon|path")),
    "tabs": (_bytes(lambda raw: raw.replace(b",", b"\t")), told("20 patients|tab|path")),
    "null bytes": (_bytes(lambda raw: raw.replace(b"p01", b"p\x001")), told("NUL|null|row|line|patient")),
    "an open quote": (_bytes(lambda raw: raw.replace(b"003.png", b'"003.png')), refused("line|row|quote")),
    "quotes and line breaks": (_bytes(lambda raw: raw.replace(b"p02", b'"p\n2"')), told("patient|line|20 patients")),
    "no newline at the end": (_bytes(lambda raw: raw.rstrip(b"\n")), accepted("20 patients")),
    "empty lines": (_bytes(lambda raw: raw.replace(b"\n", b"\n\n")), accepted("20 patients")),
    "a comment line": (_bytes(lambda raw: b"# labels\n" + raw), refused("path|column")),
    "no header": (_bytes(lambda raw: raw.split(b"\n", 1)[1]), refused("path")),
    "empty": (_bytes(lambda raw: b""), refused("empty|no ")),
    "a picture": (_bytes(lambda raw: b"\x89PNG\r\n\x1a\n" + bytes(range(256)) * 9), refused("m.csv")),
    "Excel's file": (_bytes(lambda raw: b"PK\x03\x04" + raw), refused("m.csv")),
    "a web page": (_bytes(lambda raw: b"<html><body>sign in</body></html>"), refused("path|m.csv")),
    "one cell of 5 MB": (_bytes(lambda raw: raw.replace(b"p03", b"p" * (5 << 20))), told("patient|20 patients|long")),
    "a folder": (lambda root: (root / "m.csv").mkdir(parents=True), refused("m.csv")),
    "a pipe": (lambda root: root.mkdir() or os.mkfifo(root / "m.csv"), refused("m.csv")),
}


def _rows(folder: Path, header: str, lines: Sequence[str]) -> None:
    (folder / "in").mkdir(parents=True, exist_ok=True)
    (folder / "in/rows.csv").write_text("\n".join([header, *lines]) + "\n", "utf-8")


def _files(folder: Path, **options: object) -> list[str]:
    return [file.name for file in series.dicom(folder / "in", **options)]  # type: ignore[arg-type]


PREDICTED: dict[str, tuple[Callable[[Path], None], Judge]] = {
    "paths alone": (lambda f: _rows(f, "path", _files(f)), same()),
    "patients named": (lambda f: _rows(f, "path,patient_id", [f"{n},x" for n in _files(f)]), same()),
    "files without an end": (lambda f: _rows(f, "path", _files(f, names="IM{:04d}")), same()),
    "a path twice": (lambda f: _rows(f, "path", [*_files(f), "000.dcm"]), told("000.dcm")),
    "a missing file": (lambda f: _rows(f, "path", [*_files(f), "none.dcm"]), told("none.dcm")),
    "two patients in one series": (
        lambda f: _rows(f, "path,patient_id", [f"{n},{i % 2}" for i, n in enumerate(_files(f))]),
        told("patient|series"),
    ),
    "ids 3 and 003": (
        lambda f: _rows(
            f, "path,patient_id,series_id", [f"{n},{'3' if i < 6 else '003'},{i // 6}" for i, n in enumerate(_files(f))]
        ),
        told("003"),
    ),
    "z_mm inf": (lambda f: _rows(f, "path,z_mm", [f"{n},inf" for n in _files(f)]), told("z_mm")),
    "frame 1.5": (lambda f: _rows(f, "path,frame", [f"{n},1.5" for n in _files(f)]), told("frame")),
    "no path": (lambda f: _rows(f, "file", _files(f)), refused("path")),
    "nothing": (lambda f: _rows(f, "path", []), refused("no |empty")),
    "UTF-16": (lambda f: _rows(f, "path", _files(f)) or _recode(f), told("UTF-16|patients|predicted")),
}


def _recode(folder: Path) -> None:
    file = folder / "in/rows.csv"
    file.write_bytes(file.read_text("utf-8").encode("utf-16"))


def rsna(change: Callable[[bytes], bytes]) -> Callable[[Path], None]:
    """Twelve patients of RSNA 2019, a slice each, and the changed table of labels."""

    def make(root: Path) -> None:
        lines = ["ID,Label"]
        for place in range(12):
            name = f"ID_{place:09x}"
            data = {"names": "x{:03d}.dcm", "patient": f"ID_{place:08x}"}
            file = series.dicom(root / "stage_2_train", series.head(place)[5:6], **data)[0]  # type: ignore[arg-type]
            file.rename(root / "stage_2_train" / f"{name}.dcm")
            lines += [f"{name}_{label},{int(place % 2 and label in ('subdural', 'any'))}" for label in LABELS]
        (root / "stage_2_train.csv").write_bytes(change(("\n".join(lines) + "\n").encode()))

    return make


RSNA: dict[str, tuple[Callable[[bytes], bytes], Judge]] = {
    "good": (lambda raw: raw, accepted("12 patients|12 slices")),
    "UTF-16": (lambda raw: raw.decode().encode("utf-16"), told("UTF-16|12 patients|12 slices")),
    "a label that is none": (lambda raw: raw.replace(b"_subdural,1", b"_subdura,1", 1), told("subdura")),
    "a label missing": (lambda raw: raw.replace(b"ID_000000003_any,1\n", b""), told("ID_000000003")),
    "labels that contradict": (lambda raw: raw + b"ID_000000003_any,0\n", told("ID_000000003")),
    "any against its subtypes": (lambda raw: raw.replace(b"3_any,1", b"3_any,0"), told("any")),
    "label 2": (lambda raw: raw.replace(b"3_any,1", b"3_any,2"), told("2")),
    "no labels": (lambda raw: b"ID,Label\n", refused("no |empty")),
    "cut": (lambda raw: raw[: len(raw) // 2 + 3], told("ID_")),
    "labels of other slices": (lambda raw: raw.replace(b"ID_0", b"ID_1"), told("no |ID_1")),
}


def contradiction(got: Outcome) -> str:
    """Two equal pictures, one with and one without a bleed: the contradiction itself is told."""
    return told("contradict|opposite|disagree|different label")(got)


def cases() -> list[Case]:
    """All of them."""
    found = []
    for name, (change, judge) in PLAIN.items():

        def changed(folder: Path, trained: Trained, change: Callable[[Rows], Rows | None] = change) -> list[str]:
            manifest(folder / "in", change)
            return index(folder)

        found.append(Case(KIND, name, changed, judge))
    for name, ((further, names), judge) in COLUMNS.items():

        def wider(
            folder: Path, trained: Trained, change: Callable[[Rows], None] = further, names: Sequence[str] = names
        ) -> list[str]:
            manifest(folder / "in", change, names)
            return index(folder)

        found.append(Case(KIND, name, wider, judge))
    for name, (make, judge) in FILES.items():

        def written(folder: Path, trained: Trained, make: Callable[[Path], None] = make) -> list[str]:
            make(folder / "in")
            return index(folder)

        found.append(Case(KIND, f"file: {name}", written, judge))
    for name, (lines, judge) in PREDICTED.items():

        def predicted(folder: Path, trained: Trained, lines: Callable[[Path], None] = lines) -> list[str]:
            lines(folder)
            return ["predict", f"run={trained.runs['ct']}", f"input={folder / 'in/rows.csv'}", "out=out"]

        found.append(Case(KIND, f"predict: {name}", predicted, judge))
    for name, (labels, judge) in RSNA.items():

        def of_rsna(folder: Path, trained: Trained, labels: Callable[[bytes], bytes] = labels) -> list[str]:
            rsna(labels)(folder / "in")
            return ["index", "data=rsna", "task=subtypes", f"data.root={folder / 'in'}", "data.image_size=64"]

        found.append(Case(KIND, f"RSNA: {name}", of_rsna, judge))

    def opposite(folder: Path, trained: Trained) -> list[str]:
        manifest(folder / "in")
        (folder / "in/002.png").write_bytes((folder / "in/000.png").read_bytes())
        return index(folder)

    return [*found, Case(KIND, "equal pictures with opposite labels", opposite, contradiction)]
