"""Series as volumes in mm, 3D networks of MONAI, and weights of theirs from a file."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch

from hemlearn.config.compose import check_command
from hemlearn.config.schema import NETWORKS_3D, BackboneConfig
from hemlearn.data.batches import SeriesBatch
from hemlearn.data.volumes import check_volumes, resample, stored_pixel_mm, volume_problem
from hemlearn.models.networks3d import build_network3d
from hemlearn.tasks import Volume3DClassification
from hemlearn.util.errors import ConfigError, DataError, WeightsError

TINY = {
    "densenet121_3d": {"init_features": 4, "growth_rate": 2, "block_config": [1, 1, 1, 1]},
    "resnet18_3d": {"block_inplanes": [4, 4, 4, 8], "layers": [1, 1, 1, 1]},
    "resnet50_3d": {"block_inplanes": [4, 4, 4, 8], "layers": [1, 1, 1, 1]},
    "swin_unetr_3d": {"embed_dim": 6, "num_heads": [1, 1, 2, 2], "depths": [1, 1, 1, 1], "window_size": [2, 2, 2]},
}


assert set(NETWORKS_3D) == {*TINY, "fluid_3d"}  # which measures: tests/models/test_tissue.py


def tiny(name: str, **keys):
    return BackboneConfig(name=name, **{"pretrained": False, "options": TINY[name], **keys})


# --- volumes ----------------------------------------------------------------------------------------------------------


def test_a_volume_is_the_head_in_mm():
    """A ball of 20 mm keeps its size, whatever the slices' gaps and pixels, and lies in the middle."""

    def ball(z, pixel, side):
        place = (torch.arange(side) - (side - 1) / 2) * pixel
        far = z[:, None, None] ** 2 + place[:, None] ** 2 + place[None] ** 2
        return (far < 20**2).float()[:, None], z + 100, torch.full((len(z), 2), pixel)

    even = resample(*ball(torch.arange(-40.0, 41, 2), 1.0, 60), spacing=(2, 2, 2), size=(30, 32, 32))[0]
    odd = torch.cat([torch.arange(-40.0, 0, 4), torch.arange(0.0, 41, 1)])
    other = resample(*ball(odd, 0.5, 120), spacing=(2, 2, 2), size=(30, 32, 32))[0]
    for volume in (even, other):
        assert volume.shape == (30, 32, 32)
        assert float(volume.sum()) * 8 == pytest.approx(4 / 3 * np.pi * 20**3, rel=0.06)
        middle = (volume.sum((1, 2)) * torch.arange(30)).sum() / volume.sum()
        assert float(middle) == pytest.approx(14.5, abs=0.5)
    assert not even[:, 0].any()  # beyond the slices: air


def test_without_spacing_slices_stand_as_they_are():
    images = torch.arange(1.0, 7)[:, None, None, None].expand(6, 2, 8, 8)
    z = torch.full((6,), torch.nan)
    out = resample(images, z, torch.full((6, 2), torch.nan), spacing=None, size=(8, 4, 4))
    assert out[1, :, 2, 2].tolist() == pytest.approx([0, 1, 2, 3, 4, 5, 6, 0], abs=1e-4)
    assert resample(images, z, z, spacing=None, size=(2, 4, 4))[0, :, 0, 0].tolist() == pytest.approx([3, 4])


def test_how_large_a_stored_pixel_is():
    rows = {"series_id": ["a", "b"], "height": [100, 50], "width": [80, 50], "head_box": ["10 60 10 60", ""]}
    manifest = SimpleNamespace(table=pd.DataFrame(rows), series=pd.DataFrame({"series_id": ["a"], "pixel_mm": [0.5]}))
    for fit, wanted in {
        "letterbox": [1.0, 1.0],
        "squash": [1.0, 0.8],
        "crop": [0.8, 0.8],
        "head": [0.52, 0.52],
    }.items():
        found = stored_pixel_mm(manifest, 50, fit)  # type: ignore[arg-type]
        assert found[0].tolist() == pytest.approx(wanted), fit
        assert np.isnan(found[1]).all()


@pytest.mark.parametrize(
    ("z_mm", "pixel", "spacing", "wanted"),
    [
        (np.arange(5) * 5.0, 1.0, [5, 1, 1], ""),
        (np.arange(5) * 5.0, 1.0, [10, 1, 1], "5 slices over 20 mm: thinner than the 4 voxels of 10 mm"),
        (np.full(5, np.nan), 1.0, [5, 1, 1], "no spacing: the positions of slices"),
        (np.arange(5) * 5.0, np.nan, [5, 1, 1], "no spacing: the size of a pixel"),
        (np.full(5, np.nan), np.nan, None, ""),
        (np.full(3, np.nan), np.nan, None, "3 slices: thinner"),
    ],
)
def test_series_that_are_no_volumes(z_mm, pixel, spacing, wanted):
    pixels = np.full((len(z_mm), 2), pixel)
    found = volume_problem(z_mm, pixels, spacing)
    assert found.startswith(wanted) if wanted else found == ""
    if wanted:
        table = pd.DataFrame({"series_id": ["head one"] * len(z_mm), "z_mm": z_mm})
        with pytest.raises(DataError, match=r"1 series cannot .* 'head one'") as caught:
            check_volumes("rsna", [np.arange(len(z_mm))], table, pixels, spacing)
        assert ("volume.spacing=null" if "no spacing" in wanted else "data.geometry.min_slices") in str(caught.value)


def test_pictures_are_no_series():
    table = pd.DataFrame({"series_id": ["a", "b"], "z_mm": [np.nan, np.nan]})
    with pytest.raises(DataError, match=r"data=head_ct: its series hold one slice each"):
        check_volumes("head_ct", [np.array([0]), np.array([1])], table, np.full((2, 2), np.nan), None)


# --- networks ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", TINY)
def test_every_network_learns_from_series(name):
    task = Volume3DClassification(
        ["a", "b"], tiny(name), size=(32, 32, 32), spacing=(5, 6, 6), level="series", unit="HU", optimizer="sgd"
    )
    task.log = lambda *_, **__: None
    lengths = torch.tensor([6, 9])
    batch = SeriesBatch(
        index=torch.arange(15),
        lengths=lengths,
        label=torch.zeros(15, 2),
        series_label=torch.tensor([[0.0, 1.0], [torch.nan, 1.0]]),
        z_mm=torch.cat([torch.arange(6) * 5.0, torch.arange(9) * 5.0]),
        pixel_mm=torch.full((15, 2), 3.0),
        image=torch.randint(-100, 120, (15, 1, 64, 64), dtype=torch.int16),
    )
    task.training_step(batch, 0).backward()
    assert sum(float(p.grad.abs().sum()) > 0 for p in task.backbone.parameters() if p.grad is not None) > 5
    assert len(task.backbone.groups) >= 5
    with torch.inference_mode():
        slices, _, series = task.eval().predict_step(batch, 0)
        alone = {key: value[:6] for key, value in batch.items()} | {"lengths": lengths[:1]}
        torch.testing.assert_close(task.predict_step(alone, 0)[0], slices[:6], atol=1e-5, rtol=1e-4)
    assert torch.equal(slices, series)
    assert slices[0].tolist() == slices[5].tolist()


def test_medicalnets_files_fit_with_any_number_of_windows(tmp_path):
    source = build_network3d(tiny("resnet18_3d"), in_chans=1, size=(32, 32, 32))
    names = {f"module.{key}": value for key, value in source.model.state_dict().items()}
    assert "module.layer1.0.conv1.weight" in names
    assert not any("downsample" in key for key in names)  # shortcuts of 18 and 34 layers have no weights
    file = tmp_path / "resnet_18_23dataset.pth"
    torch.save({"state_dict": {**names, "module.conv_seg.0.weight": torch.zeros(2, 2)}}, file)
    use = tiny("resnet18_3d", pretrained=True, weights=str(file))
    made = build_network3d(use, in_chans=3, size=(32, 32, 32))
    x = torch.rand(1, 1, 32, 32, 32)
    with torch.inference_mode():
        torch.testing.assert_close(made.eval()(x.expand(1, 3, -1, -1, -1)), source.eval()(x), atol=1e-5, rtol=1e-4)
    with pytest.raises(WeightsError, match=r"does not fit backbone\.name=resnet50_3d: of \d+ tensors"):
        build_network3d(tiny("resnet50_3d", pretrained=True, weights=str(file)), in_chans=1, size=(32, 32, 32))


def test_swin_unetrs_files_fit(tmp_path):
    source = build_network3d(tiny("swin_unetr_3d"), in_chans=1, size=(32, 32, 32))
    names = {f"module.{key.replace('linear', 'fc')}": value for key, value in source.model.state_dict().items()}
    assert "module.layers1.0.blocks.0.mlp.fc1.weight" in names
    torch.save({"state_dict": names}, tmp_path / "ssl.pt")
    use = tiny("swin_unetr_3d", pretrained=True, weights=str(tmp_path / "ssl.pt"))
    made = build_network3d(use, in_chans=1, size=(32, 32, 32))
    for key, value in source.model.state_dict().items():
        assert torch.equal(made.model.state_dict()[key], value), key


# --- errors -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("keys", "size", "wanted"),
    [
        ({"options": {"growth": 3}}, (32, 32, 32), r"backbone\.options=.*cannot be built"),
        ({}, (4, 4, 4), r"volume\.size=\[4, 4, 4\]: densenet121_3d cannot take it"),
        ({"drop_path_rate": 0.1}, (32, 32, 32), r"backbone\.drop_path_rate=0\.1"),
        ({"pretrained": True}, (32, 32, 32), r"backbone\.pretrained=false or backbone\.weights=FILE"),
    ],
)
def test_networks_that_cannot_be_built(keys, size, wanted):
    with pytest.raises((ConfigError, WeightsError), match=wanted):
        build_network3d(tiny("densenet121_3d", **keys), in_chans=1, size=size)


@pytest.mark.parametrize(
    ("words", "wanted"),
    [
        (["task=volume3d"], "needs a 3D network: backbone=densenet121_3d"),
        (["backbone=resnet18_3d"], "task.level=series"),
        (["task=volume3d", "backbone=resnet18_3d", "sequence=gru"], "use none"),
        (["task=volume3d", "backbone=resnet18_3d", "channels=adjacent"], "a 3D network has all slices"),
        (["task=volume3d", "backbone=resnet18_3d", "volume.size=[32,128]"], "depth, height, width"),
        (["volume.spacing=[0,1,1]"], "three lengths"),
    ],
)
def test_choices_that_do_not_go_together(words, wanted):
    with pytest.raises(ConfigError) as caught:
        check_command(words, None)
    assert wanted in str(caught.value)
