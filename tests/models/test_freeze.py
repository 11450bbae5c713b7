"""Frozen means byte-identical, schedules are functions of the epoch, learning rates follow the groups."""

from __future__ import annotations

import copy

import pytest
import torch
import yaml
from torch import nn

from hemlearn.config.compose import conf_dir
from hemlearn.config.schema import BackboneConfig, FreezeConfig
from hemlearn.models.backbone import Backbone, build_backbone, layer_groups, module_groups
from hemlearn.models.freeze import FreezePolicy
from hemlearn.util.errors import ConfigError


def policy_of(cfg: FreezeConfig, groups: list[list[str]]) -> FreezePolicy:
    keys = ("trainable", "schedule", "layer_decay", "head_lr_scale", "freeze_batchnorm")
    return FreezePolicy(**{key: getattr(cfg, key) for key in keys}, groups=groups)


PROGRESSIVE = FreezeConfig(trainable="head", schedule={1: 2, 3: "all"})


def small(name: str = "resnet18", **changes) -> Backbone:
    torch.manual_seed(1)
    return build_backbone(BackboneConfig(name=name, pretrained=False, **changes), in_chans=1, image_size=32)


class Learner(nn.Module):
    """What the Lightning module does with a policy: apply it after every switch of modes."""

    def __init__(self, backbone: Backbone, cfg: FreezeConfig) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = nn.Linear(backbone.embedding_dim, 1)
        self.policy = policy_of(cfg, backbone.groups)
        self.epoch = 0

    def train(self, mode: bool = True) -> Learner:
        super().train(mode)
        self.policy.apply(self.backbone, self.epoch)
        return self


def optimiser(learner: Learner) -> torch.optim.Optimizer:
    groups = learner.policy.parameter_groups(learner.backbone, learner.head, lr=0.01, weight_decay=0.1)
    return torch.optim.AdamW(groups)


def run_epoch(learner: Learner, optim: torch.optim.Optimizer, epoch: int) -> None:
    """Two training steps, a validation pass in between as Lightning makes it, data drawn from the epoch."""
    generator = torch.Generator().manual_seed(epoch)
    learner.epoch = epoch
    for _ in range(2):
        learner.train()
        x = torch.rand(4, 1, 32, 32, generator=generator) * 3
        loss = (learner.head(learner.backbone(x)) - 1).square().mean()
        optim.zero_grad()
        loss.backward()
        optim.step()
        learner.eval()
        with torch.no_grad():
            learner.backbone(x)


def content(backbone: Backbone, first: int, last: int) -> dict[str, torch.Tensor]:
    """Parameters and buffers of the groups in [first, last), as they are now."""
    place = module_groups(backbone.model, backbone.groups)
    own = {name: index for index, group in enumerate(backbone.groups) for name in group}
    own |= {name: place[name.rpartition(".")[0]] for name, _ in backbone.model.named_buffers()}
    state = backbone.model.state_dict()
    return {name: state[name].clone() for name, index in own.items() if first <= index < last and name in state}


def moved(before: dict[str, torch.Tensor], backbone: Backbone) -> set[str]:
    after = backbone.model.state_dict()
    return {name for name, value in before.items() if value.numpy().tobytes() != after[name].numpy().tobytes()}


@pytest.mark.parametrize("name", ["resnet18", "mobilenetv3_small_050", "test_vit"])
@pytest.mark.parametrize("trainable", ["head", 1, 2])
def test_frozen_groups_are_byte_identical_and_the_others_move(name, trainable):
    learner = Learner(small(name, drop_rate=0.1), FreezeConfig(trainable=trainable))
    optim = optimiser(learner)
    total = len(learner.backbone.groups)
    border = total - (0 if trainable == "head" else trainable)
    frozen, free = content(learner.backbone, 0, border), content(learner.backbone, border, total)
    assert frozen
    for epoch in range(2):
        run_epoch(learner, optim, epoch)
    assert not moved(frozen, learner.backbone)
    assert moved(free, learner.backbone) == set(free)


def test_every_parameter_and_statistic_moves_when_nothing_is_frozen():
    learner = Learner(small(), FreezeConfig())
    everything = content(learner.backbone, 0, 99)
    run_epoch(learner, optimiser(learner), 0)
    assert moved(everything, learner.backbone) == set(everything) == set(learner.backbone.model.state_dict())


def test_a_schedule_frees_groups_at_its_epochs_and_freezes_again():
    learner = Learner(small(), FreezeConfig(trainable="all", schedule={1: "head", 2: 1}))
    optim = optimiser(learner)
    run_epoch(learner, optim, 0)  # fills momenta and gradients of everything
    before = content(learner.backbone, 0, 5)
    run_epoch(learner, optim, 1)
    assert not moved(before, learner.backbone), "momenta or stale gradients moved a frozen group"
    run_epoch(learner, optim, 2)
    assert moved(before, learner.backbone) == set(content(learner.backbone, 4, 5))


@pytest.mark.parametrize("stop", [1, 2, 3])
def test_a_resume_in_the_middle_of_a_schedule_equals_the_undisturbed_run(stop):
    undisturbed = Learner(small(), PROGRESSIVE)
    optim = optimiser(undisturbed)
    for epoch in range(4):
        if epoch == stop:
            saved = copy.deepcopy((undisturbed.state_dict(), optim.state_dict()))
        run_epoch(undisturbed, optim, epoch)

    resumed = Learner(small(), PROGRESSIVE)  # a new process: new objects, states from the checkpoint
    resumed.load_state_dict(saved[0])
    optim = optimiser(resumed)
    optim.load_state_dict(saved[1])
    frozen = content(resumed.backbone, 0, 5 - resumed.policy.trainable(stop))
    for epoch in range(stop, 4):
        run_epoch(resumed, optim, epoch)
        if epoch == stop:
            assert not moved(frozen, resumed.backbone)
    for name, value in undisturbed.state_dict().items():
        torch.testing.assert_close(resumed.state_dict()[name], value, rtol=0, atol=0, msg=name)


def test_trainable_is_a_function_of_the_epoch_alone():
    policy = policy_of(PROGRESSIVE, [["a"], ["b"], ["c"]])
    assert [policy.trainable(epoch) for epoch in (4, 0, 3, 2, 1, 0)] == [3, 0, 3, 2, 2, 0]
    assert policy.changes_at() == [1, 3]
    same = policy_of(FreezeConfig(trainable=2, schedule={1: 2, 4: "all", "6": "3"}), [["a"], ["b"], ["c"]])
    assert same.changes_at() == [4], "an epoch that changes nothing is no change"


def test_frozen_modules_are_in_evaluation_mode_and_dropout_of_frozen_blocks_is_off():
    learner = Learner(small("test_vit", drop_path_rate=0.5, options={"proj_drop_rate": 0.3}), FreezeConfig(trainable=2))
    learner.train()
    model = learner.backbone.model
    place = module_groups(model, learner.backbone.groups)
    border = len(learner.backbone.groups) - 2
    for name, module in model.named_modules():
        assert module.training == (place[name] >= border), name
    kinds = {type(module).__name__ for name, module in model.named_modules() if place[name] < border}
    assert {"Dropout", "DropPath"} <= kinds
    assert place["pos_drop"] == 0, "it follows the position embeddings of the stem"
    learner.eval()
    assert not any(module.training for module in model.modules())


def test_modules_and_parameters_that_timms_matcher_does_not_name_have_a_group():
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.token = nn.Parameter(torch.zeros(1))
            self.stem = nn.Linear(2, 2)
            self.norm = nn.BatchNorm1d(2, affine=False)
            self.block = nn.Sequential(nn.Dropout(), nn.Linear(2, 2))
            self.scale = nn.Linear(2, 2)

        def group_matcher(self, coarse):
            return {"stem": r"^stem|token", "blocks": r"^block"}

    model = Odd()
    groups = layer_groups(model)
    assert groups == [
        ["token", "stem.weight", "stem.bias"],
        ["block.1.weight", "block.1.bias"],
        ["scale.weight", "scale.bias"],
    ]
    place = module_groups(model, groups)
    assert place["norm"] == 0
    assert place["block.0"] == place["block"] == 1
    assert place[""] == 2, "what the root does in training, such as dropout before its end, goes with the last group"


def test_batchnorm_can_stay_while_its_weights_train():
    learner = Learner(small(), FreezeConfig(freeze_batchnorm=True))
    before = content(learner.backbone, 0, 99)
    run_epoch(learner, optimiser(learner), 0)
    buffers = {name for name, _ in learner.backbone.model.named_buffers()}
    assert moved(before, learner.backbone) == set(before) - buffers


def test_learning_rates_fall_from_the_head_to_the_stem():
    backbone = small()
    head = nn.Linear(backbone.embedding_dim, 1)
    policy = policy_of(FreezeConfig(layer_decay=0.5, head_lr_scale=10.0), backbone.groups)
    groups = policy.parameter_groups(backbone, head, lr=0.1, weight_decay=0.02)
    rates = {group["name"]: group["lr"] for group in groups}
    assert rates["head.decay"] == rates["head.no_decay"] == pytest.approx(1.0)
    assert rates["backbone.4.decay"] == pytest.approx(0.05)
    assert rates["backbone.0.no_decay"] == pytest.approx(0.1 * 0.5**5)
    parameters = [id(parameter) for group in groups for parameter in group["params"]]
    assert len(parameters) == len(set(parameters))
    assert set(parameters) == {id(p) for module in (backbone, head) for p in module.parameters()}
    for group in groups:
        assert group["weight_decay"] == (0.02 if group["name"].endswith(".decay") else 0.0)
        assert all((p.ndim > 1) == (group["weight_decay"] > 0) for p in group["params"])
    torch.optim.AdamW(groups)


def test_without_decay_the_backbone_is_one_rate_and_position_embeddings_are_not_decayed():
    backbone = small("test_vit")
    groups = policy_of(FreezeConfig(trainable="head"), backbone.groups).parameter_groups(
        backbone, nn.Linear(backbone.embedding_dim, 1), lr=0.1, weight_decay=0.02
    )
    names = {"backbone.decay", "backbone.no_decay", "head.decay", "head.no_decay"}
    assert {group["name"] for group in groups} == names
    assert {group["lr"] for group in groups} == {0.1}
    plain = next(group for group in groups if group["name"] == "backbone.no_decay")
    assert any(parameter is backbone.model.pos_embed for parameter in plain["params"])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"trainable": 9}, r"freeze\.trainable=9"),
        ({"trainable": -1}, r"freeze\.trainable=-1"),
        ({"trainable": True}, r"freeze\.trainable=True"),
        ({"trainable": "none"}, r"freeze\.trainable=\'none\'"),
        ({"trainable": 1.5}, r"freeze\.trainable=1\.5"),
        ({"schedule": {2: 7}}, r"freeze\.schedule\.2=7"),
        ({"schedule": {-1: "all"}}, r"freeze\.schedule.*epochs count from 0"),
        ({"schedule": {"two": "all"}}, r"freeze\.schedule.*'two': expected a whole number"),
        ({"layer_decay": 0.0}, r"freeze\.layer_decay=0"),
        ({"layer_decay": 1.5}, r"freeze\.layer_decay=1\.5"),
        ({"head_lr_scale": -2.0}, r"freeze\.head_lr_scale=-2"),
    ],
)
def test_wrong_values_name_their_key(changes, message):
    with pytest.raises(ConfigError, match=message) as caught:
        policy_of(FreezeConfig(**changes), [["a"], ["b"], ["c"]])
    if changes.get("trainable") == 4:
        assert "from 0 to 3" in caught.value.remedy


@pytest.mark.parametrize("file", sorted((conf_dir() / "freeze").glob("*.yaml")), ids=lambda file: file.stem)
def test_shipped_policies_fit_the_shipped_backbones(file):
    cfg = FreezeConfig(**yaml.safe_load(file.read_text("utf-8")))
    assert cfg.name == file.stem
    with torch.device("meta"):
        groups = small("resnet18").groups
    counts = {epoch: policy_of(cfg, groups).trainable(epoch) for epoch in range(6)}
    first = {"none": 5, "head": 0, "last_groups": 2, "progressive": 0, "discriminative": 5, "altuve2022": 1}
    assert counts[0] == first.get(file.stem, 5)  # lora, bitfit and norm have all groups
    if file.stem == "progressive":
        assert counts == {0: 0, 1: 0, 2: 2, 3: 2, 4: 5, 5: 5}
