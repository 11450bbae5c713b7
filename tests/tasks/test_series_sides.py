"""A mirrored series is another patient: all its slices are mirrored together, and its label's side with them."""

from __future__ import annotations

import pytest
import torch

from hemlearn.config.schema import TaskConfig
from hemlearn.transforms import Augment
from hemlearn.util.errors import ConfigError

TASK = TaskConfig(kind="multilabel", labels=["left", "right"], sides=[["left", "right"]], level="series")
LENGTHS = torch.tensor([3, 5, 4, 6, 2, 4])


def batch() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Series with a bright patch on the image's left side, which is the patient's right."""
    images = torch.zeros(int(LENGTHS.sum()), 1, 16, 16)
    images[..., 4:12, 1:6] = 1.0
    series = torch.tensor([[0.0, 1.0]]).repeat(len(LENGTHS), 1)
    return images, series.repeat_interleave(LENGTHS, dim=0), series


def augment(*targets: str) -> Augment:
    steps = [{"_target_": f"kornia.augmentation.{name}", "p": 0.5} for name in targets]
    return Augment(steps, labels=TASK.labels, sides=TASK.sides).train()


@pytest.mark.parametrize("targets", [("RandomHorizontalFlip",), ("RandomHorizontalFlip", "RandomVerticalFlip")])
def test_series_are_mirrored_as_a_whole_and_their_labels_follow(targets: tuple[str, ...]) -> None:
    images, labels, series = batch()
    step, seen = augment(*targets), set()
    for seed in range(8):
        torch.manual_seed(seed)
        out, own, whole = step.series(images, labels, series, LENGTHS)
        patch_left = out[..., :8].sum((1, 2, 3)) > out[..., 8:].sum((1, 2, 3))
        for one, tags, tag in zip(patch_left.split(LENGTHS.tolist()), own.split(LENGTHS.tolist()), whole, strict=True):
            assert len(set(one.tolist())) == 1, "slices of one series were mirrored differently"
            assert (tags == tag).all()
            seen.add((bool(one[0]), tuple(tag.tolist())))
    if len(targets) == 1:  # where only left and right are exchanged, the label follows the side of the patch
        assert seen == {(True, (0.0, 1.0)), (False, (1.0, 0.0))}


def test_evaluation_leaves_series_alone() -> None:
    images, labels, series = batch()
    out = augment("RandomHorizontalFlip").eval().series(images, labels, series, LENGTHS)
    assert all(a is b for a, b in zip(out, (images, labels, series), strict=True))


def test_a_step_that_mirrors_slice_by_slice_is_refused() -> None:
    step = augment("RandomHorizontalFlip")
    step._run = lambda _, images, __: (images, torch.arange(len(images)) % 2 == 0)  # type: ignore[method-assign]
    with pytest.raises(ConfigError, match="mirrors some slices of a series"):
        step.series(*batch(), LENGTHS)


def test_end_to_end_the_series_loss_sees_the_exchanged_label(monkeypatch: pytest.MonkeyPatch) -> None:
    from hemlearn.config.compose import compose
    from hemlearn.training.build import build_task

    config = compose(
        [
            "task.kind=multilabel",
            "task.labels=[left,right]",
            "task.sides=[[left,right]]",
            "task.level=series",
            "sequence=mean",
            "backbone.name=test_efficientnet",
            "backbone.pretrained=false",
            "data.image_size=32",
            "augmentation.steps=[{_target_: kornia.augmentation.RandomHorizontalFlip, p: 1.0}]",
        ]
    )
    task = build_task(config, unit="HU", positives=[[1.0, 1.0]] * 2, negatives=[[1.0, 1.0]] * 2).train()
    task.features.pass_through()
    seen: list[torch.Tensor] = []
    monkeypatch.setattr(task.series_loss, "forward", lambda logits, target: seen.append(target) or logits.sum())
    monkeypatch.setattr(task, "checked", lambda loss, *_: loss)
    lengths = torch.tensor([3, 2])
    series = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    task.training_step(
        {
            "image": torch.zeros(5, 1, 32, 32, dtype=torch.int16),
            "lengths": lengths,
            "label": series.repeat_interleave(lengths, dim=0),
            "series_label": series,
            "index": torch.arange(5),
            "z_mm": torch.arange(5.0),
        },
        0,
    )
    assert seen[0].tolist() == [[0.0, 1.0], [1.0, 0.0]]
