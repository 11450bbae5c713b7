"""The command line beside training: help, index, prepare, phantom, doctor, and the wheel outside the checkout."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import pandas as pd
import pytest

from hemlearn.__main__ import COMMANDS, main
from hemlearn.util import interrupts
from tests.conftest import PROJECT


@pytest.mark.parametrize("command", sorted(COMMANDS))
def test_every_command_has_help_with_an_example(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([command, "--help"]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith("usage: hemlearn " + command)
    assert f"hemlearn {command}" in printed.partition("usage:")[2]


def test_unknown_command_names_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["trian"]) == 2
    assert "did you mean 'train'" in capsys.readouterr().err


def test_several_values_without_m_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    for text in ("experiment=head_ct,zhou2022", "split.fold=range(0,3)"):
        assert main(["train", text]) == 1
        printed = capsys.readouterr().err
        assert f"{text}: several values" in printed
        assert "hemlearn train -m" in printed


def test_jobs_stay_in_the_folder_of_the_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "hydra.job.chdir=true"]) == 1
    assert "hydra.job.chdir=true: relative paths would" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (["NAME=zhou"], "NAME=zhou: give one of altuve2022 "),
        ([], "NAME=: give one of"),
        (["NAME=../train"], "give one of"),
        (["NAME=ct_ich head_ct"], "give one of"),
        (["NAME=zhou2022", "ROOT="], "ROOT is empty"),
        (["NAME=zhou2022", "ARGS=name=other"], "name=other: the runs go to"),
    ],
)
def test_a_study_that_is_none_is_refused_before_anything_is_trained(given: list[str], told: str) -> None:
    call = ["make", "-s", "-o", "install", "study", "BIN=/nonexistent", *given]
    made = subprocess.run(call, cwd=PROJECT, capture_output=True, text=True, check=False)
    assert made.returncode == 2
    assert told in made.stderr


def test_a_study_is_compared_though_some_of_its_runs_failed(tmp_path: Path) -> None:
    log = tmp_path / "log"
    program = tmp_path / "hemlearn"
    fails = 'if [ "$1" = train ]; then mkdir -p runs/zhou2022; exit 1; fi'
    program.write_text(f'#!/bin/sh\necho "$@" >> {log}\n{fails}\n')
    program.chmod(0o755)
    for name in ("conf", "experiments", "Makefile"):
        (tmp_path / name).symlink_to(PROJECT / name)
    call = ["make", "-s", "-o", "install", "study", f"BIN={tmp_path}"]
    call += ["NAME=zhou2022", "ROOT=/some where", "ARGS=seed=3"]
    made = subprocess.run(call, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert made.returncode == 2  # make's own for a failed recipe
    assert "some runs failed" in made.stderr
    assert log.read_text().splitlines() == [
        "train -m experiment=zhou2022 data.root=/some where seed=3",
        "compare runs/zhou2022 reference=experiments/zhou2022/reference.yaml",
    ]


def test_phantom_writes_the_layout_and_index_reads_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "set"
    assert main(["phantom", "layout=head_ct", f"out={out}", "patients=12", "seed=3"]) == 0
    assert (out / "labels.csv").is_file()
    assert main(["index", f"data.root={out}", f"out={tmp_path / 'manifest'}"]) == 0
    printed = capsys.readouterr().out
    for part in (
        "SYNTHETIC",
        "12 slices",
        "no patient ids: each of 12 images",
        "hemorrhage",
        "skipped: 0",
        "duplicates: 0 pairs",
    ):
        assert part in printed
    assert len(pd.read_parquet(tmp_path / "manifest" / "manifest.parquet")) == 12
    assert main(["index", f"data.root={out}", f"out={tmp_path / 'manifest'}"]) == 0, "its own files may be replaced"
    (tmp_path / "manifest" / "audits.json").unlink()
    assert main(["index", f"data.root={out}", f"out={tmp_path / 'manifest'}"]) == 1
    assert "manifest.parquet: would be replaced" in capsys.readouterr().err


def test_index_reports_what_it_skips(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "set"
    main(["phantom", "layout=head_ct", f"out={out}", "patients=12"])
    broken = out / "head_ct" / "head_ct" / "004.png"
    broken.write_bytes(broken.read_bytes()[:200])
    assert main(["index", f"data.root={out}"]) == 0
    printed = capsys.readouterr().out
    assert "skipped: 1" in printed
    assert "004.png" in printed


def test_prepare_builds_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "set"
    main(["phantom", "layout=head_ct", f"out={out}", "patients=12"])
    call = ["prepare", f"data.root={out}", "data.image_size=64", f"data.cache_dir={tmp_path / 'cache'}"]
    assert main(call) == 0
    assert "12 slices of 64 x 64, uint8 (display)" in capsys.readouterr().out
    (array,) = (tmp_path / "cache").rglob("slices.bin")
    stamp = array.stat().st_mtime_ns
    assert main(call) == 0
    assert array.stat().st_mtime_ns == stamp


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (["phantom", "layout=head_ct"], "out is not set: give out=VALUE"),
        (["phantom", "out=x", "layout=hed_ct"], "head_ct"),
        (["phantom", "out=x", "patient=3"], "did you mean 'patients'"),
        (["phantom", "out=x", "patients=many"], "many"),
        (["doctor", "please"], "key=value"),
        (["index", "data.rot=x"], "did you mean 'data.root'"),
        (["compare", "/nowhere"], "/nowhere"),
    ],
)
def test_wrong_calls_say_what_and_how(
    arguments: list[str], part: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    found_later = arguments[0] in ("index", "compare") or "layout=hed_ct" in arguments  # not by the words alone
    assert main(arguments) == (1 if found_later else 2)
    error = capsys.readouterr().err
    assert part in error
    assert "Fix:" in error


def test_doctor_names_versions_weights_and_sizes(
    own_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HEMLEARN_CACHE_LIMIT", "1MB")
    run = tmp_path / "runs" / "name" / "0123456789ab"
    run.mkdir(parents=True)
    (run / "status.json").write_text("{}")
    (own_cache / "file").write_bytes(b"x" * 200_000)
    monkeypatch.setenv("COLUMNS", "300")
    assert main(["doctor", f"output_dir={tmp_path / 'runs'}"]) == 0
    printed = capsys.readouterr().out
    for part in ("torch", "timm", "efficientnet_lite0", "W&B", "20 % of its limit of 1.0 MB", "runs: 1 run, "):
        assert part in printed


def test_wheel_works_outside_the_checkout(tmp_path: Path) -> None:
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path / "dist")]
    subprocess.run(build, cwd=PROJECT, check=True, capture_output=True)
    (wheel,) = (tmp_path / "dist").glob("*.whl")
    site = tmp_path / "site"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
    shipped = {path.relative_to(site / "hemlearn" / "conf") for path in (site / "hemlearn" / "conf").rglob("*.yaml")}
    assert shipped == {path.relative_to(PROJECT / "conf") for path in (PROJECT / "conf").rglob("*.yaml")}
    code = (
        "import sys; sys.path.insert(0, sys.argv.pop(1)); import hemlearn.config.compose as c; print(c.conf_dir()); "
        "from hemlearn.__main__ import main; sys.exit(main(sys.argv[1:]))"
    )
    call = [sys.executable, "-c", code, str(site), "train", "--cfg", "job"]
    done = subprocess.run(call, cwd=tmp_path, check=True, capture_output=True, text=True)
    assert done.stdout.startswith(str(site / "hemlearn" / "conf"))
    assert "backbone:" in done.stdout


def test_sigterm_ends_the_command_and_not_its_present_job_alone(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    before = signal.getsignal(signal.SIGTERM)
    went_on = []

    def job(_: list[str]) -> int:
        try:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(5)
        except (RuntimeError, ValueError, OSError):  # what a sweep does with the failure of one job
            went_on.append(True)
        return 0

    monkeypatch.setattr("hemlearn.commands.data.doctor", job)
    assert main(["doctor"]) == 143
    assert not went_on
    assert "the same command continues" in capsys.readouterr().err
    assert signal.getsignal(signal.SIGTERM) == before
    interrupts.check()  # what comes after it in this process goes on


def test_a_reader_that_leaves_early_is_no_error(tmp_path: Path) -> None:
    command = f"{sys.executable} -m hemlearn train --cfg job"
    done = subprocess.run(["bash", "-c", f"set -o pipefail; {command} | head -1"], capture_output=True, text=True)
    assert "Traceback" not in done.stderr
    assert "BrokenPipe" not in done.stderr


@pytest.mark.parametrize(
    ("command", "status", "text"),
    [
        ("plan --help > /dev/full", 1, "standard output cannot be written (No space left on device)"),
        ("--help >&- 2>&- <&-", 0, ""),
        ("plan --help | true", 141, ""),
        ("index data=dicom data.root=/\u00e9\u65e5", 1, r"data.root=/\xe9\u65e5: no such folder"),
    ],
)
def test_streams_of_every_kind(command: str, status: int, text: str, tmp_path: Path) -> None:
    line = f"set -o pipefail; {sys.executable} -m hemlearn {command}"
    env = {**os.environ, "PYTHONPATH": str(PROJECT), "PYTHONIOENCODING": "ascii"}
    done = subprocess.run(["bash", "-c", line], capture_output=True, text=True, env=env, cwd=tmp_path)
    assert done.returncode in ({141, 0} if status == 141 else {status})  # `true` may leave before or after
    assert text in done.stderr
    assert "Traceback" not in done.stderr


def test_log_lines_that_nobody_takes_end_no_command(tmp_path: Path) -> None:
    """Training goes on; that its lines were lost is told at the end, and by the exit status."""
    code = (
        "import logging, sys; from hemlearn import __main__ as main, commands\n"
        "from hemlearn.util.console import set_up_logging; import hemlearn.commands.data as data\n"
        "def doctor(_):\n    set_up_logging()\n    for i in range(3): logging.info('line %d', i)\n"
        "    print('done', file=sys.stderr); return 0\n"
        "data.doctor = doctor; sys.exit(main.main(['doctor']))"
    )
    with open("/dev/full", "w") as full:  # noqa: PTH123 - a device
        done = subprocess.run([sys.executable, "-c", code], stdout=full, stderr=subprocess.PIPE, text=True)
    assert done.returncode == 1
    assert done.stderr.splitlines()[:2] == [
        "done",
        "hemlearn: standard output cannot be written (No space left on device)",
    ]


def test_links_that_lead_back_are_not_followed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "up").symlink_to("..")
    (tmp_path / "self").symlink_to("self")
    for command in ("compare", "runs"):
        assert main([command, str(tmp_path)]) == 1
        assert "run" in capsys.readouterr().err
