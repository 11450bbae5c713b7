from __future__ import annotations

import pytest
import torch
from monai.visualize.class_activation_maps import GradCAM
from torch import nn

from hemlearn.reading.explain.cams import find_layer, maps, upsampled
from hemlearn.reading.explain.scores import Scores
from hemlearn.util.errors import ConfigError
from tests.explain.networks import SIDE, bright_run, images, slice_run, spots, volume_run


@pytest.mark.parametrize("method", ["gradcam", "gradcam++", "occlusion"])
def test_maps_point_at_the_evidence(method: str) -> None:
    places = [(0, 0), (3, 6), (7, 2)]
    found = upsampled(maps(Scores(bright_run()), spots(places), [0], method=method), SIDE)[0]
    for values, (row, column) in zip(found, places, strict=True):
        top = divmod(int(values.argmax()), SIDE)
        assert abs(top[0] - (8 * row + 4)) <= 5
        assert abs(top[1] - (8 * column + 4)) <= 5


def test_grad_cam_adds_up_to_the_evidence_in_log_odds() -> None:
    """With a linear head over a mean, the places of the map are the shares of the logit, but for its constant."""
    task = bright_run()
    task.head[0].weight.data[0, 1] = 0.0  # darkness no longer speaks against it, so that nothing is cut off at 0
    x = spots([(2, 5)])
    found = maps(Scores(task), x, [0])[0, 0]
    with torch.no_grad():
        logit = task.head(task.backbone(x))[0, 0] - task.head[0].bias[0]
    torch.testing.assert_close(found.sum(), logit, rtol=1e-4, atol=1e-5)


def test_it_is_monais_grad_cam() -> None:
    """The same layer of the same network through MONAI alone."""
    task = slice_run()
    x = images(3)
    layer = find_layer(task.backbone)
    own = maps(Scores(task), x, [2], layer=layer)[0]
    plain = nn.Sequential(task.backbone, task.head)
    reference = GradCAM(plain, f"0.model.{layer.name}")
    theirs = torch.cat([reference.compute_map(image[None], class_idx=2)[:, 0] for image in x])
    torch.testing.assert_close(own, theirs.detach(), rtol=1e-3, atol=1e-7)


@pytest.mark.parametrize("method", ["gradcam", "gradcam++"])
@pytest.mark.parametrize("run", [slice_run, volume_run])
def test_chunks_change_nothing(run, method: str) -> None:  # type: ignore[no-untyped-def]
    x = images(7)
    one, two = run("sequence.chunk=100"), run("sequence.chunk=3")
    first, second = (maps(Scores(task), x, [0, 4], method=method) for task in (one, two))
    assert first.abs().max() > 0
    torch.testing.assert_close(first, second, rtol=1e-3, atol=1e-3 * float(first.max()))


@pytest.mark.parametrize("name", ["test_vit", "resnet18", "swin_tiny_patch4_window7_224"])
def test_tokens_and_other_layouts_have_maps(name: str) -> None:
    size = 224 if "swin" in name else 64
    task = slice_run(f"backbone.name={name}", f"data.image_size={size}", "backbone.drop_path_rate=0")
    x = torch.rand(2, 1, size, size, generator=torch.Generator().manual_seed(0))
    found = maps(Scores(task), x, [0, 1, 5])
    assert found.shape[:2] == (3, 2)
    assert found.shape[2:] == find_layer(task.backbone).grid
    assert torch.isfinite(found).all()
    assert (found.flatten(2).amax(2) > 0).any(dim=0).all(), "no label has evidence anywhere"


@pytest.mark.parametrize("method", ["gradcam", "gradcam++"])
@pytest.mark.parametrize("run", [slice_run, volume_run])
def test_labels_share_one_pass_and_do_not_mix(run, method: str) -> None:  # type: ignore[no-untyped-def]
    task, x = run("sequence.chunk=4"), images(6)
    passes: list[int] = []
    layer = find_layer(task.backbone)
    handle = layer.module.register_forward_hook(lambda *_: passes.append(1))
    together = maps(Scores(task), x, [0, 3, 5, 3], method=method, layer=layer)
    assert len(passes) == 2  # chunks of one pass, whatever the number of labels
    handle.remove()
    for values, label in zip(together, [0, 3, 5, 3], strict=True):
        torch.testing.assert_close(values, maps(Scores(task), x, [label], method=method, layer=layer)[0])
    assert not torch.allclose(together[0], together[1])


def test_small_gradients_do_not_drown_in_monais_constant() -> None:
    """Grad-CAM++ of the same network with a head a thousand times weaker and activations as they are."""
    strong, weak = bright_run(), bright_run()
    with torch.no_grad():
        weak.head[0].weight /= 1000
    x = spots([(1, 1), (5, 3)]) + 0.05 * images(2)
    one, two = (maps(Scores(task), x, [0], method="gradcam++")[0] for task in (strong, weak))
    one, two = (found / found.amax((1, 2), keepdim=True) for found in (one, two))
    torch.testing.assert_close(one, two, rtol=0.05, atol=0.02)


@pytest.mark.parametrize("method", ["gradcam", "gradcam++"])
def test_extreme_scores_still_have_maps(method: str) -> None:
    for bias in (-300.0, 300.0):
        task = bright_run()
        task.head[0].bias.data[:] = bias
        found = maps(Scores(task), spots([(4, 4)]), [0], method=method)[0, 0]
        assert torch.isfinite(found).all()
        assert int(found.argmax()) == 4 * 8 + 4


def test_through_a_frozen_backbone_and_a_sequence_model() -> None:
    task = volume_run(slice_head=[])
    task.requires_grad_(False)
    x = images(6)
    with torch.inference_mode():  # as callers that only predict would
        found = maps(Scores(task, torch.arange(6) * 5.0), x, [0, 3])
    assert found.shape[:2] == (2, 6)
    assert found.amax() > 0
    assert not any(parameter.requires_grad or parameter.grad is not None for parameter in task.parameters())


def test_the_gradient_passes_the_sequence_model() -> None:
    """A slice's map of the series' score depends on the other slices; that of its own score in a 2D run does not."""
    x = images(5)
    other = torch.cat([x[:1], 0.2 * images(4, seed=9)])
    volume, single = volume_run("task.aggregate=model"), slice_run()
    first, second = (maps(Scores(volume), value, [0])[0, 0] for value in (x, other))
    assert not torch.allclose(first, second, rtol=1e-3, atol=1e-9)  # about 1 %
    first, second = (maps(Scores(single), value, [0])[0, 0] for value in (x, other))
    torch.testing.assert_close(first, second, rtol=1e-4, atol=1e-8)


def test_flips_are_averaged_and_sides_exchanged() -> None:
    plain, flipped = bright_run(), bright_run("task.tta=[horizontal]")
    x = spots([(2, 1)])
    torch.testing.assert_close(maps(Scores(plain), x, [0]), maps(Scores(flipped), x, [0]))
    sided = slice_run(
        "task.labels=[left,right]",
        "task.kind=multilabel",
        "task.sides=[[left,right]]",
        "task.tta=[horizontal]",
        "task.label_weights=null",
        "loss.label_weights=null",
    )
    x = images(2)
    left, right = maps(Scores(sided), x, [0, 1])
    mirrored_left, mirrored_right = maps(Scores(sided), x.flip(-1), [0, 1])
    torch.testing.assert_close(left, mirrored_right.flip(-1), rtol=1e-3, atol=1e-6)
    torch.testing.assert_close(right, mirrored_left.flip(-1), rtol=1e-3, atol=1e-6)


def test_exclusive_classes_are_explained_against_the_others() -> None:
    task = slice_run("task.kind=multiclass", "loss=cross_entropy", "task.label_weights=null")
    x = images(2)
    with torch.no_grad():
        odds = Scores(task)(x, "slice")
        p = (
            task.probabilities_of(x)
            if hasattr(task, "probabilities_of")
            else task.activate(task.head(task.backbone(x)))
        )
    torch.testing.assert_close(odds.sigmoid(), p, rtol=1e-4, atol=1e-6)


def test_targets_without_an_output_are_refused() -> None:
    """Zipping them with the outputs would leave them out silently."""
    with pytest.raises(ConfigError, match="label 6: the network has 6 outputs"):
        maps(Scores(slice_run()), images(1), [0, 6])
    with pytest.raises(ConfigError, match="label -1"):
        maps(Scores(slice_run()), images(1), [-1])


def test_wrong_questions_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"method=gradcan.*gradcam"):
        maps(Scores(slice_run()), images(1), [0], method="gradcan")
    with pytest.raises(ConfigError, match="describe whole series"):
        maps(Scores(volume_run("task.level=series")), images(3), [0], of="slice")


def test_the_network_is_left_as_it_was() -> None:
    task = slice_run().train()
    before = {key: value.clone() for key, value in task.state_dict().items()}
    for method in ("gradcam", "gradcam++", "occlusion"):
        maps(Scores(task), images(2), [0], method=method)
    assert task.training
    assert all(torch.equal(before[key], value) for key, value in task.state_dict().items())
    assert all(parameter.grad is None for parameter in task.parameters())
    assert not any(module._forward_hooks for module in task.modules())


def test_occlusion_through_a_sequence_model_is_what_it_says() -> None:
    """The largest fall of the series' log odds, found by blackening that place by hand."""
    task = volume_run("task.aggregate=model", "sequence=mean", "sequence.hidden=8")
    x = images(3)
    found = maps(Scores(task), x, [1], method="occlusion")
    assert found.shape == (1, 3, SIDE, SIDE)
    assert (found >= 0).all()
    with torch.no_grad():
        before = Scores(task)(x, "series")[0, 1]
        gone = x.clone()
        gone[1] = 0
        drop = before - Scores(task)(gone, "series")[0, 1]
    assert float(found[0, 1].max()) <= 50 * abs(float(drop)) + 1  # same unit, and finite


def test_upsampling_keeps_the_places() -> None:
    small = torch.zeros(1, 4, 4)
    small[0, 1, 2] = 1
    large = upsampled(small, 64)
    assert large.shape == (1, 64, 64)
    row, column = divmod(int(large[0].argmax()), 64)
    assert (row // 16, column // 16) == (1, 2)
    assert upsampled(torch.rand(2, 3, 5, 5), 20).shape == (2, 3, 20, 20)
