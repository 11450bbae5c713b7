"""Seconds and peak memory of every step that sees a whole data set, at 1 %, 10 % and 100 % of the size of RSNA 2019.

    python experiments/benchmarks/growth.py                     # all three sizes, about 20 minutes on two cores
    python experiments/benchmarks/growth.py --sizes 7500 75000
    python experiments/benchmarks/growth.py --images ../shared/data/ct_ich --steps near  # copies of other pictures

The tables are drawn, without pixels: series of 25 to 60 slices, labels about as frequent as RSNA's, and perceptual
hashes whose distances between patients fall off as those of CT-ICH do. Among them lie the hashes of the pictures in
``--images`` (a folder in CT-ICH's layout; by default the synthetic one) and of their copies under another patient's
name: exported anew (512 pixels, JPEG quality 70), cropped, shown through another window, and all three. Recall is
counted after the comparison of pixels, as ``split.duplicates=near`` does it. Every step runs in a process of its own
that is forked from one with the table; its memory is what it holds beyond that. Near linear means: ten times the rows
take at most fifteen times the processor time, or less than two seconds.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import resource
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from PIL import Image

from hemlearn.__main__ import main as hemlearn
from hemlearn.config.compose import compose
from hemlearn.config.schema import SplitConfig, TaskConfig, to_dict
from hemlearn.data import duplicates
from hemlearn.data.batches import balanced_weights, neighbour_stack
from hemlearn.data.manifest import Manifest
from hemlearn.data.scan_cache import HASH_SIDE, head_thumbnail, phash_of
from hemlearn.data.splits import make_split
from hemlearn.datamodules.rsna import LABELS, read_labels
from hemlearn.evaluation.metrics import evaluate
from hemlearn.evaluation.predictions import read_predictions, write_predictions
from hemlearn.phantom.layouts import write_phantom
from hemlearn.training.folder import RunFolder
from hemlearn.util.files import write_json

SIZES = (7_500, 75_000, 752_803)
FREQUENCY = dict(zip(LABELS[:-1], (0.004, 0.048, 0.035, 0.047, 0.063), strict=True))  # of slices, about
TESTED = 0.161  # of the slices: RSNA's second stage, 121,232 of 752,803
RUNS = 24
WEIGHTS = [1.0] * (len(LABELS) - 1) + [2.0]


def draw(size: int, seed: int = 0) -> pd.DataFrame:
    """A manifest's table of about ``size`` slices.

    Hashes: a few hundred head shapes, each a random walk of levels; a series takes one and turns 15 to 25 % of its
    bits, as another patient's does.
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
    packed = np.packbits(np.concatenate(codes), axis=1)
    place = np.concatenate([np.arange(length) for length in lengths])
    hashes = [row.tobytes().hex() for row in packed]
    table = frame(names("s", owner), names("p", owner * 100 // 115), place, hashes, rng)
    ill = rng.random(len(lengths)) < 0.4  # bleeding comes in runs of slices of some series
    for label, share in FREQUENCY.items():
        table[label] = (ill[owner] & (rng.random(len(table)) < share / 0.4)).astype(float)
    table[LABELS[-1]] = table[list(FREQUENCY)].max(axis=1)
    return table


def names(letter: str, numbers: NDArray[np.int64]) -> NDArray[Any]:
    """A letter and six digits each."""
    return np.char.add(letter, np.char.zfill(numbers.astype(str), 6)).astype(object)


def frame(
    series: NDArray[Any], patients: NDArray[Any], place: NDArray[np.int64], hashes: list[str], rng: np.random.Generator
) -> pd.DataFrame:
    """The columns of a manifest without labels."""
    ids = np.array([f"{name}/{item:03d}" for name, item in zip(series, place, strict=True)], dtype=object)
    return pd.DataFrame(
        {
            "slice_id": ids,
            "patient_id": patients,
            "study_id": series,
            "series_id": series,
            "z_mm": place * 5.0,
            "path": ids + ".dcm",
            "frame": 0,
            "modality": "CT",
            "height": 512,
            "width": 512,
            "content": [row.tobytes().hex() for row in rng.integers(0, 256, (len(ids), 16), dtype=np.uint8)],
            "phash": hashes,
            "head_box": "20 490 60 450",
        }
    )


# --- Pictures and their copies.


def exported(image: Image.Image) -> Image.Image:
    """At 512 pixels, JPEG quality 70."""
    file = io.BytesIO()
    image.resize((512, 512), Image.Resampling.BICUBIC).save(file, "JPEG", quality=70)
    return Image.open(file)


def cropped(image: Image.Image) -> Image.Image:
    """Without an uneven part of the margin: 3 to 6 % of each side."""
    width, height = image.size
    return image.crop((int(0.03 * width), int(0.05 * height), int(0.94 * width), int(0.96 * height)))


def windowed(image: Image.Image) -> Image.Image:
    """Through a window of 70 % of the width and a somewhat higher centre."""
    return Image.fromarray(np.clip((np.asarray(image) - 45.0) / 0.7, 0, 255).astype(np.uint8))


KINDS: dict[str, Callable[[Image.Image], Image.Image]] = {
    "re-exported": exported,
    "cropped": cropped,
    "re-windowed": windowed,
    "all three": lambda image: exported(windowed(cropped(image))),
}


class Pictures:
    """Series of pictures, each once as it is and once as a copy of each kind, under patients of their own.

    Args:
        folder: ``Patients_CT/PATIENT/brain/*.jpg``, as CT-ICH has them.
    """

    def __init__(self, folder: Path) -> None:
        files = sorted(folder.glob("Patients_CT/*/brain/*.jpg"))
        files = [file for file in files if file.stem.isdigit()]  # CT-ICH's masks lie beside the slices
        if not files:
            raise SystemExit(f"{folder}: no Patients_CT/*/brain/*.jpg; give CT-ICH's folder, or leave --images out")
        order = sorted(files, key=lambda file: (file.parts[-3], int(file.stem)))
        self.series: list[str] = []
        self.places: list[int] = []
        self.thumbnails: list[NDArray[np.uint8]] = []
        for kind, change in {"": lambda image: image, **KINDS}.items():
            for file in order:
                with Image.open(file) as image:
                    thumbnail = head_thumbnail(np.asarray(change(image.convert("L"))))
                if thumbnail is not None:
                    self.series.append(f"{file.parts[-3]} {kind}")
                    self.places.append(int(file.stem))
                    self.thumbnails.append(thumbnail)

    def rows(self) -> pd.DataFrame:
        """As rows of a manifest's table."""
        own = np.array(self.series, dtype=object)
        hashes = [phash_of(thumbnail) for thumbnail in self.thumbnails]
        return frame(own, own, np.array(self.places), hashes, np.random.default_rng(2))

    def among(self, table: pd.DataFrame) -> pd.DataFrame:
        """``table`` with the pictures' rows in place of its first ones."""
        rows = self.rows().assign(**dict.fromkeys(LABELS, 0.0))
        return pd.concat([rows, table.iloc[len(rows) :]], ignore_index=True)

    def recall(self, table: pd.DataFrame, candidates: Sequence[tuple[int, int]]) -> str:
        """What the comparison of pixels leaves of the candidates: share of series and of slices found, by kind."""
        place = {(name, item): row for row, (name, item) in enumerate(zip(self.series, self.places, strict=True))}
        first = self.series.index(f"{self.series[0]}{next(iter(KINDS))}")  # the originals lie before it

        def compare(pairs: Sequence[tuple[int, int]]) -> Iterator[tuple[tuple[int, int], bool, float]]:
            for a, b in pairs:
                if min(a, b) < first and max(a, b) < len(self.series):  # an original and a copy, or two patients
                    yield (a, b), False, duplicates.detail_correlation(self.thumbnails[a], self.thumbnails[b])

        good = set(duplicates.confirmed(table, [], candidates, compare))
        told = []
        for kind in KINDS:
            slices = [
                (row, place[f"{name}{kind}", item])
                for (name, item), row in place.items()
                if name.endswith(" ") and (f"{name}{kind}", item) in place
            ]
            hit = pd.Series([pair in good for pair in slices])
            whole = hit.groupby([self.series[row] for row, _ in slices]).mean() >= duplicates.SHARED
            told.append(f"{kind} {whole.sum()} of {len(whole)} series, {hit.mean():.1%} of slices")
        strange = sum(self.series[a].partition(" ")[0] != self.series[b].partition(" ")[0] for a, b in good)
        return f"{'; '.join(told)}; {strange} pairs of slices of two patients taken for copies"


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


def finished_runs(folder: Path, tested: pd.DataFrame) -> None:
    """Twenty-four finished runs: four backbones, pretrained or not, three seeds, all on one split.

    Each is written as training writes one; its probabilities are ``tested``'s with noise of its own.
    """
    columns = [f"prob_{label}" for label in LABELS]
    logits = np.log(tested[columns] / (1 - tested[columns])).to_numpy()
    parts = tested[["patient_id", "split"]].drop_duplicates()
    for number in range(RUNS):
        rng = np.random.default_rng([3, number])
        cell, seed = divmod(number, 3)
        noisy = logits + (0.5 + 0.1 * cell) * rng.standard_normal(logits.shape)
        made = tested.assign(**dict(zip(columns, (1 / (1 + np.exp(-noisy))).T, strict=True)))
        backbone = ("resnet18", "densenet121", "efficientnet_b0", "convnext_tiny")[cell // 2]
        pretrained = "true" if cell % 2 else "false"
        config = compose(
            ["task=subtypes", "data=rsna", f"backbone={backbone}", f"backbone.pretrained={pretrained}", f"seed={seed}"]
        )
        run = RunFolder(folder, "growth", f"{number:012x}")
        with run.open(to_dict(config)):
            write_predictions(made, run.path / "predictions.parquet")
            found = evaluate(made, config.task, replicates=0)
            write_json(run.path / "metrics.json", found | {"leaky": False, "audits": {}}, allow_nan=False)
            parts.to_csv(run.path / "split.csv", index=False)
            run.best.write_bytes(b"no weights: nothing here reads them")
            run.write_provenance(checksums={"manifest": "drawn"})


def steps(table: pd.DataFrame, pictures: Pictures, folder: Path) -> dict[str, Callable[[], str]]:
    """What is timed, by name; each returns what is worth telling."""
    skipped = pd.DataFrame(columns=["item", "reason"])
    manifest = Manifest(table, skipped, LABELS, folder, "rsna")
    task = TaskConfig(name="subtypes", kind="multilabel", labels=list(LABELS), label_weights=WEIGHTS)
    tested = predictions(table)
    original(table, folder / "stage_2_train.csv")
    manifest.save(folder / "manifest")
    write_predictions(tested, folder / "predictions.parquet")
    alone = pd.Series(np.arange(len(table)))
    mixed = pictures.among(table) if len(table) > 2 * len(pictures.series) else table

    def checksum() -> str:
        return Manifest(table, skipped, LABELS, folder, "rsna").checksum[:8]

    def save() -> str:
        manifest.save(folder / "saved")
        return f"{sum(file.stat().st_size for file in (folder / 'saved').iterdir()) / 2**20:.0f} MiB"

    def load() -> str:
        return f"{len(Manifest.load(folder / 'manifest').table):,} rows"

    def copies() -> str:
        cpu = time.process_time()
        found = duplicates._candidates(mixed, [])
        told = f"{time.process_time() - cpu:.0f} s of it the search: {len(found):,} pairs for the comparison of pixels"
        return f"{told}; {pictures.recall(mixed, found)}" if mixed is not table else told

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

    def compared() -> str:
        finished_runs(folder / "runs", tested[tested["split"] == "test"])
        cpu = time.process_time()
        with contextlib.redirect_stdout(io.StringIO()):
            status = hemlearn(["compare", str(folder / "runs"), f"out={folder / 'compared'}"])
        if status:
            raise SystemExit(f"compare ended with {status}")
        return f"{time.process_time() - cpu:.1f} s of it the command, the rest 24 run folders"

    return {
        "check and checksum of the manifest": checksum,
        "manifest: save": save,
        "manifest: load": load,
        "near copies": copies,
        "split: holdout": division("holdout"),
        "split: kfold": division("kfold"),
        "split: monte_carlo": division("monte_carlo"),
        "neighbouring slices": stack,
        "balanced draws of one epoch": draws,
        "RSNA's label file": labels,
        "predictions.parquet: write and read": store,
        "metrics with clustered intervals": metrics,
        "compare 24 runs": compared,
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
    parser.add_argument("--sizes", type=int, nargs="+", default=SIZES, help="rows of the drawn tables")
    parser.add_argument("--images", type=Path, help="folder in CT-ICH's layout; without it synthetic heads")
    parser.add_argument("--steps", default="", help="only steps whose name holds this")
    given = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as folder:
        if given.images is None:
            write_phantom("ct_ich", Path(folder) / "heads", patients=20)
        pictures = Pictures(given.images or Path(folder) / "heads")
    rows: dict[str, list[dict[str, Any]]] = {}
    for size in given.sizes:
        table = draw(size)
        with tempfile.TemporaryDirectory() as folder:
            for name, step in steps(table, pictures, Path(folder)).items():
                if given.steps not in name:
                    continue
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
            if large["cpu"] > max(2.0, limit) and not name.startswith("near copies"):
                bad.append(f"{name}: {small['cpu']:.2f} s, then {large['cpu']:.2f} s")
    print("every step but the search of all pairs is near linear" if not bad else "not near linear: " + "; ".join(bad))
    return 1 if bad else 0


if __name__ == "__main__":
    raise SystemExit(main())
