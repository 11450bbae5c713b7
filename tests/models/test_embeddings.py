"""Cached embeddings: computed once, shared, resumed, and never stale."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from hemlearn.config.schema import BackboneConfig
from hemlearn.data import resident
from hemlearn.data.batches import SliceDataset
from hemlearn.models import embeddings
from hemlearn.models.backbone import Backbone, build_backbone
from hemlearn.models.embeddings import Embeddings, Encoder, open_embeddings
from hemlearn.transforms.channels import Channels
from hemlearn.util import block_file
from hemlearn.util.errors import StoreError
from hemlearn.util.shards import Shard, ShardsMissing, working_on

CPU = torch.device("cpu")


def encoder(
    seed: int = 0,
    flips: tuple[str, ...] = (),
    head: bool = False,
    window: float = 80.0,
    tone: tuple[float, float] | None = None,
) -> Encoder:
    torch.manual_seed(seed)
    channels = Channels(windows=[[40.0, window]], tone=tone, unit="HU")
    backbone = build_backbone(BackboneConfig(name="test_efficientnet", pretrained=False), in_chans=1, image_size=32)
    return Encoder(channels, backbone, nn.Linear(backbone.embedding_dim, 3) if head else None, flips, False).eval()


def slices(count: int = 10) -> SliceDataset:
    array = np.random.default_rng(0).integers(-100, 120, (count, 32, 32)).astype(np.int16)
    rows = np.arange(count)
    return SliceDataset(array, rows[:, None], np.zeros((count, 1), dtype=np.float32), rows)


def compute(tmp_path: Path, made: Encoder, data: SliceDataset | None = None, **more: object) -> Embeddings:
    return open_embeddings(
        made, data or slices(), content="store", cache_dir=tmp_path, device=CPU, batch_size=4, **more
    )  # type: ignore[arg-type]


def test_they_do_not_depend_on_where_the_slices_lie(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = np.array(compute(tmp_path / "disk", encoder(), resident="disk").array)
    monkeypatch.setattr(resident, "free_memory", lambda *_, **__: (1 << 40, 1 << 40))  # the CPU passes for a GPU
    data = slices()
    np.testing.assert_array_equal(compute(tmp_path / "device", encoder(), data, resident="device").array, whole)
    assert isinstance(data.array, torch.Tensor)


@pytest.fixture
def forwards(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Images that passed the network."""
    seen: list[int] = []
    forward = Backbone.forward

    def counted(self: Backbone, x: torch.Tensor) -> torch.Tensor:
        if x.device.type != "meta":  # the dry run that measures the width
            seen.append(len(x))
        return forward(self, x)

    monkeypatch.setattr(Backbone, "forward", counted)
    return seen


def test_they_equal_the_network(tmp_path: Path) -> None:
    made, data = encoder(flips=("horizontal",), head=True), slices()
    found = compute(tmp_path, made, data)
    assert found.shape == (10, 2, made.backbone.embedding_dim + 3)
    with torch.inference_mode():
        images = made.channels(data.__getitems__(range(10))["image"])
        plain, mirrored = made.backbone(images), made.backbone(images.flip(-1))
        wanted = [torch.cat([view, made.head(view)], 1) for view in (plain, mirrored)]  # type: ignore[misc]
    torch.testing.assert_close(torch.from_numpy(np.array(found.array)), torch.stack(wanted, 1), rtol=1e-4, atol=1e-5)


def test_twenty_jobs_pass_each_slice_once(tmp_path: Path, forwards: list[int]) -> None:
    for _ in range(20):
        found = compute(tmp_path, encoder())
    assert sum(forwards) == 10
    assert found.account()["forwards"] == 10


@pytest.mark.parametrize(
    "change", [{"seed": 1}, {"flips": ("vertical",)}, {"head": True}, {"window": 60.0}, {"tone": (0.4, 0.1)}]
)
def test_another_encoder_has_another_cache(tmp_path: Path, change: dict[str, object]) -> None:
    first = compute(tmp_path, encoder())
    assert compute(tmp_path, encoder()).folder == first.folder
    assert compute(tmp_path, encoder(**change)).folder != first.folder  # type: ignore[arg-type]


def test_other_slices_or_neighbours_have_another_cache(tmp_path: Path) -> None:
    first = compute(tmp_path, encoder())
    other = open_embeddings(encoder(), slices(), content="other", cache_dir=tmp_path, device=CPU)
    data = slices()
    data.stack = data.stack[::-1].copy()
    assert len({first.folder, other.folder, compute(tmp_path, encoder(), data).folder}) == 3


def test_shards_compute_what_one_process_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, forwards: list[int]
) -> None:
    monkeypatch.setattr(embeddings, "_STEP", 1)
    monkeypatch.setattr(embeddings, "_BLOCK", 3)  # and batches of four: each block has its own
    whole = compute(tmp_path / "whole", encoder())
    forwards.clear()
    for number, missing in ((2, [1, 3]), (3, [1])):
        with working_on(Shard(number, 3)), pytest.raises(ShardsMissing) as caught:
            compute(tmp_path / "parts", encoder())
        assert caught.value.missing == missing
    with working_on(Shard(1, 3)):
        found = compute(tmp_path / "parts", encoder())
    assert forwards == [3, 1, 3, 3]
    assert found.folder.name == whole.folder.name
    assert (found.folder / "vectors.bin").read_bytes() == (whole.folder / "vectors.bin").read_bytes()


def test_a_killed_pass_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, forwards: list[int]) -> None:
    monkeypatch.setattr(embeddings, "_BLOCK", 3)
    whole = np.array(compute(tmp_path / "whole", encoder()).array)
    encode, calls = embeddings._encode, []

    def dies(*arguments: object) -> np.ndarray:
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return encode(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(embeddings, "_encode", dies)
    with pytest.raises(KeyboardInterrupt):
        compute(tmp_path / "killed", encoder())
    monkeypatch.setattr(embeddings, "_encode", encode)
    forwards.clear()
    again = compute(tmp_path / "killed", encoder())
    assert sum(forwards) == 4  # ten less the two blocks of three that were journalled
    assert again.account()["resumed_after"] == 6
    np.testing.assert_array_equal(again.array, whole)


def test_a_block_damaged_after_a_kill_is_computed_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embeddings, "_BLOCK", 3)
    found = compute(tmp_path, encoder())
    whole = np.array(found.array)
    building = found.folder.with_name(f"{found.folder.name}.building")
    found.folder.rename(building)
    marker = json.loads((building / "complete.json").read_text())
    (building / "complete.json").unlink()
    for part in marker["parts"][:2]:
        (building / f"part-{part['start']:08d}.json").write_text(json.dumps(part))
    with (building / "vectors.bin").open("r+b") as file:
        file.seek(4 * found.shape[2] * 4)  # in the second block
        file.write(b"damaged!")
    again = compute(tmp_path, encoder())
    assert again.account()["resumed_after"] == 3
    np.testing.assert_array_equal(again.array, whole)


def test_a_damaged_cache_is_computed_again(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    found = compute(tmp_path, encoder())
    whole = np.array(found.array)
    with (found.folder / "vectors.bin").open("ab") as file:
        file.truncate(100)
    again = compute(tmp_path, encoder())
    assert "damaged" in caplog.text
    np.testing.assert_array_equal(again.array, whole)


def test_a_full_disk_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Usage:
        free = 10

    monkeypatch.setattr(block_file.shutil, "disk_usage", lambda _: Usage)
    with pytest.raises(StoreError, match="disk is full") as caught:
        compute(tmp_path, encoder())
    assert "data.cache_dir" in caught.value.remedy
    assert not list(tmp_path.rglob("*.bin"))
