from pathlib import Path

import pytest

from hemlearn.util.errors import DataError
from hemlearn.util.tables import read_csv, read_flags, row_number


def write(tmp_path: Path, content: bytes) -> Path:
    path = tmp_path / "labels.csv"
    path.write_bytes(content)
    return path


@pytest.mark.parametrize(
    "content",
    [
        b"id, hemorrhage\n0,1\n1,0\n",
        b"\xef\xbb\xbfid,hemorrhage\r\n0,1\r\n1,0\r\n",
        b"id;hemorrhage\n0;1\n1;0\n",
        b" id \t hemorrhage \n 0 \t 1 \n1\t0\n\n",
        b'"id","hemorrhage"\n"0", 1\n1,0',
        "id,hemorrhage\r\n0,1\r\n1,0\r\n".encode("utf-16"),
        b"\xfe\xff" + "id;hemorrhage\n0;1\n1;0\n".encode("utf-16-be"),
        "id,hemorrhage\n0,1\n1,0\n".encode("utf-32"),
        b"id,,hemorrhage,,\n0,,1,,\n1,,0,,\n",  # as spreadsheets save columns that were emptied
    ],
)
def test_every_dialect_gives_the_same_table(tmp_path: Path, content: bytes) -> None:
    table = read_csv(write(tmp_path, content))
    assert list(table.columns) == ["id", "hemorrhage"]
    assert table.to_numpy().tolist() == [["0", "1"], ["1", "0"]]


def test_a_quoted_line_break_is_part_of_its_value(tmp_path: Path) -> None:
    assert read_csv(write(tmp_path, b'id,note\n1,"a\nb"\n2,c\n')).to_numpy().tolist() == [["1", "a\nb"], ["2", "c"]]


def test_values_stay_text(tmp_path: Path) -> None:
    table = read_csv(write(tmp_path, b"id,label,note\n007,NA,\n1e3,null,a b\n"))
    assert table.to_numpy().tolist() == [["007", "NA", ""], ["1e3", "null", "a b"]]


def test_a_comma_in_quotes_is_no_delimiter(tmp_path: Path) -> None:
    assert read_csv(write(tmp_path, b'"a,b,c";d\n1;"x;y"\n')).to_dict("list") == {"a,b,c": ["1"], "d": ["x;y"]}


@pytest.mark.parametrize(
    ("content", "parts"),
    [
        (b"", ["empty file", "0 bytes"]),
        (b" \n\n", ["empty file"]),
        (b"\xef\xbb\xbf\n", ["no text in it"]),
        ("id,label\n1,0\n".encode("utf-16")[:-1], ["not UTF-16-LE", "offset"]),
        (b"x" * 200_000 + b",label\n1,0\n", ["field larger than field limit"]),
        (b"id,label\n" + b"x" * 200_000 + b",\n", ["line 2", "field larger than field limit"]),
        (b'id,label\n"1,0\n2,0\n', ["EOF inside string"]),
        (b"id,label\n", ["a header but no rows"]),
        (b"id,name\n1,M\xfcller\n", ["not UTF-8", "0xfc", "offset 11", "line 2", "iconv"]),
        ("id,label\n1,0\n".encode("utf-16-le"), ["zero byte", "UTF-16"]),
        (b"id,label, id\n1,0,2\n", ["'id'", "more than once"]),
        (b"id,label,,\n1,0,,\n2,0,a,b\n", ["columns 3, 4 have no name"]),
        (b"PK\x03\x04\x14\x00", ["looks like a spreadsheet", "save it as .xlsx"]),
        (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1\0", ["looks like a spreadsheet", "save it as .xlsx"]),
        (b"id,label\x1b[31m\n1,0\n", [r"'label\x1b[31m'", "control character"]),
        (b"id,label\n1,0\n2\n", ["line 3", "1 fields", "header 2"]),
        (b"# mine\nid,label\n1,0\n", ["does not fit the header '# mine'", "names of the columns"]),
        (b"id,label\n1,0\n2,0,9\n", ["does not fit the header", "line 3"]),
        (b"id,label\n\n\n1,0\n2,0,9\n", ["does not fit the header", "line 5"]),
        (b"id,label\n\n1,0\n2\n", ["line 4", "1 fields"]),
        (b"id,label\n1,0,5\n2,0,9\n", ["does not fit the header", "line 2"]),
    ],
)
def test_bad_tables_are_refused_with_the_place(tmp_path: Path, content: bytes, parts: list[str]) -> None:
    path = write(tmp_path, content)
    with pytest.raises(DataError) as caught:
        read_csv(path)
    for part in [str(path), *parts]:
        assert part in str(caught.value)


@pytest.mark.parametrize(
    ("content", "rows"),
    [
        (b"id,label\n1,0\n2,x\n", [2, 3]),
        (b"id,label\n1,0\n\n\n2,x\n", [2, 5]),
        (b"\nid;label\r\n\r\n1;0\r\n  \r\n2;x\r\n", [4, 6]),
        (b'id,label\n"1",0\n\n"2\n\n2",x\n', [2, 4]),  # an empty line within a value is no row
        ("id,label\n\n1,0\n2,x\n".encode("utf-16"), [3, 4]),
    ],
)
def test_rows_are_numbered_as_an_editor_shows_them(tmp_path: Path, content: bytes, rows: list[int]) -> None:
    path = write(tmp_path, content)
    table = read_csv(path)
    assert [row_number(path, k) for k in range(len(table))] == rows
    with pytest.raises(DataError, match=rf"labels\.csv, row {rows[-1]}: label='x'"):
        read_flags(table, "label", path)


def test_rows_of_what_is_no_csv_file_follow_the_header(tmp_path: Path) -> None:
    path = tmp_path / "rows.parquet"
    path.write_bytes(b"PAR1\0\xff")
    assert [row_number(file, 3) for file in (path, tmp_path, tmp_path / "none.xlsx")] == [5, 5, 5]


def test_a_missing_table_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"none\.csv: cannot be read"):
        read_csv(tmp_path / "none.csv")
