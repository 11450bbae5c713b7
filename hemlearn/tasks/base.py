"""What every task shares: its parts, freezing, seeding, optimiser, learning-rate schedule, validation and test."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

import numpy as np
import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import ReduceLROnPlateau

from hemlearn.config import schema
from hemlearn.config.compose import conf_dir, option
from hemlearn.models.backbone import Backbone, build_backbone
from hemlearn.models.freeze import FreezePolicy, build_freeze
from hemlearn.models.lean import put_back
from hemlearn.plugins import REGISTRY, target_of
from hemlearn.tasks.metrics import build_metrics, direction, score
from hemlearn.tasks.optimizers import build_optimizer, build_schedule, check_optimizer
from hemlearn.transforms.augment import Augment, build_augment
from hemlearn.transforms.channels import Channels, build_channels
from hemlearn.util.errors import ConfigError, TrainingError

_OPTIONS: dict[str, Any] = {
    "channels": schema.ChannelsConfig,
    "augmentation": schema.AugmentationConfig,
    "backbone": schema.BackboneConfig,
    "freeze": schema.FreezeConfig,
    "features": schema.FeaturesConfig,
    "sequence": schema.SequenceConfig,
    "loss": schema.LossConfig,
    "optimizer": schema.OptimizerConfig,
    "optimizer.schedule": schema.ScheduleConfig,
}


def part(group: str, value: Any) -> Any:
    """A part as the builders take it: a shipped name or a dictionary becomes the group's option object.

    Whatever else it is (an option object, a module, a class, a node ``{_target_: ...}``) stays as it is.

    Raises:
        ConfigError: Unknown name, key or value.
    """
    if isinstance(value, Mapping) and target_of(value) is None:
        return _OPTIONS[group].check(group, **value)
    if not isinstance(value, str) or value in REGISTRY.parts.get(group, {}):
        return value
    named = group in ("backbone", "optimizer", "optimizer.schedule")  # also by names of timm's
    joined = group == "sequence" and "+" in value  # several models side by side
    if joined or (named and not (conf_dir() / group / f"{value}.yaml").is_file()):
        return _OPTIONS[group].check(group, name=value)
    return option(group, value)


def _configured() -> None:
    """Stands in for ``configure_model`` once it ran: Lightning calls it again at every stage."""


class Classification(pl.LightningModule):
    """A classifier with a frozen, partly frozen or trained backbone.

    Its parts may each be a shipped name (``channels="brain"``), a dictionary of the group's keys, an object, a class,
    or a node ``{"_target_": "package.Class", argument: value}``. What a subclass wants otherwise it overrides:
    :meth:`configure_model` sets ``channels``, ``augment``, ``backbone``, ``head`` and ``policy``;
    :meth:`configure_losses`, :meth:`configure_metrics` and :meth:`configure_optimizers` the rest.

    Args:
        labels: Names of the L labels, in the order of the output.
        backbone: Name of a timm model, or of a file of ``conf/backbone``; a module or class of one's own.
        channels: How stored intensities become network channels.
        kind: binary, multilabel or multiclass; None: binary for one label, else multilabel.
        level: What the labels describe: slice or series.
        labels_from: Of a sequence model: slices, or series where only a series' label shall train.
        augmentation: Steps on the device; a list of them too.
        freeze: What is trained when; a :class:`~hemlearn.models.freeze.FreezePolicy` too.
        loss: Of (logits (B, L), target (B, L)), NaN where unknown; None: bce, or cross_entropy for multiclass.
        optimizer: Name (adamw, adam, sgd, or any of ``timm.optim``), or a callable of the parameter groups.
        schedule: Of the learning rate: constant, cosine, step, plateau, or a node with ``optimizer`` left out; None:
            as ``optimizer`` says, else cosine.
        metrics: torchmetrics by name, beside hemlearn's own (see :mod:`hemlearn.tasks.metrics`).
        hidden: Widths of hidden layers in the head.
        dropout: In the head.
        tta: Flips averaged at evaluation: horizontal, vertical.
        monitor: Validation metric that picks the best checkpoint: one of hemlearn's, or a name in ``metrics``.
        threshold: How the operating point is chosen on validation.
        aggregate: How slices become a series' and a patient's probability: mean, max, top_k, noisy_or, logistic or
            model, see :mod:`hemlearn.evaluation.pooling`.
        top_k: Slices that top_k averages.
        label_weights: Of the weighted log loss.
        calibration: none, temperature, platt or isotonic.
        sides: Pairs of labels that a horizontal flip exchanges.
        image_size: Side of the square input in pixels; None: 192, or whatever the data have where the backbone can.
        pretrained: Start from pretrained weights.
        unit: What the stored numbers are: HU, display or signal; None: taken from the data module.
        positives: Known positive training cases per label, for balanced weights; None: taken from the data module.
        negatives: Known negative ones.
        channels_last: Memory layout of the backbone.
        seed: With the epoch, of everything random in training.

    Example:
        >>> from hemlearn.tasks import SliceClassification
        >>> class WithoutDecay(SliceClassification):
        ...     def configure_optimizers(self):
        ...         return torch.optim.SGD(self.parameters(), lr=0.01)
        >>> WithoutDecay(["bleed"], "test_efficientnet", pretrained=False, image_size=64).labels
        ['bleed']
    """

    backbone: Backbone
    head: nn.Module
    policy: FreezePolicy
    channels: Channels
    augment: Augment
    config: schema.Config  # of the run, where training.build made the task

    def __init__(
        self,
        labels: Sequence[str] = ("hemorrhage",),
        backbone: Any = "tf_efficientnet_lite0.in1k",
        *,
        channels: Any = "brain",
        kind: str | None = None,
        level: str = "slice",
        labels_from: str = "slices",
        augmentation: Any = "none",
        freeze: Any = "none",
        loss: Any = None,
        optimizer: Any = "adamw",
        schedule: Any = None,
        metrics: Any = None,
        hidden: Sequence[int] = (),
        dropout: float = 0.0,
        tta: Sequence[str] = (),
        monitor: str = "log_loss",
        threshold: float | str = "youden",
        aggregate: str = "mean",
        top_k: int = 3,
        label_weights: Sequence[float] | None = None,
        calibration: str = "none",
        sides: Sequence[Sequence[str]] = (),
        image_size: int | None = None,
        pretrained: bool = True,
        unit: str | None = None,
        positives: Any = None,
        negatives: Any = None,
        channels_last: bool = True,
        seed: int = 0,
    ) -> None:
        given = {key: value for key, value in locals().items() if key not in ("self", "__class__")}
        super().__init__()
        self.keep_arguments({**given, "pretrained": False})  # a checkpoint brings its own weights
        labels = [labels] if isinstance(labels, str) else list(labels)
        self.options = schema.TaskConfig.check(
            "task",
            labels=labels,
            kind=kind or ("binary" if len(labels) == 1 else "multilabel"),
            level=level,
            labels_from=labels_from,
            hidden=list(hidden),
            dropout=dropout,
            tta=list(tta),
            monitor=monitor,
            threshold=threshold,
            aggregate=aggregate,
            top_k=top_k,
            label_weights=None if label_weights is None else list(label_weights),
            calibration=calibration,
            sides=[list(pair) for pair in sides],
        )
        if isinstance(augmentation, list | tuple):
            augmentation = {"steps": list(augmentation)}
        loss = ("cross_entropy" if self.options.kind == "multiclass" else "bce") if loss is None else loss
        parts = {"channels": channels, "augmentation": augmentation, "freeze": freeze, "loss": loss}
        parts |= {"optimizer": optimizer}
        self.parts: dict[str, Any] = {group: part(group, value) for group, value in parts.items()}
        check_optimizer(self.parts["optimizer"])
        self.parts["backbone"] = _backbone(backbone, pretrained)
        default = getattr(self.parts["optimizer"], "schedule", None) or schema.ScheduleConfig()
        self.parts["schedule"] = default if schedule is None else part("optimizer.schedule", schedule)
        self.parts["metrics"] = metrics
        self.image_size, self.channels_last, self.seed = image_size, channels_last, seed
        self.unit, self.positives, self.negatives = unit, positives, negatives
        self.monitor = monitor
        self._kept: list[tuple[Tensor, Tensor, Tensor]] = []
        self._plateau: ReduceLROnPlateau | None = None
        self._plateau_state: dict[str, Any] | None = None
        self._policy_epoch = 0
        self._begun = -1
        self.configure_model()
        self.configure_model = _configured  # type: ignore[method-assign]
        self.configure_losses()
        self.configure_metrics()
        direction(self.metrics, monitor)

    @property
    def labels(self) -> list[str]:
        """Names of the labels, in the order of the output."""
        return list(self.options.labels)

    @property
    def kind(self) -> str:
        """binary, multilabel or multiclass."""
        return str(self.options.kind)

    @property
    def level(self) -> str:
        """What the labels describe: slice or series."""
        return str(self.options.level)

    @property
    def neighbours(self) -> int:
        """Slices on each side that the channels take."""
        return int(self.channels.in_slices) // 2

    # --- parts ---
    def keep_arguments(self, given: Mapping[str, Any]) -> None:
        """Keep plain arguments in checkpoints; parts that are objects must be given to ``load_from_checkpoint``."""
        self.save_hyperparameters({key: value for key, value in given.items() if _is_plain(value)})

    def configure_model(self) -> None:
        """Build ``channels``, ``augment``, ``backbone`` and ``policy``; a subclass adds its ``head``."""
        raise NotImplementedError

    def configure_losses(self) -> None:
        """Build the training loss; again once the counts of the training cases are known."""
        raise NotImplementedError

    def configure_metrics(self) -> None:
        """Build the metrics of validation and test."""
        self.metrics = build_metrics(self.parts["metrics"], self.options)

    def build_inputs(self) -> None:
        """Channels, augmentation and backbone, in this order (which the random numbers of a run depend on)."""
        self.channels = build_channels(self.parts["channels"], self.unit)
        self.augment = build_augment(self.parts["augmentation"], self.options.labels, self.options.sides)
        self.backbone = self.build_encoder()

    def build_encoder(self) -> Backbone:
        """The backbone."""
        return build_backbone(
            self.parts["backbone"], in_chans=self.channels.out_channels, image_size=self.image_size or 192
        )

    def build_policy(self) -> FreezePolicy:
        """The freeze policy, in charge of the backbone."""
        return build_freeze(self.parts["freeze"], self.backbone)

    def adopt(self, *, unit: str | None = None, positives: Any = None, negatives: Any = None) -> None:
        """Take what the data determine: the unit of the stored numbers, and the counts that balanced weights need.

        Args:
            unit: HU, display or signal.
            positives: Known positive training cases per label.
            negatives: Known negative ones.
        """
        if unit is not None and self.unit != unit:
            self.unit = unit
            self.channels.adopt(unit)
            self.hparams["unit"] = unit
        if positives is not None:
            self.positives, self.negatives = positives, negatives
            self.hparams["positives"], self.hparams["negatives"] = positives, negatives
            self.configure_losses()

    def setup(self, stage: str) -> None:
        """Take from the trainer's data module what the constructor was not given."""
        data: Any = getattr(self.trainer, "datamodule", None)
        unit = getattr(data, "unit", None)
        if self.unit is None and unit is not None:
            self.adopt(unit=unit)
        if self.unit is not None and unit not in (None, self.unit):
            raise ConfigError(
                f"the data module's slices are in {unit}, the task was made for {self.unit}",
                remedy="give the kind of files it was made for, or build a task for these",
            )
        if stage == "fit" and self.positives is None and hasattr(data, "label_counts"):
            ones, zeros = data.label_counts("train")
            self.adopt(positives=ones, negatives=zeros)
        if stage == "fit":
            self.train(self.training)  # several devices synchronise what takes a gradient when they wrap the task
        size = getattr(data, "image_size", None)
        record = getattr(self.backbone.model, "pretrained_cfg", None) or {}
        fixed = self.image_size is not None or record.get("fixed_input_size")
        if size is not None and fixed and size != self.backbone.image_size:
            raise ConfigError(
                f"the data module makes squares of {size} pixels, the task was built for {self.backbone.image_size}",
                remedy=f"give the task image_size={size}",
            )

    def activate(self, logits: Tensor) -> Tensor:
        """Probabilities ``(..., L)``: softmax over classes, or one sigmoid per label."""
        logits = logits.float()
        return logits.softmax(dim=-1) if self.options.kind == "multiclass" else logits.sigmoid()

    # --- training ---
    def train(self, mode: bool = True) -> Classification:
        """Switch modes, then freeze again what this epoch keeps frozen (``train()`` alone would wake BatchNorm)."""
        super().train(mode)
        self.policy.apply(self.backbone, self._policy_epoch)
        return self

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """At an epoch's first batch, freeze and seed as pure functions of the epoch, hence the same after a resume.

        Lightning calls no ``on_train_epoch_start`` in the first epoch after a resume.
        """
        if self._begun == self.current_epoch:
            return
        self._begun = self._policy_epoch = self.current_epoch
        self.train()
        entropy = np.random.SeedSequence([self.seed, self.current_epoch, self.global_rank])
        torch.manual_seed(int(entropy.generate_state(1)[0]))

    def checked(self, loss: Tensor, batch_idx: int, size: int) -> Tensor:
        """Log the training loss of ``size`` slices and hand it on.

        Raises:
            TrainingError: It is no single number, not finite, or has no gradient.
        """
        name = type(getattr(self, "loss", None) or getattr(self, "slice_loss", None)).__name__
        where = f"epoch {self.current_epoch}, batch {batch_idx}"
        if not isinstance(loss, Tensor) or loss.ndim:
            shape = tuple(loss.shape) if isinstance(loss, Tensor) else type(loss).__name__
            raise TrainingError(
                f"{where}: the loss ({name}) gives {shape}, not one number", remedy="return its mean: loss.mean()"
            )
        every = getattr(self._trainer, "log_every_n_steps", 1)
        # Reading the value stalls a GPU, so it is checked at each step only where that is free.
        if (loss.device.type == "cpu" or batch_idx % every == 0) and not torch.isfinite(loss):
            raise TrainingError(
                f"{where}: the training loss is {loss.item()}",
                remedy="lower optimizer.lr, set trainer.gradient_clip, or use trainer.precision=32-true; a loss of "
                "one's own must mask unknown labels, which are NaN",
            )
        if not loss.requires_grad and torch.is_grad_enabled():
            raise TrainingError(
                f"{where}: the training loss ({name}) has no gradient",
                remedy="compute it from the logits without detach(), item() or numpy(), and let something train",
            )
        self.log("train/loss", loss, on_step=False, on_epoch=True, batch_size=size, sync_dist=True)
        return loss

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Optimiser parameter groups, frozen ones included, so that they are the same at every epoch."""
        optim = self.parts["optimizer"]
        chosen = getattr(optim, "keywords", {}) if not hasattr(optim, "lr") else vars(optim)
        rate, decay = float(chosen.get("lr", 1e-3)), float(chosen.get("weight_decay", 0.0))
        return self.policy.parameter_groups(self.backbone, self.head, lr=rate, weight_decay=decay)

    def configure_optimizers(self) -> Any:
        """Optimiser with the freeze policy's parameter groups, and the schedule."""
        optimizer = build_optimizer(
            self.parts["optimizer"], self.parameter_groups(), fused="mixed" not in str(self.trainer.precision)
        )
        total, epochs = int(self.trainer.estimated_stepping_batches), max(self.trainer.max_epochs or 1, 1)
        made, interval = build_schedule(
            self.parts["schedule"], optimizer, steps_per_epoch=max(total // epochs, 1), epochs=epochs, mode=self.mode
        )
        if isinstance(made, ReduceLROnPlateau):
            self._plateau = made
            if self._plateau_state:
                made.load_state_dict({**made.state_dict(), **self._plateau_state})
            return optimizer
        return [optimizer], [{"scheduler": made, "interval": interval}]

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
        """Put back what the checkpoint leaves out; keep the memory until the optimiser, which needs it, is built."""
        put_back(checkpoint, self.backbone)
        self._plateau_state = checkpoint.get("plateau")

    @property
    def mode(self) -> str:
        """``min`` or ``max``: which end of the monitored metric is good."""
        return direction(self.metrics, self.monitor)

    # --- validation and test ---
    def keep(self, prob: Tensor, label: Tensor, index: Tensor) -> None:
        """Keep one batch's probabilities ``(T, L)``, labels and manifest rows ``(T,)`` until the epoch's end."""
        self._kept.append((prob.detach(), label, index))

    def test_step(self, batch: Any, batch_idx: int) -> None:
        """As ``validation_step``."""
        self.validation_step(batch, batch_idx)

    def on_validation_epoch_end(self) -> None:
        """Log the validation metrics, each case counted once whatever the number of processes."""
        self._log_scores("val")

    def on_test_epoch_end(self) -> None:
        """Log the test metrics, as those of validation."""
        self._log_scores("test")

    def _log_scores(self, split: str) -> None:
        columns = [torch.cat(column) for column in zip(*self._kept, strict=True)]
        self._kept.clear()
        if self.trainer.world_size > 1:
            columns = [cast(Tensor, self.all_gather(column)).flatten(0, 1) for column in columns]
        prob, label, index = columns
        first = np.unique(index.cpu().numpy(), return_index=True)[1]
        if not torch.isfinite(prob).all():
            raise TrainingError(
                f"epoch {self.current_epoch}: the network's validation output is not finite",
                remedy="lower optimizer.lr or set trainer.gradient_clip",
            )
        rows = torch.from_numpy(first).to(prob.device)
        scores = score(self.metrics, prob.float()[rows], label.float()[rows], self.options)
        self.log_dict({f"{split}/{name}": value for name, value in scores.items()}, rank_zero_only=False)


def _backbone(value: Any, pretrained: bool) -> Any:
    """The option object of a name, with ``pretrained`` in it; anything else as it is."""
    spec = part("backbone", value)
    if isinstance(value, str) and not pretrained and isinstance(spec, schema.BackboneConfig):
        return spec.model_copy(update={"pretrained": False})
    return spec


def _is_plain(value: Any) -> bool:
    """Whether a checkpoint that is read without unpickling code may hold ``value``."""
    if isinstance(value, Mapping):
        return all(isinstance(key, str | int) and _is_plain(item) for key, item in value.items())
    if isinstance(value, list | tuple):
        return all(_is_plain(item) for item in value)
    return value is None or isinstance(value, str | int | float | bool)
