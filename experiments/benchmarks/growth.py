"""Seconds and peak memory of every step that sees a whole data set, at 1 %, 10 % and 100 % of the size of RSNA 2019.

    python experiments/benchmarks/growth.py                     # all three sizes, about 20 minutes on two cores
    python experiments/benchmarks/growth.py --sizes 7500 75000

The tables are drawn, without pixels: series of 25 to 60 slices, labels about as frequent as RSNA's, and perceptual
hashes whose distances between patients fall off as those of CT-ICH do. Two in a thousand series are planted copies of
others, with as many hash bits turned as re-exports turn. Every step runs in a process of its own that is forked from
one with the table; its memory is what it holds beyond that. Near linear means: ten times the rows take at most fifteen
times the processor time, or less than two seconds.
"""

from __future__ import annotations

import argparse
import os
import resource
import tempfile
import time
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from hemlearn.config.schema import SplitConfig, TaskConfig
from hemlearn.data import duplicates
from hemlearn.data.batches import balanced_weights, neighbour_stack
from hemlearn.data.manifest import Manifest
from hemlearn.data.scan_cache import HASH_SIDE
from hemlearn.data.splits import make_split
from hemlearn.datamodules.rsna import LABELS, read_labels
from hemlearn.evaluation.metrics import evaluate
from hemlearn.evaluation.predictions import read_predictions, write_predictions

SIZES = (7_500, 75_000, 752_803)
FREQUENCY = dict(zip(LABELS[:-1], (0.004, 0.048, 0.035, 0.047, 0.063), strict=True))  # of slices, about
COPIES = 0.002  # of the series
TESTED = 0.161  # of the slices: RSNA's second stage, 121,232 of 752,803
WEIGHTS = [1.0] * (len(LABELS) - 1) + [2.0]


def draw(size: int, seed: int = 0) -> tuple[pd.DataFrame, list[tuple[str, str]]]:
    """A manifest's table of about ``size`` slices, and the pairs of series that are copies.

    Hashes: a few hundred head shapes, each a random walk of levels; a series takes one and turns 15 to 25 % of its bits
    (two patients), a copy 2 to 12 % of the original's (a re-export, crop or other window).
    """
    rng = np.random.default_rng(seed)
    levels, bits = 60, HASH_SIDE**2
    shapes = np.cumsum(rng.random((300, levels, bits)) < 0.08, axis=1) % 2 == rng.integers(0, 2, (300, 1, bits))
    lengths: list[int] = []
    while sum(lengths) < size:
        lengths.append(int(rng.integers(25, levels + 1)))
    owner = np.repeat(np.arange(len(lengths)), lengths)
    codes = []
    for length in lengths:
        shape = shapes[rng.integers(len(shapes))][:length]
        codes.append(shape ^ (rng.random(shape.shape) < rng.uniform(0.15, 0.25)))
    copied = []
    for one in rng.choice(len(lengths), max(2, int(COPIES * len(lengths))), replace=False):
        two = int(rng.integers(len(lengths)))
        if two != one:
            shared = min(lengths[one], lengths[two])
            turned = rng.random((shared, bits)) < rng.uniform(0.02, 0.12)
            codes[two] = np.concatenate([codes[one][:shared] ^ turned, codes[two][shared:]])
            copied.append((f"s{min(one, two):06d}", f"s{max(one, two):06d}"))
    packed = np.packbits(np.concatenate(codes), axis=1)
    series = np.char.add("s", np.char.zfill(owner.astype(str), 6)).astype(object)
    place = np.concatenate([np.arange(length) for length in lengths])
    ids = np.array([f"{name}/{item:03d}" for name, item in zip(series, place, strict=True)], dtype=object)
    table = pd.DataFrame(
        {
            "slice_id": ids,
            "patient_id": np.char.add("p", np.char.zfill((owner * 100 // 115).astype(str), 6)).astype(object),
            "study_id": series,
            "series_id": series,
            "z_mm": place * 5.0,
            "path": ids + ".dcm",
            "frame": 0,
            "modality": "CT",
            "height": 512,
            "width": 512,
            "content": [row.tobytes().hex() for row in rng.integers(0, 256, (len(ids), 16), dtype=np.uint8)],
            "phash": [row.tobytes().hex() for row in packed],
            "head_box": "20 490 60 450",
        }
    )
    ill = rng.random(len(lengths)) < 0.4  # bleeding comes in runs of slices of some series
    for label, share in FREQUENCY.items():
        table[label] = (ill[owner] & (rng.random(len(ids)) < share / 0.4)).astype(float)
    table[LABELS[-1]] = table[list(FREQUENCY)].max(axis=1)
    return table, copied


def predictions(table: pd.DataFrame) -> pd.DataFrame:
    """Test predictions of RSNA's share of the slices, and as many validation slices as a tenth of them."""
    rng = np.random.default_rng(1)
    names = table["series_id"].drop_duplicates().to_numpy()
    part = pd.Series("train", index=names)
    part.iloc[: int(TESTED * len(names))] = "test"
    part.iloc[int(TESTED * len(names)) : int(1.1 * TESTED * len(names)) + 2] = "val"
    where = part.loc[table["series_id"]].to_numpy()
    kept = table[where != "train"]
    made = kept[["patient_id", "series_id", "slice_id", "z_mm"]].reset_index(drop=True)
    made.insert(0, "split", where[where != "train"])
    for label in LABELS:
        truth = kept[label].to_numpy()
        made[f"label_{label}"] = truth
        made[f"prob_{label}"] = 1 / (1 + np.exp(-(rng.normal(-3, 1, len(truth)) + 3 * truth)))
    return made


def original(table: pd.DataFrame, file: Path) -> None:
    """RSNA's label file: six rows per image."""
    images = [f"ID_{number:09x}" for number in range(len(table))]
    names = [f"{image}_{label}" for image in images for label in LABELS]
    values = table[list(LABELS)].to_numpy(np.int64).ravel()
    pd.DataFrame({"ID": names, "Label": values}).to_csv(file, index=False)


def steps(table: pd.DataFrame, copied: Sequence[tuple[str, str]], folder: Path) -> dict[str, Callable[[], str]]:
    """What is timed, by name; each returns what is worth telling."""
    skipped = pd.DataFrame(columns=["item", "reason"])
    manifest = Manifest(table, skipped, LABELS, folder, "rsna")
    task = TaskConfig(name="subtypes", kind="multilabel", labels=list(LABELS), label_weights=WEIGHTS)
    tested = predictions(table)
    original(table, folder / "stage_2_train.csv")
    manifest.save(folder / "manifest")
    write_predictions(tested, folder / "predictions.parquet")
    alone = pd.Series(np.arange(len(table)))

    def checksum() -> str:
        return Manifest(table, skipped, LABELS, folder, "rsna").checksum[:8]

    def save() -> str:
        manifest.save(folder / "saved")
        return f"{sum(file.stat().st_size for file in (folder / 'saved').iterdir()) / 2**20:.0f} MiB"

    def load() -> str:
        return f"{len(Manifest.load(folder / 'manifest').table):,} rows"

    def copies() -> str:
        found = duplicates._candidates(table, [])
        series = table["series_id"].to_numpy()
        pairs = {(min(series[a], series[b]), max(series[a], series[b])) for a, b in found}
        hit = len(pairs & set(copied))
        return f"{hit} of {len(set(copied))} planted pairs of series, {len(pairs) - hit} others to compare by pixels"

    def division(name: str) -> Callable[[], str]:
        def run() -> str:
            split = make_split(manifest, SplitConfig(name=name, folds=5), groups=alone)
            return f"{(split.assignment['split'] == 'test').mean():.3f} tested"

        return run

    def stack() -> str:
        rows = np.arange(len(table))
        return str(neighbour_stack(table["series_id"].to_numpy(), table["z_mm"].to_numpy(), rows, 1).shape)

    def draws() -> str:
        weights: NDArray[np.float64] = balanced_weights(table[list(LABELS)].to_numpy(np.float32))
        chosen = np.random.default_rng(0).choice(len(weights), len(weights), p=weights / weights.sum())
        return f"{len(np.unique(chosen)):,} different slices"

    def labels() -> str:
        return f"{len(read_labels(folder / 'stage_2_train.csv')[0]):,} images"

    def store() -> str:
        write_predictions(tested, folder / "again.parquet")
        return f"{len(read_predictions(folder / 'again.parquet')):,} rows"

    def metrics() -> str:
        found = evaluate(tested, task)["test"]["slice"]
        return f"weighted log loss {found['weighted_log_loss']['value']:.4f}, {len(tested):,} slices"

    return {
        "check and checksum of the manifest": checksum,
        "manifest: save": save,
        "manifest: load": load,
        "near copies, all against all": copies,
        "split: holdout": division("holdout"),
        "split: kfold": division("kfold"),
        "split: monte_carlo": division("monte_carlo"),
        "neighbouring slices": stack,
        "balanced draws of one epoch": draws,
        "RSNA's label file": labels,
        "predictions.parquet: write and read": store,
        "metrics with clustered intervals": metrics,
    }


def measured(step: Callable[[], str]) -> dict[str, Any]:
    """Processor seconds, wall seconds and memory (MiB beyond the start) of a step in a process of its own."""
    receive, send = os.pipe()
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            cpu, wall = time.process_time(), time.perf_counter()
            told = step()
            cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
            more = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
            os.write(send, f"{cpu}|{wall}|{more}|{told}".encode())
            status = 0
        finally:
            os._exit(status)
    os.close(send)
    with os.fdopen(receive, encoding="utf-8") as pipe:
        answer = pipe.read()
    if os.waitpid(pid, 0)[1]:
        raise SystemExit("a step failed, see above")
    *numbers, told = answer.split("|", 3)
    return dict(zip(("cpu", "wall", "mib"), map(float, numbers), strict=True)) | {"told": told}


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, and print a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=SIZES)
    given = parser.parse_args(argv)
    rows: dict[str, list[dict[str, Any]]] = {}
    for size in given.sizes:
        table, copied = draw(size)
        with tempfile.TemporaryDirectory() as folder:
            for name, step in steps(table, copied, Path(folder)).items():
                rows.setdefault(name, []).append(measured(step) | {"rows": len(table)})
                print(f"# {len(table):,} rows, {name}: {rows[name][-1]}", flush=True)
    sizes = [entry["rows"] for entry in next(iter(rows.values()))]
    print("| step | " + " | ".join(f"{size:,} rows: CPU s, MiB" for size in sizes) + " | result at the largest |")
    print("|---" * (len(sizes) + 2) + "|")
    bad = []
    for name, found in rows.items():
        cells = [f"{one['cpu']:.2f}, {one['mib']:.0f}" for one in found]
        print(f"| {name} | " + " | ".join(cells) + f" | {found[-1]['told']} |")
        for small, large in pairwise(found):
            limit = 1.5 * small["cpu"] * large["rows"] / small["rows"]
            if large["cpu"] > max(2.0, limit) and name != "near copies, all against all":
                bad.append(f"{name}: {small['cpu']:.2f} s, then {large['cpu']:.2f} s")
    print("every step but the search of all pairs is near linear" if not bad else "not near linear: " + "; ".join(bad))
    return 1 if bad else 0


if __name__ == "__main__":
    raise SystemExit(main())
