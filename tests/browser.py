"""Where Chromium is: for the tests of pages, and for the pictures of the documentation (``docs/pictures.py``).

``.ci/browser`` looks for the same names before it installs one.
"""

from __future__ import annotations

import os
import shutil

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")
INSTALL = "apt-get install -y --no-install-recommends chromium (Debian), or HEMLEARN_CHROMIUM=/path/to/chrome"


class NoBrowserError(Exception):
    """There is no browser; the message says where it was sought."""


def browser_path() -> str:
    """The program of ``HEMLEARN_CHROMIUM``, else the first of :data:`BROWSERS` on the path.

    Raises:
        NoBrowserError: There is none, or not where the variable says.
    """
    if given := os.environ.get("HEMLEARN_CHROMIUM"):
        if found := shutil.which(given):
            return found
        raise NoBrowserError(f"HEMLEARN_CHROMIUM={given}: no browser there, no such program")
    if found := next((path for name in BROWSERS if (path := shutil.which(name))), None):
        return found
    raise NoBrowserError(f"no browser is installed; looked for {', '.join(BROWSERS)} and $HEMLEARN_CHROMIUM")
