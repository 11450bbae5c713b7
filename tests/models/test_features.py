from __future__ import annotations

import numpy as np
import pytest
import torch

from hemlearn.config.compose import conf_dir, option
from hemlearn.config.schema import FeaturesConfig
from hemlearn.models import features as module
from hemlearn.models.features import METHODS, FeatureSelection
from hemlearn.util.errors import ConfigError, DataError


def selection_of(cfg: FeaturesConfig, width: int, seed: int = 0) -> FeatureSelection:
    return FeatureSelection(cfg.name, cfg.k, cfg.strength, width=width, seed=seed)


N, D, K = 600, 24, 5
SUPERVISED = ["anova", "mutual_info", "l1"]
CHOOSING = ["variance", *SUPERVISED]


def config(name, k=K, **keys):
    return FeaturesConfig(name=name, k=None if name == "none" else k, **keys)


def build(name, k=K, width=D, **keys):
    return selection_of(config(name, k, **keys), width)


@pytest.fixture(scope="module")
def data():
    """Noise of unequal scale far from zero; feature 7 carries label 0, feature 11 label 1."""
    rng = np.random.default_rng(0)
    y = (rng.random((N, 2)) < 0.3).astype(np.float64)
    x = rng.normal(size=(N, D)).astype(np.float32)
    x[:, 7] += 2 * y[:, 0]
    x[:, 11] -= 2 * y[:, 1]
    x = x * np.linspace(0.5, 3, D, dtype=np.float32) + 100
    y[rng.random((N, 2)) < 0.1] = np.nan
    return x, y, np.repeat(np.arange(N // 20), 20)


def fitted(name, data, **keys):
    chosen = build(name, **keys)
    chosen.fit(*data)
    return chosen


# --- the map --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", METHODS)
def test_training_slices_come_out_standardised(name, data):
    selection = fitted(name, data)
    out = selection.transform(data[0])
    assert out.shape == (N, D if name == "none" else K)
    assert out.dtype == np.float32
    live = out.any(axis=0)
    assert live.sum() >= 2
    np.testing.assert_allclose(out.mean(axis=0)[live], 0, atol=1e-3)
    np.testing.assert_allclose(out.std(axis=0)[live], 1, atol=1e-3)


@pytest.mark.parametrize("name", METHODS)
def test_map_keeps_leading_shape_and_passes_gradients(name, data):
    selection = fitted(name, data)
    x = torch.from_numpy(data[0][:12]).reshape(3, 4, D).requires_grad_()
    out = selection(x)
    assert out.shape == (3, 4, selection.k)
    torch.testing.assert_close(out.detach().reshape(12, -1).numpy(), selection.transform(data[0][:12]))
    out.sum().backward()
    assert x.grad.abs().sum() > 0
    assert not list(selection.parameters())


@pytest.mark.parametrize("name", METHODS)
def test_state_dict_reloads_into_an_unfitted_module(name, data, tmp_path):
    selection, other = fitted(name, data), build(name)
    torch.save(selection.state_dict(), tmp_path / "state.pt")
    with pytest.raises(RuntimeError, match="before they were fitted"):
        other(torch.zeros(1, D))
    other.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    np.testing.assert_array_equal(other.transform(data[0]), selection.transform(data[0]))


def test_state_of_an_unfitted_module_does_not_count_as_fitted(data):
    selection = fitted("pca", data)
    selection.load_state_dict(build("pca").state_dict())
    with pytest.raises(RuntimeError, match="before they were fitted"):
        selection(torch.zeros(1, D))


def test_it_loads_as_a_part_of_a_larger_module(data):
    whole = torch.nn.ModuleDict({"features": fitted("anova", data), "head": torch.nn.Linear(K, 1)})
    other = torch.nn.ModuleDict({"features": build("anova"), "head": torch.nn.Linear(K, 1)})
    other.load_state_dict(whole.state_dict())
    np.testing.assert_array_equal(other["features"].transform(data[0]), whole["features"].transform(data[0]))


@pytest.mark.parametrize("name", METHODS)
def test_only_training_rows_count(name, data):
    x, y, patients = data
    rows = np.arange(0, N, 2)
    changed, labels = x.copy(), y.copy()
    changed[1::2] = np.nan  # would be refused if it were read
    labels[1::2] = 1 - labels[1::2]
    selection, other, subset = build(name), build(name), build(name)
    selection.fit(x, y, patients, rows=rows)
    other.fit(changed, labels, patients, rows=rows[::-1])
    subset.fit(x[rows], y[rows], patients[rows])
    for key, value in selection.state_dict().items():
        torch.testing.assert_close(other.state_dict()[key], value, rtol=0, atol=0)
        torch.testing.assert_close(subset.state_dict()[key], value, rtol=0, atol=0)
    changed = x.copy()
    changed[rows] = changed[rows][::-1] * np.float32(1.5)
    other.fit(changed, y, patients, rows=rows)
    assert any((other.state_dict()[key] != value).any() for key, value in selection.state_dict().items())


@pytest.mark.parametrize("name", METHODS)
def test_memory_mapped_float16_in_several_chunks(name, data, tmp_path, monkeypatch):
    x = data[0].astype(np.float16)
    np.save(tmp_path / "x.npy", x)
    expected = fitted(name, (x.astype(np.float32), *data[1:]))
    monkeypatch.setattr(module, "_CHUNK_VALUES", 100 * D)
    mapped = np.load(tmp_path / "x.npy", mmap_mode="r")
    selection = fitted(name, (mapped, *data[1:]))
    out = np.empty((N, selection.k), np.float32)
    assert selection.transform(mapped, out=out) is out
    np.testing.assert_allclose(out, expected.transform(x.astype(np.float32)), atol=2e-4)


# --- what is chosen -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SUPERVISED)
def test_planted_signal_is_found(name, data):
    chosen = fitted(name, data, k=2).index.tolist()
    assert sorted(chosen) == [7, 11]


@pytest.mark.parametrize("name", SUPERVISED)
def test_the_signal_of_one_label_alone(name, data):
    x, y, patients = data
    assert fitted(name, (x, y[:, 1:], patients), k=1).index.tolist() == [11]


def test_mutual_information_finds_what_anova_cannot(data):
    rng = np.random.default_rng(1)
    x = rng.normal(size=(N, D)).astype(np.float32)
    y = (np.abs(x[:, [4]]) > 1).astype(np.float64)
    assert fitted("mutual_info", (x, y, data[2]), k=1).index.tolist() == [4]
    assert fitted("anova", (x, y, data[2]), k=1).index.tolist() != [4]


def test_variance_takes_the_widest(data):
    x, y, patients = data
    expected = np.argsort(-x.var(axis=0))[:K]
    assert fitted("variance", data).index.tolist() == expected.tolist()
    assert fitted("variance", (x, np.full_like(y, np.nan), patients)).index.tolist() == expected.tolist()


def test_pca_by_singular_values(data):
    x = data[0].astype(np.float64)
    left, values, _ = np.linalg.svd(x - x.mean(axis=0), full_matrices=False)
    out = fitted("pca", data).transform(data[0])
    expected = left[:, :K] * np.sqrt(N)
    np.testing.assert_allclose(np.abs((out * expected).mean(axis=0)), 1, atol=1e-3)
    assert values[0] > values[K]


def test_pca_of_fewer_slices_than_features(data):
    x, y, patients = data
    selection = selection_of(config("pca", 8), D)
    selection.fit(x[:10], y[:10], patients[:10])
    np.testing.assert_allclose(selection.transform(x[:10]).std(axis=0), 1, atol=1e-3)


def test_pca_directions_without_variance_are_zero_for_new_slices_too(data):
    rng = np.random.default_rng(2)
    x = (rng.normal(size=(N, 3)) @ rng.normal(size=(3, D))).astype(np.float32)
    selection = selection_of(config("pca", 6), D)
    notes = selection.fit(x, *data[1:])
    assert any("3 of 6 features" in note for note in notes)
    out = selection.transform(rng.normal(size=(50, D)).astype(np.float32))
    assert out[:, :3].any(axis=0).all()
    assert not out[:, 3:].any()


def test_random_projection_keeps_distances_and_its_seed(data):
    rng = np.random.default_rng(3)
    x = rng.normal(size=(200, 500)).astype(np.float32)
    projections = [selection_of(config("random_projection", 200), 500, seed=seed) for seed in (0, 0, 1)]
    one, same, other = (p.fit(x, data[1][:200], data[2][:200]) is p.notes and p.transform(x) for p in projections)
    np.testing.assert_array_equal(one, same)
    assert np.abs(one - other).max() > 0.1
    pairs = rng.integers(0, 200, size=(100, 2))
    pairs = pairs[pairs[:, 0] != pairs[:, 1]]
    ratio = np.linalg.norm(one[pairs[:, 0]] - one[pairs[:, 1]], axis=1)
    ratio /= np.linalg.norm(x[pairs[:, 0]] - x[pairs[:, 1]], axis=1)
    assert ratio.std() / ratio.mean() < 0.12


def test_l1_keeps_fewer_than_k_under_strong_regularisation(data):
    sparse, dense = fitted("l1", data, k=20, strength=0.01), fitted("l1", data, k=20, strength=10.0)
    kept = [int(one.transform(data[0]).any(axis=0).sum()) for one in (sparse, dense)]
    assert kept[0] < kept[1] <= 20
    assert set(sparse.index[: kept[0]].tolist()) >= {7, 11}
    assert any("carry nothing" in note for note in sparse.notes)


def test_l1_that_keeps_nothing_is_refused(data):
    with pytest.raises(ConfigError, match=r"features\.strength=1e-09"):
        fitted("l1", data, strength=1e-9)


# --- odd data -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", METHODS)
def test_constant_features_are_never_preferred_and_never_speak(name, data):
    x = data[0].copy()
    x[:, [0, 7]] = 5.3
    selection = selection_of(config(name, D), D)
    notes = selection.fit(x, *data[1:])
    out = selection.transform(x + np.random.default_rng(0).normal(size=x.shape).astype(np.float32))
    assert np.isfinite(out).all()
    if name == "random_projection":
        assert out.any(axis=0).all()
        return
    assert any("carry nothing" in note for note in notes)
    silent = set(np.flatnonzero(~out.any(axis=0)))
    if name in CHOOSING:
        assert {0, 7} <= {int(selection.index[place]) for place in silent}
        heard = D - len(silent)
        assert {int(value) for value in selection.index[:heard]}.isdisjoint({0, 7})
    elif name == "none":
        assert silent == {0, 7}
    else:
        assert silent == {D - 2, D - 1}


@pytest.mark.parametrize("name", METHODS)
def test_embeddings_that_never_vary_are_refused(name, data):
    with pytest.raises(DataError, match="no feature varies over 600"):
        fitted(name, (np.full((N, D), 0.7, np.float32), *data[1:]))


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_values_that_are_not_finite_are_refused_with_their_row(name, value, data):
    x = data[0].copy()
    x[137, 3] = value
    with pytest.raises(DataError, match="slice 137"):
        fitted(name, (x, *data[1:]))


@pytest.mark.parametrize("name", SUPERVISED)
def test_unknown_labels_do_not_count(name, data):
    x, y, patients = data
    known = np.isfinite(y[:, 0])
    expected = fitted(name, (x[known], y[known][:, :1], patients[known]), k=1)
    assert fitted(name, (x, y[:, :1], patients), k=1).index.tolist() == expected.index.tolist() == [7]


@pytest.mark.parametrize("name", SUPERVISED)
def test_labels_without_both_classes_are_left_out_and_named(name, data):
    x, y, patients = data
    odd = np.column_stack([np.zeros(N), y[:, 0], np.full(N, np.nan)])
    selection = build(name, k=1)
    notes = selection.fit(x, odd, patients)
    assert selection.index.tolist() == [7]
    assert [note.split(" has ")[0] for note in notes] == ["label 0", "label 2"]
    with pytest.raises(DataError, match="no label has two positive"):
        selection.fit(x, odd[:, [0, 2]], patients)


@pytest.mark.parametrize("name", ["pca", *SUPERVISED])
def test_the_sample_is_said_and_gives_small_patients_their_slices(name, data, monkeypatch):
    x, y, _ = data
    patients = np.array(["big"] * 500 + [f"small{i // 10}" for i in range(100)])
    monkeypatch.setattr(module, "SAMPLE", 220)
    monkeypatch.setattr(module, "L1_SAMPLE", 220)
    selection = build(name)
    sample = selection._sample(np.arange(N), patients)
    assert len(sample) == len(set(sample)) == 220
    assert (sample >= 500).sum() == 100
    notes = selection.fit(x, y, patients)
    assert any("220 of 600 training slices" in note for note in notes)
    again = build(name)
    again.fit(x, y, patients)
    for key, value in selection.state_dict().items():
        torch.testing.assert_close(again.state_dict()[key], value, rtol=0, atol=0)


# --- errors ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("cfg", "problem", "remedy"),
    [
        ({"name": "annova"}, r"features\.name='annova'", "did you mean 'anova'"),
        ({"name": "pca", "k": D + 1}, r"features\.k=25", "1 to 24"),
        ({"name": "variance", "k": 0}, r"features\.k=0", "[1, 65536]"),
        ({"name": "none", "k": 3}, r"features\.k=3", "take a method"),
    ],
)
def test_config_errors(cfg, problem, remedy):
    with pytest.raises(ConfigError, match=problem) as caught:
        selection_of(FeaturesConfig(**cfg), D)
    assert remedy in str(caught.value)


@pytest.mark.parametrize("k", [12, None])
def test_pca_to_more_components_than_slices(k, data):
    x, y, patients = data
    with pytest.raises(ConfigError, match=r"features\.k=(12|24): PCA of 11"):
        selection_of(config("pca", k), D).fit(x[:11], y[:11], patients[:11])


def test_no_training_slices(data):
    with pytest.raises(DataError, match="no training slices"):
        build("pca").fit(*data, rows=[])


@pytest.mark.parametrize("file", sorted((conf_dir() / "features").glob("*.yaml")), ids=lambda file: file.stem)
def test_every_file_of_the_group_builds(file):
    cfg = option("features", file.stem)
    assert selection_of(cfg, 1280).k == (1280 if file.stem == "none" else 120)
    assert {path.stem for path in file.parent.glob("*.yaml")} == set(METHODS)
