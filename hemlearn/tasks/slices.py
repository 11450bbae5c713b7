"""The 2D task: one slice in (with its neighbours as channels, if asked), one probability per label out."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn

from hemlearn.data.batches import Batch
from hemlearn.models.backbone import build_backbone
from hemlearn.models.embeddings import FLIP_AXIS
from hemlearn.models.freeze import FreezePolicy
from hemlearn.models.frozen import FrozenLayers
from hemlearn.models.losses import build_loss
from hemlearn.tasks.base import Classification, flip_order
from hemlearn.transforms.augment import Augment
from hemlearn.transforms.channels import Channels


def build_head(width: int, outputs: int, hidden: list[int], dropout: float) -> nn.Sequential:
    """Classifier over ``(B, width)`` embeddings: optional hidden ReLU layers, dropout before each linear layer."""
    layers: list[nn.Module] = []
    for size in hidden:
        layers += [nn.Dropout(dropout), nn.Linear(width, size), nn.ReLU(inplace=True)]
        width = size
    return nn.Sequential(*layers, nn.Dropout(dropout), nn.Linear(width, outputs))


class SliceClassification(Classification):
    """Channels -> augmentation -> backbone -> head, with everything but decoding on the device.

    Args:
        config: The run's configuration as plain dictionaries, so that checkpoints load with ``weights_only=True``.
        unit: Unit of the stored intensities, ``HU`` or ``display``.
        positives: Known positive training slices per label, for balanced weights.
        negatives: Known negative ones.
        load_weights: Load the backbone's pretrained weights; a checkpoint sets this to False, as it brings its own.
    """

    def __init__(
        self,
        config: dict[str, Any],
        unit: str,
        positives: list[float],
        negatives: list[float],
        load_weights: bool = True,
    ) -> None:
        super().__init__(config)
        self.save_hyperparameters()
        self.hparams["load_weights"] = False
        task = self.config.task
        self.channels = Channels(self.config.channels, unit)
        self.augment = Augment(self.config.augmentation, task)
        backbone = self.config.backbone
        if not load_weights:
            backbone = type(backbone)(**{**vars(backbone), "pretrained": False, "weights": None})
        size = self.config.data.image_size
        self.backbone = build_backbone(backbone, in_chans=self.channels.out_channels, image_size=size)
        self.head = build_head(self.backbone.embedding_dim, len(task.labels), list(task.hidden), task.dropout)
        self.policy = FreezePolicy(self.config.freeze, self.backbone.groups)
        self.loss = build_loss(self.config.loss, task, torch.tensor(positives), torch.tensor(negatives))
        self.frozen: FrozenLayers | None = None  # set where the output of the frozen layers is cached
        if self.config.trainer.channels_last:
            self.backbone.to(memory_format=torch.channels_last)

    # --- forward ---
    def forward(self, raw: Tensor) -> Tensor:
        """Logits ``(B, L)`` of stored slices ``(B, K, S, S)``."""
        return cast(Tensor, self.head(self.backbone(self._layout(self.channels(raw)))))

    def _layout(self, images: Tensor) -> Tensor:
        if not self.config.trainer.channels_last:
            return images
        return images.contiguous(memory_format=torch.channels_last)

    def probabilities(self, raw: Tensor) -> Tensor:
        """Probabilities ``(B, L)``, averaged over the task's test-time flips.

        A mirrored head has its sides exchanged, so the label pairs of ``task.sides`` are exchanged back.
        """
        task = self.config.task
        images = self.channels(raw)
        total = self.activate(self.head(self.backbone(self._layout(images))))
        if not task.tta:
            return total
        order = flip_order(task.labels, task.sides)
        for flip in task.tta:
            mirrored = self.head(self.backbone(self._layout(images.flip(FLIP_AXIS[flip]))))
            total = total + self.activate(mirrored)[:, order]
        return total / (1 + len(task.tta))

    # --- training ---
    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Loss of one batch."""
        if self.frozen is not None:
            embeddings, order = self.frozen.drawn(batch["index"])
            labels = batch["label"].gather(1, order)
        else:
            with torch.no_grad():
                images, labels = self.augment(self.channels(batch["image"]), batch["label"])
            embeddings = self.backbone(self._layout(images))
        logits = self.head(embeddings)
        loss = cast(Tensor, self.loss(logits, labels))
        return self.checked(loss, batch_idx, len(logits))

    # --- validation and prediction ---
    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Keep one batch's probabilities until the epoch's end."""
        found = self.probabilities(batch["image"]) if self.frozen is None else self._cached(batch["index"])
        self.keep(found, batch["label"], batch["index"])

    def _cached(self, rows: Tensor) -> Tensor:
        """:meth:`probabilities` of manifest rows from the cached output of the frozen layers."""
        assert self.frozen is not None
        parts = []
        for view in range(1 + len(self.config.task.tta)):
            embeddings, order = self.frozen.view(rows, view)
            parts.append(self.activate(self.head(embeddings)).gather(1, order))
        return torch.stack(parts).mean(dim=0)

    def predict_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> tuple[Tensor, Tensor]:
        """Probabilities ``(B, L)`` and manifest rows ``(B,)``."""
        return self.probabilities(batch["image"]), batch["index"]
