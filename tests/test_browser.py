"""One list of browsers for tests, pictures and CI."""

from __future__ import annotations

import re

import pytest

from tests.browser import BROWSERS, NoBrowserError, browser_path
from tests.conftest import PROJECT


def test_ci_looks_for_the_same_browsers() -> None:
    script = (PROJECT / ".ci" / "browser").read_text(encoding="utf-8")
    assert re.findall(r"for name in (.*); do", script) == [" ".join(BROWSERS)]
    assert "HEMLEARN_CHROMIUM" in script


def test_a_named_browser_is_taken_or_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HEMLEARN_CHROMIUM", "/bin/sh")
    assert browser_path() == "/bin/sh"
    monkeypatch.setenv("HEMLEARN_CHROMIUM", "/no/such/chrome")
    with pytest.raises(NoBrowserError, match=r"HEMLEARN_CHROMIUM=/no/such/chrome: no browser there"):
        browser_path()
    monkeypatch.delenv("HEMLEARN_CHROMIUM")
    monkeypatch.setenv("PATH", "")
    with pytest.raises(NoBrowserError, match=r"no browser is installed; looked for chromium, chromium-browser"):
        browser_path()
