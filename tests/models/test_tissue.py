"""Measures of a slice: what a head without a network says of blood on CT, and of fluid on MRI."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from hemlearn.config.compose import option
from hemlearn.models.backbone import build_backbone
from hemlearn.models.tissue import FluidMeasures, TissueMeasures

SIDE = 144
NAMES = list(TissueMeasures.names)


def head(bleed: tuple[slice, slice] | None = None, level: float = 0.7, seed: int = 0) -> Tensor:
    """(1, 1, S, S) a round skull with grey, slightly uneven tissue, and a bright square in it."""
    rows, columns = torch.meshgrid(torch.arange(SIDE) - 71.5, torch.arange(SIDE) - 71.5, indexing="ij")
    away = (rows**2 + columns**2).sqrt()
    noise = 0.05 * torch.rand(SIDE, SIDE, generator=torch.Generator().manual_seed(seed))
    image = torch.where(away < 60, 0.4 + noise, (away < 68).float())
    if bleed is not None:
        image[bleed] = level
    return image[None, None]


def measured(image: Tensor) -> dict[str, float]:
    found = TissueMeasures()(image)[0]
    return dict(zip(NAMES, found.tolist(), strict=True))


LEFT, RIGHT = (slice(60, 80), slice(95, 115)), (slice(60, 80), slice(29, 49))


def test_a_bright_spot_on_one_side_is_hot_and_unlike_the_other_side() -> None:
    plain, one = measured(head()), measured(head(LEFT))
    for name in ("bright_98", "hot", "spot_7", "spot_13", "unlike_98"):
        assert one[name] > plain[name] + 0.02, name
    both = head(LEFT)
    both[0, 0, RIGHT[0], RIGHT[1]] = 0.7
    assert measured(both)["spot_13"] == pytest.approx(one["spot_13"], abs=0.2)
    assert measured(both)["unlike_98"] < one["unlike_98"] / 2


def test_a_mirror_image_has_the_same_measures() -> None:
    there, back = (torch.tensor(list(measured(image).values())) for image in (head(LEFT), head(LEFT).flip(-1)))
    torch.testing.assert_close(there, back, atol=0.1, rtol=0.05)


def test_the_window_and_the_size_of_the_picture_matter_little() -> None:
    """Another brightness and contrast of the tissue, twice the pixels, and a window so wide that bone is grey."""
    own = measured(head(LEFT))
    image = head(LEFT)
    windowed = torch.where((image > 0.1) & (image < 0.9), 0.1 + 0.9 * image, image)
    large = torch.nn.functional.interpolate(image, scale_factor=2, mode="nearest")
    for other in (measured(windowed), measured(large), measured(0.7 * image)):
        for name in ("share", "hot", "spot_7", "spot_13", "unlike_98"):
            assert other[name] == pytest.approx(own[name], rel=0.1, abs=0.02), name


def test_each_slice_is_measured_alone_and_air_gives_zeros() -> None:
    air = torch.zeros(1, 1, SIDE, SIDE)
    found = TissueMeasures()(torch.cat([head(LEFT), air, torch.ones_like(air)]))
    torch.testing.assert_close(found[:1], TissueMeasures()(head(LEFT)))
    assert (found[1:] == 0).all()


def test_it_is_a_backbone_that_needs_no_weights() -> None:
    backbone = build_backbone(option("backbone", "tissue"), in_chans=1, image_size=288)
    assert backbone.embedding_dim == len(NAMES) == 21
    assert backbone.weights_source == "its own"
    torch.testing.assert_close(backbone(head(LEFT)), TissueMeasures()(head(LEFT)))


def brain(fluid: float, *, size: float = 8.0, shift: int = 0, seed: int = 0) -> Tensor:
    """(1, 1, S, S) a bright scalp, brain of 0.5 with uneven white matter, and two ventricles of signal ``fluid``."""
    rows, columns = torch.meshgrid(torch.arange(SIDE) - 71.5 - shift, torch.arange(SIDE) - 71.5, indexing="ij")
    away = ((rows / 60) ** 2 + (columns / 48) ** 2).sqrt()
    noise = 0.03 * torch.rand(SIDE, SIDE, generator=torch.Generator().manual_seed(seed))
    image = torch.where(away < 0.9, 0.5 + 0.05 * torch.sin(columns / 5), 0.9)
    image = image.masked_fill(((columns.abs() - 9).abs() < size / 2) & (rows.abs() < 2 * size), fluid)
    return (torch.where(away < 1, image, 0.0) + noise)[None, None].clamp(0, 1)


def share(image: Tensor) -> float:
    return float(FluidMeasures()(image)[0, FluidMeasures.names.index("middle_70")])


@pytest.mark.parametrize("fluid", [0.05, 1.0])
def test_fluid_is_measured_dark_and_bright_and_grows_with_the_ventricles(fluid: float) -> None:
    small, middle, large = (share(brain(fluid, size=size)) for size in (6.0, 9.0, 13.0))
    assert 0.3 < small < middle < large
    assert middle == pytest.approx(share(brain(1.05 - fluid, size=9.0)), rel=0.15)


@pytest.mark.parametrize(
    "changed",
    [
        lambda image: image.flip(-1),
        lambda image: image.flip(-2),
        lambda image: 0.4 * image,
        lambda image: image**0.7,
        lambda image: torch.nn.functional.interpolate(image, scale_factor=2, mode="nearest"),
    ],
    ids=["mirrored", "upside down", "darker", "gamma", "twice the pixels"],
)
def test_flips_scale_contrast_and_size_matter_little(changed) -> None:
    image = brain(0.05)
    assert share(changed(image)) == pytest.approx(share(image), rel=0.1)
    assert share(brain(0.05, shift=9)) == pytest.approx(share(image), rel=0.1)  # the head is found


def test_noise_air_and_a_blank_slice_have_no_fluid() -> None:
    blank = torch.zeros(1, 1, SIDE, SIDE)
    noise = 0.02 * torch.rand(1, 1, SIDE, SIDE, generator=torch.Generator().manual_seed(1))
    assert (FluidMeasures()(torch.cat([blank, noise])) == 0).all()
    backbone = build_backbone(option("backbone", "fluid"), in_chans=1, image_size=128)
    torch.testing.assert_close(backbone(brain(0.05)), FluidMeasures()(brain(0.05)))


@pytest.mark.parametrize("kind", [TissueMeasures, FluidMeasures])
def test_an_exported_copy_takes_any_number_of_slices(kind) -> None:
    measures, images = kind().eval(), torch.cat([head(LEFT), brain(0.05), head()])
    shapes = {"images": {0: torch.export.Dim("batch")}}
    copy = torch.export.export(measures, (images[:2],), dynamic_shapes=shapes).module()
    torch.testing.assert_close(copy(images), measures(images))
