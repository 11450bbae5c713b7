"""What a job of a sweep costs beside its training: forty tiny runs, and twenty models on one set of embeddings.

    python experiments/benchmarks/sweep_speed.py tiny         # 40 runs of Hydra's own launcher and of joblib's
    python experiments/benchmarks/sweep_speed.py sequence     # 20 sequence models: their embeddings are computed once

tiny: a network of 0.1 million weights, 14 slices of 64 px, one epoch; each run writes everything that a run writes.
Overhead is what the sweep takes beside the ``fit_seconds`` of its runs, per run after the first of each process: a
sweep of one run (joblib: of two, one in each process) is measured before, and taken off.

sequence: the commands as a user gives them, `hemlearn prepare embeddings=true` and then `hemlearn train -m` over four
models and five folds; a ResNet-50 at 256 px, whose weights are random, since only time is measured. How much the jobs
add depends on the network (the smaller, the more) and little on the number of slices. One run: there are no five pairs.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import timm
import torch
from turns import hemlearn, seconds

TINY = (
    *("backbone.name=test_efficientnet", "backbone.pretrained=false", "data.phantom_patients=20", "data.image_size=64"),
    *("data.batch_size=8", "augmentation=none", "trainer.max_epochs=1", "logger=none"),
)
LAUNCHERS = {1: (), 2: ("hydra/launcher=joblib", "hydra.launcher.n_jobs=2")}  # by the number of runs at a time
MODELS = "sequence=slice,mean,lstm,gru"
NETWORK = ("backbone=resnet50", "data.image_size=256")


def fitted(folder: Path) -> list[float]:
    """Seconds of training of each complete run below a folder."""
    found = [json.loads(file.read_text())["cost"] for file in folder.rglob("provenance.json")]
    return [cost["fit_seconds"] for cost in found]


def timed(work: Callable[[], object]) -> tuple[float, float]:
    """Wall and processor seconds."""
    return seconds(lambda: 1 if work() is not None else 0)[1:]


def tiny(jobs: int, folder: Path) -> None:
    """Sweeps of so many tiny runs through each launcher."""
    cache = folder / "cache"
    hemlearn("prepare", *TINY[2:4], cache=cache)
    print(f"{jobs} runs of each launcher")
    print("| runs at a time | s | processor s | sum of fits, s | overhead per job, s (processor s), aim: 1.5 |")
    print("|---" * 5 + "|")
    for at_once, launcher in LAUNCHERS.items():

        def sweep(count: int, launcher: tuple[str, ...] = launcher) -> tuple[float, float, float]:
            into = folder / f"runs{len(launcher)}-{count}"
            seeds = f"seed={','.join(map(str, range(count)))}"
            spent = timed(lambda: hemlearn("train", "-m", *TINY, seeds, f"output_dir={into}", *launcher, cache=cache))
            fits = fitted(into)
            assert len(fits) == count
            return *spent, sum(fits)

        start, every = sweep(at_once), sweep(jobs)
        wall, cpu, fits = (whole - part for whole, part in zip(every, start, strict=True))
        own = (wall - fits / at_once) / (jobs - at_once) * at_once, (cpu - fits) / (jobs - at_once)
        print(
            f"| {at_once} | {every[0]:.0f} | {every[1]:.0f} | {every[2]:.1f} | {own[0]:.2f} ({own[1]:.2f}) |",
            flush=True,
        )


def sequence(series: int, words: Sequence[str], folder: Path) -> None:
    """Twenty jobs on one embedding pass."""
    cache = folder / "cache"
    weights = folder / "resnet50.pth"
    torch.save(timm.create_model("resnet50").state_dict(), weights)
    base = ("experiment=rsna_small", f"data.phantom_patients={series}", "logger=none", *NETWORK, *words)
    shown, base = " ".join(base), (*base, f"backbone.weights={weights}")
    hemlearn("prepare", *base, cache=cache)
    wall, cpu = timed(lambda: hemlearn("prepare", *base, "embeddings=true", cache=cache))
    sweep = ("train", "-m", *base, MODELS, "split.fold=0,1,2,3,4", f"output_dir={folder / 'runs'}")
    more, more_cpu = timed(lambda: hemlearn(*sweep, cache=cache))
    fits = fitted(folder / "runs")
    assert len(fits) == 20
    print(f"{series} series, {shown}")
    print("| | seconds | processor seconds |\n|---|---|---|")
    print(f"| one embedding pass (`hemlearn prepare embeddings=true`) | {wall:.0f} | {cpu:.0f} |")
    print(f"| 20 jobs on it (`hemlearn train -m`), of which training {sum(fits):.0f} s | {more:.0f} | {more_cpu:.0f} |")
    ratios = (wall + more) / wall, (cpu + more_cpu) / cpu
    print(f"| pass and jobs / pass (aim: at most 1.3) | **{ratios[0]:.2f}** | **{ratios[1]:.2f}** |", flush=True)


def main(argv: Sequence[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=("tiny", "sequence"))
    parser.add_argument("words", nargs="*", metavar="KEY=VALUE", help="sequence: further words of hemlearn train")
    parser.add_argument("--jobs", type=int, default=40, help="tiny: runs of each launcher")
    parser.add_argument("--series", type=int, default=40, help="sequence: of the synthetic set")
    given = parser.parse_intermixed_args(argv)
    with tempfile.TemporaryDirectory() as name:
        if given.part == "tiny":
            tiny(given.jobs, Path(name))
        else:
            sequence(given.series, given.words, Path(name))


if __name__ == "__main__":
    main()
