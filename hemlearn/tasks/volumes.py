"""The 3D task: all slices of a series in, one probability per label and slice, and per label and series, out.

With the backbone frozen and augmentation off the module reads cached embeddings; otherwise the backbone is in the
graph and its activations are recomputed, chunk by chunk, in the backward pass.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils.rnn import pad_sequence
from torch.utils.checkpoint import checkpoint

from hemlearn.config.schema import Config
from hemlearn.data.batches import SeriesBatch
from hemlearn.models.backbone import build_backbone
from hemlearn.models.embeddings import Encoder
from hemlearn.models.features import FeatureSelection
from hemlearn.models.freeze import FreezePolicy
from hemlearn.models.losses import build_loss
from hemlearn.models.sequence import SequenceModel, SequenceOutput, build_sequence
from hemlearn.tasks.base import Classification, flip_order
from hemlearn.tasks.slices import build_head
from hemlearn.transforms.augment import Augment
from hemlearn.transforms.channels import Channels


def reads_cache(config: Config) -> bool:
    """Whether a run's embeddings never change: a frozen backbone, and no augmentation before it."""
    frozen = all(value in ("head", 0, "0") for value in (config.freeze.trainable, *config.freeze.schedule.values()))
    return frozen and not config.augmentation.steps


class VolumeClassification(Classification):
    """Channels -> backbone -> feature selection -> sequence model.

    Args:
        config: The run's configuration as plain dictionaries, so that checkpoints load with ``weights_only=True``.
        unit: Unit of the stored intensities.
        positives: Known positive training cases per label, ``[slices, series]``, for balanced weights.
        negatives: Known negative ones.
        slice_head: Widths of the hidden layers of the slice run's head; None where there is no slice run.
        load_weights: Load the backbone's pretrained weights; a checkpoint sets this to False, as it brings its own.
    """

    head: SequenceModel
    features: FeatureSelection

    def __init__(
        self,
        config: dict[str, Any],
        unit: str,
        positives: list[list[float]],
        negatives: list[list[float]],
        slice_head: list[int] | None,
        load_weights: bool = True,
    ) -> None:
        super().__init__(config)
        self.save_hyperparameters()
        self.hparams["load_weights"] = False
        task, labels = self.config.task, len(self.config.task.labels)
        self.channels = Channels(self.config.channels, unit)
        self.augment = Augment(self.config.augmentation, task)
        backbone = self.config.backbone
        if not load_weights:
            backbone = type(backbone)(**{**vars(backbone), "pretrained": False, "weights": None})
        size = self.config.data.image_size
        self.backbone = build_backbone(backbone, in_chans=self.channels.out_channels, image_size=size)
        if self.config.trainer.channels_last:
            self.backbone.to(memory_format=torch.channels_last)
        width = self.backbone.embedding_dim
        self.slice_head = None if slice_head is None else build_head(width, labels, slice_head, 0.0)
        if self.slice_head is not None:
            self.slice_head.requires_grad_(False)
        self.features = FeatureSelection(self.config.features, width, seed=self.config.seed)
        self.head = build_sequence(self.config.sequence, width=self.features.k, outputs=labels)
        self.policy = FreezePolicy(self.config.freeze, self.backbone.groups)
        set_prior(self.head, positives, negatives)
        counts = list(zip(positives, negatives, strict=True))  # of slices, of series
        if task.level == "series":  # a loss that is not used must not fail on a class that its level lacks
            counts[0] = counts[1]
        elif not self.config.sequence.series_weight:
            counts[1] = counts[0]
        self.slice_loss, self.series_loss = (
            build_loss(self.config.loss, task, torch.tensor(ones), torch.tensor(zeros)) for ones, zeros in counts
        )

    @property
    def encoder(self) -> Encoder:
        """Stored slices -> embeddings and, after a slice run, its logits; one view per test-time flip."""
        flips = self.config.task.tta
        return Encoder(self.channels, self.backbone, self.slice_head, flips, self.config.trainer.channels_last)

    # --- forward ---
    def encode(self, images: Tensor) -> Tensor:
        """``(T, D + L)`` of images ``(T, C, S, S)``, ``sequence.chunk`` at a time; recomputed in the backward pass."""
        encoder, size = self.encoder, self.config.sequence.chunk
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
        features = smoothed(padded(chosen), lengths, self.config.sequence.smoothing)
        features = F.dropout(features, self.config.sequence.input_dropout, self.training)
        found: SequenceOutput = self.head.each(features, lengths, own, padded(batch["z_mm"]))
        return found

    def probabilities(self, batch: SeriesBatch) -> tuple[Tensor, Tensor]:
        """``(T, L)`` of slices and ``(B, L)`` of series, averaged over members and test-time flips."""
        task = self.config.task
        views = batch["vector"] if "vector" in batch else self._views(batch["image"])
        slices: list[Tensor] = []
        series: list[Tensor] = []
        for view in range(views.shape[1]):
            order = flip_order(task.labels, task.sides) if view else list(range(len(task.labels)))
            out = self.sequence(views[:, view], batch)
            own, whole = (self.activate(value).mean(0) for value in (out.slices, out.series))
            slices.append(own[_real(batch["lengths"], own.shape[1])][:, order])
            series.append(whole[:, order])
        return torch.stack(slices).mean(0), torch.stack(series).mean(0)

    def _views(self, raw: Tensor) -> Tensor:
        """``(T, V, D + L)`` of stored slices, a chunk at a time."""
        encoder = self.encoder.eval()
        return torch.cat([encoder(chunk) for chunk in torch.split(raw, self.config.sequence.chunk)])

    # --- training ---
    def training_step(self, batch: SeriesBatch, batch_idx: int) -> Tensor:
        """Loss of one batch of series, averaged over the members."""
        vector, label, series_label = self._training_vectors(batch)
        out = self.sequence(vector, batch)
        task, weight = self.config.task, self.config.sequence.series_weight
        real = _real(batch["lengths"], out.slices.shape[2])
        members = len(out.slices)
        loss = torch.zeros((), device=vector.device)
        for slices, series in zip(out.slices, out.series, strict=True):
            if task.level == "slice":
                loss = loss + self.slice_loss(slices[real], label) / members
            if task.level == "series" or weight:
                share = 1.0 if task.level == "series" else weight
                loss = loss + share * self.series_loss(series, series_label) / members
            loss = loss + 0.0 * (slices.sum() + series.sum())  # several devices need a gradient for both outputs
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
        if views.shape[1] == 1 or self.config.task.sides:  # a mirrored view would need mirrored labels
            return views[:, 0], label, whole
        drawn = torch.randint(views.shape[1], batch["lengths"].shape).to(views.device)
        view = drawn.repeat_interleave(batch["lengths"])
        return views[torch.arange(len(views), device=views.device), view], label, whole

    # --- validation and prediction ---
    def validation_step(self, batch: SeriesBatch, batch_idx: int) -> None:
        """Keep one batch's probabilities until the epoch's end: of slices, or of series where those are labelled."""
        slices, series = self.probabilities(batch)
        if self.config.task.level == "slice":
            self.keep(slices, batch["label"], batch["index"])
        else:
            first = batch["lengths"].cumsum(0) - batch["lengths"]
            self.keep(series, batch["series_label"], batch["index"][first])

    def predict_step(self, batch: SeriesBatch, batch_idx: int, dataloader_idx: int = 0) -> tuple[Tensor, ...]:
        """Probabilities of slices ``(T, L)``, manifest rows ``(T,)`` and their series' probabilities ``(T, L)``."""
        slices, series = self.probabilities(batch)
        whole = series.repeat_interleave(batch["lengths"], dim=0)
        # With labels of series alone the slices' own output is never trained: the series' stands for all of them.
        return (slices if self.config.task.level == "slice" else whole), batch["index"], whole


def set_prior(model: SequenceModel, positives: list[list[float]], negatives: list[list[float]]) -> None:
    """Start every label at its prevalence in training, so that rare ones need no epochs to become rare."""
    for member in model.members:
        for layer, ones, zeros in zip((member.slice_output, member.series_output), positives, negatives, strict=True):
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
