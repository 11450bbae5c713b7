"""What a newcomer, a packager or a citing author meets: versions agree, forms, hooks and links can be used."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

import hemlearn
from tests.conftest import PROJECT

# Dockerfile instructions, and what the first word of each must look like.
INSTRUCTIONS = {
    "ARG": r"[A-Z_]+(=\S+)?$",
    "FROM": r"\S+( AS [a-z][a-z0-9-]*)?$",
    "ENV": r"[A-Z_]+=\S+( +[A-Z_]+=\S+)*$",
    "RUN": r"\S",
    "COPY": r"\S+( \S+)+$",
    "WORKDIR": r"/\S+$",
    "USER": r"[a-z]+$",
    "ENTRYPOINT": r'\["[^"]+"(, "[^"]+")*\]$',
    "CMD": r'\["[^"]+"(, "[^"]+")*\]$',
}


def read_yaml(name: str) -> Any:
    return yaml.safe_load((PROJECT / name).read_text("utf-8"))


def test_one_version_stands_everywhere() -> None:
    project = tomllib.loads((PROJECT / "pyproject.toml").read_text("utf-8"))["project"]
    changelog = (PROJECT / "CHANGELOG.md").read_text("utf-8")
    released = re.findall(r"^## \[(\d+\.\d+\.\d+)\] - (\d{4}-\d\d-\d\d)$", changelog, re.MULTILINE)
    cited = read_yaml("CITATION.cff")
    assert project["version"] == hemlearn.__version__ == released[0][0] == cited["version"]
    assert cited["date-released"] == released[0][1]
    assert cited["license"] == project["license"]
    assert [version for version, _ in released] == sorted((v for v, _ in released), reverse=True)
    assert {"cff-version", "message", "title", "authors", "type"} <= set(cited)
    sections = set(re.findall(r"^### (.*)$", changelog, re.MULTILINE))
    assert sections <= {"Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"}


@pytest.mark.parametrize("name", ["bug", "idea"])
def test_issue_forms_are_forms(name: str) -> None:
    form = read_yaml(f".github/ISSUE_TEMPLATE/{name}.yml")
    assert {"name", "description", "body"} <= set(form)
    asked = [part for part in form["body"] if part["type"] != "markdown"]
    assert all(part["attributes"]["label"] for part in asked)
    assert len({part["id"] for part in asked}) == len(asked)


def test_the_workflow_calls_what_contributors_call() -> None:
    jobs = read_yaml(".github/workflows/check.yml")["jobs"]
    commands = [step["run"] for job in jobs.values() for step in job["steps"] if "run" in step]
    assert {"make check", "make test", "make release-check"} <= set(commands)
    targets = set(re.findall(r"^([a-z-]+):", (PROJECT / "Makefile").read_text("utf-8"), re.MULTILINE))
    for command in commands:
        program, *rest = shlex.split(command)
        assert program == "make" or (PROJECT / program).stat().st_mode & 0o100
        assert set(rest) <= targets


def test_hooks_call_programs_that_are_installed() -> None:
    hooks = [hook for repo in read_yaml(".pre-commit-config.yaml")["repos"] for hook in repo["hooks"]]
    assert {hook["id"] for hook in hooks} == {"ruff", "ruff-format", "codespell", "mypy"}
    for hook in hooks:
        program = shlex.split(hook["entry"])[0]
        assert hook["language"] == "system", "others fetch an environment of their own"
        here = Path(sys.executable).parent / Path(program).name
        assert here.exists() if program.startswith(".venv/bin/") else shutil.which(program)


def test_the_dockerfile_can_be_read_and_copies_what_exists() -> None:
    text = re.sub(r"\\\n\s*", "", (PROJECT / "Dockerfile").read_text("utf-8"))
    stages, kept = set(), set(re.findall(r"^!(\S+)$", (PROJECT / ".dockerignore").read_text("utf-8"), re.MULTILINE))
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith("#")]
    assert lines[0].startswith(("ARG", "FROM"))
    for line in lines:
        word, _, rest = line.partition(" ")
        assert re.match(INSTRUCTIONS[word], rest), line
        if word == "FROM":
            source, _, stage = rest.partition(" AS ")
            assert source in stages or source.startswith("python:"), line
            stages.add(stage)
        elif word == "COPY":
            for source in rest.split()[:-1]:
                assert (PROJECT / source).exists(), line
                assert source in kept, f"{source} is not let in by .dockerignore"
        elif word == "RUN":
            assert subprocess.run(["sh", "-n", "-c", rest], check=False).returncode == 0, line
    assert {"cpu", "gpu"} <= stages
    for stage in ("cpu", "gpu"):  # nobody's container runs as root
        own = text.partition(f" AS {stage}\n")[2].partition("\nFROM")[0]
        assert "\nUSER " in f"\n{own}"
    project = tomllib.loads((PROJECT / "pyproject.toml").read_text("utf-8"))
    assert set(project["tool"]["hatch"]["build"]["targets"]["sdist"]["include"]) & kept >= {"hemlearn", "conf"}


@pytest.mark.parametrize("file", ["README.md", *(f"{n}.md" for n in ("CONTRIBUTING", "SECURITY", "CODE_OF_CONDUCT"))])
def test_links_lead_to_files(file: str) -> None:
    text = (PROJECT / file).read_text("utf-8")
    for target in re.findall(r"\]\(([^)#]+?)(?:#[^)]*)?\)", text):
        if "://" not in target:
            assert (PROJECT / target).exists(), f"{file}: {target}"


def test_skipped_tests_are_counted_and_may_be_refused(tmp_path: Path) -> None:
    (tmp_path / "test_it.py").write_text(
        "import pytest\n"
        "def test_a(): pytest.skip('no browser is installed; looked for chromium')\n"
        "def test_b(): pytest.skip('the real data set rsna is not here')\n"
        "def test_c(): pytest.skip('no pdflatex here')\n"
        "def test_d(): pass\n"
    )
    call = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "tests.conftest", str(tmp_path)]
    environment = {"PYTHONPATH": str(PROJECT), "PATH": "/usr/bin:/bin"}
    for required, status in (("", 0), ("browser", 1), ("data browser", 1), ("pdflatex", 4)):
        done = subprocess.run(
            call,
            cwd=tmp_path,
            env={**environment, "HEMLEARN_REQUIRE": required},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == status, done.stdout + done.stderr
        if status < 4:
            assert "1 test was skipped for want of a browser. To run it: apt-get install" in done.stdout
            assert "1 test was skipped for want of real data. To run it: HEMLEARN_TEST_DATA=DIR" in done.stdout
            assert ("Refused by HEMLEARN_REQUIRE=browser" in done.stdout) == bool(required)
        else:
            assert "HEMLEARN_REQUIRE=pdflatex: give browser, data" in done.stderr + done.stdout
