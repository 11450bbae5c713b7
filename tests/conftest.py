"""Fixtures of the whole suite: where real data lie, and a cache of its own for every test."""

from __future__ import annotations

import copy
import gc
import hashlib
import itertools
import json
import os
import re
import sys

# One thread per process: the suite runs in several processes, and threads that wait for each other would stall them.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# Nor worker processes, where a test does not ask for them: each would import everything anew.
os.environ.setdefault("LOKY_MAX_CPU_COUNT", "1")

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from hemlearn.config.schema import MEASURED
from tests.browser import INSTALL, NoBrowserError, browser_path

PROJECT = Path(__file__).resolve().parents[1]
# What tests are skipped for: words of their reasons, and how to have it.
NEEDS = {
    "browser": (r"browser|chromium|playwright", INSTALL),
    "data": (r"real data", "HEMLEARN_TEST_DATA=DIR, the folder that holds the data sets named above"),
}


def measures() -> set[str]:
    """Shipped backbones that are no network and have no weights."""
    files = (PROJECT / "conf" / "backbone").glob("*.yaml")
    return {file.stem for file in files if file.stem in MEASURED or "_target_" in file.read_text("utf-8")}


def chromium() -> str:
    """The browser's program; the test is skipped, with the reason, where there is none."""
    try:
        return browser_path()
    except NoBrowserError as error:
        pytest.skip(str(error))


def real_data(name: str) -> Path:
    """Folder of a real data set; the test is skipped, with the reason, where it is absent."""
    places = [Path(place) for place in (os.environ.get("HEMLEARN_TEST_DATA", ""),) if place]
    places.append(PROJECT.parent / "shared" / "data")
    for place in places:
        if (place / name).is_dir():
            return place / name
    pytest.skip(f"the real data set {name} is not here; looked in {', '.join(map(str, places))}")


def seal(folder: Path, *, ours: bool = False, **told: Any) -> None:
    """Write down the checksums of a run folder's files, as a run does at its end.

    ``ours``: as this user, whose signature ``status.json`` then has; else as a stranger could. ``told``: keys of
    ``provenance.json`` that are changed before.
    """
    from hemlearn.util.run_files import checksums, signature

    file, last = folder / "provenance.json", folder / "status.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **told, "files": checksums(folder)}))
    if last.exists():
        status = {**json.loads(last.read_text()), "provenance": hashlib.sha256(file.read_bytes()).hexdigest()}
        last.write_text(json.dumps({**status, "signature": signature(status) if ours else "none"}))


@pytest.fixture(scope="session")
def head_ct_root() -> Path:
    """Kaggle Head-CT: labels.csv and head_ct/head_ct/000.png."""
    return real_data("head_ct")


@pytest.fixture(scope="session", autouse=True)
def shipped_files_parsed_once() -> Iterator[None]:
    """A command composes three times from some thirty files each, of ``conf`` and of Hydra: no test changes them."""
    if "hemlearn" not in sys.modules:  # tests of this file alone
        yield
        return
    from hydra._internal.sources_registry import SourcesRegistry
    from hydra.core.plugins import Plugins
    from hydra.plugins.config_source import ConfigResult, ConfigSource

    from hemlearn.config.compose import conf_dir

    Plugins.instance()  # it makes the classes of the sources anew
    unchanging = {str(conf_dir()), "hydra.conf"}

    def once(
        read: Callable[[ConfigSource, str], ConfigResult], known: dict[tuple[str, ...], ConfigResult]
    ) -> Callable[[ConfigSource, str], ConfigResult]:
        def load(self: ConfigSource, config_path: str) -> ConfigResult:
            if self.path not in unchanging:
                return read(self, config_path)
            key = (self.path, self.provider, config_path)
            if key not in known:
                known[key] = read(self, config_path)
            return copy.deepcopy(known[key])

        return load

    with pytest.MonkeyPatch.context() as patch:
        for scheme in ("file", "pkg"):
            source = SourcesRegistry.instance().resolve(scheme)
            patch.setattr(source, "load_config", once(source.load_config, {}))
        yield


@pytest.fixture(scope="session", autouse=True)
def coarse_figures() -> Iterator[None]:
    """Figures of runs are drawn with a sixteenth of their pixels: nobody prints them."""
    if "hemlearn" not in sys.modules:
        yield
        return
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("hemlearn.reports.figures.DPI", 50)
        yield


_caches = itertools.count()


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Keep every test out of the user's cache."""
    # Beside the folders of the tests, mktemp would have to look through all of them for the next number.
    folder = tmp_path_factory.getbasetemp() / "caches" / str(next(_caches))
    folder.mkdir(parents=True)
    monkeypatch.setenv("HEMLEARN_CACHE", str(folder))
    return folder


def pytest_collection_finish() -> None:
    """What the imports have made stays: collecting garbage (each run and Trainer does it) need not walk it again."""
    gc.collect()
    gc.freeze()


def pytest_unconfigure() -> None:
    gc.unfreeze()


def _skipped(config: pytest.Config) -> dict[str, int]:
    """Need -> tests that were skipped for want of it; only what reports to a terminal knows all tests."""
    terminal = config.pluginmanager.get_plugin("terminalreporter")
    reports = [] if terminal is None else terminal.stats.get("skipped", [])
    reasons = [
        str(report.longrepr[-1] if isinstance(report.longrepr, tuple) else report.longrepr) for report in reports
    ]
    return {
        need: sum(bool(re.search(pattern, reason, re.IGNORECASE)) for reason in reasons)
        for need, (pattern, _) in NEEDS.items()
    }


def _required() -> set[str]:
    wanted = {word for word in os.environ.get("HEMLEARN_REQUIRE", "").replace(",", " ").split() if word}
    if unknown := wanted - set(NEEDS):
        raise pytest.UsageError(f"HEMLEARN_REQUIRE={','.join(sorted(unknown))}: give {', '.join(NEEDS)}")
    return wanted


def pytest_configure() -> None:
    _required()


@pytest.hookimpl(tryfirst=True)
def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    """``HEMLEARN_REQUIRE=browser,data``: a test that was skipped for want of it fails the run, as CI wants it."""
    if exitstatus == 0 and any(_skipped(session.config)[need] for need in _required()):
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    """Say how many tests were skipped for want of something, and how to have them run."""
    for need, number in _skipped(config).items():
        if number:
            tests = "1 test was" if number == 1 else f"{number} tests were"
            refused = need in _required()
            terminalreporter.write_line(
                f"{tests} skipped for want of {'a browser' if need == 'browser' else 'real data'}. To run "
                f"{'it' if number == 1 else 'them'}: {NEEDS[need][1]}"
                + (f". Refused by HEMLEARN_REQUIRE={need}." if refused else ""),
                red=refused,
                yellow=not refused,
            )
