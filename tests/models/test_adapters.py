"""LoRA, BitFit and norm-only policies: what moves, what stays, and the plain network they become."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from timm.layers.conv2d_same import Conv2dSame
from torch import nn
from torch.nn.modules.batchnorm import _NormBase

from hemlearn.config.schema import BackboneConfig
from hemlearn.models.adapters import LoraLayer, merged, origin
from hemlearn.models.backbone import Backbone, build_backbone
from hemlearn.models.freeze import FreezePolicy
from hemlearn.models.lean import leave_out, put_back, to_leave_out
from hemlearn.models.loading import read_state
from hemlearn.models.weights import WeightsFile
from hemlearn.tasks import VolumeClassification
from hemlearn.util.errors import ConfigError, WeightsError
from tests.models.test_mil import filled

NETWORKS = ("test_vit", "test_efficientnet", "test_resnet")


def build(name: str, weights: Path | None = None, **options: Any) -> Backbone:
    torch.manual_seed(0)
    if name == "test_resnet":  # whose random blocks end in a factor of zero, which would never train
        options = {"options": {"zero_init_last": False}}
    spec = BackboneConfig(name=name, pretrained=weights is not None, weights=str(weights) if weights else None)
    return build_backbone(spec.model_copy(update=options), in_chans=3, image_size=32)


def adapted(backbone: Backbone, method: str = "lora", **options: Any) -> FreezePolicy:
    policy = FreezePolicy(method=method, **options)
    policy.attach(backbone)
    return policy


def trained(backbone: Backbone, policy: FreezePolicy) -> set[str]:
    """Names of the tensors that two steps have moved."""
    before = {name: value.clone() for name, value in backbone.model.state_dict().items()}
    head = nn.Linear(backbone.embedding_dim, 1)
    optim = torch.optim.AdamW(policy.parameter_groups(backbone, head, lr=0.05, weight_decay=0.1))
    for _ in range(2):  # LoRA's A has no gradient until B has moved
        policy.apply(backbone.train(), 0)
        loss = (head(backbone(torch.rand(4, 3, 32, 32))) - 1).square().mean()
        optim.zero_grad()
        loss.backward()
        optim.step()
    policy.apply(backbone.eval(), 0)
    return {name for name, value in backbone.model.state_dict().items() if not torch.equal(value, before[name])}


@pytest.mark.parametrize("name", NETWORKS)
def test_lora_trains_its_adapters_and_becomes_part_of_the_plain_network(name: str) -> None:
    plain, images = build(name).eval(), torch.rand(2, 3, 32, 32)
    backbone = build(name)
    policy = adapted(backbone, rank=2, alpha=8.0)
    with torch.no_grad():
        assert torch.equal(backbone.eval()(images), plain(images)), "adapters start without effect"
    own = {name for name, _ in backbone.model.named_parameters() if ".lora_" in name}
    assert trained(backbone, policy) == own
    assert sum(value.numel() for value in plain.parameters()) > policy.trained_parameters(backbone) > 0
    policy.apply(backbone.eval(), 0)
    state = {f"backbone.{key}": value.clone() for key, value in backbone.state_dict().items()}
    with torch.no_grad():
        before = backbone(images)
        policy.merge(backbone)
        torch.testing.assert_close(backbone(images), before, rtol=1e-4, atol=1e-5)
        assert not torch.allclose(before, plain(images), atol=1e-3)
    assert list(backbone.state_dict()) == list(plain.state_dict())
    assert [type(module) for module in backbone.modules()] == [type(module) for module in plain.modules()]
    assert backbone.groups == plain.groups
    again = merged(state)  # as from a checkpoint
    assert {key: value.tolist() for key, value in again.items()} == {
        f"backbone.{key}": value.tolist() for key, value in backbone.state_dict().items()
    }


@pytest.mark.parametrize("name", NETWORKS)
def test_bitfit_and_norm_train_biases_and_normalisation_layers(name: str) -> None:
    kinds = dict(build(name).model.named_modules())
    norms = {key for key, module in kinds.items() if "Norm" in type(module).__name__}
    statistics = {key for key, module in kinds.items() if isinstance(module, _NormBase)}
    moved = trained(backbone := build(name), policy := adapted(backbone, "bitfit"))
    assert moved == {key for key, _ in backbone.model.named_parameters() if key.endswith(".bias")}
    assert {key for key in policy.never_trained(backbone) if "running" in key} == {
        f"{key}.{part}" for key in statistics for part in ("running_mean", "running_var")
    }
    moved = trained(backbone := build(name), adapted(backbone, "norm"))
    assert {key for key in moved if key.endswith((".weight", ".bias"))} == {
        f"{key}.{part}" for key in norms for part in ("weight", "bias") if getattr(kinds[key], part, None) is not None
    }
    assert {key.rpartition(".")[0] for key in moved if "running" in key} == statistics
    moved = trained(backbone := build(name), adapted(backbone, "norm", freeze_batchnorm=True))
    assert not [key for key in moved if "running" in key]


def test_layers_are_chosen_by_group_and_by_name() -> None:
    backbone = build("test_vit")
    policy = adapted(backbone, trainable=3, layers=["attn.qkv$", "mlp"])
    names = {origin(name) for name in trained(backbone, policy)}
    assert names == {
        f"blocks.{block}.{layer}.weight" for block in (3, 4, 5) for layer in ("attn.qkv", "mlp.fc1", "mlp.fc2")
    }
    late = build("test_efficientnet")
    policy = adapted(late, trainable="head", schedule={2: 1})
    policy.apply(late.train(), 1)
    assert not any(value.requires_grad for value in late.model.parameters())
    policy.apply(late, 2)
    assert {name for name, value in late.model.named_parameters() if value.requires_grad} == {
        name for name in late.groups[-1] if ".lora_" in name
    }


def test_layers_that_match_nothing_are_refused_with_the_names_that_exist() -> None:
    with pytest.raises(ConfigError, match=r"freeze\.layers=\['qvk'\]: no layer is called so") as error:
        adapted(build("test_vit"), layers=["qkv", "qvk"])
    assert "patch_embed.proj, blocks.N.attn.qkv, blocks.N.attn.proj" in error.value.remedy
    pooled = Backbone(nn.Sequential(nn.AdaptiveAvgPool2d(2), nn.Flatten()), mean=(0.0,), std=(1.0,), image_size=32)
    with pytest.raises(ConfigError, match=r"there is no layer among those that freeze\.method=lora can train") as error:
        adapted(pooled)
    assert error.value.remedy == "take another freeze.method or backbone"
    wrong: dict[str, dict[str, Any]] = {
        "rank=0: .*1": {"rank": 0},
        "method='lora': trains nothing with freeze.trainable=head": {"trainable": "head"},
        r"layers\[0\]='\(': no regular": {"layers": ["("]},
        r"layers=\['qkv'\]: needs freeze.method=lora": {"method": "full", "layers": ["qkv"]},
    }
    for text, options in wrong.items():
        with pytest.raises(ConfigError, match=rf"freeze\.{text}"):
            FreezePolicy(**{"method": "lora", **options})


def test_a_weight_that_the_network_reads_by_itself_gets_no_adapter() -> None:
    """An Eva layer adds its query and value biases in F.linear: an adapter of `qkv` would never be asked."""
    options = {"depth": 1, "embed_dim": 32, "num_heads": 2, "patch_size": 16}
    backbone = build("vit_tiny_patch16_dinov3_qkvb", options=options)
    adapted(backbone)
    assert {origin(name) for name, _ in backbone.model.named_parameters() if ".lora_" in name} >= {
        "blocks.0.attn.proj.weight",
        "blocks.0.mlp.fc1.weight",
    }
    assert "blocks.0.attn.qkv.weight" in dict(backbone.model.named_parameters())


# First outputs of peft 0.21.2 (rank 2, alpha 6) on weights of `filled`, and the sum of all of them.
PEFT = (
    (nn.Linear(4, 3), (2, 5, 4), [0.36443526, 0.02889261, -0.52672005, 0.16313115], 2.46272514),
    (
        nn.Conv2d(3, 4, 3, stride=2, padding=1),
        (1, 3, 7, 7),
        [-0.10797822, -0.00061584, 0.5636031, 0.95946085],
        -1.16701064,
    ),
    (Conv2dSame(3, 4, 3, stride=2), (1, 3, 8, 8), [-1.79530096, 0.86426002, 2.6446569, 1.18983245], -2.3463582),
)


@pytest.mark.parametrize(("layer", "shape", "first", "total"), PEFT)
def test_lora_is_that_of_peft(layer: Any, shape: tuple[int, ...], first: list[float], total: float) -> None:
    lora = LoraLayer(layer, rank=2, scale=3.0)
    lora.load_state_dict(
        {key: filled(*value.shape, k=20 + i) for i, (key, value) in enumerate(lora.state_dict().items())}
    )
    found = lora(filled(*shape, k=9)).detach()
    torch.testing.assert_close(found.flatten()[:4], torch.tensor(first), rtol=0, atol=2e-6)
    assert found.sum().item() == pytest.approx(total, abs=2e-5)


@pytest.mark.parametrize(
    "layer",
    [
        nn.Linear(6, 5),
        nn.Conv2d(3, 5, (3, 2), stride=(1, 2), padding=2, dilation=2),
        nn.Conv2d(3, 5, 3, padding=1, padding_mode="reflect", bias=False),
        Conv2dSame(3, 5, 4, stride=3),
    ],
)
def test_an_adapted_layer_is_the_layer_with_the_product_in_its_weights(layer: Any) -> None:
    """And it starts as the layer, with its dropout on what the adapters get alone."""
    torch.manual_seed(0)
    x = torch.rand(2, 6) if isinstance(layer, nn.Linear) else torch.rand(2, 3, 9, 8)
    lora = LoraLayer(layer, rank=3, scale=0.5, dropout=0.5)
    torch.testing.assert_close(lora(x), layer(x), rtol=0, atol=0)
    down, up = (part["default"].weight for part in (lora.lora_A, lora.lora_B))
    assert (down.abs().max() > 0, tuple(up.shape[:2]), layer.weight is lora.weight) == (True, (5, 3), True)
    nn.init.normal_(up)
    assert not torch.equal(lora(x), lora(x))
    with torch.no_grad():
        before = lora.eval()(x)
        layer.weight += 0.5 * torch.einsum("or,r...->o...", up.flatten(1), down)
        torch.testing.assert_close(layer(x), before, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["test_vit", "test_efficientnet"])
def test_checkpoints_hold_the_adapters_alone_and_give_a_plain_backbone(name: str, tmp_path: Path) -> None:
    torch.manual_seed(3)
    file = tmp_path / "start.pth"
    torch.save(timm.create_model(name, num_classes=0, **({"img_size": 32} if "vit" in name else {})).state_dict(), file)
    backbone = build(name, file)
    policy = adapted(backbone, rank=2)
    left = to_leave_out(backbone, policy)
    assert left is not None
    trained(backbone, policy)
    whole = {f"backbone.{key}": value.clone() for key, value in backbone.state_dict().items()}
    tree = {"state_dict": dict(whole)}
    leave_out(tree, left)
    kept = {key.removeprefix("backbone.") for key in tree["state_dict"]}
    assert kept == {key for key in backbone.state_dict() if ".lora_" in key} | {"mean", "std", "lora_scale"}
    for start in (build(name, file), backbone):  # `predict` has the plain network, a resumed run the adapted one
        again = {**tree, "state_dict": dict(tree["state_dict"])}
        put_back(again, start)
        assert all(torch.equal(again["state_dict"][key], value) for key, value in whole.items())
    run = tmp_path / "best.ckpt"
    torch.save({"state_dict": whole}, run)
    policy.merge(backbone)
    found = read_state(WeightsFile(run, "file", "file")).tensors
    assert {key: value.tolist() for key, value in found.items()} == {
        key: value.tolist() for key, value in backbone.model.state_dict().items()
    }


def test_damaged_adapters_are_refused() -> None:
    good = {
        "backbone.lora_scale": torch.tensor(2.0),
        "backbone.model.fc.base_layer.weight": torch.zeros(3, 2),
        "backbone.model.fc.lora_A.default.weight": torch.zeros(1, 2),
        "backbone.model.fc.lora_B.default.weight": torch.zeros(3, 1),
    }
    assert list(merged(good)) == ["backbone.model.fc.weight"]
    for key, value in (*((key, 3) for key in good), ("backbone.model.fc.lora_A.default.weight", torch.zeros(1, 9))):
        with pytest.raises(WeightsError, match="adapters do not fit"):
            merged({**good, key: value}, "best.ckpt")


def test_a_sequence_model_over_an_adapted_backbone_is_trained_end_to_end() -> None:
    for freeze, cached in (("head", True), ("lora", False), ("bitfit", False)):
        task = VolumeClassification(
            ["bleed"], "test_efficientnet", pretrained=False, image_size=32, unit="HU", sequence="slice", freeze=freeze
        )
        assert task.reads_cache is cached
