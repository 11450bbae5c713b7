"""What a compressed stream says of itself: which code it is written in, and of how many bits its values are."""

from __future__ import annotations

import struct
from typing import NamedTuple

from pydicom.uid import (
    HTJ2K,
    JPEG2000,
    UID,
    HTJ2KLossless,
    HTJ2KLosslessRPCL,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGExtended12Bit,
    JPEGLossless,
    JPEGLosslessSV1,
    JPEGLSLossless,
    JPEGLSNearLossless,
    RLELossless,
)

_JPEG = {  # start of frame -> the transfer syntaxes that it fits, that to be taken where none is named first
    0xC0: (JPEGBaseline8Bit, JPEGExtended12Bit),
    0xC1: (JPEGExtended12Bit, JPEGBaseline8Bit),
    0xC3: (JPEGLossless, JPEGLosslessSV1),
    0xF7: (JPEGLSNearLossless, JPEGLSLossless),
}
_FRAMES = {*range(0xC0, 0xD0), 0xF7} - {0xC4, 0xC8, 0xCC}  # markers of frames; the others define tables
_J2K = (JPEG2000, JPEG2000Lossless)
_HTJ2K = (HTJ2K, HTJ2KLossless, HTJ2KLosslessRPCL)
_SOC = b"\xff\x4f\xff\x51"  # a JPEG 2000 code stream begins, its SIZ segment follows
_CAP = b"\xff\x50"  # announces the high-throughput block coder of part 15
_BOX = b"\0\0\0\x0cjP  "  # of a JP2 file around the stream


class CodeStream(NamedTuple):
    """What a stream says.

    Args:
        syntaxes: Transfer syntaxes that it fits, that to be taken where none is named first; empty: unknown.
        precision: Bits of its values; 0: it does not tell.
        size: Rows and columns; zeros: it does not tell.
    """

    syntaxes: tuple[UID, ...] = ()
    precision: int = 0
    size: tuple[int, int] = (0, 0)


def is_start(fragment: bytes) -> bool:
    """Whether a fragment begins a JPEG or JPEG 2000 stream."""
    return fragment.startswith((b"\xff\xd8\xff", _SOC, _BOX[:4]))


def code_stream(fragment: bytes) -> CodeStream:
    """Read the first bytes of a compressed frame."""
    if fragment.startswith((_SOC, _BOX)):
        start = fragment.find(_SOC)
        head = fragment[start : start + 64] if start >= 0 else b""
        if len(head) < 64:
            return CodeStream(_J2K)
        length = 4 + int.from_bytes(head[4:6], "big")  # markers, and the segment that names its own length
        ht = fragment[start + length : start + length + 2] == _CAP
        right, bottom, left, top = struct.unpack(">4I", head[8:24])  # of the image area on the reference grid
        return CodeStream(_HTJ2K if ht else _J2K, (head[42] & 0x7F) + 1, (bottom - top, right - left))
    if fragment.startswith(b"\xff\xd8"):
        place = 2
        while place + 9 <= len(fragment) and fragment[place] == 0xFF:
            marker = fragment[place + 1]
            if marker in _FRAMES:
                size = struct.unpack(">2H", fragment[place + 5 : place + 9])
                return CodeStream(_JPEG.get(marker, ()), fragment[place + 4], (size[0], size[1]))
            place += 1 if marker == 0xFF else 2 + int.from_bytes(fragment[place + 2 : place + 4], "big")
        return CodeStream()
    if len(fragment) > 64 and 1 <= int.from_bytes(fragment[:4], "little") <= 15:
        return CodeStream((RLELossless,))
    return CodeStream()
