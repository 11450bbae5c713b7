from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr

from hemlearn.data.batches import SeriesBatch
from hemlearn.evaluation.pooling import Pool, unit_probs
from hemlearn.reading.explain.scores import Scores, slice_attribution
from hemlearn.util.errors import ConfigError
from tests.explain.networks import bright_run, images, slice_run, spots, volume_run


def batch(count: int) -> SeriesBatch:
    return SeriesBatch(
        index=torch.arange(count),
        lengths=torch.tensor([count]),
        label=torch.zeros(count, 6),
        series_label=torch.zeros(1, 6),
        z_mm=torch.arange(count) * 5.0,
    )


@pytest.mark.parametrize(
    "overrides", [["sequence=ensemble", "sequence.hidden=8"], ["sequence.members=3", "sequence.smoothing=1"]]
)
def test_scores_are_the_log_odds_of_the_probabilities(overrides: list[str]) -> None:
    task = volume_run("task.aggregate=model", *overrides, slice_head=[])
    x = images(6)
    scores = Scores(task, torch.arange(6) * 5.0)
    given: SeriesBatch = {**batch(6), "image": torch.zeros(6, 1, 64, 64)}
    with torch.no_grad():
        vectors = scores.encode(x)
        views = torch.stack([vectors], 1)
        slices, series = task.probabilities({**given, "vector": views})  # type: ignore[typeddict-item]
        torch.testing.assert_close(scores(x, "slice").sigmoid(), slices, rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(scores(x, "series").sigmoid(), series, rtol=1e-4, atol=1e-6)


def test_the_score_follows_the_aggregate() -> None:
    x = images(5)
    mean, top = slice_run(), slice_run("task.aggregate=max")
    with torch.no_grad():
        p = Scores(mean)(x, "slice").sigmoid()
        torch.testing.assert_close(Scores(mean)(x, "series")[0].sigmoid(), p.mean(0))
        torch.testing.assert_close(Scores(top)(x, "series")[0].sigmoid(), p.amax(0))
        pool = Pool(2, (0.1, 0.2, 0.3, 0.4))
        for how in ("top_k", "noisy_or", "logistic"):
            found = Scores(slice_run(f"task.aggregate={how}"), pool=pool)(x, "series").sigmoid()
            expected = unit_probs(p.double().numpy(), np.zeros(5, dtype=np.intp), how, pool=pool)
            np.testing.assert_allclose(found.numpy(), expected, rtol=1e-4)


@pytest.mark.parametrize("method", ["gradient", "removal"])
def test_the_slice_with_the_evidence_leads(method: str) -> None:
    x = spots([(0, 0)] * 5)
    x[:] = 0.1
    x[3] = spots([(4, 4)])[0]
    shares = slice_attribution(Scores(bright_run()), x, method)
    assert shares.shape == (5, 1)
    assert int(shares[:, 0].argmax()) == 3
    torch.testing.assert_close(shares.abs().sum(0), torch.ones(1))


@pytest.mark.parametrize("name", ["gru", "lstm", "mean", "conv_gru"])
def test_gradient_and_removal_agree_in_order(name: str) -> None:
    """Removal is exact; the gradient is its first-order estimate. On short series they must rank slices alike.

    A transformer normalises its input, so that of random weights nothing of the kind can be asked.
    """
    task = volume_run(f"sequence={name}", "sequence.hidden=8", "task.aggregate=mean")
    x = images(12) * torch.linspace(0.2, 1.0, 12)[:, None, None, None]
    scores = Scores(task, torch.arange(12) * 5.0)
    one, two = (slice_attribution(scores, x, method) for method in ("gradient", "removal"))
    found = [float(spearmanr(one[:, k], two[:, k]).statistic) for k in range(6)]
    assert sum(found) / 6 > 0.4, found


def test_attention_is_the_models_own() -> None:
    task = volume_run("sequence=attention", "sequence.hidden=8")
    x = images(4)
    scores = Scores(task, torch.arange(4) * 5.0)
    shares = slice_attribution(scores, x, "attention")
    with torch.no_grad():
        weights = task.sequence(scores.encode(x), scores.batch(scores.encode(x)[None])).attention
    assert weights is not None
    torch.testing.assert_close(shares[:, 0], weights.mean(0)[0])
    assert (shares >= 0).all()
    with pytest.raises(ConfigError, match=r"\(gru\) has no attention weights"):
        slice_attribution(Scores(volume_run()), x, "attention")


def test_removal_is_what_it_says() -> None:
    task = volume_run("task.aggregate=model", "sequence.position=true")
    x = images(5)
    z = torch.tensor([0.0, 5.0, 9.0, 20.0, 21.0])
    shares = slice_attribution(Scores(task, z), x, "removal")
    keep = [0, 1, 3, 4]
    with torch.no_grad():
        whole, without = Scores(task, z)(x, "series")[0], Scores(task, z[keep])(x[keep], "series")[0]
    drop = whole - without
    scale = shares[2] / drop
    others = [k for k in range(5) if k != 1]
    with torch.no_grad():
        second = whole - Scores(task, z[others])(x[others], "series")[0]
    torch.testing.assert_close(shares[1] / second, scale, rtol=1e-2, atol=1e-3)


def test_one_slice_has_it_all_and_wrong_methods_are_refused() -> None:
    assert torch.equal(slice_attribution(Scores(volume_run()), images(1)), torch.ones(1, 6))
    with pytest.raises(ConfigError, match=r"attribution=gradeint.*gradient"):
        slice_attribution(Scores(volume_run()), images(2), "gradeint")
