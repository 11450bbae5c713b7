"""Files that divide patients, and divisions that cannot be."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from tests.attack.case import Case, Judge, Trained, accepted, refused, told
from tests.attack.tables import PATIENTS, manifest

KIND = "splits"
TRAIN = ["backbone.name=test_efficientnet", "backbone.pretrained=false", "data.image_size=32", "data.batch_size=8",
         "trainer.max_epochs=1", "trainer.threads=1", "logger=none", "output_dir=runs", "name=r",
         "optimizer.schedule.warmup_epochs=0", "split.duplicates=exact"]  # fmt: skip


def lines(parts: dict[int, str] | None = None) -> list[str]:
    """Patients of :func:`manifest` in train, val and test; ``parts`` says otherwise for some."""
    usual = ["train"] * 12 + ["val"] * 4 + ["test"] * 4
    return [f"p{place:02d},{(parts or {}).get(place, usual[place])}" for place in range(PATIENTS)]


HEADER = "patient_id,split"
FILES: dict[str, tuple[Callable[[], bytes], Judge]] = {
    "good": (lambda: _csv(lines()), accepted()),
    "a patient on two sides": (lambda: _csv([*lines(), "p00,test"]), refused("p00")),
    "a patient twice on one side": (lambda: _csv([*lines(), "p00,train"]), told("p00|test|metric")),
    "a patient who is not there": (lambda: _csv([*lines(), "zz,test"]), told("zz")),
    "a patient missing": (lambda: _csv(lines()[1:]), refused("p00")),
    "a part that is none": (lambda: _csv(lines({3: "holdout"})), refused("holdout")),
    "a part in capitals": (lambda: _csv(lines({3: "Train"})), told("Train|test|metric")),
    "an empty part": (lambda: _csv(lines({3: ""})), refused("p03|split")),
    "no test patients": (lambda: _csv(lines(dict.fromkeys(range(16, 20), "train"))), refused("test")),
    "no validation patients": (lambda: _csv(lines(dict.fromkeys(range(12, 16), "train"))), refused("val")),
    "no training patients": (lambda: _csv(lines(dict.fromkeys(range(12), "val"))), refused("train")),
    "one class in the test part": (
        lambda: _csv(lines({16: "test", 17: "train", 18: "test", 19: "train"})),
        told("test|positive|negative"),
    ),
    "ids that differ in zeros": (lambda: _csv([line.replace("p0", "p") for line in lines()]), refused("p0|p00")),
    "other columns": (lambda: b"patient,part\n" + _csv(lines()).split(b"\n", 1)[1], refused("patient_id|split")),
    "header alone": (lambda: _csv([]), refused("p00|empty|no ")),
    "empty": (lambda: b"", refused("split.csv|empty")),
    "UTF-16": (lambda: _csv(lines()).decode().encode("utf-16"), told("UTF-16|test|metric")),
    "null bytes": (lambda: _csv(lines()).replace(b"p05", b"p\x005"), refused("split|p05|NUL|null")),
    "bytes at random": (lambda: bytes(range(256)) * 4, refused("s.csv")),
}
KEYS: dict[str, tuple[list[str], Judge]] = {
    "file missing": (["split=file", "split.file=none.csv"], refused("none.csv")),
    "no file": (["split=file"], refused("split.file")),
    "folds 1": (["split=kfold", "split.folds=1"], refused("folds")),
    "folds 1000": (["split=kfold", "split.folds=1000"], refused("folds|patients")),
    "fold beyond the folds": (["split=kfold", "split.folds=5", "split.fold=5"], refused("fold")),
    "fold -1": (["split=kfold", "split.folds=5", "split.fold=-1"], refused("fold")),
    "test fraction 0": (["split.test_fraction=0"], refused("test_fraction")),
    "test fraction 1": (["split.test_fraction=1"], refused("test_fraction")),
    "test fraction NaN": (["split.test_fraction=nan"], refused("test_fraction")),
    "fractions of a half and a half of the rest": (["split.test_fraction=0.5", "split.val_fraction=0.5"], accepted()),
    "test fraction 0.001": (["split.test_fraction=0.001"], told("test")),
    "by slices": (["split.by=slice"], told("patient|leak")),
    "by something": (["split.by=hospital"], refused("split.by", "hospital")),
    "duplicates of something": (["split.duplicates=some"], refused("split.duplicates")),
    "seed -1": (["split.seed=-1"], told("seed|test|metric")),
}


def _csv(rows: list[str]) -> bytes:
    return ("\n".join([HEADER, *rows]) + "\n").encode()


def cases() -> list[Case]:
    """``train``, one epoch of a tiny network."""
    found = []
    for name, (content, judge) in FILES.items():

        def by_file(folder: Path, trained: Trained, content: Callable[[], bytes] = content) -> list[str]:
            (folder / "s.csv").write_bytes(content())
            file = manifest(folder / "in")
            return [
                "train",
                "data=table",
                f"data.manifest={file}",
                "split=file",
                f"split.file={folder / 's.csv'}",
                *TRAIN,
            ]

        found.append(Case(KIND, f"file: {name}", by_file, judge))
    for name, (words, judge) in KEYS.items():

        def by_keys(folder: Path, trained: Trained, words: list[str] = words) -> list[str]:
            return ["train", "data=table", f"data.manifest={manifest(folder / 'in')}", *TRAIN, *words]

        found.append(Case(KIND, name, by_keys, judge))
    return found
