from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import yaml

from hemlearn.config.compose import conf_dir
from hemlearn.config.schema import LossConfig
from hemlearn.evaluation.metrics import WeightedLogLoss
from hemlearn.models.losses import build_loss
from hemlearn.util.errors import ConfigError
from tests.evaluation.written_out import weighted_log_loss

NAN = float("nan")
LABELS = ["epidural", "intraparenchymal", "intraventricular", "subarachnoid", "subdural", "any"]
RSNA = [1.0, 1.0, 1.0, 1.0, 1.0, 2.0]


def test_two_slices_by_hand():
    y = [[0, 0, 0, 0, 1, 1], [0, 0, 0, 0, 0, 0]]
    p = [[0.1, 0.2, 0.1, 0.1, 0.7, 0.9], [0.5, 0.1, 0.1, 0.1, 0.1, 0.2]]
    first = -(3 * math.log(0.9) + math.log(0.8) + math.log(0.7) + 2 * math.log(0.9)) / 7
    second = -(math.log(0.5) + 4 * math.log(0.9) + 2 * math.log(0.8)) / 7
    assert weighted_log_loss(y, p, RSNA) == pytest.approx((first + second) / 2, rel=1e-12)
    assert weighted_log_loss(y[:1], p[:1], RSNA) == pytest.approx(first)
    # A constant half, as in the sample submission, costs ln 2 whatever the weights.
    assert weighted_log_loss(y, np.full((2, 6), 0.5), RSNA) == pytest.approx(math.log(2))
    assert weighted_log_loss(y, p) == pytest.approx(weighted_log_loss(y, p, [3.0] * 6))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_certain_and_wrong_costs_34_5_nats(dtype):
    wrong = weighted_log_loss([[1, 0]], [[0.0, 0.0]], [1.0, 1.0])
    assert wrong == pytest.approx(-math.log(1e-15) / 2)
    assert weighted_log_loss([[0, 0]], [[1.0, 0.0]]) == pytest.approx(-math.log(1e-15) / 2)
    assert weighted_log_loss([[1, 0]], [[1.0, 0.0]]) == 0
    metric = WeightedLogLoss(["a", "b"])
    metric.update(torch.tensor([[0.0, 1.0]], dtype=dtype), torch.tensor([[1.0, 0.0]]))
    assert metric.compute().item() == pytest.approx(-math.log(1e-15))


def test_unknown_labels_take_their_weight_along():
    y = [[1, NAN, 1], [0, 0, NAN], [NAN, NAN, NAN]]
    p = [[0.8, 0.3, 0.6], [0.3, 0.4, 0.5], [0.9, 0.9, 0.9]]
    loss = -(math.log(0.8) + 2 * math.log(0.6) + math.log(0.7) + math.log(0.6))
    assert weighted_log_loss(y, p, [1, 1, 2]) == pytest.approx(loss / (1 + 2 + 1 + 1))
    assert math.isnan(weighted_log_loss([[NAN, NAN]], [[0.5, 0.5]]))
    assert math.isnan(weighted_log_loss([[NAN, 1]], [[0.5, 0.5]], [1.0, 0.0]))


def test_metric_over_batches_and_processes_equals_the_function():
    rng = np.random.default_rng(0)
    y = (rng.random((103, 6)) < 0.2).astype(np.float32)
    y[rng.random(y.shape) < 0.1] = NAN
    p = rng.random((103, 6)).astype(np.float32)
    expected = weighted_log_loss(y, p.astype(np.float64), RSNA)
    whole, ranks = WeightedLogLoss(LABELS, RSNA), [WeightedLogLoss(LABELS, RSNA) for _ in range(3)]
    for i in range(0, 103, 17):
        batch = torch.from_numpy(p[i : i + 17]), torch.from_numpy(y[i : i + 17])
        whole.update(*batch)
        ranks[i % 2 if i < 51 else 2].update(*batch)  # processes of unequal share
    assert whole.compute().item() == pytest.approx(expected, rel=1e-12)
    # What torchmetrics does between processes: each state reduced by its own rule, here a sum.
    assert {name: rule.__name__ for name, rule in whole._reductions.items()} == {
        "loss": "dim_zero_sum",
        "total": "dim_zero_sum",
    }
    total = sum(r.loss for r in ranks) / sum(r.total for r in ranks)
    assert total.item() == pytest.approx(expected, rel=1e-12)
    merged, *others = ranks
    for rank in others:
        merged.merge_state(rank)
    assert merged.compute().item() == pytest.approx(expected, rel=1e-12)
    whole.reset()
    whole.update(torch.rand(1, 6), torch.full((1, 6), NAN))
    assert math.isnan(whole.compute().item())
    assert "weights" not in whole.state_dict()


def test_the_training_loss_is_the_metric():
    content = yaml.safe_load((conf_dir() / "loss" / "rsna.yaml").read_text())
    task = yaml.safe_load((conf_dir() / "task" / "subtypes.yaml").read_text())
    assert task["label_weights"] == RSNA
    assert task["labels"] == LABELS
    assert sum(content["label_weights"]) == pytest.approx(6)
    loss = build_loss(
        LossConfig(**content),
        labels=task["labels"],
        kind=task["kind"],
        positives=torch.ones(6),
        negatives=torch.ones(6),
    )
    rng = torch.Generator().manual_seed(0)
    logits = torch.randn(40, 6, generator=rng) * 2
    target = (torch.rand(40, 6, generator=rng) < 0.3).float()
    metric = WeightedLogLoss(LABELS, task["label_weights"])
    metric.update(logits.sigmoid(), target)
    assert loss(logits, target).item() == pytest.approx(metric.compute().item(), rel=1e-5)


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ([1, 2], "2 numbers for 6 labels"),
        ([0.0] * 6, "not all 0"),
        ([1, 1, 1, 1, 1, -1], "0 or more"),
        ([1, 1, 1, 1, 1, NAN], "finite"),
    ],
)
def test_bad_weights_are_named(weights, message):
    with pytest.raises(ConfigError, match=message):
        WeightedLogLoss(LABELS, weights)
    with pytest.raises(ConfigError, match=message):
        weighted_log_loss(np.zeros((1, 6)), np.zeros((1, 6)), weights)


def test_bad_values_are_refused():
    metric = WeightedLogLoss(["a", "b"])
    with pytest.raises(ValueError, match="L=2"):
        metric.update(torch.rand(3, 3), torch.zeros(3, 3))
    with pytest.raises(ValueError, match="outside"):
        metric.update(torch.full((1, 2), 1.5), torch.zeros(1, 2))
    with pytest.raises(ValueError, match="outside"):
        metric.update(torch.full((1, 2), NAN), torch.zeros(1, 2))
