from __future__ import annotations

import pytest
import torch

from hemlearn.config.compose import conf_dir, option
from hemlearn.config.schema import SequenceConfig
from hemlearn.models.sequence import ATTENTION, NAMES, build_sequence
from hemlearn.models.series_layers import (
    POSITION_WIDTH,
    GatedAttention,
    Recurrent,
    encode_position,
    neighbour_differences,
    reverse_series,
    slice_mask,
)
from hemlearn.util.errors import ConfigError

D, L = 10, 3
LENGTHS = (7, 1, 4, 2)
ORDERED = ["lstm", "gru", "conv_gru", "transmil"]
OPTIONS = [
    {},
    {"probabilities": "both"},
    {"differences": True},
    {"position": True},
    {"members": 2},
    {"probabilities": "both", "differences": True, "position": True, "reverse_tta": True, "members": 2},
]


def build(name="lstm", seed=0, **keys):
    torch.manual_seed(seed)
    return build_sequence(SequenceConfig(name=name, **{"hidden": 16, **keys}), width=D, outputs=L)


def series(seed=0, lengths=LENGTHS):
    """(x, probabilities, z) of each series, without padding."""
    draw = torch.Generator().manual_seed(seed)
    found = []
    for n in lengths:
        z = torch.arange(n) * 5.0 - 300
        found.append((torch.randn(n, D, generator=draw), torch.rand(n, L, generator=draw), z))
    return found


def pad(parts, size, fill=torch.nan):
    def stack(index):
        first = parts[0][index]
        out = torch.full((len(parts), size, *first.shape[1:]), fill)
        for row, part in enumerate(parts):
            out[row, : len(part[index])] = part[index]
        return out

    lengths = torch.tensor([len(part[0]) for part in parts])
    return stack(0), lengths, stack(1), stack(2)


def whole(parts, **keys):
    return pad(parts, max(len(part[0]) for part in parts), **keys)


# --- invariances ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", OPTIONS, ids=lambda keys: "+".join(keys) or "plain")
@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("name", NAMES)
def test_a_series_gets_the_same_alone_in_a_batch_and_under_more_padding(name, layers, options):
    model = build(name, layers=layers, **options).eval()
    parts = series()
    batch, more = model(*whole(parts)), model(*pad(parts, 12, fill=1e4))
    for row, part in enumerate(parts):
        n = len(part[0])
        alone = model(*whole([part]))
        for other in (batch, more):
            torch.testing.assert_close(other.slices[row, :n], alone.slices[0], atol=1e-6, rtol=0)
            torch.testing.assert_close(other.series[row], alone.series[0], atol=1e-6, rtol=0)
            assert not other.slices[row, n:].any()
            if name in ATTENTION:
                torch.testing.assert_close(other.attention[row, :n], alone.attention[0], atol=1e-6, rtol=0)
                assert not other.attention[row, n:].any()


@pytest.mark.parametrize("options", [{}, OPTIONS[-1]], ids=["plain", "all"])
@pytest.mark.parametrize("name", NAMES)
def test_gradients_do_not_depend_on_padding_or_batch(name, options):
    parts = series()

    def gradients(batches):
        model = build(name, **options).eval()  # evaluation mode: dropout would draw for the padding too
        inputs = []
        for x, lengths, probabilities, z in batches:
            x.requires_grad_()
            out = model.each(x, lengths, probabilities, z)
            (out.slices.square().sum() + out.series.square().sum()).backward()
            inputs += [grad[:n] for grad, n in zip(x.grad, lengths, strict=True)]
            assert not any(grad[n:].any() for grad, n in zip(x.grad, lengths, strict=True))
        return inputs, {key: value.grad for key, value in model.named_parameters()}

    apart = gradients([whole([part]) for part in parts])
    for other in (gradients([whole(parts)]), gradients([pad(parts, 11)])):
        for one, two in zip(apart[0], other[0], strict=True):
            torch.testing.assert_close(one, two, atol=1e-6, rtol=1e-5)
        for key, value in apart[1].items():
            torch.testing.assert_close(value, other[1][key], atol=1e-5, rtol=1e-4, msg=key)


@pytest.mark.parametrize("name", ["slice", "mean", "max", "attention", "transformer", "smooth_attention", "clam"])
def test_models_without_order_are_equivariant_to_reversal(name):
    model = build(name).eval()
    x, lengths, *_ = whole(series())
    out, turned = model(x, lengths), model(reverse_series(x, lengths), lengths)
    torch.testing.assert_close(reverse_series(turned.slices, lengths), out.slices, atol=1e-6, rtol=0)
    torch.testing.assert_close(turned.series, out.series, atol=1e-6, rtol=0)


@pytest.mark.parametrize("name", [*ORDERED, "transformer"])
def test_models_with_order_see_it(name):
    model = build(name, position=name == "transformer").eval()
    x, lengths, *_ = whole(series())
    out, turned = model(x, lengths), model(reverse_series(x, lengths), lengths)
    assert (out.series - turned.series)[0].abs().max() > 1e-4


@pytest.mark.parametrize("name", NAMES)
def test_context_reaches_every_slice_but_slice_has_none(name):
    x, lengths, *_ = whole(series())
    model = build(name).eval()
    moved = x.clone()
    moved[0, 3] += 5
    change = (model(moved, lengths).slices - model(x, lengths).slices).abs().amax(-1)
    assert change[0, 3] > 1e-5
    assert bool(change[0, [0, 1, 2, 4, 5, 6]].min() > 0) == (name != "slice")
    assert change[1:].max() < 1e-6


@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_recurrence_equals_packing(cell):
    torch.manual_seed(0)
    ours = Recurrent(cell, D, 8, 2, True, 0.0)
    packed = {"lstm": torch.nn.LSTM, "gru": torch.nn.GRU}[cell](D, 8, 2, batch_first=True, bidirectional=True)
    for layer in range(2):
        for direction, own in (("", ours.forwards[layer]), ("_reverse", ours.backwards[layer])):
            for kind in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"):
                getattr(packed, f"{kind}_l{layer}{direction}").data = getattr(own, f"{kind}_l0").data
    x, lengths, *_ = whole(series(), fill=0.0)
    sequence = torch.nn.utils.rnn.pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
    expected, _ = torch.nn.utils.rnn.pad_packed_sequence(packed(sequence)[0], batch_first=True)
    torch.testing.assert_close(ours(x, slice_mask(lengths, x.shape[1]), lengths), expected, atol=1e-6, rtol=0)


def test_attention_is_that_of_ilse_2018():
    torch.manual_seed(0)
    pool = GatedAttention(6, 5, 1)
    states = torch.randn(1, 4, 6)
    gated = torch.tanh(pool.value(states)) * torch.sigmoid(pool.gate(states))
    weights = torch.exp(pool.score(gated)[0, :, 0])
    weights = weights / weights.sum()
    pooled, got = pool(states, torch.ones(1, 4, dtype=torch.bool))
    torch.testing.assert_close(got[0], weights)
    torch.testing.assert_close(pooled[0], weights @ states[0])


@pytest.mark.parametrize("heads", [1, 4])
@pytest.mark.parametrize("name", ATTENTION)
def test_attention_sums_to_one_over_the_real_slices(name, heads):
    out = build(name, heads=heads).eval()(*whole(series()))
    torch.testing.assert_close(out.attention.sum(1), torch.ones(len(LENGTHS)))
    assert out.attention[1, 0] == 1
    assert build("lstm")(*whole(series())).attention is None


def test_slice_series_output_is_the_most_positive_slice():
    out = build("slice").eval()(*whole(series()))
    for row, n in enumerate(LENGTHS):
        torch.testing.assert_close(out.series[row], out.slices[row, :n].amax(0))


# --- options --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("kind", ["in", "out", "both"])
def test_probabilities_reach_the_logits(name, kind):
    model = build(name, probabilities=kind).eval()
    x, lengths, probabilities, _ = whole(series())
    out, other = model(x, lengths, probabilities), model(x, lengths, 1 - probabilities)
    assert (out.slices - other.slices).abs().amax(-1)[0].min() > 1e-4
    assert (out.series - other.series).abs().max() > 1e-4


def test_burduja_dimensions():
    model = build_sequence(option("sequence", "burduja2020"), width=120, outputs=6)
    net = model.members[0]
    assert [layer.input_size for layer in net.encoder.forwards] == [126, 512, 512]
    assert [layer.hidden_size for layer in net.encoder.backwards] == [256, 256, 256]
    assert (net.slice_output.in_features, net.slice_output.out_features) == (518, 6)


def test_missing_probabilities_are_refused():
    x, lengths, *_ = whole(series())
    with pytest.raises(ConfigError, match=r"sequence\.probabilities=in"):
        build(probabilities="in")(x, lengths)


def test_differences_by_hand():
    x = torch.tensor([[1.0, 4.0, 9.0, 0.0], [2.0, 0.0, 0.0, 0.0]])[..., None]
    below, above = neighbour_differences(x, slice_mask(torch.tensor([3, 1]), 4))
    assert below[..., 0].tolist() == [[0, 3, 5, 0], [0, 0, 0, 0]]
    assert above[..., 0].tolist() == [[-3, -5, 0, 0], [0, 0, 0, 0]]


def test_differences_give_the_slice_model_its_neighbours():
    model = build("slice", differences=True).eval()
    x, lengths, *_ = whole(series())
    moved = x.clone()
    moved[0, 3] += 1
    change = (model(moved, lengths).slices - model(x, lengths).slices).abs().amax(-1)[0]
    assert (change > 1e-6).tolist() == [False, False, True, True, True, False, False]


def test_position_is_counted_from_the_lowest_slice_and_survives_unknown_z():
    mask = slice_mask(torch.tensor([4, 2]), 5)
    z = torch.tensor([[-50.0, -45.0, -40.0, -20.0, torch.nan], [torch.nan, 7.0, 99.0, 99.0, 99.0]])
    place = encode_position(z, mask)
    assert place.shape == (2, 5, POSITION_WIDTH)
    assert place.isfinite().all()
    assert not place[~mask].any()
    torch.testing.assert_close(place[0, :4, 1], torch.tensor([0.0, 0.05, 0.10, 0.30]))
    assert place[..., 0].tolist() == [[1, 1, 1, 1, 0], [0, 1, 0, 0, 0]]
    torch.testing.assert_close(encode_position(z + 1234, mask), place, atol=1e-5, rtol=0)
    none = encode_position(None, mask)
    assert not none[..., :12].any()  # nothing in mm
    assert none[0, :4].unique(dim=0).shape[0] == 4  # the order is still known
    torch.testing.assert_close(none, encode_position(torch.full((2, 5), torch.nan), mask))


@pytest.mark.parametrize("name", NAMES)
def test_position_changes_the_logits(name):
    model = build(name, position=True).eval()
    x, lengths, _, z = whole(series())
    far = z * 3
    assert (model(x, lengths, None, z).slices - model(x, lengths, None, far).slices).abs().max() > 1e-5


def test_members_differ_and_their_mean_is_the_output():
    model = build("gru", members=3).eval()
    inputs = whole(series())
    out, each = model(*inputs), model.each(*inputs)
    assert each.slices.shape == (3, 4, 7, L)
    assert each.series.shape == (3, 4, L)
    assert (each.slices[0] - each.slices[1]).abs().max() > 1e-3
    torch.testing.assert_close(out.slices, each.slices.mean(0))
    torch.testing.assert_close(out.series, each.series.mean(0))


def test_the_summed_loss_trains_each_member_as_if_alone():
    inputs = whole(series())
    model = build("gru", members=2).eval()
    alone = build("gru").eval()
    alone.members[0].load_state_dict(model.members[1].state_dict())
    model.each(*inputs).slices.square().mean(dim=(1, 2, 3)).sum().backward()
    alone(*inputs).slices.square().mean().backward()
    for one, two in zip(model.members[1].parameters(), alone.members[0].parameters(), strict=True):
        if two.grad is not None:
            torch.testing.assert_close(one.grad, two.grad)


@pytest.mark.parametrize("name", NAMES)
def test_reverse_tta_is_the_mean_of_both_directions(name):
    plain, tta = build(name, differences=True).eval(), build(name, differences=True, reverse_tta=True).eval()
    x, lengths, *_ = whole(series())
    out, turned = plain(x, lengths), plain(reverse_series(x.nan_to_num(), lengths), lengths)
    expected = (out.slices + reverse_series(turned.slices, lengths)) / 2
    torch.testing.assert_close(tta(x, lengths).slices, expected, atol=1e-6, rtol=0)
    torch.testing.assert_close(tta(x, lengths).series, (out.series + turned.series) / 2, atol=1e-6, rtol=0)
    if name in ATTENTION:
        torch.testing.assert_close(tta(x, lengths).attention.sum(1), torch.ones(len(LENGTHS)))


def test_reverse_tta_leaves_training_alone():
    plain, tta = build("lstm", dropout=0.0), build("lstm", dropout=0.0, reverse_tta=True)
    x, lengths, *_ = whole(series())
    torch.testing.assert_close(tta(x, lengths).slices, plain(x, lengths).slices)
    assert (tta.eval()(x, lengths).slices - plain.eval()(x, lengths).slices).abs().max() > 1e-4


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    ("key", "value", "names"),
    [
        ("hidden", 32, NAMES),
        ("layers", 2, NAMES),
        ("bidirectional", False, ORDERED[:3]),
        ("kernel", 5, ["conv_gru"]),
        ("heads", 2, [*ATTENTION, "transformer"]),
        ("steps", 2, ["smooth_attention"]),
        ("dropout", 0.6, NAMES),
    ],
)
def test_each_key_changes_the_result_where_it_applies(name, key, value, names):
    inputs = whole(series())
    outputs = []
    for keys in ({}, {key: value}):
        model = build(name, **keys)
        torch.manual_seed(1)  # of dropout
        outputs.append(model(*inputs))
    assert bool((outputs[0].slices - outputs[1].slices).abs().max() > 1e-6) == (name in names)


@pytest.mark.parametrize("name", NAMES)
def test_gradients_reach_every_parameter(name):
    model = build(name, probabilities="both", differences=True, position=True, members=2)
    out = model.each(*whole(series()))
    loss = out.slices.square().sum() + out.series.square().sum()
    (loss if out.clusters is None else loss + out.clusters[0].square().sum()).backward()
    for key, value in model.named_parameters():
        assert value.grad is not None, key
        assert value.grad.isfinite().all(), key
        # A cell's input-side and state-side biases move together, and one shift of all scores changes no softmax.
        assert value.grad.any() or key.endswith("pool.score.bias"), key


@pytest.mark.parametrize("name", NAMES)
def test_context_is_learnt_and_slice_cannot(name):
    """The label of every slice is the sign of a feature of one other slice of its series."""
    torch.manual_seed(0)
    x = torch.randn(64, 6, D) * 0.3
    marked = torch.randint(0, 6, (64,))
    truth = torch.randint(0, 2, (64,)).float()
    x[torch.arange(64), marked, 0] = 4.0 * (2 * truth - 1)
    lengths = torch.full((64,), 6)
    model = build(name, dropout=0.0, hidden=32)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    target = truth[:, None].expand(64, 6)
    for _ in range(60):
        loss = torch.nn.functional.binary_cross_entropy_with_logits(model(x, lengths).slices[..., 0], target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert (loss.item() < 0.2) == (name != "slice")


@pytest.mark.parametrize("name", NAMES)
def test_state_dict_round_trip(name):
    inputs = whole(series())
    model, other = build(name, members=2).eval(), build(name, members=2, seed=5).eval()
    assert (model(*inputs).slices - other(*inputs).slices).abs().max() > 1e-4
    other.load_state_dict(model.state_dict())
    torch.testing.assert_close(other(*inputs).slices, model(*inputs).slices)


def test_a_series_of_2000_slices_and_one_of_one():
    model = build("lstm", position=True).eval()
    out = model(*whole(series(lengths=(2000, 1))))
    assert out.slices.shape == (2, 2000, L)
    assert out.slices.isfinite().all()


# --- errors ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("keys", "problem", "remedy"),
    [
        ({"name": "lstmm"}, r"sequence\.name=\'lstmm\'", "did you mean 'lstm'?"),
        ({"name": "none"}, r"sequence\.name=none", "slice"),
        ({"name": "gru", "probabilities": "bot"}, r"sequence\.probabilities=\'bot\'", "both"),
        ({"name": "conv_gru", "kernel": 4}, r"sequence\.kernel=4", "odd"),
        ({"name": "transformer", "hidden": 30}, r"sequence\.heads=4", "divisor"),
        ({"name": "lstm", "layers": 0}, r"sequence\.layers=0", "1 or more"),
        ({"members": 0, "name": "gru"}, r"sequence\.members=0", "[1, 1000]"),
        ({"dropout": 1.0, "name": "gru"}, r"sequence\.dropout=1\.0", "[0, 1)"),
    ],
)
def test_values_that_cannot_be_built(keys, problem, remedy):
    with pytest.raises(ConfigError, match=problem) as caught:
        build_sequence(SequenceConfig(**keys), width=D, outputs=L)
    assert remedy in str(caught.value)


@pytest.mark.parametrize("lengths", [[0, 2], [8, 2]])
def test_impossible_lengths(lengths):
    with pytest.raises(ValueError, match="lengths from"):
        build()(torch.zeros(2, 7, D), torch.tensor(lengths))


@pytest.mark.parametrize("file", sorted((conf_dir() / "sequence").glob("*.yaml")), ids=lambda file: file.stem)
def test_every_file_of_the_group_builds(file):
    config = option("sequence", file.stem).model_copy(update={"hidden": 16})
    if config.name == "none":
        assert file.stem == "none"
        return
    out = build_sequence(config, width=D, outputs=L)(*whole(series()))
    assert out.slices.shape == (4, 7, L)
    assert out.series.shape == (4, L)
