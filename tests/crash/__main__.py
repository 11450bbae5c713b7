"""``python -m tests.crash``: commands that are killed at random moments, and given again.

    python -m tests.crash --tries 50                    # kill -9 of each command's whole process group
    python -m tests.crash --signal TERM --tries 25      # SIGTERM (or INT): the exit status counts too
    python -m tests.crash --only predict

Each try: the command is struck once (each fourth try twice) at a moment drawn from the processor time of the
undisturbed one, then given again until it ends by itself; every file that it leaves is compared with the undisturbed
one's. Exit status 1 where one differs, is missing or is left over.
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import statistics
import sys
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path

from tests.attack.session import progress
from tests.crash.cases import Case, Crashes, moments
from tests.crash.look import Reference


def undisturbed(session: Crashes, case: Case, work: Path, times: int = 2) -> tuple[Reference, float]:
    """The reference, and the seconds of processor time that the command takes."""
    took = []
    folders = [work / f"undisturbed{index}" for index in range(times)]
    for folder in folders:
        status, cpu = session.finish(session.start(case, folder))
        took.append(cpu)
        if status:
            raise RuntimeError(f"{case.name} ended with {status}; see {folder}.logs")
    return Reference(folders), min(took)


def strike(session: Crashes, case: Case, work: Path, number: int, tries: int, seed: int) -> dict[str, object]:
    """All tries of one command; the counts of its row."""
    work.mkdir(parents=True)
    reference, cpu = undisturbed(session, case, work)
    counts: Counter[str] = Counter()
    statuses: Counter[int] = Counter()
    largest, surplus, slowest = 0.0, [], 0.0
    for index, when in enumerate(moments(seed, tries, cpu)):
        folder = work / f"try{index}"
        spent, struck = 0.0, 0
        for moment in when:
            pid = session.start(case, folder)
            session.wait(pid, moment)
            with suppress(ProcessLookupError):  # it has ended already
                (os.killpg if number == signal.SIGKILL else os.kill)(pid, number)
                struck += 1
            begun = time.monotonic()
            status, used = session.finish(pid)
            if number != signal.SIGKILL:
                counts["outlived"] += not session.gone(pid)
                slowest = max(slowest, time.monotonic() - begun)
            with suppress(ProcessLookupError):
                os.killpg(pid, signal.SIGKILL)  # what it had started
            spent += used
            statuses[status] += 1
        status, used = session.finish(session.start(case, folder))
        surplus.append(spent + used - cpu)
        found = reference.compare(folder)
        left, differs = found.leftovers, found.files
        good = status == 0 and not differs and not found.missing and not left
        counts["ended"] += status == 0
        counts["equal"] += not differs and not found.missing
        counts["left over"] += bool(left)
        largest = max(largest, found.largest)
        if good:
            progress(f"  {case.name} {index}: equal, {status=}, {spent:.1f} s and {used:.1f} s")
            shutil.rmtree(folder)
            shutil.rmtree(folder.with_name(f"{folder.name}.logs"))
        else:
            shown = {name: keys[:3] for name, keys in differs.items()}
            progress(f"  {case.name} {index} at {when}: {status=} {shown} missing={found.missing} {left=}")
    progress(f"{case.name}: of {tries} struck at 0-{cpu:.1f} s: {dict(counts)}, largest difference {largest:.2g}, "
             f"statuses {dict(statuses)}, slowest end {slowest:.1f} s after its signal, cpu {cpu:.1f} s, more by "
             f"{statistics.median(surplus):.1f} s (most {max(surplus):.1f})")  # fmt: skip
    told = {name: sorted(keys)[:4] for name, keys in reference.varies.items()}
    progress(f"  not compared, since two undisturbed ones differ: {told}")
    more = {"cpu": cpu, "median": statistics.median(surplus), "most": max(surplus)}
    return {**counts, **more, "largest": largest, "statuses": dict(sorted(statuses.items()))}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path(".out/crash"))
    parser.add_argument("--tries", type=int, default=50)
    parser.add_argument("--signal", default="KILL", choices=("KILL", "TERM", "INT"))
    parser.add_argument("--only", default="")
    parser.add_argument("--seed", type=int, default=1)
    asked = parser.parse_args()
    session = Crashes(asked.work.resolve())
    number = signal.Signals[f"SIG{asked.signal}"]
    bad = False
    print("| command | tries | exit statuses | equal | left over | largest difference | CPU s | more, median | most |")
    print("|---|---:|---|---:|---:|---:|---:|---:|---:|")
    for name, case in session.cases().items():
        if asked.only and name not in asked.only.split(","):
            continue
        work = session.work / asked.signal / name
        shutil.rmtree(work, ignore_errors=True)
        row = strike(session, case, work, number, asked.tries, asked.seed)
        cells = [name, asked.tries, row["statuses"], row["equal"], row.get("left over", 0)]
        cells += [f"{row[key]:.2g}" for key in ("largest", "cpu", "median", "most")]
        print(f"| {' | '.join(map(str, cells))} |", flush=True)
        bad |= row["equal"] != asked.tries or bool(row.get("left over") or row.get("outlived"))
    return int(bad)


if __name__ == "__main__":
    sys.exit(main())
