"""The 3D task: all slices of a series in, one probability per label and slice, and per label and series, out.

With the backbone frozen and augmentation off the module reads cached embeddings; otherwise the backbone is in the
graph and its activations are recomputed, chunk by chunk, in the backward pass.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils.rnn import pad_sequence
from torch.utils.checkpoint import checkpoint

from hemlearn.config.schema import SequenceConfig
from hemlearn.data.batches import SeriesBatch, series_label
from hemlearn.models.embeddings import Encoder
from hemlearn.models.features import build_features
from hemlearn.models.losses import build_loss
from hemlearn.models.mil import clustering_loss
from hemlearn.models.sequence import OwnSequence, SequenceModel, SequenceOutput, build_sequence
from hemlearn.tasks.base import Classification, part
from hemlearn.tasks.slices import build_head
from hemlearn.transforms.augment import side_permutation
from hemlearn.util.errors import ConfigError


class VolumeClassification(Classification):
    """Channels -> backbone -> feature selection -> sequence model.

    Args:
        labels: As the arguments below of :class:`~hemlearn.tasks.base.Classification`.
        backbone: Likewise.
        sequence: The model over the slices of a series: a shipped name, or a module or class of one's own
            (:class:`~hemlearn.models.sequence.OwnSequence`).
        features: What it sees of the embeddings: a shipped name, or a module of one's own.
        slice_head: Widths of the hidden layers of the slice run's head; None where there is no slice run.
        shared: Further arguments of :class:`~hemlearn.tasks.base.Classification`; ``positives`` and ``negatives``
            are ``[of slices, of series]``.

    Examples:
        >>> task = VolumeClassification(["bleed"], "test_efficientnet", pretrained=False, image_size=64, unit="HU",
        ...     sequence={"name": "gru", "hidden": 8})
        >>> type(task.head).__name__, task.reads_cache
        ('SequenceModel', False)
    """

    head: SequenceModel | OwnSequence
    features: nn.Module
    slice_loss: nn.Module
    series_loss: nn.Module

    def __init__(
        self,
        labels: Sequence[str] = ("hemorrhage",),
        backbone: Any = "tf_efficientnet_lite0.in1k",
        *,
        sequence: Any = "lstm",
        features: Any = "none",
        slice_head: Sequence[int] | None = None,
        **shared: Any,
    ) -> None:
        self._own = {"sequence": part("sequence", sequence), "features": part("features", features)}
        self._slice_head = slice_head
        super().__init__(labels, backbone, **shared)
        self.keep_arguments({"sequence": sequence, "features": features, "slice_head": slice_head})

    def configure_model(self) -> None:
        """Build the network."""
        self.parts |= self._own
        self.build_inputs()
        if self.channels_last:
            self.backbone.to(memory_format=torch.channels_last)
        width, labels = self.backbone.embedding_dim, len(self.options.labels)
        hidden = self._slice_head
        self.slice_head = None if hidden is None else build_head(width, labels, hidden, 0.0)
        if self.slice_head is not None:
            self.slice_head.requires_grad_(False)
        spec = self.parts["sequence"]
        defaults = SequenceConfig()
        self.chunk, self.smoothing, self.input_dropout, self.series_weight, self.instance_weight = (
            getattr(spec, key, getattr(defaults, key))
            for key in ("chunk", "smoothing", "input_dropout", "series_weight", "instance_weight")
        )
        self.features = build_features(self.parts["features"], width=width, seed=self.seed)
        weak = self.options.labels_from == "series"
        self.head = build_sequence(spec, width=int(cast(Any, self.features).k), outputs=labels, series_only=weak)
        self.policy = self.build_policy()
        if self.positives is not None:
            set_prior(self.head, *self._seen(self.positives, self.negatives))

    def _seen(self, *counts: list[Any]) -> list[list[Any]]:
        """Counts ``[of slices, of series]`` as the network may know them: of series alone where these alone train."""
        return [[found[1]] * 2 if self.options.labels_from == "series" else found for found in counts]

    def configure_losses(self) -> None:
        """Build the losses of slices and of series."""
        counts: list[Any] = [(None, None), (None, None)]
        if self.positives is not None:
            counts = list(zip(self.positives, self.negatives, strict=True))  # of slices, of series
        # A loss that is not used must not fail on a class that its level lacks.
        if self.options.trained_level == "series":
            counts[0] = counts[1]
        elif not self.series_weight:
            counts[1] = counts[0]
        self.slice_loss, self.series_loss = (
            build_loss(
                self.parts["loss"],
                labels=self.options.labels,
                kind=self.options.kind,
                positives=None if ones is None else torch.as_tensor(ones),
                negatives=None if zeros is None else torch.as_tensor(zeros),
            )
            for ones, zeros in counts
        )

    @property
    def reads_cache(self) -> bool:
        """Whether the embeddings never change: a frozen backbone, and no augmentation before it."""
        epochs = (0, *self.policy.changes_at())
        return not any(self.policy.trainable(epoch) for epoch in epochs) and not len(self.augment.steps)

    def setup(self, stage: str) -> None:
        """As every task's; the features are fitted on the training slices' cached embeddings, where there are any."""
        super().setup(stage)
        data = getattr(self.trainer, "datamodule", None)
        ready = bool(getattr(self.features, "fitted", True))
        if stage != "fit" or ready:
            return
        if getattr(data, "embeddings", None) is not None and self.reads_cache:
            self.fit_features(data)
        elif getattr(self.features, "name", "") == "none":
            cast(Any, self.features).pass_through()
        else:
            raise ConfigError(
                f"features ({type(self.features).__name__}): they are selected once, on cached embeddings",
                remedy="freeze the backbone, use no augmentation and give the data module embeddings; or features=none",
            )

    def fit_features(self, data: Any) -> list[str]:
        """Fit the feature selection on the slices of the training patients alone; notes in sentences."""
        vectors = data.embeddings.array[:, 0, : data.embeddings.width]  # still on disk; read in parts
        patients, labels = data.slices.manifest.table["patient_id"].to_numpy(dtype=object), data.slices.labels
        if self.options.labels_from == "series":
            labels = labels.copy()
            for rows in data.series:
                labels[rows] = series_label(labels[rows])
        fitted: list[str] = cast(Any, self.features).fit(vectors, labels, patients, data.slices.rows("train"))
        return list(fitted or ())

    def adopt(self, *, unit: str | None = None, positives: Any = None, negatives: Any = None) -> None:
        """As every task's; labels then start at their prevalence."""
        super().adopt(unit=unit, positives=positives, negatives=negatives)
        if positives is not None:
            set_prior(self.head, *self._seen(positives, negatives))

    @property
    def encoder(self) -> Encoder:
        """Stored slices -> embeddings and, after a slice run, its logits; one view per test-time flip."""
        return Encoder(self.channels, self.backbone, self.slice_head, self.options.tta, self.channels_last)

    # --- forward ---
    def encode(self, images: Tensor) -> Tensor:
        """``(T, D + L)`` of images ``(T, C, S, S)``, ``sequence.chunk`` at a time; recomputed in the backward pass."""
        encoder, size = self.encoder, self.chunk
        encoder.train(self.training)
        self.policy.apply(self.backbone, self._policy_epoch)
        learns = torch.is_grad_enabled() and self.policy.trainable(self._policy_epoch) > 0

        def once(chunk: Tensor) -> Tensor:
            if not learns:
                with torch.no_grad():
                    return encoder.encode(chunk)
            found: Tensor = checkpoint(encoder.encode, chunk, use_reentrant=False, context_fn=self._contexts)
            return found

        # Even parts: BatchNorm cannot normalise a remainder of one slice.
        parts = torch.tensor_split(images, -(-len(images) // size))
        return torch.cat([once(chunk) for chunk in parts])

    def _contexts(self) -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
        """Of the forward pass and of its recomputation, which must not move BatchNorm statistics a second time."""
        return nullcontext(), still_statistics(self.backbone)

    def sequence(self, vector: Tensor, batch: SeriesBatch) -> SequenceOutput:
        """Each member's output over ``(T, D + L)`` embeddings and logits of packed series."""
        width, lengths = self.backbone.embedding_dim, batch["lengths"]
        sizes = lengths.tolist()
        chosen = self.features(vector[:, :width])

        def padded(values: Tensor) -> Tensor:
            return pad_sequence(list(torch.split(values, sizes)), batch_first=True)

        own = padded(self.activate(vector[:, width:])) if self.slice_head is not None else None
        features = smoothed(padded(chosen), lengths, self.smoothing)
        features = F.dropout(features, self.input_dropout, self.training)
        found: SequenceOutput = self.head.each(features, lengths, own, padded(batch["z_mm"]))
        return found

    def probabilities(self, batch: SeriesBatch) -> tuple[Tensor, Tensor]:
        """``(T, L)`` of slices and ``(B, L)`` of series, averaged over members and test-time flips."""
        task = self.options
        views = batch["vector"] if "vector" in batch else self._views(batch["image"])
        slices: list[Tensor] = []
        series: list[Tensor] = []
        for view in range(views.shape[1]):
            order = side_permutation(task.labels, task.sides) if view else list(range(len(task.labels)))
            out = self.sequence(views[:, view], batch)
            own, whole = (self.activate(value).mean(0) for value in (out.slices, out.series))
            slices.append(own[_real(batch["lengths"], own.shape[1])][:, order])
            series.append(whole[:, order])
        return torch.stack(slices).mean(0), torch.stack(series).mean(0)

    def _views(self, raw: Tensor) -> Tensor:
        """``(T, V, D + L)`` of stored slices, a chunk at a time."""
        encoder = self.encoder.eval()
        return torch.cat([encoder(chunk) for chunk in torch.split(raw, self.chunk)])

    # --- training ---
    def training_step(self, batch: SeriesBatch, batch_idx: int) -> Tensor:
        """Loss of one batch of series, averaged over the members."""
        vector, label, whole = self._training_vectors(batch)
        out = self.sequence(vector, batch)
        task, weight = self.options, self.series_weight
        real = _real(batch["lengths"], out.slices.shape[2])
        members = len(out.slices)
        loss = torch.zeros((), device=vector.device)
        for slices, series in zip(out.slices, out.series, strict=True):
            if task.trained_level == "slice":
                loss = loss + self.slice_loss(slices[real], label) / members
            if task.trained_level == "series" or weight:
                share = 1.0 if task.trained_level == "series" else weight
                loss = loss + share * self.series_loss(series, whole) / members
            loss = loss + 0.0 * (slices.sum() + series.sum())  # several devices need a gradient for both outputs
        if out.clusters is not None:
            share = len(out.clusters[0]) / members  # it is the mean over the members that cluster
            loss = loss + self.instance_weight * share * clustering_loss(*out.clusters, whole)
        return self.checked(loss, batch_idx, len(label))

    def _training_vectors(self, batch: SeriesBatch) -> tuple[Tensor, Tensor, Tensor]:
        """Embeddings and labels of the slices, and labels of the series: of one random view, or augmented images."""
        label, whole = batch["label"], batch["series_label"]
        if "vector" not in batch:
            with torch.no_grad():
                images, label, whole = self.augment.series(
                    self.channels(batch["image"]), label, whole, batch["lengths"]
                )
            return self.encode(images), label, whole
        views = batch["vector"]
        if views.shape[1] == 1 or self.options.sides:  # a mirrored view would need mirrored labels
            return views[:, 0], label, whole
        drawn = torch.randint(views.shape[1], batch["lengths"].shape).to(views.device)
        view = drawn.repeat_interleave(batch["lengths"])
        return views[torch.arange(len(views), device=views.device), view], label, whole

    # --- validation and prediction ---
    def validation_step(self, batch: SeriesBatch, batch_idx: int) -> None:
        """Keep one batch's probabilities until the epoch's end: of slices, or of series where those are labelled."""
        slices, series = self.probabilities(batch)
        if self.options.trained_level == "slice":
            self.keep(slices, batch["label"], batch["index"])
        else:
            first = batch["lengths"].cumsum(0) - batch["lengths"]
            self.keep(series, batch["series_label"], batch["index"][first])

    def predict_step(self, batch: SeriesBatch, batch_idx: int, dataloader_idx: int = 0) -> tuple[Tensor, ...]:
        """Probabilities of slices ``(T, L)``, manifest rows ``(T,)`` and their series' probabilities ``(T, L)``."""
        slices, series = self.probabilities(batch)
        whole = series.repeat_interleave(batch["lengths"], dim=0)
        # Where the slices' own output is never trained, the series' stands for all of them.
        return (slices if self.options.scores_slices else whole), batch["index"], whole


def set_prior(model: nn.Module, positives: list[list[float]], negatives: list[list[float]]) -> None:
    """Start every label at its prevalence in training, so that rare ones need no epochs to become rare."""
    for member in cast(Any, model).members:
        layers = (getattr(member, "slice_output", None), getattr(member, "series_output", None))
        for layer, ones, zeros in zip(layers, positives, negatives, strict=True):
            if isinstance(layer, nn.Linear):
                odds = (torch.tensor(ones) + 0.5) / (torch.tensor(zeros) + 0.5)
                with torch.no_grad():
                    layer.weight.mul_(0.1)  # else random weights drown the prior
                    layer.bias.copy_(odds.log())


def smoothed(x: Tensor, lengths: Tensor, reach: int) -> Tensor:
    """Mean of each slice's features ``(B, S, D)`` over the slices up to ``reach`` below and above it in its series."""
    if reach == 0:
        return x
    mask = _real(lengths, x.shape[1]).to(x.dtype)[..., None]
    size = 2 * reach + 1
    total, count = (F.avg_pool1d(part.transpose(1, 2), size, 1, reach).transpose(1, 2) for part in (x * mask, mask))
    return total / count.clamp_min(1e-9) * mask


def _real(lengths: Tensor, size: int) -> Tensor:
    """``(B, size)`` mask of the slices that are no padding."""
    return torch.arange(size, device=lengths.device) < lengths[:, None]


@contextmanager
def still_statistics(model: nn.Module) -> Iterator[None]:
    """Keep BatchNorm's running statistics where they are; activations are normalised as before."""
    norms = [module for module in model.modules() if isinstance(module, _BatchNorm) and module.training]
    kept = [(module, module.momentum, module.num_batches_tracked) for module in norms]
    for module in norms:
        module.momentum = 0.0
        module.num_batches_tracked = None if module.num_batches_tracked is None else module.num_batches_tracked.clone()
    try:
        yield
    finally:
        for module, momentum, tracked in kept:
            module.momentum, module.num_batches_tracked = momentum, tracked
