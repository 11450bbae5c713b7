"""The 2D task: one slice in (with its neighbours as channels, if asked), one probability per label out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn

from hemlearn.data.batches import Batch
from hemlearn.models.embeddings import FLIP_AXIS, FrozenLayers
from hemlearn.models.losses import build_loss
from hemlearn.tasks.base import Classification
from hemlearn.transforms.augment import side_permutation


def build_head(width: int, outputs: int, hidden: Sequence[int], dropout: float) -> nn.Sequential:
    """Classifier over ``(B, width)`` embeddings: optional hidden ReLU layers, dropout before each linear layer."""
    layers: list[nn.Module] = []
    for size in hidden:
        layers += [nn.Dropout(dropout), nn.Linear(width, size), nn.ReLU(inplace=True)]
        width = size
    return nn.Sequential(*layers, nn.Dropout(dropout), nn.Linear(width, outputs))


class SliceClassification(Classification):
    """Channels -> augmentation -> backbone -> head, with everything but decoding on the device.

    Arguments as of :class:`~hemlearn.tasks.base.Classification`.

    Examples:
        >>> task = SliceClassification(["bleed"], "test_efficientnet", pretrained=False, image_size=64, unit="HU")
        >>> task.eval().probabilities(torch.zeros(2, 1, 64, 64)).shape
        torch.Size([2, 1])
    """

    loss: nn.Module
    frozen: FrozenLayers | None = None  # set where the output of the frozen layers is cached

    def configure_model(self) -> None:
        """Build the network."""
        self.build_inputs()
        options = self.options
        self.head = build_head(self.backbone.embedding_dim, len(options.labels), options.hidden, options.dropout)
        self.policy = self.build_policy()
        if self.channels_last:
            self.backbone.to(memory_format=torch.channels_last)

    def configure_losses(self) -> None:
        """Build the training loss."""
        ones, zeros = (None if count is None else torch.as_tensor(count) for count in (self.positives, self.negatives))
        options = self.options
        self.loss = build_loss(
            self.parts["loss"], labels=options.labels, kind=options.kind, positives=ones, negatives=zeros
        )

    # --- forward ---
    def forward(self, raw: Tensor) -> Tensor:
        """Logits ``(B, L)`` of stored slices ``(B, K, S, S)``."""
        return cast(Tensor, self.head(self.backbone(self._layout(self.channels(raw)))))

    def _layout(self, images: Tensor) -> Tensor:
        if not self.channels_last:
            return images
        return images.contiguous(memory_format=torch.channels_last)

    def probabilities(self, raw: Tensor) -> Tensor:
        """Probabilities ``(B, L)``, averaged over the task's test-time flips.

        A mirrored head has its sides exchanged, so the label pairs of ``task.sides`` are exchanged back.
        """
        task = self.options
        images = self.channels(raw)
        total = self.activate(self.head(self.backbone(self._layout(images))))
        if not task.tta:
            return total
        order = side_permutation(task.labels, task.sides)
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
        for view in range(1 + len(self.options.tta)):
            embeddings, order = self.frozen.view(rows, view)
            parts.append(self.activate(self.head(embeddings)).gather(1, order))
        return torch.stack(parts).mean(dim=0)

    def predict_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> tuple[Tensor, Tensor]:
        """Probabilities ``(B, L)`` and manifest rows ``(B,)``."""
        return self.probabilities(batch["image"]), batch["index"]
