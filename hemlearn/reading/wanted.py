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
_PLACE = re.compile(rb"(?<![\w.:/])/(?:home|Users|root|mnt|data|srv|media|private|tmp|var)/[\w.-]|[A-Z]:\\\\?Users\\")
_ROOTS = [f"/{name}/" for name in ("home", "users", "root", "mnt", "data", "srv", "media", "private", "tmp", "var")]
_WORD = re.compile(rb"[\w-]*")
_CONTROLS = bytes.maketrans(bytes(code for code in range(32) if code != 9), b"\n" * 31)
_SHORT, _OF_PIXELS = 6, 8  # bytes; shorter words count only among letters, or not at all among pixels
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
        self._hints = dict.fromkeys((text.encode() for text in HINTS), SECRETS)
        self._hints |= dict.fromkeys((text.encode() for text in [*_ROOTS, ":\\users", ":\\\\users"]), PLACES)
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
            forms = {value, value.replace(" ", "+")}
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
        codes = np.frombuffer(small, np.uint8)
        for at in self._candidates(codes):
            for length in self._lengths[small[at : at + 3]]:
                word = small[at : at + length]
                if word in self._words and _stands_alone(view, at, at + length):
                    kind, value = self._words[word]
                    yield kind, value, at
                hint = self._hints.get(word)
                if hint == PLACES:
                    place = _PLACE.match(raw, at - (word[:1] == b":"))
                    if place is not None:
                        yield PLACES, place[0].decode(errors="replace"), at
                elif hint == SECRETS and at >= looked and not view.pixels:
                    start = max(at - _BEFORE, 0)
                    if start:  # not in the middle of a word, as of task_model
                        start += min(len(_WORD.match(raw, start, at)[0]), at - start - 1)  # type: ignore[index]
                    around = raw[start : at + _AFTER].translate(_CONTROLS)
                    looked = at + _AFTER // 2
                    if holds_secret(around.decode(errors="replace").replace("\ufffd", "\n")):
                        yield SECRETS, None, at

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


def _stands_alone(view: View, start: int, stop: int) -> bool:
    """Whether bytes are a word, and no part of another, of a number with a fraction, or chance among numbers."""
    raw, word = view.data, view.data[start:stop]
    before, after = raw[max(start - 3, 0) : start], raw[stop : stop + 3]
    # In binary files the length of a text stands before it, and a mark behind it, as a letter at times.
    for marks, near, edge in ((before, before[-1:], word[:1]), (after, after[:1], word[-1:])):
        bound = not (near.isalnum() and edge.isalnum())
        if not bound and (view.text or not any(code < 9 or 13 < code < 32 for code in marks)):
            return False
    if word.isdigit() and (re.match(rb"\.\d", after) or re.search(rb"\d\.$", before)):
        return False
    if view.pixels:
        return len(word) >= _OF_PIXELS
    if len(word) < _SHORT and not view.text:
        around = raw[max(start - 32, 0) : stop + 32]
        return sum(code < 128 for code in around) >= 0.8 * len(around)
    return True
