from __future__ import annotations

import kornia.filters
import pytest
import torch

from hemlearn.transforms import RandomBlur, RandomBrightnessContrast, RandomGamma, RandomNoise

STEPS = [
    RandomBrightnessContrast(0.2, 0.2, p=0.5),
    RandomGamma((0.5, 2.0), p=0.5),
    RandomNoise((0.01, 0.05), p=0.5),
    RandomBlur((0.3, 1.0), p=0.5),
]


@pytest.mark.parametrize("step", STEPS, ids=lambda s: type(s).__name__)
def test_about_p_of_the_samples_change_each_in_its_own_way_and_stay_in_range(step):
    torch.manual_seed(0)
    image = torch.rand(1, 2, 12, 12)
    images = image.expand(200, -1, -1, -1).clone()
    out = step(images)
    changed = (out != images).flatten(1).any(1)
    assert 70 < int(changed.sum()) < 130
    assert out.min() >= 0
    assert out.max() <= 1
    assert len(torch.unique(out[changed].flatten(1), dim=0)) > 60
    assert torch.equal(images, image.expand(200, -1, -1, -1)), "the input was written to"


@pytest.mark.parametrize("step", STEPS, ids=lambda s: type(s).__name__)
def test_the_global_seed_fixes_the_outcome(step):
    images = torch.rand(16, 1, 8, 8)
    torch.manual_seed(3)
    first = step(images)
    second = step(images)
    torch.manual_seed(3)
    assert torch.equal(step(images), first)
    assert not torch.equal(first, second)


def test_p_of_zero_and_one():
    images = torch.rand(8, 1, 6, 6)
    assert RandomGamma((2.0, 2.0), p=0.0)(images) is images
    torch.testing.assert_close(RandomGamma((2.0, 2.0), p=1.0)(images), images**2)


def test_brightness_and_contrast_are_affine_with_bounded_coefficients():
    torch.manual_seed(1)
    images = torch.tensor([0.4, 0.6]).view(1, 1, 1, 2).expand(400, 1, 1, 2)
    out = RandomBrightnessContrast(0.1, 0.2, p=1.0)(images).view(-1, 2)
    slope = (out[:, 1] - out[:, 0]) / 0.2
    offset = out[:, 0] - 0.4 * slope
    assert 0.8 <= slope.min() < 0.85
    assert 1.15 < slope.max() <= 1.2 + 1e-5
    assert -0.1 - 1e-5 <= offset.min() < -0.08
    assert 0.08 < offset.max() <= 0.1 + 1e-5


def test_noise_has_the_drawn_size_and_spares_saturated_pixels():
    torch.manual_seed(2)
    images = torch.full((4, 1, 64, 64), 0.5)
    images[:, :, :8] = 0.0
    images[:, :, -8:] = 1.0
    out = RandomNoise((0.05, 0.05), p=1.0)(images)
    assert torch.equal(out[:, :, :8], images[:, :, :8])
    assert torch.equal(out[:, :, -8:], images[:, :, -8:])
    assert abs(out[:, :, 8:-8].std().item() - 0.05) < 0.002
    assert abs(out[:, :, 8:-8].mean().item() - 0.5) < 0.002


@pytest.mark.parametrize("sigma", [0.4, 1.0])
def test_blur_is_the_three_tap_gaussian(sigma):
    images = torch.rand(3, 2, 20, 20)
    out = RandomBlur((sigma, sigma), p=1.0)(images)
    expected = kornia.filters.gaussian_blur2d(images, (3, 3), (sigma, sigma), border_type="replicate")
    torch.testing.assert_close(out, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    "build",
    [
        lambda: RandomGamma(p=1.5),
        lambda: RandomGamma((0.0, 1.0)),
        lambda: RandomGamma((2.0, 1.0)),
        lambda: RandomNoise((-0.1, 0.1)),
        lambda: RandomBlur((0.5, 3.0)),
        lambda: RandomBrightnessContrast(0.1, 1.0),
        lambda: RandomBrightnessContrast(-0.1, 0.1),
    ],
)
def test_senseless_ranges_are_refused(build):
    with pytest.raises(ValueError, match=r"p=|gamma=|std=|sigma=|brightness="):
        build()
