"""``make release-check``: wheel and sdist are built, installed in empty environments of their own, and used there.

What is asked of each: every shipped file is in it, the command works from an empty folder, configuration groups are
found, a tiny run trains without a developer's packages. Versions are those of ``requirements.lock``.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tarfile
import time
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from hemlearn import __version__
from hemlearn.__main__ import COMMANDS

PROJECT = Path(__file__).resolve().parents[1]
UV = Path(sys.executable).parent / "uv"
TINY = (
    "train name=release data.phantom_patients=30 data.image_size=64 backbone.name=test_efficientnet "
    "backbone.pretrained=false trainer.max_epochs=1 logger=none"
)


@contextmanager
def step(what: str) -> Iterator[None]:
    """Say what was done and how long it took."""
    start = time.perf_counter()
    yield
    print(f"{time.perf_counter() - start:6.1f} s  {what}", flush=True)


def call(*words: str | Path, cwd: Path, path: Path | None = None, **extra: str) -> str:
    """Output of a command that must succeed, without this shell's Python settings."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("PYTHON", "VIRTUAL_ENV"))}
    environment |= {"OMP_NUM_THREADS": "1", "WANDB_MODE": "offline", "HEMLEARN_CACHE": str(cwd / "cache"), **extra}
    if path is not None:
        environment["PATH"] = f"{path}{os.pathsep}/usr/bin{os.pathsep}/bin"
    done = subprocess.run(
        [str(word) for word in words], cwd=cwd, env=environment, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise SystemExit(f"{' '.join(map(str, words))}: exit status {done.returncode}\n{done.stdout}{done.stderr}")
    return done.stdout


def require(condition: bool, what: str) -> None:
    """End with a reason unless it holds."""
    if not condition:
        raise SystemExit(f"release-check: {what}")


def shipped() -> set[str]:
    """Files of the checkout that an installation must have, as they are called there."""
    listed = subprocess.run(
        ["git", "ls-files", "hemlearn", "conf", "hydra_plugins"],
        cwd=PROJECT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split("\n")
    return {f"hemlearn/{name}" if name.startswith("conf/") else name for name in listed if name}


def build(out: Path) -> tuple[Path, Path]:
    """The sdist, and the wheel made from it; both hold every file."""
    call(UV, "build", "--quiet", "--python", sys.executable, "--out-dir", out, PROJECT, cwd=out)
    (wheel,), (sdist,) = out.glob("*.whl"), out.glob("*.tar.gz")
    with zipfile.ZipFile(wheel) as archive:
        inside = set(archive.namelist())
    missing = shipped() - inside
    require(not missing, f"{wheel.name} lacks {', '.join(sorted(missing)[:5])}")
    strange = {name.partition("/")[0] for name in inside} - {"hemlearn", "hydra_plugins"}
    require(all(name.endswith(".dist-info") for name in strange), f"{wheel.name} also holds {sorted(strange)}")
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    for name in ("README.md", "LICENSE", "CHANGELOG.md", "CITATION.cff", "pyproject.toml", "hatch_build.py"):
        require(name in names, f"{sdist.name} lacks {name}")
    return wheel, sdist


def installed(package: Path, place: Path) -> Path:
    """Programs of a new environment that holds the package and what it declares, and nothing else."""
    call(UV, "venv", "--quiet", "--python", sys.executable, place, cwd=place.parent)
    programs = place / ("Scripts" if os.name == "nt" else "bin")
    lock = PROJECT / "requirements.lock"
    call(
        *(UV, "pip", "install", "--quiet", "--python", programs / "python"),
        *("--constraint", lock, package),
        cwd=place.parent,
    )
    return programs


def used(programs: Path, empty: Path, *, every: bool) -> None:
    """The command line of that environment, in an empty folder; ``every``: all commands, and a tiny run."""
    empty.mkdir()

    def hemlearn(*words: str) -> str:
        return call(programs / "hemlearn", *words, cwd=empty, path=programs)

    require(hemlearn("--version").strip() == f"hemlearn {__version__}", "hemlearn --version tells another version")
    for command in COMMANDS if every else ["train"]:
        require("usage: hemlearn" in hemlearn(command, "--help"), f"hemlearn {command} --help shows no usage")
    code = (
        "import importlib.metadata as m, importlib.resources as r, hemlearn, hemlearn.config.compose as c;"
        "print(m.version('hemlearn'), m.entry_points(group='console_scripts')['hemlearn'].value,"
        " r.files('hemlearn').joinpath('py.typed').is_file(), c.conf_dir())"
    )
    version, entry, typed, conf = call(programs / "python", "-c", code, cwd=empty, path=programs).split()
    require((version, entry, typed) == (__version__, "hemlearn.__main__:main", "True"), f"{version} {entry} {typed}")
    require(Path(conf).is_relative_to(programs.parent), f"configuration is read from {conf}")
    groups = {path.name for path in (PROJECT / "conf").iterdir() if path.is_dir()}
    require({path.name for path in Path(conf).iterdir() if path.is_dir()} == groups, f"groups of {conf} are others")
    require("backbone:" in hemlearn("train", "--cfg", "job"), "--cfg job prints no backbone")
    if not every:
        return
    call(programs / "python", "-m", "hemlearn", *TINY.split(), cwd=empty, path=programs)
    require(len(list(empty.glob("runs/release/*/metrics.json"))) == 1, "a tiny run left no metrics.json")
    require("release" in hemlearn("runs", "runs"), "hemlearn runs does not list it")


def main() -> None:
    """Every step, with its seconds; the first that fails ends with its reason."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path, help="folder, emptied before")
    out: Path = parser.parse_args().out.resolve()
    shutil.rmtree(out, ignore_errors=True)
    (out / "dist").mkdir(parents=True)
    start = time.perf_counter()
    with step("sdist, and wheel from it"):
        wheel, sdist = build(out / "dist")
    with step("README renders (twine check --strict)"):
        call(UV, "tool", "run", "--quiet", "twine", "check", "--strict", wheel, sdist, cwd=out)
    for kind, package in (("wheel", wheel), ("sdist", sdist)):
        with step(f"{kind}: installed in an empty environment"):
            programs = installed(package, out / f"env-{kind}")
        with step(f"{kind}: commands, entry points, groups{', a tiny run' if kind == 'wheel' else ''}"):
            used(programs, out / f"empty-{kind}", every=kind == "wheel")
        shutil.rmtree(out / f"env-{kind}")
    print(f"{time.perf_counter() - start:6.1f} s  hemlearn {__version__} can be released")


if __name__ == "__main__":
    main()
