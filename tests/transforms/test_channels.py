from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from hemlearn.config.compose import compose, conf_dir, option
from hemlearn.config.schema import ChannelsConfig
from hemlearn.transforms.channels import Channels, build_channels
from hemlearn.util.errors import ConfigError

CONF = conf_dir() / "channels"


def load(name: str) -> ChannelsConfig:
    return option("channels", name)


@pytest.mark.parametrize(
    ("name", "unit", "slices", "channels"),
    [
        ("brain", "HU", 1, 1),
        ("brain", "display", 1, 1),
        ("head_tone", "HU", 1, 1),
        ("head_tone", "display", 1, 1),
        ("brain_subdural_soft", "HU", 1, 3),
        ("adjacent", "HU", 3, 3),
        ("adjacent", "display", 3, 3),
        ("adjacent_windows", "HU", 3, 9),
        ("mr", "signal", 1, 1),
        ("mr", "display", 1, 1),
    ],
)
def test_shipped_choices_make_the_documented_number_of_channels(name, unit, slices, channels):
    made = build_channels(load(name), unit)
    raw = torch.randint(0, 200, (2, slices, 16, 16)).to(torch.int16)
    out = made(raw)
    assert made.out_channels == channels
    assert out.shape == (2, channels, 16, 16)
    assert out.dtype == torch.float32
    assert 0 <= out.min() < out.max() <= 1
    assert not made.state_dict()


def test_every_yaml_is_covered_above():
    names = {path.stem for path in Path(CONF).glob("*.yaml")}
    assert {"brain", "brain_subdural_soft", "adjacent", "adjacent_windows", "mr"} <= names


def test_window_edges_in_hu():
    raw = torch.tensor([-32768, -1024, 0, 20, 40, 80, 3071, 32767], dtype=torch.int16).view(1, 1, 1, 8)
    out = build_channels(load("brain"), "HU")(raw)
    assert out.flatten().tolist() == [0, 0, 0, 0.25, 0.5, 1, 1, 1]


def test_tone_is_the_same_whatever_window_a_picture_was_exported_through():
    hu = 30 + 4 * torch.randn(1, 1, 64, 64, generator=torch.Generator().manual_seed(0))
    hu[0, 0, :12], hu[0, 0, 12:16], hu[0, 0, 20:24, 5:9] = -1000, 1000, 45
    tone = build_channels(load("head_tone"), "display")
    first, second = (
        tone(((hu - centre + width / 2) / width * 255).clamp(0, 255).round()) for centre, width in ((40, 80), (40, 120))
    )
    tissue = (hu > 18) & (hu < 60)
    torch.testing.assert_close(first[tissue], second[tissue], atol=0.05, rtol=0)
    assert abs(float(first[hu.eq(45)].mean()) - float(first[tissue].median())) > 0.1
    assert first[hu < -20].max() == second[hu < -20].max() == 0  # air
    assert first[hu > 100].min() == second[hu > 100].min() == 1  # bone
    blank = torch.zeros(1, 1, 64, 64)
    assert tone(blank).eq(0).all()


@pytest.mark.parametrize(
    "words",
    [["channels=head_tone", "channels.tone=[0.4]"], ["channels=brain_subdural_soft", "channels.tone=[0.4,0.1]"]],
)
def test_a_tone_that_cannot_be_is_refused(words):
    with pytest.raises(ConfigError, match=r"channels\.tone"):
        compose(words)


def test_three_windows_by_hand():
    raw = torch.full((1, 1, 2, 2), 60, dtype=torch.int16)
    out = build_channels(load("brain_subdural_soft"), "HU")(raw)[0, :, 0, 0]
    # brain 0..80, subdural -20..180, soft -150..230
    torch.testing.assert_close(out, torch.tensor([60 / 80, 80 / 200, 210 / 380]))


def test_nine_channels_are_slice_major():
    raw = torch.tensor([10, 20, 30], dtype=torch.int16).view(1, 3, 1, 1)
    out = build_channels(load("adjacent_windows"), "HU")(raw).flatten()
    expected = [v for hu in (10, 20, 30) for v in (hu / 80, (hu + 20) / 200, (hu + 150) / 380)]
    torch.testing.assert_close(out, torch.tensor(expected))


def test_display_images_are_shown_as_stored_whatever_the_window():
    raw = torch.tensor([0, 51, 255], dtype=torch.uint8).view(1, 1, 1, 3)
    for window in ([40.0, 80.0], [600.0, 2000.0]):
        out = build_channels(ChannelsConfig(windows=[window]), "display")(raw)
        torch.testing.assert_close(out.flatten(), torch.tensor([0.0, 0.2, 1.0]))


def test_the_batch_is_not_changed():
    for cfg, unit in ((load("brain"), "HU"), (load("mr"), "signal")):
        raw = torch.rand(2, 1, 8, 8) * 100
        before = raw.clone()
        build_channels(cfg, unit)(raw)
        assert torch.equal(raw, before)


def test_mr_percentiles_agree_with_numpy_over_pixels_that_are_not_zero():
    rng = np.random.default_rng(0)
    raw = rng.gamma(3.0, 200.0, (3, 3, 40, 40)).astype(np.int16)
    raw[:, :, :12] = 0
    out = build_channels(ChannelsConfig(kind="mr", neighbours=1, percentiles=[2, 98]), "signal")(torch.from_numpy(raw))
    for sample, got in zip(raw.astype(np.float64), out, strict=True):
        low, high = np.percentile(sample[sample != 0], [2, 98])
        np.testing.assert_allclose(got, np.clip((sample - low) / (high - low), 0, 1), atol=1e-5)


def test_mr_scale_does_not_depend_on_padding():
    image = torch.rand(1, 1, 32, 32) * 900 + 100
    padded = torch.nn.functional.pad(image, (16, 16, 16, 16))
    channels = build_channels(load("mr"), "signal")
    torch.testing.assert_close(channels(padded)[..., 16:-16, 16:-16], channels(image))


def test_mr_on_a_large_image_stays_close_to_the_exact_percentiles():
    torch.manual_seed(0)
    raw = torch.randn(1, 1, 640, 640).mul_(100).add_(1000)
    out = build_channels(load("mr"), "signal")(raw)
    low, high = np.percentile(raw.numpy(), [1, 99])
    assert torch.allclose(out, ((raw - low) / (high - low)).clamp(0, 1), atol=0.02)


@pytest.mark.parametrize("value", [0, 7])
def test_mr_without_contrast_is_zero_not_nan(value):
    out = build_channels(load("mr"), "signal")(torch.full((2, 1, 8, 8), value, dtype=torch.int16))
    assert torch.equal(out, torch.zeros(2, 1, 8, 8))


def test_mr_percentiles_of_a_series_are_taken_together_and_windows_are_not_touched():
    """The air above a head stays as dark as the air beside it."""
    raw = torch.rand(5, 1, 16, 16, generator=torch.Generator().manual_seed(0)) * 800 + 200
    raw[4] = raw[4] / 100
    low, high = np.percentile(raw.numpy(), [1, 99])
    made = Channels("mr", unit="signal").of_series(raw)
    np.testing.assert_allclose(made.numpy(), np.clip((raw.numpy() - low) / (high - low), 0, 1), atol=1e-5)
    brain = Channels(unit="HU")
    assert torch.equal(brain.of_series(raw), brain(raw))


def test_mr_samples_are_scaled_one_by_one():
    image = torch.rand(1, 1, 16, 16) + 0.1
    out = build_channels(load("mr"), "signal")(torch.cat([image, image * 50]))
    torch.testing.assert_close(out[0], out[1])


@pytest.mark.parametrize(
    ("cfg", "unit", "words"),
    [
        ({"kind": "mri"}, "HU", ["channels.kind='mri'", "mr"]),
        ({"neighbours": -1}, "HU", ["channels.neighbours=-1"]),
        ({"windows": []}, "HU", ["channels.windows"]),
        ({"windows": [[40.0]]}, "HU", ["[40.0]", "centre"]),
        ({"windows": [[40.0, 0.0]]}, "HU", ["[40.0, 0.0]", "width"]),
        ({"windows": [[float("nan"), 80.0]]}, "HU", ["nan"]),
        ({"name": "two", "windows": [[40, 80], [80, 200]]}, "display", ["2 windows", "brain"]),
        ({"name": "mr", "kind": "mr"}, "HU", ["HU", "channels=brain"]),
        ({"name": "brain"}, "signal", ["MR", "channels=mr"]),
        ({"kind": "mr", "percentiles": [99.0, 1.0]}, "signal", ["[99.0, 1.0]"]),
        ({"kind": "mr", "percentiles": [1.0, 101.0]}, "signal", ["101"]),
    ],
)
def test_unusable_choices_are_refused(cfg, unit, words):
    with pytest.raises(ConfigError) as caught:
        build_channels(ChannelsConfig(**cfg), unit)
    for word in words:
        assert word in str(caught.value)


def test_a_batch_of_the_wrong_depth_is_refused():
    with pytest.raises(ValueError, match="3, H, W"):
        build_channels(load("adjacent"), "HU")(torch.zeros(2, 1, 8, 8))
