"""Tables of what is known of files, kept between runs in the cache folder."""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

LOGGER = logging.getLogger(__name__)


def kept_file(folder: str | os.PathLike[str], kind: str, root: Path, version: int) -> Path:
    """Return where a table about the files under ``root`` is kept."""
    place = hashlib.sha256(os.fsencode(root.resolve())).hexdigest()[:16]
    return Path(folder) / kind / f"{place}-v{version}.parquet"


def load_kept(file: Path | None, columns: Sequence[str]) -> pd.DataFrame | None:
    """Return a kept table; None where there is none, or where it is damaged (which is told)."""
    if file is None or not file.is_file():
        return None
    try:
        return pd.read_parquet(file)[list(columns)]
    except (OSError, ValueError, KeyError) as error:  # pyarrow's errors are ValueErrors or OSErrors
        LOGGER.warning("%s cannot be used and is made again: %s", file, error)
        return None


def save_kept(file: Path, table: pd.DataFrame) -> None:
    """Write a table at once or not at all; where that fails it is told, and the run goes on."""
    part = file.with_name(f".{file.name}.{os.getpid()}")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        table.to_parquet(part, index=False)
        part.replace(file)
    except OSError as error:  # the run can go on; the next one reads the files again
        LOGGER.warning("%s cannot be written, so the next run opens every file again: %s", file, error)
        part.unlink(missing_ok=True)
