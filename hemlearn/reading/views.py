"""What can be read in a file: its bytes as they stand, what is packed in them, and texts that are written otherwise."""

from __future__ import annotations

import bz2
import io
import lzma
import re
import struct
import zipfile
import zlib
from bisect import bisect_right
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np

from hemlearn.reading.encodings import CONTROL, base64, base64_places, escapes, folded, hexadecimal, utf16, utf32
from hemlearn.reading.formats import (
    EXPANDED,
    FAILURES,
    Reader,
    columns,
    numpy_texts,
    parquet,
    pickled,
    records,
    transcribed,
    unpack,
)

DEPTH = 10  # most packings and encodings around one another
STEP, OVERLAP = 8 << 20, 64 << 10  # bytes that are looked at together, and those of them that are looked at twice
_SMALL = 4096  # bytes; shorter decoded texts are looked at together

# Formats that are packed in a way, or with a key, that nobody here opens.
_CLOSED = {
    **{b"7z\xbc\xaf\x27\x1c": "a 7z archive", b"Rar!\x1a\x07": "a RAR archive", b"(\xb5/\xfd": "compressed with zstd"},
    **{b"\x04\x22M\x18": "compressed with LZ4", b"\xff\x06\0\0sNaPpY": "compressed with Snappy"},
    **{b"ARROW1": "an Arrow file", b"Salted__": "encrypted", b"age-encryption": "encrypted", b"\x1f\x9d": "compressed"},
    **{b"SQLite format 3": "an SQLite database", b"%PDF-": "a PDF"},
    **{b"-----BEGIN PGP MESSAGE": "encrypted", b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1": "an old office document"},
}
_DEFLATED = b"1.2.840.10008.1.2.1.99"  # DICOM's transfer syntax without a head that zlib knows
_ARROW = re.compile(rb"\xff{4}..\0\0[\x08-\x20]\0{3}", re.DOTALL)
_GZIP = partial(zlib.decompressobj, 31)
_INFLATE = partial(zlib.decompressobj, -15)
# What begins anywhere -> what unpacks it, and from how many bytes on a broken one is no chance likeness.
_STREAMS: dict[bytes, tuple[Any, int]] = {
    **{b"\x1f\x8b": (_GZIP, 64), b"BZ": (bz2.BZ2Decompressor, 64), b"\xfd7": (lzma.LZMADecompressor, 64)},
    **{b"PK": (_INFLATE, 64), b"x": (zlib.decompressobj, 4096)},
}
_STREAM = re.compile(rb"\x1f\x8b\x08[\0-\x1f]|BZh[1-9]1AY&SY|\xfd7zXZ\0|PK\x03\x04|x[\x01\x5e\x9c\xda]")
_PNG_PACKED = {
    b"zTXt": re.compile(rb"[^\0]*\0\0"),
    b"iCCP": re.compile(rb"[^\0]*\0\0"),
    b"iTXt": re.compile(rb"[^\0]*\0\x01\0[^\0]*\0[^\0]*\0"),
}
Locate = Callable[[int], str]


@dataclass(frozen=True)
class View:
    """A stretch of bytes.

    Args:
        data: The bytes.
        locate: Place in ``data`` -> where that is in the file, for a reader.
        text: No control characters in it.
        pixels: Values of pixels, where a few letters in a row are chance.
    """

    data: bytes
    locate: Locate
    text: bool
    pixels: bool = False


@dataclass
class Views:
    r"""All stretches of a file in which something may be read.

    Bytes as they stand; members of archives, compressed streams wherever they begin, Parquet columns, texts of pickles
    and NumPy arrays, records of W&B, compressed chunks and pixels of PNG; UTF-16, UTF-32; ``%``, ``&...;``, ``\u`` and
    ``=`` escapes; letters of full width, signs without width; base64; hexadecimal.
    What comes out is looked through again, ``DEPTH`` times, and expands to at most ``EXPANDED`` bytes.

    Args:
        unseen: What could not be opened, and why; complete when the iteration has ended.
        left: Bytes that may still be unpacked.

    Example:
        >>> import gzip
        >>> views = Views()
        >>> [view.locate(0) for view in views.of(gzip.compress(b"Doe")) if b"Doe" in view.data]
        ['unpacked from byte 0: line 1, byte 0']
        >>> [view.data for view in views.of(b"Eva%20D&ouml;") if view.data.startswith(b"Eva ")][0].decode()
        'Eva Dö'
    """

    unseen: list[str] = field(default_factory=list)
    left: int = EXPANDED

    def of(
        self, data: Any, place: str = "", locate: Locate | None = None, depth: int = 0, *, pixels: bool = False
    ) -> Iterator[View]:
        """The views of a buffer (bytes, memoryview or memory map).

        Args:
            data: The buffer.
            place: Where it was found, ``member a.txt: ``.
            locate: Where a byte of it is; None: its line and number, after ``place``.
            depth: Packings around it.
            pixels: It holds the values of pixels.
        """
        locate = locate or partial(_line, data, place)
        if depth > DEPTH:
            self._missed(place, f"packed more than {DEPTH} deep")
            return
        head = bytes(data[:512])
        self.unseen += [f"{place}{name}" for magic, name in _CLOSED.items() if head.startswith(magic)]
        self.unseen += [f"{place}an Arrow stream"] * (not place.endswith("decoded: ") and bool(_ARROW.match(head)))
        self.unseen += [f"{place}DICOM with a deflated data set"] * (head[128:132] == b"DICM" and _DEFLATED in head)
        parts: list[_Part] = []
        taken: list[tuple[int, int]] = []
        if not pixels:
            try:
                parts, taken = self._parts(data, head, place)
            except FAILURES as error:
                told = str(error) if type(error) is ValueError else ""
                self._missed(place, told if "more than" in told else f"damaged ({type(error).__name__})")
        at = 0
        for start, stop in [*sorted(taken), (len(data), len(data))]:
            if at < start:
                yield from self._raw(data, at, start, place, locate, depth, pixels=pixels)
            at = max(at, stop)
        for part in parts:
            yield from self.of(part.content(), f"{part.name}: ", None, depth + 1, pixels=part.pixels)

    def _missed(self, place: str, why: str) -> None:
        self.unseen.append(f"{place}{': ' if place and not place.endswith(' ') else ''}{why}")

    # --- formats that say at their beginning what they are ---
    def _parts(self, data: Any, head: bytes, place: str) -> tuple[list[_Part], list[tuple[int, int]]]:
        """What is packed in a buffer, and the stretches that need no look as they stand."""
        if head.startswith(b"\x89PNG\r\n\x1a\n"):
            return self._png(data, place)
        if head.startswith(b"PAR1"):
            table, size = parquet(data, self.left)
            self.left -= size
            return [_Part(f"{place}column {name}", partial(bytes, cells)) for name, cells in columns(table).items()], []
        if head.startswith(b"\x93NUMPY"):
            return [_Part(f"{place}texts of the array", partial(numpy_texts, data))], []
        if re.match(rb"\x80[\x02-\x05]", head):
            return [_Part(f"{place}texts of the pickle", partial(pickled, data))], []
        if head.startswith(b":W&B"):
            return [_Part(f"{place}records", partial(records, data))], [(0, len(data))]
        if head[:4] == b"PK\x03\x04" or b"PK\x05\x06" in bytes(data[max(len(data) - 66_000, 0) :]):
            return self._zip(data, place)
        for mark, name in ((b"\xff\xfe\0\0", "utf-32"), (b"\0\0\xfe\xff", "utf-32"), (b"\xff\xfe", "utf-16"),
                           (b"\xfe\xff", "utf-16")):  # fmt: skip
            if head.startswith(mark):
                begin = head[: len(head) // 4 * 4].decode(name, "replace")
                if sum(letter.isprintable() or letter.isspace() for letter in begin) > 0.8 * len(begin):
                    return [_Part(f"{place}{name}", partial(transcribed, data, name))], []
                break
        return [], []

    def _zip(self, data: Any, place: str) -> tuple[list[_Part], list[tuple[int, int]]]:
        parts, taken, end = [], [], 0
        view = memoryview(data)
        packed = zipfile.ZipFile(io.BytesIO(data) if isinstance(data, bytes) else Reader(view))
        for item in sorted(packed.infolist(), key=lambda item: item.header_offset):
            name, here = f"{place}member {item.filename}", item.header_offset
            first = here + 30 + sum(struct.unpack("<HH", view[here + 26 : here + 30]))
            stop = first + item.compress_size
            if item.flag_bits & 1:
                self._missed(name, "encrypted")
            elif first < end or bytes(view[here : here + 4]) != b"PK\x03\x04":
                self._missed(name, "does not lie where the archive says")
                continue
            elif item.compress_type == zipfile.ZIP_STORED:
                parts.append(_Part(name, partial(view.__getitem__, slice(first, stop))))
            elif item.compress_type == zipfile.ZIP_DEFLATED:
                parts.append(_Part(name, partial(self._content, view[first:stop], _INFLATE, name, item.CRC)))
            elif item.compress_type in (zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA):
                parts.append(_Part(name, partial(self._member, packed, item, name)))
            else:
                self._missed(name, "compressed in a way that is not known here")
            taken += [(here, here + 4), (first, stop)]
            end = stop
        return parts, taken

    def _member(self, packed: zipfile.ZipFile, item: zipfile.ZipInfo, name: str) -> bytes:
        try:
            with packed.open(item) as member:
                content = member.read(self.left + 1)
        except (zipfile.BadZipFile, OSError, EOFError, RuntimeError, ValueError, zlib.error, lzma.LZMAError) as error:
            self._missed(name, f"damaged ({type(error).__name__})")
            return b""
        if len(content) > self.left:
            self._missed(name, f"expands to more than {EXPANDED >> 20} MiB")
        self.left -= min(len(content), self.left)
        return content

    def _png(self, data: Any, place: str) -> tuple[list[_Part], list[tuple[int, int]]]:
        parts, taken, pixels, at, kind = [], [], [], 8, b""
        while at + 12 <= len(data) and kind != b"IEND":
            length, kind = struct.unpack(">I4s", data[at : at + 8])
            body = bytes(data[at + 8 : at + 8 + length])
            start = _PNG_PACKED[kind].match(body) if kind in _PNG_PACKED else None
            if kind == b"IDAT":
                pixels.append(body)
            if start is not None:
                name = f"{place}{kind.decode()} at byte {at}"
                parts.append(_Part(name, partial(self._content, body[start.end() :], zlib.decompressobj, name)))
            if start is not None or kind == b"IDAT":
                taken.append((at + 8 + (start.end() if start else 0), at + 8 + len(body)))
            at += 12 + length
        name = f"{place}pixels"
        whole = partial(self._content, b"".join(pixels), zlib.decompressobj, name)
        return [*parts, _Part(name, whole, pixels=True)], taken

    # --- bytes as they stand, and what begins anywhere in them ---
    def _raw(
        self, data: Any, begin: int, stop: int, place: str, locate: Locate, depth: int, *, pixels: bool
    ) -> Iterator[View]:
        done = coded = begin
        view = memoryview(data)
        for at in range(begin, stop, STEP):
            chunk = bytes(data[at : min(at + STEP + OVERLAP, stop)])
            codes = np.frombuffer(chunk, np.uint8)
            controls = int(np.count_nonzero(CONTROL[codes]))
            here = partial(_shifted, locate, at)
            yield View(chunk, here, text=not controls, pixels=pixels)
            if pixels:
                continue
            for found in _STREAM.finditer(chunk):
                start = at + found.start()
                if done <= start < at + STEP:
                    content, end = self._stream(view[start:stop], found[0], partial(locate, start), first=start == 0)
                    done = start + end
                    if content:
                        yield from self.of(content, f"{place}unpacked from byte {start:,}: ", None, depth + 1)
            pieces = [*utf16(chunk, codes), *utf32(chunk, codes), *folded(chunk), *hexadecimal(chunk, codes)]
            pieces += escapes(chunk, codes, text=not controls)
            for first in base64_places(codes):
                if at + first >= coded:
                    coded, found64 = base64(data, at + first, stop)
                    pieces += [(first, piece) for piece in found64]
            small = [(start, text) for start, text in pieces if len(text) < _SMALL]
            starts = np.cumsum([0, *(len(text) + 1 for _, text in small)])[:-1].tolist()
            if small:
                together = b"\n".join(text for _, text in small)
                find = partial(_of_piece, here, starts, [start for start, _ in small])
                yield from self.of(together, f"{place}decoded: ", find, depth + 1)
            for start, text in pieces:
                if len(text) >= _SMALL:
                    find = partial(_of_piece, here, [0], [start], text=text)
                    yield from self.of(text, f"{here(start)}, decoded: ", find, depth + 1)

    def _stream(self, data: Any, mark: bytes, place: Callable[[], str], *, first: bool) -> tuple[bytes, int]:
        """What a stream that seems to begin here gives, and how many bytes it has."""
        opener, least = next(found for start, found in _STREAMS.items() if mark.startswith(start))
        skip = 0
        if mark[:2] == b"PK":
            flags, method = struct.unpack("<HH", bytes(data[6:10]).ljust(4, b"\xff"))
            skip = 30 + sum(struct.unpack("<HH", bytes(data[26:30]).ljust(4, b"\0")))
            if method != zipfile.ZIP_DEFLATED or flags & 1:
                if method in (9, 14, 93, 95, 98) or (method in (0, 8) and flags & 1):
                    self._missed(place(), "a member of an archive that is encrypted or compressed in an unknown way")
                return b"", 1
        content, end, why = unpack(data[skip:], opener, self.left)
        if why and len(content) >= (1 if first and least < _SMALL else least):
            self._missed(place(), why)
        self.left -= min(len(content), self.left)
        return content if len(content) > 7 or not why else b"", 1 if why else skip + end

    def _content(self, data: Any, opener: Any, name: str, checksum: int | None = None) -> bytes:
        content, _, why = unpack(data, opener, self.left)
        if not why and checksum not in (None, zlib.crc32(content)):
            why = "damaged (wrong checksum)"
        if why:
            self._missed(name, why)
        self.left -= min(len(content), self.left)
        return content


@dataclass(frozen=True)
class _Part:
    name: str
    content: Callable[[], Any]
    pixels: bool = False


# --- places ---
def _line(data: Any, place: str, at: int) -> str:
    """``line 3, byte 12`` of texts, else ``byte 12``."""
    around = np.frombuffer(bytes(data[max(at - 2048, 0) : at + 2048]), np.uint8)
    lines = ""
    if not CONTROL[around].any():
        lines = f"line {1 + sum(bytes(data[i : min(i + STEP, at)]).count(10) for i in range(0, at, STEP)):,}, "
    return f"{place}{lines}byte {at:,}"


def _shifted(locate: Locate, shift: int, at: int) -> str:
    return locate(shift + at)


def _of_piece(outer: Locate, starts: list[int], places: list[int], at: int, text: bytes = b"") -> str:
    """Where a decoded text stood, about; of a long one its beginning, and where in it."""
    which = bisect_right(starts, at) - 1
    if text:
        return f"{outer(places[which])}, decoded ({_line(text, '', at)})"
    return f"{outer(places[which] + at - starts[which])}, decoded"
