"""A small encoder of lossless JPEG (ITU-T T.81, process 14), to have files to decode."""

from __future__ import annotations

import struct

import numpy as np
from numpy.typing import NDArray


def encode(codes: NDArray[np.int64], precision: int, selection: int = 1) -> bytes:
    """Code a grey image of unsigned values below 2 ** precision.

    Args:
        codes: (H, W).
        precision: Bits of a value.
        selection: What a value is predicted from: 1 its left, 2 its upper neighbour.
    """
    rows, columns = codes.shape
    predicted = np.empty_like(codes)
    predicted[:, 1:] = codes[:, :-1]
    if selection == 2:
        predicted[1:] = codes[:-1]
    predicted[1:, 0] = codes[:-1, 0]  # the first of a row is predicted from above (H.1.1)
    predicted[0, 0] = 1 << (precision - 1)
    difference = (codes - predicted + 32768) % 65536 - 32768
    bits = []
    for value in difference.reshape(-1).tolist():
        size = abs(value).bit_length()
        bits.append(f"{size:05b}")  # 17 categories of 5 bits each: a valid, if wasteful, Huffman code
        if size and size < 16:
            bits.append(f"{value if value > 0 else value + (1 << size) - 1:0{size}b}")
    stream = "".join(bits)
    stream += "1" * (-len(stream) % 8)
    scan = int(stream, 2).to_bytes(len(stream) // 8, "big").replace(b"\xff", b"\xff\0")
    counts = bytes([0, 0, 0, 0, 17, *[0] * 11])
    table = b"\0" + counts + bytes(range(17))
    frame = struct.pack(">BHHBBBB", precision, rows, columns, 1, 1, 0x11, 0)
    return (
        b"\xff\xd8"
        + b"\xff\xc3"
        + struct.pack(">H", 2 + len(frame))
        + frame
        + b"\xff\xc4"
        + struct.pack(">H", 2 + len(table))
        + table
        + b"\xff\xda"
        + struct.pack(">HBBBBBB", 8, 1, 1, 0, selection, 0, 0)
        + scan
        + b"\xff\xd9"
    )
