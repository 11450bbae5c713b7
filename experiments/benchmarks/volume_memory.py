"""Private memory of what volumes need: preparing a large set and an epoch over it, and end-to-end training.

python experiments/benchmarks/volume_memory.py store        # 2,000 against 20,000 slices: prepare + one epoch
python experiments/benchmarks/volume_memory.py end_to_end   # a 40-slice series at 256 px through EfficientNet-Lite0
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

SLICES, SIDE = 40, 256  # per volume; pixels


def write_set(root: Path, slices: int) -> None:
    """A CT set of raw NIfTI volumes with random HU: cheap to write, and no two slices are alike."""
    import nibabel
    import pandas as pd

    rng = np.random.default_rng(0)
    rows = []
    for patient in range(slices // SLICES):
        volume = rng.integers(-20, 90, (SIDE, SIDE, SLICES)).astype(np.int16)
        volume[:20] = -1000
        nibabel.save(nibabel.Nifti1Image(volume, np.diag([0.9, 0.9, 5.0, 1.0])), root / f"{patient:04d}.nii")
        rows += [
            {
                "path": f"{patient:04d}.nii",
                "frame": frame,
                "patient_id": f"{patient:04d}",
                "slice_id": f"{patient:04d}_{frame:02d}",
                "bleed": int(patient % 2 and 10 < frame < 20),
            }
            for frame in range(SLICES)
        ]
    pd.DataFrame(rows).to_csv(root / "set.csv", index=False)


def private_mib() -> float:
    """Private memory of this process now, MiB (Linux: unique set size)."""
    import psutil  # type: ignore[import-untyped]

    return float(psutil.Process().memory_full_info().uss) / 2**20


def measure(root: Path) -> None:
    """Prepare the set and pass once over its training slices; print the growth of private memory."""
    from hemlearn.config.compose import compose
    from hemlearn.training.build import build_datamodule

    config = compose(
        [
            "data=table",
            f"data.manifest={root / 'set.csv'}",
            "task.labels=[bleed]",
            "data.image_size=224",
            "data.batch_size=32",
            f"data.cache_dir={root / 'cache'}",
            "split.duplicates=exact",
        ]
    )
    before = private_mib()
    data = build_datamodule(config)
    data.prepare_data()
    prepared = private_mib()
    seen = sum(len(batch["index"]) for batch in data.train_dataloader())
    print(
        f"{len(data.manifest.table)} slices: prepare +{prepared - before:.0f} MiB, with an epoch over {seen} slices "
        f"+{private_mib() - before:.0f} MiB"
    )


def end_to_end() -> None:
    """Peak resident memory of training steps with the CNN in the graph."""
    import resource
    import time
    from typing import Any, cast

    import torch

    from hemlearn.config.compose import compose
    from hemlearn.data.batches import SeriesBatch
    from hemlearn.training.build import build_task

    config = compose(["experiment=rsna_end_to_end", "data.image_size=256"])
    task = build_task(config, unit="HU", positives=[[5.0] * 6] * 2, negatives=[[50.0] * 6] * 2).train()
    cast(Any, task.features).pass_through()
    task.log = lambda *_, **__: None  # type: ignore[method-assign]
    optimizer = torch.optim.AdamW(task.parameters(), lr=1e-4)
    batch = SeriesBatch(
        index=torch.arange(40),
        lengths=torch.tensor([40]),
        label=torch.zeros(40, 6),
        series_label=torch.zeros(1, 6),
        z_mm=torch.arange(40) * 5.0,
        image=torch.randint(-100, 100, (40, 1, 256, 256), dtype=torch.int16),
    )
    for step in range(3):
        began = time.perf_counter()
        optimizer.zero_grad()
        torch.autograd.backward(cast(torch.Tensor, task.training_step(batch, step)))
        optimizer.step()
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        print(f"step {step + 1}: {time.perf_counter() - began:.1f} s, peak resident memory {peak:.2f} GiB")


def main() -> None:
    """Run one of the two; each set in a process of its own, so that nothing is carried over."""
    kind = sys.argv[1] if len(sys.argv) > 1 else ""
    if kind == "measure":
        measure(Path(sys.argv[2]))
    elif kind == "end_to_end":
        end_to_end()
    elif kind == "store":
        for slices in (2_000, 20_000):
            with tempfile.TemporaryDirectory() as folder:
                write_set(Path(folder), slices)
                subprocess.run([sys.executable, __file__, "measure", folder], check=True)
    else:
        raise SystemExit(__doc__)


if __name__ == "__main__":
    main()
