"""Multiple-instance models: equal to torchmil's on equal weights; scores of slices from labels of series alone."""

from __future__ import annotations

import pytest
import torch

from hemlearn.config.schema import SequenceConfig
from hemlearn.models.mil import Smooth, TransMIL, clustering_loss, instance_logits, most_and_least, neighbour_weights
from hemlearn.models.sequence import ATTENTION, NAMES, build_sequence
from hemlearn.models.series_layers import GatedAttention
from hemlearn.util.errors import ConfigError
from tests.models.test_sequence import D, L, pad, series, whole

X = torch.sin(torch.arange(20) * 1.3).reshape(1, 5, 4)
ALL, FIVE = torch.ones(1, 5, dtype=torch.bool), torch.tensor([5])


def filled(*shape, k):
    size = torch.Size(shape).numel()
    return 0.4 * torch.sin(torch.arange(size) * 0.7 + k).reshape(shape)


def fill(*parameters):
    for k, value in enumerate(parameters):
        value.data = filled(*value.shape, k=k)


def linear(x, k):
    return x @ filled(1, x.shape[-1], k=k)[0] + filled(1, k=k + 1)


# Outputs of torchmil 1.0.2 (torch 2.15.0) on X with the weights of `fill`: the logit of the series, its attention.
SMOOTH = (-0.39625347, [0.21177460, 0.20436211, 0.19732140, 0.19203036, 0.19451147])
TRANSMIL = (0.17201127, [0.21537318, 0.21550558, 0.19740171, 0.18308129, 0.18863823])
# ... and the clustering loss of a series without and with the label, two slices each, cross-entropy in place of the SVM
CLAM = (0.01187330, [0.18875493, 0.19640078, 0.20402411, 0.19240108, 0.21841909], [1.72234309, 1.46422422])


def test_smooth_attention_is_that_of_torchmil():
    smooth, pool = Smooth(10), GatedAttention(4, 3, 1, gated=False)
    fill(pool.value.weight, pool.value.bias, pool.score.weight)
    pool.score.bias.data.zero_()  # one shift of all scores, which torchmil leaves out
    pooled, weights = pool(smooth(X, ALL), ALL)
    torch.testing.assert_close(weights[0], torch.tensor(SMOOTH[1]))
    torch.testing.assert_close(linear(pooled, 3), torch.tensor([SMOOTH[0]]))


def test_transmil_is_that_of_torchmil():
    net = TransMIL(4, 8, 2, 2, 0.0).double()
    places = [value for layer in net.places for value in (layer.weight, layer.bias)]
    norms = [value for layer in net.norms for value in (layer.weight, layer.bias)]
    layers = [layer.weight for layer in net.attentions]
    fill(net.project.weight, net.project.bias, net.token, *places, *norms, *layers, net.norm.weight, net.norm.bias)
    net.double()
    _, token, weights = net(X.double(), ALL, FIVE)
    torch.testing.assert_close(weights[0].float(), torch.tensor(TRANSMIL[1]), atol=2e-5, rtol=0)
    torch.testing.assert_close(linear(token.float(), 17), torch.tensor([TRANSMIL[0]]), atol=2e-5, rtol=0)


def test_clam_is_that_of_torchmil():
    pool = GatedAttention(4, 3, 1)
    fill(pool.value.weight, pool.value.bias, pool.gate.weight, pool.gate.bias, pool.score.weight)
    pool.score.bias.data.zero_()
    pooled, weights = pool(X, ALL)
    torch.testing.assert_close(weights[0], torch.tensor(CLAM[1]))
    torch.testing.assert_close(linear(pooled, 5), torch.tensor([CLAM[0]]))
    logits = (X @ filled(2, 4, k=7).T + filled(2, k=8))[None, :, :, None]  # classifiers of absence and presence
    chosen = most_and_least(weights, ALL, FIVE, 2)[None]
    for label, wanted in enumerate(CLAM[2]):
        loss = clustering_loss(logits, chosen, torch.tensor([[float(label)]]))
        torch.testing.assert_close(loss, torch.tensor(wanted))


def test_clustering_leaves_out_padding_the_middle_and_what_is_unknown():
    weights = torch.tensor([[0.1, 0.4, 0.2, 0.3, 0.0], [1.0, 0.0, 0.0, 0.0, 0.0]])
    lengths = torch.tensor([4, 1])
    chosen = most_and_least(weights, torch.arange(5) < lengths[:, None], lengths, 1)
    assert chosen.tolist() == [[-1, 1, 0, 0, 0], [0, 0, 0, 0, 0]]  # one slice alone is neither
    logits = torch.zeros(1, 2, 5, 2, 2, requires_grad=True)
    clustering_loss(logits, chosen[None], torch.tensor([[1.0, torch.nan], [0.0, 1.0]])).backward()
    assert logits.grad[0, 0, :2, 0].abs().min(-1).values.tolist() > [0, 0]
    assert not logits.grad[0, 0, 2:].any()
    assert not logits.grad[0, 0, :, 1].any()
    assert not logits.grad[0, 1].any()


def test_smoothing_reaches_near_neighbours_more_and_keeps_a_lonely_slice():
    mask = torch.tensor([[True] * 4, [True, False, False, False]])
    z = torch.tensor([[0.0, 5.0, 10.0, 40.0], [3.0, 0.0, 0.0, 0.0]])
    weight = neighbour_weights(mask, z)
    torch.testing.assert_close(weight[0] / weight[0, 0], torch.tensor([1.0, 1.0, 5 / 30]))
    assert not weight[1].any()
    unknown = z.clone()
    unknown[0, 1] = torch.nan
    assert neighbour_weights(mask, unknown)[0].tolist() == [1, 1, 1]
    x = torch.zeros(2, 4, 1)
    x[0, 2], x[1, 0] = 1.0, 7.0
    out = Smooth(10)(x, mask, z)[..., 0]
    assert out[0, 1] > 1.5 * out[0, 3] > 0
    assert out[1].tolist() == [7, 0, 0, 0]


# --- labels of series alone -------------------------------------------------------------------------------------------


def weak(name, **keys):
    torch.manual_seed(0)
    return build_sequence(SequenceConfig(name=name, hidden=16, **keys), width=D, outputs=L, series_only=True)


@pytest.mark.parametrize("name", NAMES)
def test_scores_of_slices_follow_from_what_series_have_trained(name):
    model, parts = weak(name).eval(), series()
    out, more = model(*whole(parts)), model(*pad(parts, 9, fill=1e4))
    torch.testing.assert_close(more.slices[:, :7], out.slices, atol=1e-5, rtol=0)
    if name != "transmil":  # the only slice of a series is the series, but for a class token
        torch.testing.assert_close(out.slices[1, 0], out.series[1], atol=1e-5, rtol=0)
    assert not out.slices[1, 1:].any()
    assert out.slices[0].std(0).min() > 1e-4
    trained = model.train().each(*whole(parts))
    (trained.series.square().sum() + sum(part.square().sum() for part in (trained.clusters or ())[:1])).backward()
    for key, value in model.named_parameters():
        assert value.grad is not None, key


def test_probabilities_of_a_slice_run_do_not_go_with_labels_of_series_alone():
    with pytest.raises(ConfigError, match=r"sequence\.probabilities=both: learnt from labels of slices"):
        weak("gru", probabilities="both")


@pytest.mark.parametrize("name", ATTENTION)
def test_a_slice_that_is_not_looked_at_scores_low(name):
    with torch.no_grad():
        out = weak(name, heads=1).eval()(*whole(series()))
    most, least = out.attention[0].argmax(), out.attention[0].argmin()
    own = instance_logits(torch.full((1, 7, 1), 2.0), out.attention[:1])[0, :, 0]
    assert own[most] == pytest.approx(2.0, abs=1e-5)
    assert own[least].sigmoid() == pytest.approx(
        float(torch.tensor(2.0).sigmoid() * out.attention[0, least] / out.attention[0, most]), rel=1e-4
    )
    assert instance_logits(torch.full((1, 7, 1), 200.0), out.attention[:1]).isfinite().all()


@pytest.mark.parametrize("name", ["attention", "smooth_attention", "clam"])
def test_the_slice_that_makes_a_series_positive_is_found(name):
    """One slice of half of the series shows the sign; series alone are labelled, slices ranked over all series."""
    torch.manual_seed(0)
    x = torch.randn(64, 6, D) * 0.3
    label = torch.arange(64) % 2
    x[torch.arange(64), torch.randint(0, 6, (64,)), 0] += 4.0 * label
    shown = x[..., 0] > 2
    lengths = torch.full((64,), 6)
    model = weak(name, dropout=0.0, heads=1, steps=2, instances=2)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(50):
        loss = torch.nn.functional.binary_cross_entropy_with_logits(model(x, lengths).series[:, 0], label.float())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    scores = model.eval()(x, lengths).slices[..., 0]
    pairs = scores[shown][:, None] > scores[~shown]
    assert loss.item() < 0.1
    assert pairs.float().mean() > 0.8
