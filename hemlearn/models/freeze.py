"""What is trained when, and how fast, over the ordered layer groups of any timm model.

Groups run from the stem to the last block, as timm's ``group_matcher(coarse=True)`` orders them; the classifier head
is not among them and always trains. A policy is a pure function of the epoch, so that a run resumed in the middle of
a schedule freezes what an undisturbed one does.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn
from torch.nn.modules.batchnorm import _NormBase

from hemlearn.config.schema import FreezeConfig
from hemlearn.models.adapters import add_lora, chosen, merge, origin, parts
from hemlearn.models.backbone import Backbone, layer_groups, module_groups
from hemlearn.plugins import supplied
from hemlearn.util.errors import ConfigError, count


class FreezePolicy:
    """Which groups train at an epoch, and the learning rate of each.

    A policy of one's own is a subclass: :meth:`prepare` may change the backbone (adapters such as LoRA),
    :meth:`trainable` says how many groups train, :meth:`apply` and :meth:`parameter_groups` how.

    Args:
        trainable: ``all``, ``head`` (no group) or a number N (the last N groups), from epoch 0.
        schedule: Epoch -> such a value, which replaces ``trainable`` from there.
        layer_decay: Learning-rate factor per group from head to stem.
        head_lr_scale: Learning-rate factor of the head.
        freeze_batchnorm: Keep the BatchNorm statistics of trainable layers too.
        method: What trains in the groups that train: ``full`` (all), ``lora`` (adapters), ``bitfit`` (biases)
            or ``norm`` (normalisation layers). BatchNorm whose weights do not train keeps its statistics.
        layers: Regular expressions; those groups' layers whose name has a match train. None given: all.
        rank: Of LoRA.
        alpha: Of LoRA; its change of the weights is scaled by ``alpha / rank``.
        dropout: Before LoRA's first matrix.
        groups: Of :attr:`Backbone.groups`; given by :meth:`attach` where it is None.

    Raises:
        ConfigError: A value is none of these; the message names its key.

    Examples:
        >>> policy = FreezePolicy("head", schedule={2: 1}, groups=[["stem"], ["block"]])
        >>> [policy.trainable(epoch) for epoch in range(4)], policy.changes_at()
        ([0, 0, 1, 1], [2])
    """

    def __init__(
        self,
        trainable: str | int = "all",
        schedule: Mapping[Any, str | int] | None = None,
        layer_decay: float = 1.0,
        head_lr_scale: float = 1.0,
        freeze_batchnorm: bool = False,
        method: str = "full",
        layers: Sequence[str] = (),
        rank: int = 8,
        alpha: float = 16.0,
        dropout: float = 0.0,
        *,
        groups: Sequence[Sequence[str]] | None = None,
    ) -> None:
        options = FreezeConfig(
            trainable=trainable,
            schedule=dict(schedule or {}),
            layer_decay=layer_decay,
            head_lr_scale=head_lr_scale,
            freeze_batchnorm=freeze_batchnorm,
            method=method,
            layers=list(layers),
            rank=rank,
            alpha=alpha,
            dropout=dropout,
        )
        self.method = method
        self.layers = list(layers)
        self._lora: dict[str, Any] = {"rank": rank, "alpha": alpha, "dropout": dropout}
        self._few: set[str] | None = None  # names of the parameters that may train; None: all
        self.freeze_batchnorm = freeze_batchnorm
        self.layer_decay = float(layer_decay)
        self.head_lr_scale = float(head_lr_scale)
        self._wanted = {0: ("freeze.trainable", trainable)}
        self._wanted |= {epoch: (f"freeze.schedule.{epoch}", value) for epoch, value in options.schedule.items()}
        self.groups: list[list[str]] = []
        self._steps: dict[int, int] = {}
        if groups is not None:
            self._bind(groups)

    def prepare(self, backbone: Backbone) -> None:
        """Change the backbone before its layer groups are read; nothing here, adapters in a subclass."""

    def attach(self, backbone: Backbone) -> None:
        """Take charge of a backbone: :meth:`prepare`, read its layer groups, and choose what :attr:`method` trains.

        Raises:
            ConfigError: There is nothing to train, or ``layers`` names no layer.
        """
        self.prepare(backbone)
        backbone.groups = layer_groups(backbone.model)
        self._bind(backbone.groups)
        if self.method != "full":
            self._choose(backbone)

    def _choose(self, backbone: Backbone) -> None:
        place = {name: index for index, group in enumerate(self.groups) for name in group}
        most = max(self.trainable(epoch) for epoch in self._steps)
        first = len(self.groups) - most
        known = {key: names for key, names in parts(backbone, self.method).items() if place[names[0]] >= first}
        within = f"the last {count(most, 'layer group')} of {type(backbone.model).__name__}"
        layers = chosen(known, self.layers, self.method, within)
        self._few = {name for layer in layers for name in known[layer]}
        if self.method == "lora":
            add_lora(backbone, layers, **self._lora)
            names = [name for name, _ in backbone.model.named_parameters()]
            self._few = {name for name in names if ".lora_" in name}
            for group in backbone.groups:
                group.clear()
            for name in names:
                backbone.groups[place[origin(name)]].append(name)
            self._bind(backbone.groups)

    def merge(self, backbone: Backbone) -> None:
        """End training: LoRA layers become part of the weights they were added to, and the network is a plain one."""
        if self.method == "lora":
            merge(backbone)
            self.method, self._few = "full", None
            backbone.groups = layer_groups(backbone.model)
            self._bind(backbone.groups)

    def _bind(self, groups: Sequence[Sequence[str]]) -> None:
        self.groups = [list(group) for group in groups]
        self._steps = {epoch: self._count(key, value) for epoch, (key, value) in sorted(self._wanted.items())}

    def _count(self, key: str, value: Any) -> int:
        total = len(self.groups)
        if value == "all":
            return total
        if value == "head":
            return 0
        if isinstance(value, str) and value.strip().isdigit():
            value = int(value)
        if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= total:
            what = f"give all, head, or a number from 0 to {total}: this backbone's layer groups"
            remedy = what if total else "this backbone measures and has nothing to train: freeze=head"
            raise ConfigError(f"{key}={value}", remedy=remedy)
        return value

    def trainable(self, epoch: int) -> int:
        """How many of the last backbone groups train at ``epoch`` (from 0)."""
        return [count for start, count in self._steps.items() if start <= max(epoch, 0)][-1]

    def changes_at(self) -> list[int]:
        """Epochs after the first at which another number of groups trains than in the epoch before."""
        return [epoch for epoch in self._steps if epoch and self.trainable(epoch) != self.trainable(epoch - 1)]

    def apply(self, backbone: Backbone, epoch: int) -> None:
        """Freeze and unfreeze for ``epoch``; to be called after every switch of ``train()`` and at epoch starts.

        Parameters of frozen groups take no gradient, and their modules are in evaluation mode, so that dropout is off
        and BatchNorm uses and keeps its statistics; so does BatchNorm of which at most the bias trains. The other
        modules follow ``backbone.training``.
        """
        model = backbone.model
        first = len(self.groups) - self.trainable(epoch)
        frozen = {name for group in self.groups[:first] for name in group}
        few = self._few
        for name, parameter in model.named_parameters():
            still = name in frozen or (few is not None and name not in few)
            parameter.requires_grad_(not still)
            if still:
                parameter.grad = None  # a gradient left from the epoch before would still move it
        place = module_groups(model, self.groups)
        for name, module in model.named_modules():
            keeps = self.freeze_batchnorm or (few is not None and f"{name}.weight" not in few)
            module.training = (
                backbone.training and place[name] >= first and not (keeps and isinstance(module, _NormBase))
            )

    def never_trained(self, backbone: Backbone) -> set[str]:
        """Names below ``backbone.model`` of the parameters and buffers that no epoch of the policy moves.

        The policy is left at the last epoch that changes it: :meth:`apply` it again.
        """
        model, training = backbone.model, backbone.training
        still = set(model.state_dict())
        backbone.train()
        for epoch in (0, *self.changes_at()):
            self.apply(backbone, epoch)
            still -= {name for name, parameter in model.named_parameters() if parameter.requires_grad}
            still -= {
                f"{name}.{key}".lstrip(".")
                for name, module in model.named_modules()
                if module.training
                for key, _ in module.named_buffers(recurse=False)
            }
        backbone.train(training)
        return still

    def trained_parameters(self, backbone: Backbone) -> int:
        """How many numbers of the backbone any epoch trains; the policy is left as by :meth:`never_trained`."""
        still = self.never_trained(backbone)
        return sum(value.numel() for name, value in backbone.model.named_parameters() if name not in still)

    def parameter_groups(
        self, backbone: Backbone, head: nn.Module, lr: float, weight_decay: float
    ) -> list[dict[str, Any]]:
        """Optimiser parameter groups of the head and of all backbone groups, frozen or not.

        They are the same at every epoch, so that optimiser states survive a resume. The head learns at ``lr *
        head_lr_scale``, the last backbone group at ``lr * layer_decay``, the one before at ``lr * layer_decay**2``
        and so on. Norms, biases and what timm's ``no_weight_decay`` names are not decayed.

        Returns:
            Dictionaries with ``params``, ``lr``, ``weight_decay`` and ``name``.
        """
        skip: set[str] = getattr(backbone.model, "no_weight_decay", set)()
        parameters = dict(backbone.model.named_parameters())
        buckets: dict[tuple[str, float, bool], list[nn.Parameter]] = {}
        for index, group in enumerate(self.groups):
            uniform = self.layer_decay == 1.0
            label = "backbone" if uniform else f"backbone.{index}"
            rate = lr * self.layer_decay ** (len(self.groups) - index)
            for name in group:
                plain = parameters[name].ndim <= 1 or name in skip
                buckets.setdefault((label, rate, plain), []).append(parameters[name])
        for parameter in head.parameters():
            buckets.setdefault(("head", lr * self.head_lr_scale, parameter.ndim <= 1), []).append(parameter)
        return [
            {
                "params": params,
                "lr": rate,
                "weight_decay": 0.0 if plain else weight_decay,
                "name": f"{label}.{'no_decay' if plain else 'decay'}",
            }
            for (label, rate, plain), params in buckets.items()
        ]


_METHOD = ("method", "layers", "rank", "alpha", "dropout")


def build_freeze(spec: Any, backbone: Backbone) -> FreezePolicy:
    """The policy that group ``freeze`` (or a policy, class or node of one's own) describes, in charge of ``backbone``.

    Raises:
        ConfigError: As :class:`FreezePolicy`, or a part of one's own that is no such policy.
    """
    policy: FreezePolicy | None = supplied(spec, "freeze", kind=FreezePolicy, groups=backbone.groups)
    if policy is None:
        own = {key: value for key, value in vars(spec).items() if key in _KEYS}
        policy = FreezePolicy(**own)
    policy.attach(backbone)
    return policy


_KEYS = ("trainable", "schedule", "layer_decay", "head_lr_scale", "freeze_batchnorm", *_METHOD)
