"""What a sequence model sees of the slice embeddings: selection or projection, fitted on training slices alone.

scikit-learn fits; what remains is a small tensor map (buffers), so that it travels inside the checkpoint and a
prediction needs no other file.
"""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.exceptions import ConvergenceWarning
from sklearn.feature_selection import f_classif
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import mutual_info_score
from torch import Tensor, nn

from hemlearn.config.schema import FEATURES, FeaturesConfig
from hemlearn.plugins import supplied
from hemlearn.util.errors import ConfigError, DataError, count

# --- How much single features say about a label: the scores behind the supervised feature selections.


BINS = 16  # quantile bins of a feature for its mutual information with a label

Floats = NDArray[np.float32]
Codes = NDArray[np.uint8]
Positive = NDArray[np.bool_]
Scores = NDArray[np.float64]


def anova(values: Floats, positive: Positive) -> Scores:
    """F statistic (D,) of each feature between negative and positive slices; 0 where it is undefined."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # constant features
        found: Scores = f_classif(values, positive)[0].astype(np.float64)
    return np.nan_to_num(found, nan=0.0, posinf=np.finfo(np.float64).max)


def quantile_codes(values: Floats) -> Codes:
    """Quantile bin (N, D) of each value within its feature; equal values share a bin."""
    codes = np.empty(values.shape, np.uint8)
    levels = np.linspace(0, 1, BINS + 1)[1:-1]
    for column in range(values.shape[1]):
        codes[:, column] = np.searchsorted(np.quantile(values[:, column], levels), values[:, column], side="left")
    return codes


def mutual_info(codes: Codes, positive: Positive) -> Scores:
    """Mutual information (D,) in nats of each feature's bins with the label.

    Bins instead of scikit-learn's nearest neighbours, which take 0.2 s for one feature of 8000 slices.
    """
    found = np.zeros(codes.shape[1])
    for column in range(codes.shape[1]):
        cells = codes[:, column].astype(np.int64) * 2 + positive
        table = np.bincount(cells, minlength=2 * BINS).reshape(BINS, 2)
        found[column] = mutual_info_score(None, None, contingency=table[table.any(axis=1)])
    return found


def l1_logistic(values: Floats, positive: Positive, strength: float, seed: int) -> tuple[Scores, bool]:
    """Coefficients (D,) of an L1 logistic regression on standardised features, and whether the fit converged.

    Args:
        values: (N, D) features of mean 0 and variance 1.
        positive: (N,) labels.
        strength: Inverse regularisation strength C.
        seed: Of the coordinate order.
    """
    # scikit-learn 1.8 replaced penalty="l1" by l1_ratio=1.
    new = inspect.signature(LogisticRegression).parameters["penalty"].default == "deprecated"
    penalty: dict[str, Any] = {"l1_ratio": 1.0} if new else {"penalty": "l1"}
    model = LogisticRegression(C=strength, solver="liblinear", tol=1e-3, random_state=seed, **penalty)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model.fit(values, positive)
    converged = not any(issubclass(one.category, ConvergenceWarning) for one in caught)
    return model.coef_[0].astype(np.float64), converged


METHODS = FEATURES
SAMPLE = 32_000  # slices that fit a method, as Burduja 2020 fitted PCA on 1000 batches of 32
L1_SAMPLE = 8_000  # the L1 path is far slower per slice
_PROJECTIONS = ("pca", "random_projection")
_CHUNK_VALUES = 8_000_000  # float32 values read at once

Rows = NDArray[np.int64]


class FeatureSelection(nn.Module):
    """Keeps ``k`` features of embeddings and standardises them.

    Every output has mean 0 and variance 1 over the training slices (so ``pca`` whitens). A feature without variance
    there, and a place that ``l1`` leaves empty, is 0 for every input. Statistics come from all training slices; the
    method itself is fitted on at most ``SAMPLE`` of them (``l1``: ``L1_SAMPLE``), drawn so that patients with few
    slices keep theirs. What was left out is said in :attr:`notes`.

    ==================  ============================================================================================
    none                all features
    pca                 first ``k`` principal components
    variance            the ``k`` of largest variance
    anova               the ``k`` of largest F statistic, the largest over the labels
    mutual_info         the ``k`` of largest mutual information with a label (in quantile bins)
    l1                  at most ``k``: those with a weight in any label's L1 logistic regression, by weight norm
    random_projection   ``k`` Gaussian random projections
    ==================  ============================================================================================

    Args:
        name: One of the methods above.
        k: Features kept; None keeps the width.
        strength: Inverse regularisation strength C (``l1``).
        width: Embedding width D.
        seed: Of the sample and the random projection.

    Raises:
        ConfigError: Unknown method, or ``features.k`` outside 1 to D.

    Examples:
        >>> selection = FeatureSelection("variance", k=1, width=2)
        >>> x = np.array([[0, 0], [0, 1], [0, 2]], np.float32)
        >>> selection.fit(x, np.zeros((3, 1)), ["a", "b", "c"])
        []
        >>> selection(torch.tensor([[9.0, 1.0]])).tolist()
        [[0.0]]
    """

    def __init__(
        self, name: str = "none", k: int | None = None, strength: float = 0.1, *, width: int, seed: int = 0
    ) -> None:
        super().__init__()
        FeaturesConfig(name=name, k=k, strength=strength)
        if k is not None and k > width:
            raise ConfigError(
                f"features.k={k}: the embeddings have {count(width, 'feature')}",
                remedy=f"set features.k to 1 to {width}",
            )
        if k is not None and name == "none" and k != width:
            raise ConfigError(
                f"features.k={k}: features=none keeps all {width}",
                remedy="leave features.k out, or take a method: " + ", ".join(METHODS[1:]),
            )
        self.name, self.strength, self.seed = name, strength, seed
        self.width = width
        self.k = width if k is None else k
        self.notes: list[str] = []  # what the last fit left out, in sentences
        self.mean: Tensor
        self.std: Tensor
        self.fitted: Tensor
        self.register_buffer("mean", torch.zeros(self.k))
        self.register_buffer("std", torch.ones(self.k))
        self.register_buffer("fitted", torch.tensor(False))
        if name in _PROJECTIONS:
            self.register_buffer("matrix", torch.zeros(width, self.k))
        elif name != "none":
            self.register_buffer("index", torch.zeros(self.k, dtype=torch.int64))
        self._ready = False  # the host's copy of `fitted`: reading the buffer would wait for the device

    def forward(self, x: Tensor) -> Tensor:
        """Embeddings (..., D) to standardised features (..., k).

        Raises:
            RuntimeError: Neither fitted nor loaded.
        """
        if not self._ready:
            raise RuntimeError("the features are used before they were fitted or loaded")
        return (self._select(x) - self.mean) / self.std

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        self._ready = bool(self.fitted)

    def pass_through(self) -> None:
        """Leave embeddings as they are (``features=none``), where they change in training and cannot be fitted once."""
        self.fitted.fill_(True)
        self._ready = True

    def transform(self, x: Any, out: Floats | None = None) -> Floats:
        """All rows of an array (N, D), memory-mapped or not, to (N, k) float32, written to ``out`` if given."""
        result = np.empty((len(x), self.k), np.float32) if out is None else out
        with torch.no_grad():
            for part in _chunks(np.arange(len(x)), self.width):
                values = torch.from_numpy(np.array(x[part[0] : part[-1] + 1], np.float32))
                result[part[0] : part[-1] + 1] = self(values.to(self.mean.device)).cpu().numpy()
        return result

    def fit(self, x: Any, y: Any, patients: Any, rows: Any = None) -> list[str]:
        """Fit on training slices.

        Args:
            x: (N, D) embeddings, float32 or float16, memory-mapped or not.
            y: (N, L) labels 1, 0 or NaN (unknown: that slice does not count for that label).
            patients: (N,) patient of each slice.
            rows: The training slices among the N, when the arrays hold more; no other row is read.

        Returns:
            What was left out, in sentences; also kept as :attr:`notes`.

        Raises:
            ConfigError: PCA to more components than there are training slices, or an L1 fit that keeps nothing.
            DataError: Values that are not finite, no slice, or no label with both classes for a supervised method.
        """
        chosen: Rows = np.arange(len(x)) if rows is None else np.sort(np.asarray(rows, np.int64))
        if np.shape(x)[1] != self.width:
            raise ValueError(f"embeddings of width {np.shape(x)[1]}, expected {self.width}")
        if not len(chosen):
            raise DataError(f"features.name={self.name}: no training slices", remedy="check the split")
        if self.name == "pca" and self.k > len(chosen):
            raise ConfigError(
                f"features.k={self.k}: PCA of {count(len(chosen), 'training slice')} has at most "
                f"{count(len(chosen), 'component')}",
                remedy=f"set features.k to {len(chosen)} or less",
            )
        self.notes = []
        mean, variance = _moments(x, chosen, self.width, torch.nn.Identity())
        if (np.sqrt(variance) <= 1e-6 * np.abs(mean)).all():
            raise DataError(
                f"features.name={self.name}: no feature varies over {count(len(chosen), 'training slice')}",
                remedy="check the embeddings: the backbone gives the same output for every slice",
            )
        sample = self._sample(chosen, np.asarray(patients))
        if self.name in _PROJECTIONS:
            matrix = self._projection(x, sample, mean)
            self.get_buffer("matrix").copy_(torch.from_numpy(matrix))
            mean, variance = _moments(x, chosen, self.k, self._select)
            least = 1e-5 * float(np.sqrt(variance.max()))  # what rounding leaves of a direction without variance
        elif self.name == "none":
            least = 0.0
        else:
            scores = self._scores(x, np.asarray(y), sample, mean, variance)
            order = np.argsort(-scores, kind="stable")[: self.k]
            self.get_buffer("index").copy_(torch.from_numpy(order))
            mean, variance = mean[order], np.where(np.isfinite(scores[order]), variance[order], 0.0)
            least = 0.0
        std = np.sqrt(variance)
        empty = std <= np.maximum(least, 1e-6 * np.abs(mean))
        if empty.any():
            self.notes.append(
                f"{int(empty.sum())} of {count(self.k, 'feature')} carry nothing on the training slices: set to 0"
            )
        self.mean.copy_(torch.from_numpy(mean))
        self.std.copy_(torch.from_numpy(np.where(empty, np.inf, std)))
        self.fitted.fill_(True)
        self._ready = True
        return self.notes

    def _select(self, x: Tensor) -> Tensor:
        if self.name == "none":
            return x
        return x @ self.get_buffer("matrix") if self.name in _PROJECTIONS else x[..., self.get_buffer("index")]

    def _sample(self, chosen: Rows, patients: NDArray[Any]) -> Rows:
        """At most SAMPLE rows, taken from the patients in turn."""
        size = L1_SAMPLE if self.name == "l1" else SAMPLE
        if len(chosen) <= size or self.name in ("none", "variance", "random_projection"):
            return chosen
        shuffled = np.random.default_rng(self.seed).permutation(chosen)
        _, owner = np.unique(patients[shuffled], return_inverse=True)
        grouped = np.argsort(owner, kind="stable")
        starts = np.searchsorted(owner[grouped], np.arange(owner.max() + 1))
        turn = np.empty(len(owner), np.int64)
        turn[grouped] = np.arange(len(owner)) - starts[owner[grouped]]
        self.notes.append(f"features.name={self.name} is fitted on {size} of {count(len(chosen), 'training slice')}")
        return np.sort(shuffled[np.argsort(turn, kind="stable")[:size]])

    def _projection(self, x: Any, sample: Rows, mean: NDArray[np.float64]) -> Floats:
        """The matrix (D, k)."""
        if self.name == "random_projection":
            from sklearn.random_projection import GaussianRandomProjection

            random = GaussianRandomProjection(self.k, random_state=self.seed).fit(np.zeros((1, self.width)))
            return np.ascontiguousarray(random.components_.T, np.float32)
        from sklearn.decomposition import PCA

        # Centred first: the covariance of float32 values far from zero would cancel.
        centred = _read(x, sample) - mean.astype(np.float32)
        solver = "covariance_eigh" if len(sample) >= self.width else "full"
        pca = PCA(self.k, svd_solver=solver, random_state=self.seed).fit(centred)
        return np.ascontiguousarray(pca.components_.T, np.float32)

    def _scores(
        self, x: Any, y: NDArray[Any], sample: Rows, mean: NDArray[np.float64], variance: NDArray[np.float64]
    ) -> NDArray[np.float64]:
        """One score per feature, the larger the better; -inf for a feature that carries nothing."""
        flat = np.sqrt(variance) <= 1e-6 * np.abs(mean)
        if self.name == "variance":
            return np.where(flat, -np.inf, variance)
        labels = np.asarray(y[sample], np.float64).reshape(len(sample), -1)
        usable = []
        for column in range(labels.shape[1]):
            positives, negatives = (int((labels[:, column] == value).sum()) for value in (1, 0))
            if min(positives, negatives) >= 2:
                usable.append(column)
            else:
                counts = f"{positives} positive, {negatives} negative training slices"
                self.notes.append(f"label {column} has {counts} and does not take part in features.name={self.name}")
        if not usable:
            raise DataError(
                f"features.name={self.name}: no label has two positive and two negative training slices",
                remedy="take an unsupervised method (features=pca, variance or random_projection), or another split",
            )
        values = _read(x, sample)
        if self.name == "l1":
            values -= mean.astype(np.float32)
            values /= np.where(flat, np.inf, np.sqrt(variance)).astype(np.float32)
        per_label = []
        codes = quantile_codes(values) if self.name == "mutual_info" else None
        for column in usable:
            known = np.isfinite(labels[:, column])
            positive = labels[known, column] > 0.5
            if codes is not None:
                per_label.append(mutual_info(codes[known], positive))
            elif self.name == "anova":
                per_label.append(anova(values[known], positive))
            else:
                coefficients, converged = l1_logistic(values[known], positive, self.strength, self.seed)
                per_label.append(coefficients)
                if not converged:
                    self.notes.append(f"the L1 fit of label {column} stopped before it converged")
        table = np.where(flat, 0.0, np.stack(per_label))
        if self.name == "l1":
            norm = np.linalg.norm(table, axis=0)
            if not norm.any():
                raise ConfigError(
                    f"features.strength={self.strength}: the L1 fit keeps no feature", remedy="raise features.strength"
                )
            return np.where(norm > 0, norm, -np.inf)
        return np.where(flat, -np.inf, table.max(axis=0))


def build_features(spec: Any, *, width: int, seed: int) -> nn.Module:
    """The feature selection of group ``features``, or a module of one's own.

    A module of one's own has the attribute ``k`` (its output width), ``fit(x, y, patients, rows)``, which returns
    notes in sentences, and keeps what it learns in buffers.

    Raises:
        ConfigError: As :class:`FeatureSelection`, or a module without ``k`` or ``fit``.
    """
    own: nn.Module | None = supplied(spec, "features", kind=nn.Module, width=width, seed=seed)
    if own is None:
        return FeatureSelection(spec.name, spec.k, spec.strength, width=width, seed=seed)
    lacks = [name for name in ("k", "fit") if not hasattr(own, name)]
    if lacks:
        raise ConfigError(
            f"features ({type(own).__name__}): it has no {' and no '.join(lacks)}",
            remedy="give the output width as attribute k, and a method fit(x, y, patients, rows) -> notes",
        )
    return own


def _chunks(rows: Rows, width: int) -> Iterator[Rows]:
    size = max(1, _CHUNK_VALUES // max(width, 1))
    for start in range(0, len(rows), size):
        yield rows[start : start + size]


def _read(x: Any, rows: Rows) -> Floats:
    return np.array(x[rows], np.float32)


def _moments(x: Any, rows: Rows, width: int, map_: Any) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Mean and variance over ``rows`` of the mapped features, in one pass with the update of Chan et al. 1983."""
    count, mean, squares = 0, np.zeros(width), np.zeros(width)
    for part in _chunks(rows, np.shape(x)[1]):
        raw = _read(x, part)
        if not np.isfinite(raw).all():
            row = int(part[int(np.argmin(np.isfinite(raw).all(axis=1)))])
            raise DataError(
                f"the embedding of slice {row} holds a value that is not finite",
                remedy="remove the cached embeddings and check the backbone's weights",
            )
        values = map_(torch.from_numpy(raw)).numpy().astype(np.float64)
        own = values.mean(axis=0)
        shift = own - mean
        total = count + len(part)
        squares += ((values - own) ** 2).sum(axis=0) + shift**2 * (count * len(part) / total)
        mean += shift * (len(part) / total)
        count = total
    return mean, squares / count
