"""Pretraining without labels: the network learns which two views show the same slice; its weights start other runs.

SimCLR (Chen et al. 2020, arXiv 2002.05709) tells the two views of a slice from those of all others in the batch. DINO
(Caron et al. 2021, arXiv 2104.14294; two views of the whole, no local crops) has a student say what a teacher, its
moving average, says of the other view. Losses and projection heads are those of lightly (extra ``pretrain``).
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from importlib.util import find_spec
from typing import Any, cast

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from hemlearn.config.schema import PRETRAINING, TaskConfig
from hemlearn.data.batches import Batch
from hemlearn.models.backbone import Backbone
from hemlearn.tasks.base import Classification
from hemlearn.util.errors import ConfigError, TrainingError

_WIDTH = {"simclr": 128, "dino": 1024}  # outputs of the head; DINO's 65,536 prototypes are for millions of images
_HIDDEN, _BOTTLENECK = 2048, 256  # of the heads, at most
NEIGHBOURS = 20  # of the probe


def check_lightly() -> None:
    """Refuse pretraining where lightly is not installed.

    Raises:
        ConfigError: With the command that installs it.
    """
    if find_spec("lightly") is None:
        raise ConfigError(
            f"task.kind={PRETRAINING}: the losses are those of lightly, which is not installed",
            remedy="pip install 'hemlearn[pretrain]'",
        )


class Pretraining(Classification):
    """Two augmented views of each slice -> backbone -> projection head -> loss of the views.

    ``val/log_loss`` is that loss on validation patients, whose views are the same in every epoch. Where the data have
    labels, they say how patients are divided, and judge the embeddings (:func:`knn_probe`) once training has ended;
    nothing learns from them.

    Args:
        labels: Names of the labels of the data that are to be looked at; none are needed.
        backbone: As of :class:`~hemlearn.tasks.base.Classification`.
        method: ``simclr``, or ``dino``, whose weights are the teacher's.
        projection: Outputs of the projection head; None: 128 (simclr), 1024 prototypes (dino).
        temperature: Of the loss; of dino the student's (the teacher's is 0.04).
        momentum: Of dino's teacher at the start; it rises to 1 along a cosine.
        augmentation: What makes the views.
        shared: Further arguments of :class:`~hemlearn.tasks.base.Classification`.

    Examples:
        >>> task = Pretraining([], "test_efficientnet", pretrained=False, image_size=64, unit="HU")
        >>> task.eval()(torch.zeros(2, 1, 64, 64)).shape  # embeddings
        torch.Size([2, 256])
    """

    loss: nn.Module

    def __init__(
        self,
        labels: Sequence[str] = (),
        backbone: Any = "tf_efficientnet_lite0.in1k",
        *,
        method: str = "simclr",
        projection: int | None = None,
        temperature: float = 0.1,
        momentum: float = 0.996,
        augmentation: Any = "views",
        **shared: Any,
    ) -> None:
        check_lightly()
        own = {"method": method, "projection": projection, "temperature": temperature, "momentum": momentum}
        self._own = TaskConfig.check("task", kind=PRETRAINING, labels=[], **own)
        super().__init__(labels, backbone, augmentation=augmentation, **{**shared, "kind": PRETRAINING})
        self.keep_arguments(own)

    def configure_model(self) -> None:
        """Build the network, with DINO its teacher too."""
        self.build_inputs()
        self.head = self._build_head()
        self.policy = self.build_policy()
        self.teacher: nn.ModuleDict | None = None
        if self._own.method == "dino":
            head = self._build_head()  # its weight_norm cannot be copied
            head.load_state_dict(self.head.state_dict())
            self.teacher = nn.ModuleDict({"backbone": copy.deepcopy(self.backbone), "head": head}).requires_grad_(False)
        if self.channels_last:
            for module in (self.backbone, *([] if self.teacher is None else [self.teacher])):
                module.to(memory_format=torch.channels_last)

    def _build_head(self) -> nn.Module:
        from lightly.models.modules.heads import DINOProjectionHead, SimCLRProjectionHead

        width, outputs = self.backbone.embedding_dim, self._own.projection or _WIDTH[self._own.method]
        hidden = min(width, _HIDDEN)
        if self._own.method == "simclr":
            return cast(nn.Module, SimCLRProjectionHead(width, hidden, outputs))
        # The prototypes keep still in the first epoch, as in the paper.
        head = DINOProjectionHead(width, hidden, min(hidden, _BOTTLENECK), outputs, freeze_last_layer=1)
        return cast(nn.Module, head)

    def configure_losses(self) -> None:
        """Build the loss of the views."""
        from lightly.loss.dino_loss import DINOLoss
        from lightly.loss.ntx_ent_loss import NTXentLoss

        own = self._own
        if own.method == "simclr":
            self.loss = NTXentLoss(own.temperature)
        elif not hasattr(self, "loss"):  # it remembers a centre
            self.loss = DINOLoss(own.projection or _WIDTH[own.method], student_temp=own.temperature)

    def configure_metrics(self) -> None:
        """No metrics of labels."""
        self.metrics = nn.ModuleDict()

    # --- forward ---
    def forward(self, raw: Tensor) -> Tensor:
        """Embeddings ``(B, D)`` of stored slices ``(B, K, S, S)``, those that another run would start from."""
        return cast(Tensor, self._encoder(self._layout(self.channels(raw))))

    @property
    def _encoder(self) -> Backbone:
        return self.backbone if self.teacher is None else cast(Backbone, self.teacher["backbone"])

    def _layout(self, images: Tensor) -> Tensor:
        return images.contiguous(memory_format=torch.channels_last) if self.channels_last else images

    @torch.no_grad()
    def views(self, batch: Batch) -> Tensor:
        """Two views of each slice, ``(2 B, C, S, S)``: all first ones, then all second ones."""
        images = self.channels(batch["image"])
        return self._layout(torch.cat([self.augment(images, batch["label"])[0] for _ in range(2)]))

    def _loss(self, views: Tensor) -> Tensor:
        found = self.head(self.backbone(views)).float().chunk(2)
        if self.teacher is None:
            return cast(Tensor, self.loss(*found))
        with torch.no_grad():
            wanted = self.teacher["head"](self.teacher["backbone"](views)).float().chunk(2)
        return cast(Tensor, self.loss(list(wanted), list(found)))

    # --- training ---
    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Loss of one batch, after the teacher, where there is one, has followed the student."""
        if self.teacher is not None:
            self._follow(self.teacher)
        return self.checked(self._loss(self.views(batch)), batch_idx, len(batch["index"]))

    @torch.no_grad()
    def _follow(self, teacher: nn.ModuleDict) -> None:
        from lightly.models.utils import update_momentum

        part = self.global_step / max(int(self.trainer.estimated_stepping_batches), 1)
        momentum = 1 - (1 - self._own.momentum) * (1 + math.cos(math.pi * min(part, 1.0))) / 2
        update_momentum(self.backbone, teacher["backbone"], momentum)
        update_momentum(self.head, teacher["head"], momentum)

    def on_after_backward(self) -> None:
        """Keep DINO's prototypes still in the first epoch."""
        if self.teacher is not None:
            cast(Any, self.head).cancel_last_layer_gradients(self.current_epoch)

    # --- validation and prediction ---
    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Log the loss of a batch, whose views depend on the seed and its number alone."""
        self._validate(batch, batch_idx, "val")

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        """As ``validation_step``."""
        self._validate(batch, batch_idx, "test")

    def _validate(self, batch: Batch, batch_idx: int, split: str) -> None:
        kept = {name: value.clone() for name, value in self.loss.named_buffers()}  # DINO's centre learns with each call
        with torch.random.fork_rng(devices=[self.device] if self.device.type == "cuda" else []):
            torch.manual_seed(int(np.random.SeedSequence([self.seed, batch_idx]).generate_state(1)[0]))
            self.augment.train()
            views = self.views(batch)
            self.augment.eval()
        loss = self._loss(views)
        for name, value in self.loss.named_buffers():
            value.copy_(kept[name])
        if not torch.isfinite(loss):
            raise TrainingError(
                f"epoch {self.current_epoch}: the loss on validation patients is {loss.item()}",
                remedy="lower optimizer.lr or set trainer.gradient_clip",
            )
        self.log(f"{split}/log_loss", loss, on_step=False, on_epoch=True, batch_size=len(batch["index"]))

    def on_validation_epoch_end(self) -> None:
        """Nothing is left to score."""

    def on_test_epoch_end(self) -> None:
        """As after validation."""

    def predict_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> tuple[Tensor, Tensor]:
        """Embeddings ``(B, D)`` and manifest rows ``(B,)``."""
        return self(batch["image"]), batch["index"]


def knn_probe(known: Tensor, labels: Tensor, asked: Tensor, k: int = NEIGHBOURS) -> NDArray[np.float64]:
    """What the nearest neighbours of embeddings say: the share of each label among them, the nearer the heavier.

    Weighted by exp(cosine / 0.07), after Wu et al. 2018 (arXiv 1805.01978).

    Args:
        known: (N, D) embeddings.
        labels: (N, L) their labels 0 and 1, NaN where unknown.
        asked: (M, D) embeddings.
        k: Neighbours.

    Returns:
        (M, L) shares; NaN where no neighbour has the label known.

    Example:
        >>> known = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
        >>> knn_probe(known, torch.tensor([[1.0], [0.0]]), torch.tensor([[2.0, 0.1]]), k=1).tolist()
        [[1.0]]
    """
    near = F.normalize(asked.double(), dim=1) @ F.normalize(known.double(), dim=1).T
    likeness, rows = near.topk(min(k, len(known)), dim=1)
    found = labels.double()[rows]  # (M, k, L)
    weights = (likeness / 0.07).exp()[..., None] * ~found.isnan()
    share = (weights * found.nan_to_num()).sum(dim=1) / weights.sum(dim=1)
    return cast("NDArray[np.float64]", share.numpy())
