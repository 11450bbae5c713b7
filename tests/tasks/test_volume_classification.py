"""The 3D task: cached and end-to-end ways agree, chunks and recomputation change nothing, series stay apart."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from hemlearn.config.compose import compose
from hemlearn.data.batches import SeriesBatch
from hemlearn.models.mil import clustering_loss
from hemlearn.tasks.volumes import VolumeClassification, smoothed, still_statistics
from hemlearn.training.build import build_task

TINY = [
    "backbone.name=test_efficientnet",
    "backbone.pretrained=false",
    "data.image_size=64",
    "task=subtypes",
    "sequence=gru",
    "sequence.hidden=8",
    "augmentation=none",
]


def build(*overrides: str, slice_head: list[int] | None = None) -> VolumeClassification:
    torch.manual_seed(0)
    config = compose([*TINY, *overrides])
    n = len(config.task.labels)
    task = build_task(
        config, unit="HU", positives=[[5.0] * n, [3.0] * n], negatives=[[50.0] * n, [9.0] * n], slice_head=slice_head
    )
    width = task.backbone.embedding_dim
    rng = np.random.default_rng(0)
    task.features.fit(rng.normal(size=(40, width)).astype(np.float32), np.zeros((40, n)), np.arange(40))
    return task


def images(lengths: list[int]) -> SeriesBatch:
    torch.manual_seed(1)
    total = sum(lengths)
    label = (torch.rand(total, 6) < 0.3).float()
    return SeriesBatch(
        index=torch.arange(total),
        lengths=torch.tensor(lengths),
        label=label,
        series_label=torch.stack([part.amax(0) for part in label.split(lengths)]),
        z_mm=torch.arange(total) * 5.0,
        image=torch.randint(-100, 120, (total, 1, 64, 64), dtype=torch.int16),
    )


def cached(task: VolumeClassification, batch: SeriesBatch) -> SeriesBatch:
    with torch.inference_mode():
        vector = task.encoder.eval()(batch["image"])
    return {**{k: v for k, v in batch.items() if k != "image"}, "vector": vector.clone()}  # type: ignore[typeddict-item, return-value]


@pytest.mark.parametrize(
    "overrides",
    [
        [],
        ["task.tta=[horizontal]"],
        ["sequence.reverse_tta=true"],
        ["sequence=slice", "sequence.smoothing=2", "sequence.members=3"],
    ],
)
def test_cached_and_end_to_end_agree(overrides: list[str]) -> None:
    task = build("freeze=head", *overrides).eval()
    batch = images([5, 3, 9])
    with torch.inference_mode():
        for one, two in zip(task.probabilities(batch), task.probabilities(cached(task, batch)), strict=True):
            torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-5)


def test_a_series_does_not_depend_on_its_batch() -> None:
    task = build("freeze=head", "sequence.smoothing=1", slice_head=[]).eval()
    batch = cached(task, images([5, 3, 9]))
    alone: SeriesBatch = {
        **batch,
        **{key: batch[key][5:8] for key in ("index", "label", "z_mm", "vector")},  # type: ignore[literal-required]
        "lengths": batch["lengths"][1:2],
        "series_label": batch["series_label"][1:2],
    }
    with torch.inference_mode():
        slices, series = task.probabilities(batch)
        own, whole = task.probabilities(alone)
    torch.testing.assert_close(slices[5:8], own, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(series[1:2], whole, rtol=1e-5, atol=1e-6)


def gradients(task: VolumeClassification, batch: SeriesBatch) -> dict[str, Tensor]:
    task.log = lambda *_, **__: None  # type: ignore[method-assign, assignment]
    torch.manual_seed(0)
    task.training_step(batch, 0).backward()
    return {name: p.grad.clone() for name, p in task.named_parameters() if p.grad is not None}


def test_chunks_and_recomputation_leave_the_gradient_as_it_is() -> None:
    batch = images([5, 3, 9])
    found = []
    for chunk in (100, 4):
        task = build("freeze=none", f"sequence.chunk={chunk}", "freeze.freeze_batchnorm=true").train()
        found.append(gradients(task, batch))
    assert any(name.startswith("backbone") for name in found[0])
    assert found[0].keys() == found[1].keys()
    for name, value in found[0].items():
        torch.testing.assert_close(found[1][name], value, rtol=1e-3, atol=1e-5, msg=name)


def test_recomputation_does_not_move_batchnorm_a_second_time() -> None:
    norm = nn.BatchNorm2d(2).train()
    before = norm.running_mean.clone()  # type: ignore[union-attr]
    with still_statistics(norm):
        out = norm(torch.randn(4, 2, 3, 3) + 5)
    torch.testing.assert_close(norm.running_mean, before)
    assert int(norm.num_batches_tracked) == 0  # type: ignore[arg-type]
    assert norm.momentum == 0.1
    assert abs(float(out.mean())) < 1e-5  # still normalised by the batch
    plain, task = build("freeze=none").train(), build("freeze=none", "sequence.chunk=100").train()
    batch = images([5, 3])
    with torch.no_grad():
        plain.backbone(plain.channels(batch["image"]))
    gradients(task, batch)
    for one, two in zip(plain.backbone.buffers(), task.backbone.buffers(), strict=True):
        torch.testing.assert_close(one, two)


def test_a_frozen_backbone_gets_no_gradient() -> None:
    task = build("freeze=head", "augmentation=flip_rotate").train()
    names = gradients(task, images([4, 2]))
    assert names
    assert all(name.startswith("head.") for name in names)


@pytest.mark.parametrize(
    ("overrides", "wanted"),
    [
        (["freeze=head"], True),
        (["freeze=head", "augmentation=flip_rotate"], False),
        (["freeze=none"], False),
        (["freeze=progressive"], False),
        (["freeze.trainable=0"], True),
    ],
)
def test_the_cache_is_read_when_nothing_can_change(overrides: list[str], wanted: bool) -> None:
    assert build(*overrides).reads_cache is wanted


def test_labels_start_at_their_prevalence() -> None:
    task = build("freeze=head").eval()
    with torch.inference_mode():
        slices, series = task.probabilities(cached(task, images([6, 4])))
    assert float(slices.mean()) == pytest.approx(5 / 55, abs=0.03)
    assert float(series.mean()) == pytest.approx(3 / 12, abs=0.06)


def test_smoothing_stays_inside_the_series() -> None:
    x = torch.tensor([[[0.0], [3.0], [6.0], [9.0]], [[1.0], [5.0], [100.0], [100.0]]])
    out = smoothed(x, torch.tensor([4, 2]), 1)
    torch.testing.assert_close(out[..., 0], torch.tensor([[1.5, 3.0, 6.0, 7.5], [3.0, 3.0, 0.0, 0.0]]))
    assert smoothed(x, torch.tensor([4, 2]), 0) is x


def test_a_series_task_learns_from_series_labels_alone() -> None:
    task = build("freeze=head", "task.level=series").train()
    batch = images([5, 3])
    batch["label"] = torch.full_like(batch["label"], torch.nan)
    found = gradients(task, batch)
    assert float(found["head.members.0.series_output.weight"].abs().sum()) > 0
    assert float(found["head.members.0.slice_output.weight"].abs().sum()) == 0


def test_labels_of_slices_take_no_part_where_those_of_series_train() -> None:
    task = build("freeze=head", "task.labels_from=series", "task.aggregate=model", "sequence=clam").train()
    batch = images([5, 3])
    found = gradients(task, batch)
    batch["label"] = 1 - batch["label"]
    task.zero_grad()
    assert all(torch.equal(value, found[name]) for name, value in gradients(task, batch).items())
    assert float(found["head.members.0.clusters.weight"].abs().sum()) > 0
    slices, series = task.eval().probabilities(batch)
    assert slices[:5].std(0).min() > 0
    kept = task.predict_step(batch, 0)
    torch.testing.assert_close(kept[0], slices)
    torch.testing.assert_close(kept[2][0], series[0])


def test_unknown_labels_take_no_part() -> None:
    task = build("freeze=head").train()
    batch = cached(task, images([5, 3]))
    batch["label"][:, 2] = torch.nan
    found = gradients(task, batch)
    assert all(torch.isfinite(value).all() for value in found.values())
    assert float(found["head.members.0.slice_output.weight"][2].abs().sum()) == 0


def test_the_clustering_loss_of_one_member_counts_by_its_share() -> None:
    words = [
        "freeze=head",
        "sequence=clam",
        "sequence.name=clam+slice",
        "sequence.dropout=0",
        "sequence.input_dropout=0",
    ]
    task = build(*words).train()
    batch = cached(task, images([3, 4]))
    given, losses = task.instance_weight, dict[float, float]()
    for task.instance_weight in (0.0, given):
        losses[task.instance_weight] = float(task.training_step(batch, 0).detach())
    out = task.sequence(task._training_vectors(batch)[0], batch)
    assert out.clusters is not None
    alone = float(clustering_loss(*out.clusters, batch["series_label"]))
    assert alone > 0
    assert losses[given] - losses[0.0] == pytest.approx(given * alone / 2, rel=1e-4)
