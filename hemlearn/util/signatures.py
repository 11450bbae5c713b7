"""This user's own key, by which he knows again what he has made: runs, keys of pseudonyms."""

from __future__ import annotations

import hmac
import logging
import secrets

from hemlearn.util.errors import HemlearnError
from hemlearn.util.files import cache_dir, made_once

logger = logging.getLogger(__name__)
_KEY, _BYTES = "run.key", 32


def sign(what: str, text: str, *, make: bool = False) -> str | None:
    """HMAC of a text under this user's key, by which he knows what he has made; None where there is no key.

    Args:
        what: Kind of the text: a signature of one kind is none of another.
        text: What is signed.
        make: Make the key, in the cache folder, where there is none.
    """
    try:
        file = cache_dir(None) / _KEY
        if file.exists() and file.stat().st_size < _BYTES:  # a power loss; an empty key would sign for anybody
            file.unlink()
        if make:
            made_once(file, lambda: secrets.token_bytes(_BYTES))
        return hmac.new(file.read_bytes(), f"{what}\0{text}".encode(), "sha256").hexdigest()
    except (OSError, HemlearnError) as error:
        logger.debug("no %s is signed: %s", what, error)
        return None


def is_signed(what: str, text: str, signature: object) -> bool:
    """Whether this user has signed the text."""
    wanted = sign(what, text)
    return wanted is not None and hmac.compare_digest(wanted.encode(), str(signature).encode(errors="replace"))
