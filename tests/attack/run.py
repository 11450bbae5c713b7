"""All cases in a few processes, and the table of counts."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import pandas as pd

from tests.attack import (
    archives,
    configurations,
    dicom,
    fuzz,
    nifti,
    pictures,
    planted,
    predictions,
    runs,
    sealed,
    security,
    series,
    splits,
    stores,
    strangers,
    tables,
    weights,
)
from tests.attack.case import Case, Outcome, Trained, Verdict
from tests.attack.session import Judged, Session, progress

ROOMS = (
    planted,
    dicom,
    fuzz,
    nifti,
    pictures,
    archives,
    tables,
    splits,
    weights,
    configurations,
    runs,
    sealed,
    security,
    stores,
    strangers,
    predictions,
)


def all_cases() -> list[Case]:
    """Every case, each name once in its kind.

    Raises:
        ValueError: Two cases of a kind have one name.
    """
    found = [case for room in ROOMS for case in room.cases()]
    twice = [name for name, times in Counter((case.kind, case.name) for case in found).items() if times > 1]
    if twice:
        raise ValueError(f"cases with one name: {twice}")
    return found


def chosen(share: int, only: Sequence[str]) -> list[Case]:
    """Every ``share``-th case of each kind, and all planted ones; or those whose KIND/NAME holds one of the texts."""
    found = all_cases()
    if only:
        return [case for case in found if any(text.lower() in f"{case.kind}/{case.name}".lower() for text in only)]
    kinds: dict[str, list[Case]] = {}
    for case in found:
        kinds.setdefault(case.kind, []).append(case)
    return [case for kind, cases in kinds.items() for case in cases[:: 1 if kind == planted.KIND else share]]


def references(session: Session, trained: Trained) -> None:
    """The answers for good input."""
    for key, write in {"head": series.dicom, "nifti": lambda root: series.volume(root / "head.nii")}.items():
        folder = session.work / "reference" / key
        shutil.rmtree(folder, ignore_errors=True)
        write(folder / "in")
        session.must(["predict", f"run={trained.runs['ct']}", f"input={folder / 'in'}", f"out={folder / 'out'}"])
        (trained.reference[key],) = Outcome(folder, 0, "", "", 0.0, 0.0, trained).probabilities.values()
    folder = session.work / "reference/picture"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    session.must([*runs.picture_reference(trained.runs["calibrated"], folder)])
    row = pd.read_csv(folder / "out/series.csv").iloc[0]
    trained.reference["picture"] = [float(row["prob_hemorrhage"]), float(row["call_hemorrhage"])]


def work_through(
    cases: Sequence[Case], session: Session, trained: Trained, options: argparse.Namespace
) -> list[Judged]:
    """Share the cases among forked workers, each of which forks once more for every case."""
    children = []
    for place in range(options.jobs):
        file = session.work / f"worker{place}.jsonl"
        pid = os.fork()
        if not pid:
            status = 1
            try:
                with file.open("w", encoding="utf-8") as lines:
                    for case in cases[place :: options.jobs]:
                        judged = session.judge(case, trained, options.keep)
                        lines.write(json.dumps(asdict(judged)) + "\n")
                        lines.flush()
                        if options.only or (judged.verdict is Verdict.FAULT and case.kind != planted.KIND):
                            progress(shown_as(judged))
                status = 0
            except BaseException:  # noqa: BLE001  # said here: nobody else sees it
                traceback.print_exc()
            finally:
                os._exit(status)
        children.append((pid, file))
    found = []
    for pid, file in children:
        _, code = os.waitpid(pid, 0)
        if code:
            raise RuntimeError(f"a worker ended with {os.waitstatus_to_exitcode(code)}")
        found += [json.loads(line) for line in file.read_text("utf-8").splitlines()]
    return [Judged(**{**item, "verdict": Verdict(item["verdict"])}) for item in found]


def shown_as(item: Judged) -> str:
    """A line."""
    return f"{item.verdict:11} {item.seconds:5.1f} s CPU  {item.kind}/{item.name}  {item.fault}"


def table(found: Sequence[Judged]) -> str:
    """Markdown: counts by kind."""
    counts = Counter((item.kind, item.verdict) for item in found)
    kinds = list(dict.fromkeys(item.kind for item in found))
    lines = ["| kind | cases | right | clear error | fault |", "|---|---|---|---|---|"]
    for kind in [*sorted(kinds), "all"]:
        row = [sum(n for (k, v), n in counts.items() if kind in (k, "all") and v is verdict) for verdict in Verdict]
        lines.append(f"| {kind} | {sum(row)} | " + " | ".join(map(str, row)) + " |")
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    """0: no fault, and every planted fault was seen."""
    parser = argparse.ArgumentParser(prog="python -m tests.attack", description=__doc__)
    parser.add_argument("--share", type=int, default=1, metavar="N", help="every N-th case of each kind")
    parser.add_argument("--only", nargs="+", default=[], metavar="TEXT", help="cases whose KIND/NAME holds it")
    parser.add_argument("--jobs", type=int, default=min(os.cpu_count() or 1, 4), help="processes")
    parser.add_argument("--work", type=Path, help="folder for the work (default: a temporary one)")
    parser.add_argument("--out", type=Path, help="write the judged cases (JSON)")
    parser.add_argument("--keep", action="store_true", help="keep the folder of every case, not of faults alone")
    parser.add_argument("--list", action="store_true", help="name the cases and end")
    options = parser.parse_args(argv)
    cases = chosen(options.share, options.only)
    if options.list:
        print("\n".join(f"{case.kind}/{case.name}" for case in cases))
        return 0
    work = options.work or Path(tempfile.mkdtemp(prefix="attack"))
    began = time.perf_counter()
    session = Session(work)
    ready = work / "ready.json"
    if ready.is_file():  # a second call with --work: the runs are there
        trained = Trained(work, {name: Path(path) for name, path in json.loads(ready.read_text("utf-8")).items()})
    else:
        trained = session.make()
        ready.write_text(json.dumps({name: str(path) for name, path in trained.runs.items()}))
    references(session, trained)
    progress(f"{len(cases)} cases, after {time.perf_counter() - began:.0f} s of making ready, in {work}")
    found = work_through(cases, session, trained, options)
    real = [item for item in found if item.kind != planted.KIND]
    unseen = [item.name for item in found if item.kind == planted.KIND and item.verdict is not Verdict.FAULT]
    faults = [item for item in real if item.verdict is Verdict.FAULT]
    print(table(real))
    print(f"\n{len(real)} cases in {time.perf_counter() - began:.0f} s; planted faults seen: "
          f"{len(found) - len(real) - len(unseen)} of {len(found) - len(real)}")  # fmt: skip
    for item in faults:
        print(f"FAULT {item.kind}/{item.name}: {item.fault}")
    for name in unseen:
        print(f"NOT SEEN: the planted fault {name!r}")
    if options.out:
        options.out.write_text(json.dumps([asdict(item) for item in found], indent=1), "utf-8")
    if not faults and not options.work:
        shutil.rmtree(work)
    return 1 if faults or unseen else 0
