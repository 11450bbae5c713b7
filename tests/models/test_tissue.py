"""Measures instead of a network: of blood on slices of CT, and of fluid on series of MRI."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from hemlearn.config.compose import option
from hemlearn.config.schema import BackboneConfig
from hemlearn.models.backbone import build_backbone
from hemlearn.models.freeze import build_freeze
from hemlearn.models.networks3d import build_network3d
from hemlearn.models.tissue import FluidMeasures, TissueMeasures
from hemlearn.models.weights import NO_WEIGHTS
from hemlearn.tasks import Volume3DClassification
from hemlearn.util.errors import ConfigError, WeightsError

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


@pytest.mark.parametrize("number", [1, 3])
def test_an_exported_copy_takes_any_number_of_slices(number: int) -> None:
    measures, images = TissueMeasures().eval(), torch.cat([head(LEFT), head(), head(LEFT).flip(-1)])
    shapes = {"images": {0: torch.export.Dim("batch")}}
    copy = torch.export.export(measures, (images[:2],), dynamic_shapes=shapes).module()
    torch.testing.assert_close(copy(images[:number]), measures(images[:number]))


# --- series of MRI ----------------------------------------------------------------------------------------------------

Z_MM, MM = 4.0, 2.0


def series(fluid: float, *, wide: float = 12.0, neck: float = 0.0, above: float = 40.0, seed: int = 0) -> Tensor:
    """(1, 1, D, H, W) a head of 150 mm, in mm below its vertex: scalp, brain, ventricles between 45 and 85 mm, noise.

    Args:
        fluid: Signal of the ventricles; brain has 0.5, scalp 0.9.
        wide: Width of each ventricle, mm.
        neck: Its length below the head, mm.
        above: Air above the vertex, mm.
        seed: Of the noise.
    """
    below = torch.arange(150 + neck, -above, -Z_MM).view(-1, 1, 1)
    y, x = torch.meshgrid(*(MM * (torch.arange(112) - 55.5),) * 2, indexing="ij")
    size = (1 - ((75 - below).clamp_min(0) / 75) ** 2).clamp_min(0).sqrt() * torch.where(below > 150, 0.6, 1.0)
    away = ((y / 92) ** 2 + (x / 74) ** 2).sqrt()
    volume = torch.where(away < 0.9 * size, 0.5 + 0.05 * torch.sin(x / 8), 0.9)
    ventricles = ((x.abs() - 14).abs() < wide / 2) & (y.abs() < 35) & ((below - 65).abs() < 20)
    volume = torch.where(away < size, volume.masked_fill(ventricles, fluid), 0.0)
    noise = 0.03 * torch.rand(volume.shape, generator=torch.Generator().manual_seed(seed))
    return (volume + noise).clamp(0, 1)[None, None]


def share(volume: Tensor) -> float:
    return float(FluidMeasures(spacing=(Z_MM, MM, MM))(volume)[0, FluidMeasures.names.index("middle_70")])


@pytest.mark.parametrize("fluid", [0.05, 1.0])
def test_fluid_is_measured_dark_and_bright_and_grows_with_the_ventricles(fluid: float) -> None:
    small, middle, large = (share(series(fluid, wide=wide)) for wide in (8.0, 14.0, 20.0))
    assert 0.3 < small < middle < large
    assert middle == pytest.approx(share(series(1.05 - fluid, wide=14.0)), rel=0.1)


@pytest.mark.parametrize(
    "changed",
    [
        lambda volume: volume.flip(-1),
        lambda volume: volume.flip(-2),
        lambda volume: volume.flip(-3),
        lambda volume: 0.4 * volume,
        lambda volume: volume**0.7,
        lambda volume: volume.roll((3, 8), (-2, -1)),
    ],
    ids=["left and right", "front and back", "top and bottom", "darker", "gamma", "shifted"],
)
@pytest.mark.parametrize("neck", [0.0, 80.0])
def test_flips_scale_contrast_and_place_matter_little(changed, neck: float) -> None:
    volume = series(0.05, neck=neck)
    assert share(changed(volume)) == pytest.approx(share(volume), rel=0.05)


@pytest.mark.parametrize("neck", [0.0, 40.0, 80.0])
def test_neither_neck_nor_air_above_nor_where_the_series_ends_matter(neck: float) -> None:
    usual, whole = share(series(0.05)), series(0.05, neck=neck)
    for other in (whole, series(0.05, neck=neck, above=260), series(0.05, neck=neck, seed=5), whole[:, :, 3:]):
        assert share(other) == pytest.approx(usual, rel=0.1)
    air = round(40 / Z_MM)
    for missing in (8, 16, 24):  # mm below the vertex at which the series ends
        assert share(whole[:, :, : -air - round(missing / Z_MM)]) == pytest.approx(usual, rel=0.15)


def test_air_noise_and_blank_volumes_have_no_fluid() -> None:
    blank = torch.zeros(1, 1, 12, 40, 40)
    noise = 0.02 * torch.rand(blank.shape, generator=torch.Generator().manual_seed(1))
    assert (FluidMeasures(spacing=(4, 2, 2))(torch.cat([blank, noise])) == 0).all()
    FluidMeasures(spacing=(4, 2, 2))(torch.rand(2, 1, 4, 4, 4))  # as small as volume.size allows


def test_it_is_a_3d_backbone_in_mm_that_has_no_weights() -> None:
    spec, grid = BackboneConfig(name="fluid_3d", pretrained=False), {"in_chans": 1, "size": (48, 112, 112)}
    backbone = build_network3d(spec, **grid, spacing=(Z_MM, MM, MM))
    assert (backbone.embedding_dim, backbone.weights_source, backbone.groups) == (6, NO_WEIGHTS, [])
    torch.testing.assert_close(backbone(series(0.05)), FluidMeasures(spacing=(Z_MM, MM, MM))(series(0.05)))
    assert backbone.double()(series(0.05).double()).dtype == torch.float64


def test_a_task_measures_in_the_voxels_of_its_volumes() -> None:
    options = {"channels": "mr", "level": "series", "freeze": "head", "unit": "signal"}
    task = Volume3DClassification(["a"], "fluid_3d", spacing=(3, 1, 1), **options)
    assert task.backbone.model.spacing == (3, 1, 1)


@pytest.mark.parametrize(
    ("keys", "spacing", "wanted"),
    [
        ({}, None, r"volume\.spacing=null: fluid_3d measures in mm"),
        ({"options": {"channel": 1}}, (4, 2, 2), r"channel=1: the input has 1"),
        ({"options": {"spacing": [1, 1, 1]}}, (4, 2, 2), r"backbone\.options=.*multiple values"),
        ({"pretrained": True}, (4, 2, 2), r"backbone\.pretrained=true: fluid_3d measures and has no weights"),
        ({"drop_rate": 0.2}, (4, 2, 2), r"no such regularisation"),
    ],
)
def test_what_measures_cannot_be(keys, spacing, wanted) -> None:
    spec = BackboneConfig(name="fluid_3d", **{"pretrained": False, **keys})
    with pytest.raises((ConfigError, WeightsError), match=wanted):
        build_network3d(spec, in_chans=1, size=(48, 112, 112), spacing=spacing)


def test_there_is_nothing_to_train_in_it() -> None:
    backbone = build_network3d(
        BackboneConfig(name="fluid_3d", pretrained=False), in_chans=1, size=(8, 32, 32), spacing=(4, 2, 2)
    )
    with pytest.raises(ConfigError, match="nothing to train: freeze=head"):
        build_freeze(option("freeze", "last_groups"), backbone)
