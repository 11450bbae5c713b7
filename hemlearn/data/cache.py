"""Where hemlearn keeps what it can make again: slice stores, file fingerprints and phantoms."""

from __future__ import annotations

import os
from pathlib import Path

from hemlearn.errors import StoreError

VARIABLE = "HEMLEARN_CACHE"


def cache_dir(configured: str | os.PathLike[str] | None = None) -> Path:
    """Return the cache folder, made if it is missing.

    Args:
        configured: The key ``data.cache_dir``; None: ``$HEMLEARN_CACHE``, else ``~/.cache/hemlearn``.

    Returns:
        An absolute path.

    Raises:
        StoreError: The folder cannot be made.
    """
    chosen = os.fspath(configured) if configured else os.environ.get(VARIABLE, "")
    # Made absolute here, since a run may change its working folder after this.
    folder = Path(chosen or "~/.cache/hemlearn").expanduser().absolute()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StoreError(
            f"the cache folder {folder} cannot be made: {error.strerror or error}",
            remedy=f"set data.cache_dir or ${VARIABLE} to a folder that can be written",
        ) from error
    return folder
