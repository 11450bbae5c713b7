"""A mirrored head has its sides exchanged: from the files of a task with sides to the loss and the probabilities."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from hemlearn.config.compose import compose
from hemlearn.phantom.layouts import write_phantom
from hemlearn.phantom.slab import Grid
from hemlearn.training.build import assemble, build_datamodule
from tests.data.readers.files import nifti_head
from tests.datamodules.slices import module, reasons

FLIP = "augmentation.steps=[{_target_: kornia.augmentation.RandomHorizontalFlip, p: 1.0}]"


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("ganglia") / "set"
    write_phantom(
        "basal_ganglia", out, patients=18, seed=4, grid=Grid(rows=48, cols=48, pixel_mm=4.8, slices=12, samples=1)
    )
    return out


def build(root: Path, *overrides: str) -> tuple[Any, Any]:
    config = compose(
        [
            "data=basal_ganglia",
            f"data.root={root}",
            "task=basal_ganglia",
            "loss=cross_entropy",
            "backbone.name=test_efficientnet",
            "backbone.pretrained=false",
            "data.image_size=48",
            "split.val_fraction=0.35",
            "split.test_fraction=0.35",
            *overrides,
        ]
    )
    return assemble(config, build_datamodule(config))


def test_training_exchanges_left_and_right_and_keeps_none(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    task, data = build(root, FLIP)
    batch = next(iter(data.train_dataloader()))
    seen: list[tuple[torch.Tensor, torch.Tensor]] = []
    given: list[torch.Tensor] = []
    monkeypatch.setattr(
        task.backbone,
        "forward",
        lambda images: given.append(images) or torch.zeros(len(images), task.backbone.embedding_dim),
    )
    monkeypatch.setattr(task.loss, "forward", lambda logits, target: seen.append((logits, target)) or logits.sum())
    monkeypatch.setattr(task, "checked", lambda loss, *_: loss)
    task.train().training_step(batch, 0)
    assert torch.allclose(given[0], task.channels(batch["image"]).flip(-1))
    assert torch.equal(seen[0][1], batch["label"][:, [0, 2, 1]])
    assert batch["label"].sum(0).gt(0).all()  # all three classes were there


def test_averaging_over_flips_gives_a_mirrored_head_the_other_side(root: Path) -> None:
    task, data = build(root, "task.tta=[horizontal]", "augmentation=none")
    task.eval()
    image = next(iter(data.val_dataloader()))["image"]
    with torch.no_grad():
        straight, mirrored = task.probabilities(image), task.probabilities(image.flip(-1))
    assert torch.allclose(mirrored, straight[:, [0, 2, 1]], atol=1e-5)
    assert not torch.allclose(straight[:, 1], straight[:, 2], atol=1e-6)


def test_a_volume_whose_forms_contradict_each_other_about_sides_is_refused_where_sides_count(tmp_path: Path) -> None:
    right = np.diag([2.0, 2.0, 5.0, 1.0])
    for name in ("a", "b"):
        nifti_head(tmp_path / f"{name}.nii", right, right if name == "a" else right @ np.diag([-1.0, 1, 1, 1]))
    (tmp_path / "labels.csv").write_text("patient_id,side\na,left\nb,right\n")
    manifest = module("basal_ganglia", tmp_path, "task=basal_ganglia", "loss=cross_entropy").manifest
    assert set(manifest.table["path"]) == {"a.nii"}
    assert "contradict each other about left and right" in reasons(manifest)["b.nii"]
