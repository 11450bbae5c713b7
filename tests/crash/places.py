"""``python -m tests.crash.places``: full disks, folders that may not be written, four processes of one command.

    python -m tests.crash.places --work DIR [full|readonly|together] [--only NAME,NAME]

Needs root and Linux: a full disk is a small tmpfs, and a folder that may not be written a bind mount for reading. A
command on a full disk has to end with status 1, the folder, its free space and the remedy, without a traceback, and to
give what the undisturbed one gives when it is repeated with room.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.attack.session import progress
from tests.crash.cases import SMALL, Case, Crashes
from tests.crash.look import Reference

SHARES = (0.03, 0.3, 0.6, 0.85)  # of what the undisturbed command writes
READONLY = ("everything", "the cache", "the cache, filled before", "everything, which is done")


@dataclass
class Places:
    """The session, and the cases of every command that writes something."""

    session: Crashes

    def cases(self) -> list[Case]:
        session, work = self.session, self.session.work
        known = session.cases()
        run, other = session.run("known", ()), session.phantom("head_ct", 16, 3)
        rsna = session.phantom("rsna", 8, 0)
        slices = session.run("rsna", ["data=rsna", f"data.root={rsna}", "task=subtypes", "channels=brain"])
        fit = ["data=head_ct", f"data.root={other}", "name=one", *SMALL, "logger=csv"]
        return [
            Case("index", ["index", "data=head_ct", f"data.root={other}", "out=index"]),
            known["prepare"],
            Case("train", ["train", *fit]),
            Case("train, TensorBoard", ["train", *fit, "logger=tensorboard"]),
            Case("train, embeddings", known["embeddings"].argv),
            known["predict"],
            Case(
                "predict, pages", ["predict", f"run={run}", f"input={other / 'head_ct'}", "out=out", "page=true"], True
            ),
            Case("evaluate", ["evaluate", f"run={run}", "data=head_ct", f"data.root={other}", "out=other"]),
            Case("explain", ["explain", f"run={run}", "out=maps", "slices=4"], True),
            known["export"],
            Case("export, torch", ["export", f"run={run}", "out=model.pt2", "format=torch", "check=8"]),
            Case("compare", ["compare", f"{work / 'runs' / 'known'}", "out=table"]),
            Case("submit", ["submit", f"run={slices}", f"data.root={rsna}", "out=submission.csv"]),
            Case("doctor", ["doctor", f"run={run}"]),
            Case("doctor, share", ["doctor", f"run={run}", "share=true"]),
            Case("phantom", "phantom layout=head_ct out=set patients=6 seed=1".split()),
        ]

    def full(self, only: str) -> bool:
        """Every command on disks that fill up; whether all did as they should."""
        place, good = self.session.work / "small", True
        print("| command | bytes written | disks | clear errors | equal when repeated | left over |")
        print("|---|---:|---:|---:|---:|---:|")
        for case in self.cases():
            if not asked(case, only):
                continue
            kept = [self.session.work / f"kept{index}" for index in range(2)]
            for folder in kept:
                shutil.rmtree(folder, ignore_errors=True)
                with disk(place, 1 << 30):
                    status, text = self.call(case, place)
                    if status:
                        raise RuntimeError(f"{case.name}: {status}\n{text}")
                    shutil.copytree(place, folder)
            reference = Reference(kept)
            size = sum(file.stat().st_size + 4096 for file in kept[0].rglob("*"))
            tried = clear = equal = left = 0
            for share in SHARES:
                with disk(place, max(8192, int(share * size))) as grow:
                    status, text = self.call(case, place)
                    if not status:  # what is written for a while only did not go there at once
                        continue
                    tried += 1
                    fault = next((mark for mark in ("Traceback", "Error:") if mark in text), "")
                    fault = fault or next(
                        (f"no {mark!r}" for mark in ("free", "Fix:", str(place)) if mark not in text), ""
                    )
                    fault = fault if status == 1 else f"status {status}"
                    clear += not fault
                    grow()
                    again, _ = self.call(case, place)
                    found = reference.compare(place)
                    equal += again == 0 and found.equal
                    left += bool(found.leftovers)
                    if fault or again or not found.equal or found.leftovers:
                        progress(f"  {case.name} {share}: {fault or 'clear'}; again {again} {found}\n{text[-1500:]}")
            print(f"| {case.name} | {size} | {tried} | {clear} | {equal} | {left} |", flush=True)
            good &= clear == equal == tried and not left
        return good

    def call(self, case: Case, folder: Path) -> tuple[int, str]:
        """Exit status and all that it printed."""
        logs = folder.with_name(f"{folder.name}.logs")
        shutil.rmtree(logs, ignore_errors=True)
        status, _ = self.session.finish(self.session.start(case, folder))
        return status, "".join(file.read_text(errors="replace") for file in sorted(logs.iterdir()))

    def readonly(self, only: str) -> bool:
        """Commands where some folder is on a disk that is mounted for reading alone."""
        good = True
        print("| command | what cannot be written | exit status | says |\n|---|---|---:|---|")
        for case in self.cases():
            if not asked(case, only) or "," in case.name:
                continue
            for what in READONLY:
                folder = self.session.work / "readonly"
                shutil.rmtree(folder, ignore_errors=True)
                (folder / "cache").mkdir(parents=True)
                if "filled" in what or "done" in what:
                    self.call(case, folder)
                if "filled" in what:
                    for path in folder.iterdir():
                        if path.name != "cache":
                            shutil.rmtree(path) if path.is_dir() else path.unlink()
                before = set(folder.rglob("*"))
                with frozen(folder / "cache" if "the cache" in what else folder):
                    status, text = self.call(case, folder)
                fault = "Traceback" if "Traceback" in text else "" if status in (0, 1) else f"status {status}"
                fault = fault or ("no remedy" if status and "Fix:" not in text else "")
                new = [path.relative_to(folder).as_posix() for path in set(folder.rglob("*")) - before]
                left = [name for name in new if ".part." in name]  # an empty lock file stays beside a run
                fault = fault or (f"left: {left}" if left else "")
                good &= not fault
                lines = [line for line in text.splitlines() if "cannot" in line or "Read-only" in line or "Fix" in line]
                print(
                    f"| {case.name} | {what} | {status} | {fault and f'FAULT {fault} '}{' '.join(lines)[:300]} |",
                    flush=True,
                )
                if fault:
                    progress(text[-1500:])
        return good

    def together(self, only: str) -> bool:
        """Four processes of one command in one folder."""
        good = True
        print("| command | tries | equal | left over |\n|---|---:|---:|---:|")
        work = self.session.work / "together"
        for case in [*self.cases(), self.session.cases()["sweep"]]:
            if not asked(case, only) or case.name == "phantom":
                continue
            shutil.rmtree(work, ignore_errors=True)
            folders = [work / f"undisturbed{index}" for index in range(2)]
            for folder in folders:
                self.call(case, folder)
            reference, equal, left = Reference(folders), 0, 0
            for index in range(2):
                folder = work / f"four{index}"
                pids = [self.session.start(case, folder) for _ in range(4)]
                statuses = [self.session.finish(pid)[0] for pid in pids]
                found = reference.compare(folder)
                equal += found.equal and not any(statuses)
                left += bool(found.leftovers)
                if not found.equal or any(statuses) or found.leftovers:
                    progress(f"  {case.name}: {statuses} {found}; see {folder}.logs")
                    good = False
            print(f"| {case.name} | 2 | {equal} | {left} |", flush=True)
        return good


def asked(case: Case, only: str) -> bool:
    """Whether a case is one of ``--only``: names up to their comma, separated by commas; "" for all."""
    return not only or case.name.partition(",")[0] in only.split(",")


@contextmanager
def disk(place: Path, size: int) -> Iterator[object]:
    """A disk of so many bytes at a place; yields what gives it room."""
    place.mkdir(exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(place)], check=True)
    try:
        yield lambda: subprocess.run(["mount", "-o", "remount,size=1g", str(place)], check=True)
    finally:
        subprocess.run(["umount", "-l", str(place)], check=True)


@contextmanager
def frozen(place: Path) -> Iterator[None]:
    """A folder that nobody can write meanwhile; root, too, gets an error."""
    subprocess.run(["mount", "--bind", str(place), str(place)], check=True)
    try:
        subprocess.run(["mount", "-o", "remount,ro,bind", str(place)], check=True)
        yield
    finally:
        subprocess.run(["umount", "-l", str(place)], check=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="*", default=["full", "readonly", "together"])
    parser.add_argument("--work", type=Path, default=Path(".out/crash"))
    parser.add_argument("--only", default="")
    given = parser.parse_args()
    if os.geteuid():
        parser.error("root mounts the small and the read-only disks")
    places = Places(Crashes(given.work.resolve()))
    good = [getattr(places, what)(given.only) for what in given.what]
    return int(not all(good))


if __name__ == "__main__":
    sys.exit(main())
