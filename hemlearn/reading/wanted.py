"""What tells who somebody is, found in bytes: words that are known, absolute paths, passwords and tokens."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Iterator

import numpy as np

from hemlearn.reading.views import View
from hemlearn.util.privacy import tells_somebody
from hemlearn.util.secrets import HINTS, holds_secret

IDS, NAMES, PLACES, USER, SECRETS = "ids", "names from headers", "absolute paths", "user name", "secrets"
# Where people's folders lie; binary files hold such places alone, since names in a network may begin with a slash too.
_ROOT = (
    rb"home\w*|users|root|mnt|data\w*|srv|media|private|tmp|var|scratch\w*|nas\w*|volumes|work\w*|opt|cluster\w*|net"
    rb"|gpfs\w*|lustre|beegfs|projects?|export|run|storage|shared?"
)
_PART = rb"[\w.@\x80-\xff-]{2,}"
_PLACE = re.compile(rb"(?i:/(?:" + _ROOT + rb")/[\w.@\x80-\xff-])")
# In texts: any path of two parts but the system's own; \\server\share, also escaped; file://.
_TEXT_PLACE = re.compile(
    rb"(?<![\x80-\xff])(?<!base64,)(?![A-Za-z0-9+/]{80})/(?!(?:dev|proc|sys|etc|bin|sbin|lib\w*|usr/(?:s?bin|lib\w*|share|include))/)"
    + rb"%(part)s/%(part)s|\\\\%(part)s\\%(part)s|\\{4}%(part)s\\\\%(part)s|(?<=file:)/{2,3}[\w.~%%-]+/[\w.~%%-]"
    % {b"part": _PART}
)
_DRIVE = re.compile(rb"(?<![0-9A-Za-z])[A-Za-z]:(?:(?:\\{1,4}|/)(?![\\/])" + _PART + rb"){2}")
# Among weights such bytes come about by chance, unless all of them are letters.
_BINARY_DRIVE = re.compile(rb"(?<![0-9A-Za-z])[A-Za-z]:(?:(?:\\|/)[A-Za-z0-9_.-]{3,}){2}")
_HEX = re.compile(rb"[0-9A-Fa-f]+")
_VARIANT = re.compile(rb"[A-Za-z]\d{0,2}(?![0-9A-Za-z])")  # PAT00012b, PAT00012v2
_WORD = re.compile(rb"[\w-]*")
# A path begins where none of these stands before.
_BEFORE_PATH = np.array([not (chr(code).isalnum() and code < 128) for code in range(256)])
_BEFORE_PATH[list(b"_./\\#<~+-})]*$%")] = False
_CONTROLS = bytes.maketrans(bytes(code for code in range(32) if code != 9), b"\n" * 31)
_SHORT, _OF_PIXELS = 6, 8  # bytes; shorter words count only among letters, or not at all among pixels
_SECRETS = 100  # that are looked for in a view
_BEFORE, _AFTER = 96, 1024  # bytes around a hint that are looked at with the rules of secrets


class Wanted:
    """What is looked for.

    Example:
        >>> wanted = Wanted()
        >>> wanted.add(["D\u00f6rte^Meier"], NAMES)
        >>> view = View("of DÖRTE^MEIER, token=abc".encode(), str, text=True)
        >>> [kind for kind, _, _ in wanted.found(view)]
        ['names from headers', 'secrets']
    """

    def __init__(self) -> None:
        self._words: dict[bytes, tuple[str, str]] = {}  # in small letters -> kind, the text as it was given
        self._lengths: dict[bytes, set[int]] = {}  # three first bytes -> lengths of the words that begin so
        self._hints = {text.encode() for text in HINTS}
        self._pairs = np.zeros(1 << 16, bool)
        self._starts = np.zeros(1 << 24, bool)
        for hint in self._hints:
            self._learn(hint)

    @property
    def kinds(self) -> set[str]:
        """Kinds of the words."""
        return {kind for kind, _ in self._words.values()}

    def _learn(self, word: bytes) -> None:
        start = word[:3]
        self._lengths.setdefault(start, set()).add(len(word))
        self._pairs[int.from_bytes(start[:2], "little")] = True
        self._starts[int.from_bytes(start, "little")] = True

    def add(self, values: Iterable[object], kind: str) -> None:
        """Look for values, in large and small letters and as systems write them."""
        for value in dict.fromkeys(map(str, values)):
            if not tells_somebody(value):
                continue
            forms = {value, value.replace(" ", "+"), *_otherwise(value)}
            if not value.isascii():
                forms |= {value.lower(), value.upper(), value.casefold()}
                forms |= {unicodedata.normalize(form, text) for form in ("NFC", "NFD") for text in tuple(forms)}
            for form in forms:
                for name in ("utf-8",) if value.isascii() else ("utf-8", "latin-1", "utf-16-le", "utf-16-be"):
                    word = form.encode(name, "ignore" if name == "latin-1" else "surrogatepass").lower()
                    if len(word) > 2 and (name != "latin-1" or len(word) == len(form)) and word not in self._words:
                        self._words[word] = kind, value
                        self._learn(word)

    def found(self, view: View) -> Iterator[tuple[str, str | None, int]]:
        """Kind, value (None: a secret that was not known before) and place of everything in some bytes."""
        raw, small, looked = view.data, view.data.lower(), -_AFTER
        secrets = 0
        codes = np.frombuffer(small, np.uint8)
        for at in self._candidates(codes):
            for length in self._lengths[small[at : at + 3]]:
                word = small[at : at + length]
                if word in self._words and _stands_alone(view, at, at + length):
                    kind, value = self._words[word]
                    yield kind, value, at
                # Among numbers two letters are chance, and of many secrets the first tell enough.
                hint = word in self._hints and not view.pixels and (view.text or word[:2] != b"pw")
                if hint and at >= looked and secrets < _SECRETS:
                    start = max(at - _BEFORE, 0)
                    if start:  # not in the middle of a word, as of task_model
                        start += min(len(_WORD.match(raw, start, at)[0]), at - start - 1)  # type: ignore[index]
                    around = raw[start : at + _AFTER].translate(_CONTROLS)
                    looked = at + _AFTER // 2
                    if holds_secret(around.decode(errors="replace").replace("\ufffd", "\n")):
                        secrets += 1
                        yield SECRETS, None, at
        if not view.pixels:
            for place in _places(view, codes):
                yield PLACES, place[0].decode(errors="replace"), place.start()

    def _candidates(self, codes: np.ndarray) -> list[int]:
        """Where something may begin: three bytes that begin a word."""
        places = []
        for odd in (0, 1):
            pairs = codes[odd : len(codes) - (len(codes) - odd) % 2].view("<u2")
            places.append(np.flatnonzero(self._pairs[pairs]) * 2 + odd)
        at = np.concatenate(places)
        at = np.sort(at[at < len(codes) - 2])
        first, second, third = (codes[at + i].astype(np.uint32) for i in range(3))
        starts = first | second << 8 | third << 16
        return [int(place) for place in at[self._starts[starts]]]


def _otherwise(value: str) -> Iterator[str]:
    """How people write a name with its parts in another order, and a number with or without a sign before it."""
    parts = re.split(r"[\s^,]+", value.strip("^ "))
    if len(parts) in (2, 3) and all(len(part) > 1 and part.isalpha() for part in parts):
        for order in (parts, parts[::-1], [*parts[1:], parts[0]]):
            for sign in (" ", ", ", ",", "^", "_", "-", ".", ""):
                yield sign.join(order)
    if number := re.fullmatch(r"([A-Za-z]{2,})[-_ ]?(\d{4,})", value):
        for sign in ("", "-", "_", " "):
            yield sign.join(number.groups())


def _places(view: View, codes: np.ndarray) -> Iterator[re.Match[bytes]]:
    """Absolute paths, each at its beginning."""
    at = np.flatnonzero((codes == 47) | (codes == 92))
    before = codes[at - 1]
    before[at == 0] = 32
    at = at[_BEFORE_PATH[before]]
    for start in at.tolist():
        drive = start > 1 and view.data[start - 1] == 58
        found = _PLACE.match(view.data, start) or (view.text and _TEXT_PLACE.match(view.data, start))
        if found := found or ((_DRIVE if view.text else _BINARY_DRIVE).match(view.data, start - 2) if drive else None):
            yield found


def _stands_alone(view: View, start: int, stop: int) -> bool:
    """Whether bytes are a word, and no part of another, of a number with a fraction, or chance among numbers."""
    raw, word = view.data, view.data[start:stop]
    before, after = raw[max(start - 3, 0) : start], raw[stop : stop + 3]
    # In binary files the length of a text stands before it, and a mark behind it, as a letter at times.
    sides = (before, before[-1:], word[:1], False), (after, after[:1], word[-1:], True)
    for marks, near, edge, behind in sides:
        bound = not (near.isalnum() and edge.isalnum()) or any(code < 9 or 13 < code < 32 for code in marks)
        if not bound:
            # Columns of databases have nothing between them; in a text a letter behind a number is one more of it.
            long = len(word) >= _SHORT and not word.isalpha() and not (_HEX.fullmatch(word) and _HEX.fullmatch(near))
            variant = behind and edge.isdigit() and _VARIANT.match(raw, stop)
            if not (long and (variant or not view.text)):
                return False
    if word.isdigit() and (re.match(rb"\.\d", after) or re.search(rb"\d\.$", before)):
        return False
    if view.pixels:
        return len(word) >= _OF_PIXELS
    if len(word) < _SHORT and not view.text:
        around = raw[max(start - 32, 0) : stop + 32]
        return sum(code < 128 for code in around) >= 0.8 * len(around)
    return True
