"""Pretrained stems on other numbers of channels: the same activations as the replicated colour image."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from hemlearn.config.schema import BackboneConfig
from hemlearn.models.backbone import build_backbone
from hemlearn.models.loading import adapt_statistics, adapt_stem, channel_map

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def stem(x, weight, bias, mean, std, padding=0):
    mean, std = (torch.tensor(values, dtype=x.dtype).view(1, -1, 1, 1) for values in (mean, std))
    return F.conv2d((x - mean) / std, weight, bias, padding=padding)


@pytest.mark.parametrize("channels", [1, 2, 3, 4, 5, 9, 15])
def test_shares_keep_the_full_weight_of_every_colour(channels):
    shares = channel_map(3, channels)
    assert shares.shape == (3, channels)
    np.testing.assert_allclose(shares.sum(axis=1), 1.0)
    assert (shares.sum(axis=0) > 0).all(), "no new channel may be blind"


@pytest.mark.parametrize("channels", [1, 2, 3, 4, 9])
def test_constant_across_channels_gives_the_same_activations_with_a_bias(channels):
    weight, bias = torch.randn(8, 3, 5, 5).double(), torch.randn(8).double()
    grey = torch.rand(2, 1, 20, 20).double()
    wanted = stem(grey.expand(-1, 3, -1, -1), weight, bias, MEAN, STD)
    new_weight, new_bias = adapt_stem(weight, bias, MEAN, STD, channels)
    got = stem(
        grey.expand(-1, channels, -1, -1),
        new_weight,
        new_bias,
        adapt_statistics(MEAN, channels),
        adapt_statistics(STD, channels),
    )
    torch.testing.assert_close(got, wanted)


@pytest.mark.parametrize("channels", [3, 4, 6, 9])
def test_three_and_more_channels_are_exact_without_a_bias_and_at_the_border(channels):
    weight = torch.randn(8, 3, 5, 5).double()
    grey = torch.rand(2, 1, 20, 20).double()
    wanted = stem(grey.expand(-1, 3, -1, -1), weight, None, MEAN, STD, padding=2)
    new_weight, none = adapt_stem(weight, None, MEAN, STD, channels)
    assert none is None
    statistics = (adapt_statistics(values, channels) for values in (MEAN, STD))
    got = stem(grey.expand(-1, channels, -1, -1), new_weight, None, *statistics, padding=2)
    torch.testing.assert_close(got, wanted)


def test_one_channel_without_a_bias_differs_by_a_tint_of_at_most_0_043():
    weight = torch.randn(8, 3, 5, 5).double()
    grey = torch.rand(2, 1, 20, 20).double()
    tint = torch.tensor([m - np.mean(MEAN) for m in MEAN], dtype=torch.float64).view(1, 3, 1, 1)
    assert tint.abs().max() < 0.0431
    wanted = stem(grey.expand(-1, 3, -1, -1) + tint, weight, None, MEAN, STD)
    new_weight, _ = adapt_stem(weight, None, MEAN, STD, 1)
    got = stem(grey, new_weight, None, adapt_statistics(MEAN, 1), adapt_statistics(STD, 1))
    torch.testing.assert_close(got, wanted)


@pytest.mark.parametrize("channels", [1, 9])
def test_the_whole_pretrained_network_sees_a_grey_image_as_the_colour_network_does(channels):
    """EfficientNet-Lite0 has equal statistics in all colours, so even one channel is exact, borders included."""
    cfg = BackboneConfig(name="tf_efficientnet_lite0.in1k")
    colour = build_backbone(cfg, in_chans=3, image_size=64).eval()
    other = build_backbone(cfg, in_chans=channels, image_size=64).eval()
    grey = torch.rand(2, 1, 64, 64)
    with torch.no_grad():
        wanted = colour(grey.expand(-1, 3, -1, -1))
        torch.testing.assert_close(other(grey.expand(-1, channels, -1, -1)), wanted, rtol=1e-3, atol=1e-4)
    assert wanted.abs().max() > 0.1
