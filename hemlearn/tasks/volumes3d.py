"""Series as volumes: all slices of a series in, resampled to a grid in mm, one probability per label out.

What 2D networks and sequence models are compared with, on the same series, split and evidence.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from hemlearn.config.schema import VolumeConfig
from hemlearn.data.batches import SeriesBatch
from hemlearn.data.volumes import resample
from hemlearn.models.backbone import Backbone
from hemlearn.models.losses import build_loss
from hemlearn.models.networks3d import build_network3d
from hemlearn.tasks.base import Classification
from hemlearn.tasks.slices import build_head
from hemlearn.transforms.augment import side_permutation

_AXIS = {"horizontal": -1, "vertical": -2}  # of a volume


class Volume3DClassification(Classification):
    """Channels -> augmentation of slices -> resampling -> 3D network -> head.

    Args:
        labels: As the arguments below of :class:`~hemlearn.tasks.base.Classification`.
        backbone: Name of one of :data:`~hemlearn.config.schema.NETWORKS_3D`, or its options.
        spacing: Depth, height and width of a voxel in mm; None: slices as they stand.
        size: Depth, height and width of the volume, voxels: series are padded with air or cut around their middle.
        shared: Further arguments of :class:`~hemlearn.tasks.base.Classification`, at ``level="series"``; ``positives``
            and ``negatives`` are ``[of slices, of series]``.

    Examples:
        >>> tiny = {"name": "resnet18_3d", "pretrained": False, "options": {"block_inplanes": [4, 4, 4, 8]}}
        >>> task = Volume3DClassification(["bleed"], tiny, size=(8, 32, 32), level="series", unit="HU")
        >>> task.head[-1].in_features
        8
    """

    loss: nn.Module

    def __init__(
        self,
        labels: Sequence[str] = ("hemorrhage",),
        backbone: Any = "resnet18_3d",
        *,
        spacing: Sequence[float] | None = (5.0, 1.5, 1.5),
        size: Sequence[int] = (32, 128, 128),
        **shared: Any,
    ) -> None:
        spacing = None if spacing is None else list(spacing)
        self.grid = VolumeConfig.check("volume", spacing=spacing, size=list(size))
        super().__init__(labels, backbone, **shared)
        self.keep_arguments({"spacing": spacing, "size": list(size)})

    def configure_model(self) -> None:
        """Build the network."""
        self.build_inputs()
        options = self.options
        self.head = build_head(self.backbone.embedding_dim, len(options.labels), options.hidden, options.dropout)
        self.policy = self.build_policy()

    def build_encoder(self) -> Backbone:
        """The 3D network."""
        grid: Any = {"size": self.grid.size, "spacing": self.grid.spacing}
        return build_network3d(self.parts["backbone"], in_chans=self.channels.out_channels, **grid)

    def configure_losses(self) -> None:
        """Build the loss of series."""
        counts = (None, None) if self.positives is None else (self.positives[1], self.negatives[1])
        ones, zeros = (None if count is None else torch.as_tensor(count) for count in counts)
        options = self.options
        self.loss = build_loss(
            self.parts["loss"], labels=options.labels, kind=options.kind, positives=ones, negatives=zeros
        )

    # --- forward ---
    def shown(self, batch: SeriesBatch) -> Tensor:
        """Channels ``(T, C, S, S)`` of packed stored series."""
        channels = getattr(self.channels, "of_series", self.channels)  # a module of one's own knows slices
        return torch.cat([channels(one) for one in torch.split(batch["image"], batch["lengths"].tolist())])

    def volumes(self, images: Tensor, batch: SeriesBatch) -> Tensor:
        """``(B, C, D, H, W)`` of the channels ``(T, C, S, S)`` of packed series."""
        sizes = batch["lengths"].tolist()
        parts = (torch.split(part, sizes) for part in (images, batch["z_mm"], batch["pixel_mm"]))
        grid: Any = {"spacing": self.grid.spacing, "size": self.grid.size}
        return torch.stack([resample(*one, **grid) for one in zip(*parts, strict=True)])

    def forward(self, batch: SeriesBatch) -> Tensor:
        """Logits ``(B, L)`` of packed stored series."""
        return cast(Tensor, self.head(self.backbone(self.volumes(self.shown(batch), batch))))

    def probabilities(self, batch: SeriesBatch) -> Tensor:
        """Probabilities ``(B, L)`` of series, averaged over test-time flips."""
        task = self.options
        volumes = self.volumes(self.shown(batch), batch)
        total = self.activate(self.head(self.backbone(volumes)))
        order = side_permutation(task.labels, task.sides)
        for flip in task.tta:
            total = total + self.activate(self.head(self.backbone(volumes.flip(_AXIS[flip]))))[:, order]
        return total / (1 + len(task.tta))

    # --- training, validation and prediction ---
    def training_step(self, batch: SeriesBatch, batch_idx: int) -> Tensor:
        """Loss of one batch of series."""
        with torch.no_grad():
            images, _, label = self.augment.series(
                self.shown(batch), batch["label"], batch["series_label"], batch["lengths"]
            )
            volumes = self.volumes(images, batch)
        logits = self.head(self.backbone(volumes))
        return self.checked(cast(Tensor, self.loss(logits, label)), batch_idx, len(logits))

    def validation_step(self, batch: SeriesBatch, batch_idx: int) -> None:
        """Keep one batch's probabilities of series until the epoch's end."""
        first = batch["lengths"].cumsum(0) - batch["lengths"]
        self.keep(self.probabilities(batch), batch["series_label"], batch["index"][first])

    def predict_step(self, batch: SeriesBatch, batch_idx: int, dataloader_idx: int = 0) -> tuple[Tensor, ...]:
        """Of every slice ``(T, L)`` its series' probabilities, manifest rows ``(T,)`` and the first again."""
        whole = self.probabilities(batch).repeat_interleave(batch["lengths"], dim=0)
        return whole, batch["index"], whole
