"""Formats that say at their beginning what they are, opened without building anything that they name."""

from __future__ import annotations

import ast
import io
import lzma
import pickletools
import struct
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from hemlearn.util.secrets import is_secret_name

EXPANDED = 512 << 20  # most bytes that the packed parts of one file may give
VALUES = 100_000_000  # most values of a Parquet file: equal ones take no room in it, but time and memory here
_ROWS = 1 << 16  # that are read together
# Whatever a damaged or hostile file may raise: it has not been seen then.
FAILURES = (
    *(OSError, ValueError, EOFError, MemoryError, RuntimeError, ArithmeticError, LookupError, TypeError, struct.error),
    *(zipfile.BadZipFile, zlib.error, lzma.LZMAError, pa.ArrowException),
)


class Reader(io.RawIOBase):
    """A buffer as a file, without a copy."""

    def __init__(self, view: memoryview) -> None:
        self.view, self.at = view, 0

    def readable(self) -> bool:
        """Yes."""
        return True

    def seekable(self) -> bool:
        """Yes."""
        return True

    def tell(self) -> int:
        """Place of the next byte."""
        return self.at

    def seek(self, offset: int, whence: int = 0) -> int:
        """Go to a place."""
        self.at = max(offset + (0, self.at, len(self.view))[whence], 0)
        return self.at

    def read(self, size: int = -1) -> bytes:
        """The next bytes."""
        stop = len(self.view) if size is None or size < 0 else self.at + size
        found = bytes(self.view[self.at : stop])
        self.at += len(found)
        return found


def unpack(data: Any, opener: Any, most: int) -> tuple[bytes, int, str]:
    """What a compressed stream gives, how many bytes of it were read, and why it gives no more."""
    stream, parts, total, at, tail = opener(), [], 0, 0, b""
    try:
        while not stream.eof:
            wants = not tail and getattr(stream, "needs_input", True)
            piece = tail or (bytes(data[at : at + (1 << 16)]) if wants else b"")
            if wants and not piece:
                parts.append(stream.flush() if hasattr(stream, "flush") else b"")
                return b"".join(parts), at, "" if stream.eof else "cut off"
            at += len(piece) if wants else 0
            parts.append(stream.decompress(piece, min(1 << 24, most + 1 - total)))
            tail = getattr(stream, "unconsumed_tail", b"")
            total += len(parts[-1])
            if total > most:
                return b"".join(parts), at, f"expands to more than {EXPANDED >> 20} MiB"
    except (zlib.error, OSError, EOFError, ValueError, lzma.LZMAError) as error:
        return b"".join(parts), at, f"damaged ({type(error).__name__})"
    return b"".join(parts), at - len(stream.unused_data), ""


def parquet(source: Any, most: int = EXPANDED) -> tuple[pq.ParquetFile, int]:
    """A Parquet file that may be read, its texts each once, and the bytes of its values.

    Args:
        source: Buffer or path.
        most: Bytes that it may expand to.

    Raises:
        ValueError: It holds more.
    """
    source = str(source) if isinstance(source, Path) else pa.BufferReader(pa.py_buffer(source))
    told = pq.read_metadata(source)
    groups = [told.row_group(number) for number in range(told.num_row_groups)]
    chunks = [group.column(number) for group in groups for number in range(group.num_columns)]
    if (size := sum(max(chunk.total_uncompressed_size, 0) for chunk in chunks)) > most:
        raise ValueError(f"expands to more than {EXPANDED >> 20} MiB")
    # Of a column without lists the number of rows counts, whatever is said of its values.
    if max(sum(chunk.num_values for chunk in chunks), told.num_rows * told.num_columns) > VALUES:
        raise ValueError(f"holds more than {VALUES:,} values")
    columns = [told.schema.column(number) for number in range(told.num_columns)]
    texts = [column.path for column in columns if column.physical_type == "BYTE_ARRAY"]
    if not isinstance(source, str):
        source.seek(0)
    return pq.ParquetFile(source, read_dictionary=texts), size


def batches(table: pq.ParquetFile, columns: list[str] | None = None) -> Iterator[pa.RecordBatch]:
    """The rows of a Parquet file, few at a time."""
    yield from table.iter_batches(_ROWS, columns=columns, use_threads=False)


def columns(table: pq.ParquetFile) -> dict[str, bytes]:
    """Different values of each column, one a line, lists and records laid flat."""
    found: dict[str, dict[str, None]] = {}
    for batch in batches(table):
        for name, column in zip(batch.schema.names, batch.columns, strict=True):
            for inner, leaf in _leaves(name, column):
                cells = found.setdefault(inner, {})
                secret = is_secret_name(inner.rpartition(".")[2])
                cells.update(dict.fromkeys(f'{inner}="{cell}"' if secret else cell for cell in _cells(leaf)))
    return {name: "\n".join(cells).encode(errors="surrogateescape") for name, cells in found.items()}


def _leaves(name: str, column: Any) -> Iterator[tuple[str, Any]]:
    kind = column.type
    if isinstance(kind, pa.BaseExtensionType):
        yield from _leaves(name, column.storage)
    elif pa.types.is_struct(kind):
        for field, inner in zip(kind, column.flatten(), strict=True):
            yield from _leaves(f"{name}.{field.name}", inner)
    elif pa.types.is_map(kind):
        for part in (column.keys, column.items):
            yield from _leaves(name, part)
    elif pa.types.is_nested(kind):
        yield from _leaves(name, column.flatten())
    else:
        yield name, column


def _cells(column: Any) -> Iterator[str]:
    """Different values as texts; of numbers with a fraction those that are whole."""
    if pa.types.is_floating(column.type):  # an id may be kept as 7788101.0
        numbers = column.to_numpy(zero_copy_only=False)
        whole = numbers[np.isfinite(numbers) & (abs(numbers) < 1e15) & (numbers == np.rint(numbers))]
        yield from map(str, np.unique(whole).astype(np.int64).tolist())
    else:
        values = column.dictionary if pa.types.is_dictionary(column.type) else column.unique()
        for value in values.to_pylist():
            yield value.decode("latin-1") if isinstance(value, bytes) else str(value)


def numpy_texts(data: Any) -> bytes:
    """Texts of a NumPy array of them, one a line: in the file nothing stands between two; b"" of other arrays."""
    wide = data[6] > 1
    start = 12 if wide else 10
    length = int.from_bytes(bytes(data[8:start]), "little")
    kind = np.dtype(ast.literal_eval(bytes(data[start : start + length]).decode("latin-1"))["descr"])
    if kind.kind not in "SU" or not kind.itemsize:
        return b""
    body = bytes(data[start + length :])
    texts = np.frombuffer(body[: len(body) // kind.itemsize * kind.itemsize], kind).tolist()
    return b"\n".join(text if isinstance(text, bytes) else text.encode(errors="replace") for text in texts)


def transcribed(data: Any, name: str) -> bytes:
    """A text in another encoding, in UTF-8."""
    return bytes(data).decode(name, "replace").encode(errors="replace")


def pickled(data: Any) -> bytes:
    """The texts of a pickle, one a line; nothing is built from it."""
    texts: list[str] = []
    try:
        for _, value, _ in pickletools.genops(bytes(data)):
            if isinstance(value, (str, bytes)):
                text = value if isinstance(value, str) else value.decode("latin-1")
                texts.append(f'{texts.pop()}="{text}"' if texts and is_secret_name(texts[-1]) else text)
    except (ValueError, IndexError, OverflowError):
        pass  # no pickle, or cut off: the bytes are looked at as they stand
    return "\n".join(texts).encode(errors="replace")


def records(data: Any) -> bytes:
    """W&B's queue without the 7 bytes before each part of a record, which stand between its letters."""
    parts, at = [], 7
    while at < len(data):
        room = 32_768 - at % 32_768
        if room < 7:
            at += room
            continue
        length = int.from_bytes(data[at + 4 : at + 6], "little")
        parts.append(bytes(data[at + 7 : at + 7 + length]))
        at += 7 + length
    return b"".join(parts)
