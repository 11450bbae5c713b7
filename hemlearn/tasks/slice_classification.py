"""The 2D task: one slice in (with its neighbours as channels, if asked), one probability per label out."""

from __future__ import annotations

from typing import Any, cast

import numpy as np
import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import ReduceLROnPlateau

from hemlearn.config import from_dict
from hemlearn.data.datasets import Batch
from hemlearn.errors import TrainingError
from hemlearn.evaluation.metrics import fast_metrics
from hemlearn.models.backbone import build_backbone
from hemlearn.models.freeze import FreezePolicy
from hemlearn.models.losses import build_loss
from hemlearn.schema import Config
from hemlearn.tasks.optimization import build_curve, build_optimizer, build_plateau
from hemlearn.transforms.augment import Augment
from hemlearn.transforms.channels import Channels

LOWER_IS_BETTER = ("log_loss", "brier")
_FLIP_AXIS = {"horizontal": -1, "vertical": -2}


def build_head(width: int, outputs: int, hidden: list[int], dropout: float) -> nn.Sequential:
    """Classifier over ``(B, width)`` embeddings: optional hidden ReLU layers, dropout before each linear layer."""
    layers: list[nn.Module] = []
    for size in hidden:
        layers += [nn.Dropout(dropout), nn.Linear(width, size), nn.ReLU(inplace=True)]
        width = size
    return nn.Sequential(*layers, nn.Dropout(dropout), nn.Linear(width, outputs))


class SliceClassification(pl.LightningModule):
    """Channels -> augmentation -> backbone -> head, with everything but decoding on the device.

    Args:
        config: The run's configuration as plain dictionaries, so that checkpoints load with ``weights_only=True``.
        unit: Unit of the stored intensities, ``HU`` or ``display``.
        positives: Known positive training slices per label, for balanced weights.
        negatives: Known negative ones.
        load_weights: Load the backbone's pretrained weights; a checkpoint sets this to False, as it brings its own.
    """

    def __init__(self, config: dict[str, Any], unit: str, positives: list[float], negatives: list[float],
                 load_weights: bool = True) -> None:  # fmt: skip
        super().__init__()
        self.save_hyperparameters()
        self.hparams["load_weights"] = False
        self.config: Config = from_dict(config)
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
        self.monitor = task.monitor
        self._validation: list[tuple[Tensor, Tensor, Tensor]] = []
        self._plateau: ReduceLROnPlateau | None = None
        self._plateau_state: dict[str, Any] | None = None
        self._policy_epoch = 0
        self._begun = -1
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

    def activate(self, logits: Tensor) -> Tensor:
        """Probabilities ``(B, L)``: softmax over classes, or one sigmoid per label."""
        logits = logits.float()
        return logits.softmax(dim=1) if self.config.task.kind == "multiclass" else logits.sigmoid()

    def probabilities(self, raw: Tensor) -> Tensor:
        """Probabilities ``(B, L)``, averaged over the task's test-time flips.

        A mirrored head has its sides exchanged, so the label pairs of ``task.sides`` are exchanged back.
        """
        task = self.config.task
        images = self.channels(raw)
        total = self.activate(self.head(self.backbone(self._layout(images))))
        if not task.tta:
            return total
        order = list(range(len(task.labels)))
        for left, right in task.sides:
            i, j = task.labels.index(left), task.labels.index(right)
            order[i], order[j] = j, i
        for flip in task.tta:
            mirrored = self.head(self.backbone(self._layout(images.flip(_FLIP_AXIS[flip]))))
            total = total + self.activate(mirrored)[:, order]
        return total / (1 + len(task.tta))

    # --- training ---
    def train(self, mode: bool = True) -> SliceClassification:
        """Switch modes, then freeze again what this epoch keeps frozen (``train()`` alone would wake BatchNorm)."""
        super().train(mode)
        self.policy.apply(self.backbone, self._policy_epoch)
        return self

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        """At an epoch's first batch, freeze and seed as pure functions of the epoch, hence the same after a resume.

        Lightning calls no ``on_train_epoch_start`` in the first epoch after a resume.
        """
        if self._begun == self.current_epoch:
            return
        self._begun = self._policy_epoch = self.current_epoch
        self.train()
        entropy = np.random.SeedSequence([self.config.seed, self.current_epoch, self.global_rank])
        torch.manual_seed(int(entropy.generate_state(1)[0]))

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Loss of one batch.

        Raises:
            TrainingError: The loss is not finite.
        """
        with torch.no_grad():
            images, labels = self.augment(self.channels(batch["image"]), batch["label"])
        logits = self.head(self.backbone(self._layout(images)))
        loss = cast(Tensor, self.loss(logits, labels))
        every = self.config.trainer.log_every_n_steps
        # Reading the value stalls a GPU, so it is checked at each step only where that is free.
        if (loss.device.type == "cpu" or batch_idx % every == 0) and not torch.isfinite(loss):
            raise TrainingError(f"epoch {self.current_epoch}, batch {batch_idx}: the training loss is {loss.item()}",
                                remedy="lower optimizer.lr, set trainer.gradient_clip, or use "
                                       "trainer.precision=32-true")  # fmt: skip
        self.log("train/loss", loss, on_step=False, on_epoch=True, batch_size=len(logits), sync_dist=True)
        return loss

    def configure_optimizers(self) -> Any:
        """Optimiser with the freeze policy's parameter groups, and the schedule."""
        optim = self.config.optimizer
        groups = self.policy.parameter_groups(self.backbone, self.head, lr=optim.lr, weight_decay=optim.weight_decay)
        optimizer = build_optimizer(optim, groups)
        if optim.schedule.name == "plateau":
            self._plateau = build_plateau(optim.schedule, optimizer, self.mode)
            self._plateau.load_state_dict(self._plateau_state or {})
            return optimizer
        total, epochs = int(self.trainer.estimated_stepping_batches), max(self.trainer.max_epochs or 1, 1)
        curve = build_curve(optim.schedule, optimizer, max(total // epochs, 1), epochs)
        return [optimizer], [{"scheduler": curve, "interval": "step"}]

    def on_train_epoch_end(self) -> None:
        """Step a plateau schedule here: Lightning would do it after the checkpoint, and a resume would lose it."""
        if self._plateau is not None:
            name = "log_loss" if self.monitor == "last" else self.monitor
            self._plateau.step(float(self.trainer.callback_metrics[f"val/{name}"]))

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep the plateau schedule's memory."""
        if self._plateau is not None:
            kept = self._plateau.state_dict()
            checkpoint["plateau"] = {key: value for key, value in kept.items() if isinstance(value, int | float)}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep the memory until the optimiser, which it needs, has been built."""
        self._plateau_state = checkpoint.get("plateau")

    @property
    def mode(self) -> str:
        """``min`` or ``max``: which end of the monitored metric is good."""
        return "min" if self.monitor in (*LOWER_IS_BETTER, "last") else "max"

    # --- validation and prediction ---
    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Keep one batch's probabilities until the epoch's end."""
        kept = (self.probabilities(batch["image"]).detach(), batch["label"], batch["index"])
        self._validation.append(kept)

    def on_validation_epoch_end(self) -> None:
        """Log the validation metrics, each slice counted once whatever the number of processes."""
        parts = [torch.cat(column) for column in zip(*self._validation, strict=True)]
        self._validation.clear()
        if self.trainer.world_size > 1:
            parts = [cast(Tensor, self.all_gather(part)).flatten(0, 1) for part in parts]
        prob, label, index = (part.float().cpu().numpy() if part.is_floating_point() else part.cpu().numpy()
                              for part in parts)  # fmt: skip
        first = np.unique(index, return_index=True)[1]
        if not np.isfinite(prob).all():
            raise TrainingError(f"epoch {self.current_epoch}: the network's validation output is not finite",
                                remedy="lower optimizer.lr or set trainer.gradient_clip")  # fmt: skip
        scores = fast_metrics(label[first], prob[first], self.config.task.kind)
        self.log_dict({f"val/{name}": value for name, value in scores.items()}, rank_zero_only=False)

    def predict_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> tuple[Tensor, Tensor]:
        """Probabilities ``(B, L)`` and manifest rows ``(B,)``."""
        return self.probabilities(batch["image"]), batch["index"]
