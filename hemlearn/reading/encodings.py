"""Texts that are written otherwise than in plain UTF-8: UTF-16, UTF-32, odd letters, escapes, base64, hexadecimal."""

from __future__ import annotations

import binascii
import html
import re
import unicodedata
from collections.abc import Iterator
from typing import Any

import numpy as np

_ALIGNED = 1 << 20  # letters of base64; where a longer one begins is taken as its beginning
_AROUND = 512  # bytes around an escape that are decoded with it; in binary files an eighth


def _table(pattern: bytes) -> Any:
    return np.array([bool(re.fullmatch(pattern, bytes([code]), re.DOTALL)) for code in range(256)])


CONTROL = _table(rb"[\0-\x08\x0b\x0e-\x1a\x1c-\x1f\x7f]")
_PRINTABLE, _HEX, _LARGE_HEX = _table(rb"[\x20-\x7e\s]"), _table(rb"[0-9A-Fa-f]"), _table(rb"[0-9A-F]")
_LETTERS = _table(rb"[A-Za-z0-9+/_-]")
# Sign that begins an escape -> what stands next.
_NEXT = {b"%": _HEX | _table(b"u"), b"&": _table(rb"[A-Za-z#]"), b"=": _LARGE_HEX | _table(rb"[\r\n]")}
_NEXT[b"\\"] = _table(rb"[\\xuU_&%#$*.{}()\[\]+!|<>/\"'~^-]")
_SIGNS = _table(rb"[%&=\\]")
_ESCAPE = re.compile(
    rb"(?=[%&=\\])(?:(?P<bytes>(?:%[0-9A-Fa-f]{2}|=[0-9A-F]{2}|\\{1,4}x[0-9A-Fa-f]{2})+)"
    rb"|(?P<codes>(?:(?:\\{1,4}|%)u[0-9A-Fa-f]{4})+)|\\{1,4}U(?P<code>[0-9A-Fa-f]{8})"
    rb"|(?P<html>&(?:#[0-9]{1,7}|#[xX][0-9A-Fa-f]{1,6}|[A-Za-z][A-Za-z0-9]{1,24});)"
    rb"|(?P<fold>=\r?\n)|\\(?P<sign>[_&%#$*.{}()\[\]+!|<>/\"'~^-]))"
)
_WRAPPED = re.compile(rb"(?:[A-Za-z0-9+/]{60,76}\r?\n){2,}[A-Za-z0-9+/]*")
_BASE64 = re.compile(rb"[A-Za-z0-9+/_-]+")
_UTF32 = re.compile(rb"(?:[\t\n\r\x20-\xff]\0\0\0){4,}|(?:\0\0\0[\t\n\r\x20-\xff]){4,}")
# Soft hyphen, signs without width, ligatures and full width, letters of mathematics.
_ODD = re.compile(rb"\xc2\xad|\xe2\x80[\x8b-\x8f]|\xe2\x81\xa0|\xef[\xac\xbb-\xbd]|\xf0\x9d[\x90-\x9f]")
_SHOWN = bytes(range(32, 127)) + bytes(range(160, 256))  # in Latin-1 and UTF-8
_UTF16 = re.compile(rb"(?:[\t\n\r\x20-\xff]\0){4,}[\t\n\r\x20-\xff]?|[\t\n\r\x20-\xff]?(?:\0[\t\n\r\x20-\xff]){4,}")


def utf16(chunk: bytes, codes: Any) -> Iterator[tuple[int, bytes]]:
    """Places of UTF-16 without its mark, of letters that Latin-1 has, and these letters."""
    zero = codes == 0
    if len(codes) > 7 and (zero[:-6] & zero[2:-4] & zero[4:-2] & zero[6:] & ~zero[1:-5] & ~zero[3:-3]).any():
        for found in _UTF16.finditer(chunk):
            yield found.start(), found[0].replace(b"\0", b"")


def utf32(chunk: bytes, codes: Any) -> Iterator[tuple[int, bytes]]:
    """The same of UTF-32; texts of a fixed width have nothing between them, which the zero byte at the end says."""
    zero = codes == 0
    if len(codes) > 11 and (zero[1:-7] & zero[2:-6] & zero[3:-5] & ~zero[4:-4] & zero[5:-3] & zero[6:-2]).any():
        for found in _UTF32.finditer(chunk):
            yield found.start(), found[0].replace(b"\0\0\0", b"").decode("latin-1").encode() + b"\0"


def folded(chunk: bytes) -> Iterator[tuple[int, bytes]]:
    """Stretches around letters in a form of their own (full width, bold) or signs without width, in plain letters."""
    stop = 0
    for found in _ODD.finditer(chunk):
        if found.start() >= stop:
            start, stop = max(found.start() - _AROUND // 8, 0), found.end() + _AROUND
            given = chunk[start:stop].decode(errors="replace")
            plain = "".join(sign for sign in given if unicodedata.category(sign) != "Cf")
            if (plain := unicodedata.normalize("NFKC", plain)) != given:  # else the same would be found for ever
                yield start, plain.encode(errors="replace")


def hexadecimal(chunk: bytes, codes: Any) -> Iterator[tuple[int, bytes]]:
    """Words of hexadecimal digits that stand for letters."""
    edges = np.flatnonzero(np.diff(_HEX[codes], prepend=False, append=False))
    for start, stop in zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True) if len(edges) else ():
        if stop - start >= 12 and (stop - start) % 2 == 0:
            text = bytes.fromhex(chunk[start:stop].decode())
            if not text.translate(None, _SHOWN):
                yield start, text


def escapes(chunk: bytes, codes: Any, *, text: bool) -> Iterator[tuple[int, bytes]]:
    """Places of stretches around escapes, and these decoded."""
    padded = np.concatenate([codes, np.full(3, 32, np.uint8)])
    at = np.flatnonzero(_SIGNS[codes])
    at = at[np.any([(codes[at] == sign[0]) & after[padded[at + 1]] for sign, after in _NEXT.items()], axis=0)]
    if not text:  # among numbers three letters in a row are rare
        at = at[_PRINTABLE[padded[at + 1]] & _PRINTABLE[padded[at + 2]] & _PRINTABLE[padded[at + 3]]]
    if len(at):
        around = _AROUND if text else _AROUND // 8
        breaks = np.flatnonzero(np.diff(at) > 2 * around) + 1
        for first, last in zip(at[[0, *breaks]].tolist(), at[[*(breaks - 1), -1]].tolist(), strict=True):
            start = max(first - around, 0)
            cut = re.search(rb"[^\w-]", chunk[start:first]) if start else None  # no part of a word
            start += cut.start() if cut else 0
            given = chunk[start : last + around]
            if (plain := unescaped(given)) != given:
                yield start, plain


def unescaped(text: bytes) -> bytes:
    r"""A text with what its escapes stand for; a line feed becomes a blank, so that lines keep their numbers.

    >>> unescaped(b"%44oe &lt;D\u00f6rte\u003e").decode()
    'Doe <Dörte>'
    """
    return _ESCAPE.sub(_plain, text)


def _plain(found: re.Match[bytes]) -> bytes:
    kind, text = found.lastgroup, found[0]
    if kind == "bytes":
        plain = bytes(int(code, 16) for code in re.findall(rb"[%=x]([0-9A-Fa-f]{2})", text))
    elif kind == "codes":
        units = (int(code, 16) for code in re.findall(rb"u([0-9A-Fa-f]{4})", text))
        plain = b"".join(unit.to_bytes(2, "big") for unit in units).decode("utf-16-be", "replace").encode()
    elif kind == "code":
        number = int(found["code"], 16)
        plain = chr(number).encode(errors="replace") if number < 0x110000 else text
    elif kind == "html":
        plain = html.unescape(text.decode()).replace("\xa0", " ").encode(errors="replace")
    else:
        plain = found["sign"] or b""
    return plain.replace(b"\n", b" ")


def base64_places(codes: Any) -> list[int]:
    """Where base64 may begin: 16 letters of it, or 6 and the sign that fills it up."""
    letters = _LETTERS[codes]
    edges = np.flatnonzero(np.diff(letters, prepend=False, append=False))
    starts, stops = edges[::2], edges[1::2]
    filled = codes[np.minimum(stops, len(codes) - 1)] == 61
    return [int(place) for place in starts[(stops - starts >= 16) | (filled & (stops - starts >= 6))]]


def base64(data: Any, start: int, stop: int) -> tuple[int, list[bytes]]:
    """Where base64 ends, and what it stands for, wherever in its first letters it begins."""
    found = _WRAPPED.match(data, start, stop) or _BASE64.match(data, start, stop)
    assert found is not None
    letters = re.sub(rb"[\r\n]", b"", found[0]).translate(bytes.maketrans(b"-_", b"+/"))
    pieces = []
    for skip in range(4 if len(letters) < _ALIGNED else 1):
        part = letters[skip:]
        part = part[: len(part) - (len(part) % 4 == 1)]
        pieces.append(binascii.a2b_base64(part + b"=" * (-len(part) % 4)))
    return found.end(), pieces
