from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from hemlearn.config.compose import option
from hemlearn.config.schema import LossConfig, TaskConfig
from hemlearn.models.losses import build_loss
from hemlearn.util.errors import ConfigError

BINARY = TaskConfig()
MULTILABEL = TaskConfig(kind="multilabel", labels=["epidural", "subdural", "any"])
MULTICLASS = TaskConfig(kind="multiclass", labels=["normal", "epidural", "subdural"])
NAN = float("nan")
COUNTS = torch.tensor([10.0, 20.0, 30.0]), torch.tensor([90.0, 20.0, 10.0])


def loss_of(cfg: LossConfig, task: TaskConfig, positives, negatives):
    return build_loss(cfg, labels=task.labels, kind=task.kind, positives=positives, negatives=negatives)


def build(task: TaskConfig = MULTILABEL, **keys):
    n = len(task.labels)
    return loss_of(LossConfig(**keys), task, COUNTS[0][:n], COUNTS[1][:n])


@pytest.fixture
def logits():
    torch.manual_seed(0)
    return torch.randn(6, 3).mul_(2).requires_grad_()


@pytest.fixture
def hard():
    torch.manual_seed(1)
    return torch.randint(0, 2, (6, 3)).float()


@pytest.fixture
def classes():
    return torch.tensor([0, 1, 2, 2, 1, 0])


def one_hot(classes):
    return F.one_hot(classes, 3).float()


# --- against torch ------------------------------------------------------------------------------------------------


def test_bce_by_hand():
    value = build(BINARY)(torch.tensor([[0.0], [math.log(3)]]), torch.tensor([[1.0], [0.0]]))
    assert value.item() == pytest.approx((math.log(2) + math.log(4)) / 2)


@pytest.mark.parametrize(
    ("keys", "torch_keys"),
    [
        ({}, {}),
        ({"label_weights": [1.0, 1.0, 2.0]}, {"weight": torch.tensor([1.0, 1.0, 2.0])}),
        ({"positive_weight": [3.0, 1.0, 0.5]}, {"pos_weight": torch.tensor([3.0, 1.0, 0.5])}),
        ({"positive_weight": "balanced"}, {"pos_weight": torch.tensor([9.0, 1.0, 1 / 3])}),
    ],
)
def test_bce_equals_torch(logits, hard, keys, torch_keys):
    expected = F.binary_cross_entropy_with_logits(logits, hard, **torch_keys)
    torch.testing.assert_close(build(**keys)(logits, hard), expected)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("weights", [None, [1.0, 4.0, 0.25]])
def test_cross_entropy_equals_torch(logits, classes, smoothing, weights):
    loss = build(MULTICLASS, name="cross_entropy", label_weights=weights, label_smoothing=smoothing)
    weight = None if weights is None else torch.tensor(weights)
    expected = F.cross_entropy(logits, classes, weight=weight, label_smoothing=smoothing)
    torch.testing.assert_close(loss(logits, one_hot(classes)), expected)


def test_bce_label_smoothing_moves_targets_towards_one_half(logits, hard):
    expected = F.binary_cross_entropy_with_logits(logits, hard * 0.8 + 0.1)
    torch.testing.assert_close(build(label_smoothing=0.2)(logits, hard), expected)


def test_focal_by_hand_and_at_gamma_zero(logits, hard, classes):
    p = logits.sigmoid()
    p_t = torch.where(hard == 1, p, 1 - p)
    torch.testing.assert_close(build(name="focal")(logits, hard), (-((1 - p_t) ** 2) * p_t.log()).mean())
    keys = {"label_weights": [1.0, 2.0, 3.0], "positive_weight": "balanced", "label_smoothing": 0.1}
    torch.testing.assert_close(build(name="focal", gamma=0.0, **keys)(logits, hard), build(**keys)(logits, hard))
    p_true = logits.softmax(1).gather(1, classes[:, None])
    softmax = build(MULTICLASS, name="focal")(logits, one_hot(classes))
    torch.testing.assert_close(softmax, (-((1 - p_true) ** 2) * p_true.log()).mean())
    plain = build(MULTICLASS, name="cross_entropy")(logits, one_hot(classes))
    torch.testing.assert_close(build(MULTICLASS, name="focal", gamma=0.0)(logits, one_hot(classes)), plain)
    assert softmax < plain


# --- weights do something -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["bce", "focal"])
@pytest.mark.parametrize("key", ["label_weights", "positive_weight"])
def test_a_label_weight_scales_that_labels_gradient_only(name, key, logits):
    target = torch.ones(6, 3)
    plain = torch.autograd.grad(build(name=name)(logits, target), logits)[0]
    weighted = torch.autograd.grad(build(name=name, **{key: [1.0, 5.0, 1.0]})(logits, target), logits)[0]
    torch.testing.assert_close(weighted, plain * torch.tensor([1.0, 5.0, 1.0]))


def test_positive_weight_leaves_negatives_alone(logits):
    target = torch.zeros(6, 3)
    torch.testing.assert_close(build(positive_weight=[9.0, 9.0, 9.0])(logits, target), build()(logits, target))


def test_a_binary_label_weight_is_not_dropped():
    logits, target = torch.tensor([[0.3]]), torch.tensor([[1.0]])
    assert build(BINARY, label_weights=[2.0])(logits, target) == 2 * build(BINARY)(logits, target)


@pytest.mark.parametrize("name", ["cross_entropy", "focal"])
def test_class_weights_shift_the_balance_between_classes(name, logits, classes):
    plain = torch.autograd.grad(build(MULTICLASS, name=name)(logits, one_hot(classes)), logits)[0]
    loss = build(MULTICLASS, name=name, label_weights=[1.0, 3.0, 1.0])
    weighted = torch.autograd.grad(loss(logits, one_hot(classes)), logits)[0]
    ratio = weighted.norm(dim=1) / plain.norm(dim=1)
    # 2 samples of each class: the summed weight rises from 6 to 10.
    torch.testing.assert_close(ratio, torch.where(classes == 1, 3.0, 1.0) * 6 / 10)


def test_shipped_weighted_bce_is_balanced(logits, hard):
    loss = loss_of(option("loss", "weighted_bce"), MULTILABEL, *COUNTS)
    torch.testing.assert_close(loss(logits, hard), build(positive_weight=[9.0, 1.0, 1 / 3])(logits, hard))


@pytest.mark.parametrize(
    ("file", "task"), [("bce", BINARY), ("weighted_bce", MULTILABEL), ("focal", BINARY), ("cross_entropy", MULTICLASS)]
)
def test_shipped_losses_give_a_gradient(file, task):
    n = len(task.labels)
    loss = loss_of(option("loss", file), task, COUNTS[0][:n], COUNTS[1][:n])
    logits = torch.zeros(4, n, requires_grad=True)
    loss(logits, torch.eye(n)[torch.arange(4) % n]).backward()
    assert logits.grad is not None
    assert logits.grad.abs().sum() > 0
    assert not loss.state_dict()


# --- unknown labels -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("keys", [{}, {"name": "focal"}, {"label_smoothing": 0.1, "positive_weight": "balanced"}])
def test_unknown_entries_do_not_count(logits, hard, keys):
    loss = build(**keys)
    target = hard.clone()
    target[4:] = NAN
    torch.testing.assert_close(loss(logits, target), loss(logits[:4], hard[:4]))
    target = hard.clone()
    target[0, 1] = NAN
    grad = torch.autograd.grad(loss(logits, target), logits)[0]
    assert grad[0, 1] == 0
    assert grad.isfinite().all()
    assert (grad != 0).sum() == 17


@pytest.mark.parametrize(
    "keys", [{"name": "cross_entropy"}, {"name": "focal"}, {"name": "cross_entropy", "label_smoothing": 0.1}]
)
def test_a_row_with_an_unknown_class_does_not_count(logits, classes, keys):
    loss = build(MULTICLASS, label_weights=[1.0, 2.0, 3.0], **keys)
    target = one_hot(classes)
    target[2] = NAN
    target[5, 1] = NAN
    known = torch.tensor([0, 1, 3, 4])
    value = loss(logits, target)
    torch.testing.assert_close(value, loss(logits[known], one_hot(classes)[known]))
    grad = torch.autograd.grad(value, logits)[0]
    assert grad.isfinite().all()
    assert grad[[2, 5]].abs().max() == 0


@pytest.mark.parametrize(
    ("task", "name"), [(MULTILABEL, "bce"), (MULTILABEL, "focal"), (MULTICLASS, "cross_entropy"), (MULTICLASS, "focal")]
)
def test_a_batch_without_known_labels_is_zero_with_a_graph(task, name, logits):
    value = build(task, name=name, label_smoothing=0.1)(logits, torch.full((6, 3), NAN))
    value.backward()
    assert value.item() == 0
    assert torch.equal(logits.grad, torch.zeros(6, 3))


def test_a_batch_of_a_class_of_weight_zero_is_zero(logits):
    loss = build(MULTICLASS, name="cross_entropy", label_weights=[0.0, 1.0, 1.0], label_smoothing=0.1)
    assert loss(logits, one_hot(torch.zeros(6, dtype=torch.long))).item() == 0


# --- soft targets and extremes ------------------------------------------------------------------------------------


@pytest.mark.parametrize(("task", "name"), [(MULTILABEL, "bce"), (MULTICLASS, "cross_entropy")])
def test_mixed_targets_give_the_mixed_loss(task, name, logits, classes):
    loss = build(task, name=name)
    a, b = one_hot(classes), one_hot(classes.flip(0))
    mixed = loss(logits, 0.3 * a + 0.7 * b)
    torch.testing.assert_close(mixed, 0.3 * loss(logits, a) + 0.7 * loss(logits, b))


def test_a_soft_target_is_best_met_by_its_own_probability():
    logits = torch.zeros(1, 1, requires_grad=True)
    build(BINARY, name="focal")(logits, torch.tensor([[0.5]])).backward()
    assert logits.grad.abs().item() < 1e-6


@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0])
@pytest.mark.parametrize("task", [MULTILABEL, MULTICLASS])
def test_saturated_logits_stay_finite(task, gamma):
    logits = torch.tensor([[200.0, -200.0, -200.0], [-200.0, 200.0, 0.0]], requires_grad=True)
    value = build(task, name="focal", gamma=gamma)(logits, torch.tensor([[1.0, 0.0, 0.0], [1.0, 0.0, 0.0]]))
    value.backward()
    assert value.isfinite()
    assert logits.grad.isfinite().all()


@pytest.mark.parametrize(("task", "name"), [(MULTILABEL, "bce"), (MULTICLASS, "cross_entropy")])
def test_half_precision_logits_are_summed_in_float32(task, name, logits, classes):
    loss = build(task, name=name)
    half = logits.detach().bfloat16()
    assert loss(half, one_hot(classes)).dtype == torch.float32
    torch.testing.assert_close(loss(half, one_hot(classes)), loss(half.float(), one_hot(classes)))


# --- what a user can get wrong ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("task", "keys", "words"),
    [
        (BINARY, {"name": "bcee"}, ["loss.name='bcee'", "'bce'"]),
        (BINARY, {"name": "cross_entropy"}, ["cross_entropy", "binary", "loss=bce"]),
        (MULTICLASS, {"name": "bce"}, ["bce", "multiclass", "loss=cross_entropy"]),
        (MULTILABEL, {"label_weights": [1.0, 2.0]}, ["loss.label_weights", "2 numbers for 3 labels", "epidural"]),
        (MULTILABEL, {"positive_weight": [1.0]}, ["loss.positive_weight", "1 number for 3 labels"]),
        (MULTILABEL, {"positive_weight": "balance"}, ["'balance'", "balanced"]),
        (BINARY, {"positive_weight": 3.0}, ["3.0", "[1.0]"]),
        (MULTICLASS, {"name": "cross_entropy", "positive_weight": "balanced"}, ["positive_weight", "label_weights"]),
        (MULTILABEL, {"label_weights": [1.0, -1.0, 1.0]}, ["-1.0"]),
        (MULTILABEL, {"label_weights": [0.0, 0.0, 0.0]}, ["not all 0"]),
        (MULTILABEL, {"positive_weight": [1.0, NAN, 1.0]}, ["nan"]),
        (MULTILABEL, {"positive_weight": [1.0, "2", 1.0]}, ["finite numbers"]),
        (BINARY, {"label_smoothing": 1.0}, ["label_smoothing=1.0"]),
        (BINARY, {"name": "focal", "gamma": -1.0}, ["gamma=-1.0"]),
    ],
)
def test_wrong_keys_are_refused(task, keys, words):
    with pytest.raises(ConfigError) as caught:
        build(task, **keys)
    for word in words:
        assert word in str(caught.value)


@pytest.mark.parametrize(
    ("positives", "negatives"), [([0.0, 1.0, 1.0], [9.0, 9.0, 9.0]), ([9.0, 1.0, 1.0], [0.0, 9.0, 9.0])]
)
def test_balanced_without_both_outcomes_is_refused(positives, negatives):
    with pytest.raises(ConfigError, match=r"'epidural' has \d positive and \d negative"):
        loss_of(LossConfig(positive_weight="balanced"), MULTILABEL, torch.tensor(positives), torch.tensor(negatives))


def test_shapes_that_do_not_agree_are_refused():
    with pytest.raises(ValueError, match="equal"):
        build()(torch.zeros(2, 3), torch.zeros(2, 1))
