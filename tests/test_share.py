"""``doctor share=true``: what tells who somebody is, in every encoding and kind of file; a clean folder stays clean."""

from __future__ import annotations

import base64
import bz2
import gzip
import html
import io
import lzma
import os
import pickle
import quopri
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from urllib.parse import quote

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from hemlearn.reading.share import UNSEEN, Finding, look, report
from hemlearn.reading.views import DEPTH, STEP, Views
from hemlearn.reading.wanted import IDS, NAMES, PLACES, SECRETS, Wanted
from hemlearn.util.errors import RunError
from hemlearn.util.privacy import KEY_FILE
from hemlearn.util.tables import csv_text

ID, NAME = "pat_0815-x", "Müllerin"
TEXTS = {
    IDS: f"case {ID} of",
    NAMES: f"by {NAME}, Eva",
    PLACES: 'read "/home/jane/scans"',
    SECRETS: "with token=geheim4711geheim",
}
NOISE = np.random.default_rng(0).integers(0, 256, 5000, np.uint8).tobytes()


def zipped(name: str, raw: bytes, method: int = zipfile.ZIP_DEFLATED) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", method) as packed:
        packed.writestr(name, raw)
    return file.getvalue()


def png(kind: bytes, body: bytes) -> bytes:
    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    head = struct.pack(">IIBBBBB", 1, 1, 8, 0, 0, 0, 0)
    parts = (b"IHDR", head), (kind, body), (b"IDAT", zlib.compress(b"\0\0")), (b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*part) for part in parts)


def tar_gz(raw: bytes) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w:gz") as packed:
        member = tarfile.TarInfo("notes.txt")
        member.size = len(raw)
        packed.addfile(member, io.BytesIO(raw))
    return file.getvalue()


def table(column: object, **options: object) -> bytes:
    file = io.BytesIO()
    pd.DataFrame({"note": column, "prob": 0.25}).to_parquet(file, **options)  # type: ignore[call-overload]
    return file.getvalue()


def npy(texts: list[object]) -> bytes:
    file = io.BytesIO()
    np.save(file, np.array(texts))
    return file.getvalue()


def checkpoint(text: str) -> bytes:
    file = io.BytesIO()
    torch.save({"hyper_parameters": {"note": text}, "weight": torch.ones(3)}, file)
    return file.getvalue()


def queue(raw: bytes) -> bytes:
    """W&B's file: a record that goes over the border of two blocks in the middle of a word."""
    room = 32_768 - 14
    whole = b"x" * (room - 1 - len(raw) // 2) + b" " + raw + b" end"
    file = b":W&B\xbe\xee\x01"
    for kind, part in ((2, whole[:room]), (4, whole[room:])):
        file += bytes(4) + struct.pack("<HB", len(part), kind) + part
    return file


def escaped(text: str) -> bytes:
    return "".join(f"\\u{ord(letter):04x}" for letter in text).encode()


WRITTEN: dict[str, Callable[[str], bytes]] = {
    "plain.txt": str.encode,
    "latin1.txt": lambda text: text.encode("latin-1"),
    "large_letters.txt": lambda text: text.upper().replace("TOKEN", "token").replace("/HOME", "/home").encode(),
    "mark.txt": lambda text: text.encode("utf-16"),
    "utf16le.bin": lambda text: text.encode("utf-16-le"),
    "utf16be.bin": lambda text: NOISE + b"\0\0" + text.encode("utf-16-be"),
    "utf32.txt": lambda text: text.encode("utf-32"),
    "utf32le.bin": lambda text: text.encode("utf-32-le"),
    "array.npy": lambda text: npy([text[:20], text[:20], text]),
    "bytes.npz": lambda text: zipped("a.npy", npy([text.encode()] * 2)),
    "wide.txt": lambda text: "".join(chr(ord(c) + 0xFEE0) if "!" <= c <= "~" else c for c in text).encode(),
    "soft_hyphens.html": lambda text: "\u00ad".join(text).encode(),
    "shy.html": lambda text: "&shy;".join(text).encode(),
    "hex.txt": lambda text: b"id=" + text.encode().hex().encode() + b";",
    "percent.html": lambda text: quote(text, safe="").encode(),
    "each_percent.html": lambda text: "".join(f"%{code:02x}" for code in text.encode()).encode(),
    "twice_percent.html": lambda text: quote(quote(text, safe=""), safe="").encode(),
    "entities.html": lambda text: "".join(f"&#{ord(letter)};" for letter in text).encode(),
    "names.html": lambda text: html.escape(text).replace("ü", "&uuml;").replace("_", "&lowbar;").encode(),
    "json.json": lambda text: b'{"a": "' + escaped(text) + b'"}',
    "python.txt": lambda text: ascii(text.encode()).encode(),
    "latex.tex": lambda text: text.replace("_", r"\_").encode(),
    "quoted.eml": lambda text: quopri.encodestring(text.encode()),
    "url.html": lambda text: b'<img src="data:text/plain;base64,' + base64.b64encode(text.encode()) + b'">',
    "urlsafe.html": lambda text: b"q=" + base64.urlsafe_b64encode(text.encode()) + b"&",
    "mime.eml": lambda text: base64.encodebytes(b" " * 101 + text.encode() + b" " * 40),
    "picture_in_page.html": lambda text: b"base64," + base64.b64encode(png(b"tEXt", b"c\0" + text.encode())),
    "text.png": lambda text: png(b"tEXt", b"c\0" + text.encode("latin-1")),
    **{
        f"ztxt{n}.png": lambda text, n=n: png(b"zTXt", b"c\0\0" + zlib.compress(text.encode("latin-1"), n))
        for n in (0, 1, 6, 9)
    },
    "itxt.png": lambda text: png(b"iTXt", b"c\0\x01\0de\0c\0" + zlib.compress(text.encode(), 3)),
    "gzip.gz": lambda text: gzip.compress(text.encode()),
    "two.gz": lambda text: gzip.compress(b"nothing") + gzip.compress(text.encode()),
    "inside.bin": lambda text: NOISE + gzip.compress(text.encode()) + NOISE,
    "zlib_inside.bin": lambda text: NOISE + zlib.compress(text.encode(), 1) + NOISE,
    "bzip2.bz2": lambda text: bz2.compress(text.encode()),
    "xz.xz": lambda text: lzma.compress(text.encode()),
    "tar.tgz": lambda text: tar_gz(text.encode()),
    "deflated.zip": lambda text: zipped("a.txt", text.encode()),
    "bzip2.zip": lambda text: zipped("a.txt", text.encode(), zipfile.ZIP_BZIP2),
    "lzma.zip": lambda text: zipped("a.txt", text.encode(), zipfile.ZIP_LZMA),
    "as_weights.ckpt": lambda text: zipped("archive/data/0", NOISE + text.encode(), zipfile.ZIP_STORED),
    "weights.pt2": lambda text: zipped("model/weights/w", text.encode()),
    "zip_in_zip.zip": lambda text: zipped("b.zip", zipped("a.gz", gzip.compress(text.encode())), zipfile.ZIP_STORED),
    "no_directory.zip": lambda text: zipped("a.txt", text.encode()).partition(b"PK\x01\x02")[0],
    "behind_a_picture.png": lambda text: png(b"tEXt", b"c\0-") + zipped("a.txt", text.encode()),
    "parquet.parquet": lambda text: table([text]),
    "gzip.parquet": lambda text: table([text], compression="zstd"),
    "lists.parquet": lambda text: table([[text]]),
    "records.parquet": lambda text: table([{"a": [{"b": text}]}]),
    "categories.parquet": lambda text: table(pd.Categorical([text])),
    "checkpoint.ckpt": checkpoint,
    "pickle.pkl": lambda text: pickle.dumps({"a": [text]}, protocol=4),
    "long.pb": lambda text: NOISE + b"\n" + bytes([len(text.encode())]) + text.encode() + b"B\x02",
    "queue.wandb": lambda text: queue(text.encode()),
    "over_the_border.bin": lambda text: b"\0" * (STEP - 20) + text.encode() + b"\0" * 70_000,
    "behind.log": lambda text: b"a line of no interest\n" * (STEP // 20) + text.encode(),
}  # fmt: skip
# Large ones are looked at once; W&B's file holds places, which are not sent.
KINDS = {"over_the_border.bin": (SECRETS,), "behind.log": (IDS,), "queue.wandb": (IDS, SECRETS)}


@pytest.fixture(scope="module")
def looked(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Finding]:
    """What is found in a folder with each text written in each way."""
    folder = tmp_path_factory.mktemp("runs") / "planted"
    folder.mkdir()
    (folder / "split.csv").write_text(csv_text(pd.DataFrame({"patient_id": [ID, NAME], "split": "train"})))
    for way, write in WRITTEN.items():
        for kind in KINDS.get(way, TEXTS):
            (folder / f"{kind.partition(' ')[0]}_{way}").write_bytes(write(TEXTS[kind]))
    found, _ = look(folder)
    return {item.name: item for item in found}


@pytest.mark.parametrize("way", WRITTEN)
def test_whatever_tells_is_found_in_every_way_of_writing(looked: dict[str, Finding], way: str) -> None:
    for kind in KINDS.get(way, TEXTS):
        item = looked[f"{kind.partition(' ')[0]}_{way}"]
        seen = IDS if kind == NAMES else kind  # without headers the name is known from the table
        assert seen in item.what, (kind, item.what)
        assert all(item.what[seen][:3]), "no place"
        assert not item.clean
        assert item.remedies


def test_the_answer_says_where_and_what_to_do_and_shows_nothing(looked: dict[str, Finding], tmp_path: Path) -> None:
    assert looked["ids_deflated.zip"].what[IDS] == ["member a.txt: line 1, byte 5"]
    assert looked["ids_zip_in_zip.zip"].what[IDS][0].startswith("member b.zip")
    folder = tmp_path / "out"
    (folder / "pages").mkdir(parents=True)
    (folder / "pages" / "one.html").write_text(f"<p>\n{ID} token=geheim4711geheim</p>")
    (folder / "patients.csv").write_text(f"patient_id\n{ID}\n")
    (folder / "predict.json").write_text('{"show_patient": true}')
    for number in range(9):
        (folder / "pages" / f"clean{number}.html").write_text("<p>nobody</p>")
    told, clean = report(folder)
    assert not clean
    assert "leave out (working files): 1\n  patients.csv" in told
    assert "ids (1): line 2, byte 4" in told
    assert told.count("make it again without show_patient=true") == 2
    assert "made with show_patient=true: predict.json" in told
    assert "pages/clean8.html" in told, "a folder with a bad file is no safe folder"
    assert ID not in told
    assert "geheim" not in told


# --- what cannot be opened ---


def encrypted() -> bytes:
    raw = bytearray(zipped("a.txt", b"secret" * 9))
    raw[6] |= 1
    raw[raw.index(b"PK\x01\x02") + 8] |= 1
    return bytes(raw)


# 150 million equal values, which take no room.
MANY = pa.table(
    {name: pa.DictionaryArray.from_arrays(np.zeros(75_000_000, np.int32), ["p"]) for name in ("patient_id", "b")}
)
UNOPENED = {
    "one.pdf": b"%PDF-1.4\n[(PAT)-20(00012)] TJ",
    "table.db": b"SQLite format 3\0" + NOISE,
    "stream.arrows": b"\xff\xff\xff\xff\xa8\0\0\0\x10\0\0\0" + NOISE,
    "cut.gz": gzip.compress(NOISE)[:3000],
    "cut.zip": zipped("a.bin", NOISE)[:3000],
    "damaged.parquet": table(["a"])[:-20] + NOISE[:20],
    "encrypted.zip": encrypted(),
    "archive.7z": b"7z\xbc\xaf\x27\x1c" + NOISE,
    "damaged.png": png(b"zTXt", b"c\0\0" + b"x\x9c" + NOISE[:50]),
    "damaged_member.zip": (lambda raw: raw[:900] + b"\xff" * 90 + raw[990:])(zipped("a.txt", NOISE.hex().encode())),
    "deflated.dcm": b"\0" * 128 + b"DICM" + b"\x02\0\x10\0UI\x16\x001.2.840.10008.1.2.1.99" + NOISE,
    "deep.gz": (lambda raw: [raw := gzip.compress(raw) for _ in range(DEPTH + 2)][-1])(b"x"),
}  # fmt: skip


def test_what_cannot_be_opened_is_not_clean(tmp_path: Path) -> None:
    for name, raw in UNOPENED.items():
        (tmp_path / name).write_bytes(raw)
    (tmp_path / "series.parquet").write_bytes(UNOPENED["damaged.parquet"])  # a working file too
    (tmp_path / "away").symlink_to("/etc/hostname")
    pipes = [KEY_FILE, "slices.csv", "predict.json", "status.json"]
    for name in pipes:
        os.mkfifo(tmp_path / name)
    with (tmp_path / "explain.json").open("w") as file:
        file.truncate(3 << 30)
    pq.write_table(MANY, tmp_path / "predictions.parquet")
    file_names = [*UNOPENED, "series.parquet", "away", *pipes, "explain.json", "predictions.parquet"]
    found, _ = look(tmp_path)
    assert {item.name: item.clean for item in found} == dict.fromkeys(file_names, False)
    assert all(UNSEEN in item.what for item in found if item.name != "away")


@pytest.mark.parametrize("pack", [gzip.compress, bz2.compress, lzma.compress, lambda raw: zipped("a", raw)])
def test_bombs_end_at_the_limit(pack: Callable[[bytes], bytes]) -> None:
    views = Views(left=1 << 16)
    assert sum(len(view.data) for view in views.of(pack(bytes(18 << 20)))) < 18 << 20
    assert "expands to more than" in views.unseen[0]


# --- what is no finding ---


def test_numbers_and_pictures_are_no_words(tmp_path: Path) -> None:
    """Ids of 3 to 8 letters among 2 MiB of random weights, fractions, hashes and words that are parts of others."""
    rng = np.random.default_rng(1)
    ids = [f"{text}{number}" for number in range(10) for text in ("ab", "p00", "abc1", "1234", "id_000")]
    wanted = Wanted()
    wanted.add(ids, IDS)
    weights = rng.normal(size=1 << 19).astype(np.float32).tobytes()
    text = "0.12341 12345678 p0001 xab1y 3f9ab1c2 https://host/a?b=c#d tokens=4 key: value a@b.org C:\\data"
    names = " ".join(f"{'x' * number} {'task_backbone_model_bn2_running_var_' * 3}" for number in range(40))
    for raw in (
        names.encode(),
        (names + "%41").encode(),
        weights,
        zipped("data/0", weights, zipfile.ZIP_STORED),
        text.encode(),
        text.encode("utf-16"),
        pickle.dumps({"blocks.3.0.conv_pw": "blocks.3.0.bn1"}),
        b"\x2c\xe1i:/oA\x9e/\x8a\xe6\xdd1<\xd5\x30\x1b" + NOISE,  # of a real checkpoint
    ):
        views = Views()
        assert not [hit for view in views.of(raw) for hit in wanted.found(view)]
        assert not views.unseen


@pytest.mark.parametrize(
    ("kind", "texts"),
    [
        (
            IDS,
            ["PAT00012a", "PAT00012v2", "PAT-00012", "pat 00012", "Meier, Doerte", "Doerte Meier", "MeierDoerte.pdf"],
        ),
        (IDS, ["\0lite0PAT00012hemorrhage"]),
        (PLACES, ["/scratch/anna/x", "/nas/pacs", "/Volumes/PACS", "host:/home1/anna", "file:///wards/anna"]),
        (PLACES, ["/wards/icu", r"D:\PACS\Meier", "C:/Users/anna", r"\\server\share\Meier", r"\\\\server\\share"]),
        ("", ["mm/s and/or a/b", "https://host/a/b.html //host/x", "</p></div>", "#/definitions/run", "/usr/bin/env"]),
        ("", ["${run}/data/x", "base64,/9j/4AAQSkZJRg", "XPAT00012", "PAT000123", "0\\hline\n\\midrule"]),
    ],
)
def test_other_spellings_and_places_are_found_and_what_looks_like_them_is_not(kind: str, texts: list[str]) -> None:
    wanted = Wanted()
    wanted.add(["PAT00012", "Meier^Doerte"], IDS)
    for text in texts:
        hits = {hit[0] for view in Views().of(f"of {text} x".encode()) for hit in wanted.found(view)}
        assert hits == ({kind} if kind else set()), text


def test_whole_numbers_of_tables_are_ids_and_fractions_are_not(tmp_path: Path) -> None:
    wanted = Wanted()
    wanted.add([7788101], IDS)
    for values, expected in (([7788101], 1), ([7788101.0], 1), ([0.7788101], 0)):
        hits = [hit for view in Views().of(table(values)) for hit in wanted.found(view)]
        assert bool(hits) == bool(expected), values


def test_every_folder_that_the_run_names_is_a_place(tmp_path: Path) -> None:
    """Of several data sets on two drives the common folder is `/`, which tells nothing."""
    (tmp_path / "status.json").write_text('{"state": "complete", "hash": "0123456789ab"}')
    (tmp_path / "provenance.json").write_text('{"data": {"source": "multi", "root": "/"}}')
    (tmp_path / "config.yaml").write_text(
        "data:\n  parts: {a: {root: /wards}, b: {data: table, manifest: /pacs/}}\nbackbone: {weights: null}\n"
    )
    for place in ("/wards", "/pacs", "/elsewhere", "and/or / alone"):
        (tmp_path / "note.txt").write_text(f"read from {place} today")
        found = {item.name: item for item in look(tmp_path)[0]}
        assert (PLACES in found["note.txt"].what) == (place in ("/wards", "/pacs")), place


def test_links_inside_the_folder_are_no_finding(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("nothing")
    (tmp_path / "b.txt").symlink_to("a.txt")
    assert report(tmp_path)[1]
    (tmp_path / KEY_FILE).write_text('{"salt": "' + "0" * 64 + '"}\n{"torn')
    told, clean = report(tmp_path)
    assert not clean
    assert "its ids are not known" in told
    with pytest.raises(RunError, match="no folder with files"):
        look(tmp_path / "nowhere")
