"""Metrics of validation and test in torchmetrics' protocol: hemlearn's own, which know of unknown labels, and a user's.

A user's metric is updated with the probabilities and labels of every case at once, in the shapes that torchmetrics'
classification metrics take, cases with an unknown label left out: ``(N,)`` and ``(N,)`` for binary tasks, ``(N, L)``
and ``(N, L)`` for multilabel, ``(N, C)`` and classes ``(N,)`` for multiclass ones. A metric with the attribute
``takes_unknown = True`` gets ``(N, L)`` labels with NaN where they are unknown.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torchmetrics import Metric, MetricCollection

from hemlearn.config.schema import MONITORS, TaskConfig
from hemlearn.evaluation.metrics import WeightedLogLoss, fast_metrics
from hemlearn.evaluation.scoring import METRICS, WEIGHTED
from hemlearn.plugins import REGISTRY, supplied, target_of
from hemlearn.util.errors import ConfigError, TrainingError, hint

LOWER_IS_BETTER = ("log_loss", "weighted_log_loss", "brier")
Values = dict[str, float]
OWN = "hemlearn"  # key of hemlearn's own scores, whose names stand alone


class Scores(Metric):
    """AUROC, AP, accuracy, log loss and Brier score; the weighted log loss too in multilabel tasks.

    Undefined values are NaN, macro means are taken over the defined labels, unknown labels (NaN) are left out.

    Args:
        kind: binary, multilabel or multiclass.
        label_weights: L weights of the weighted log loss; None: equal ones.

    Examples:
        >>> scores = Scores("binary")
        >>> scores.update(torch.tensor([[0.9], [0.2], [0.6]]), torch.tensor([[1.0], [0.0], [torch.nan]]))
        >>> scores.compute()["auroc"]
        1.0
    """

    full_state_update = False
    takes_unknown = True
    prob: list[Tensor]
    label: list[Tensor]

    def __init__(self, kind: str, label_weights: Sequence[float] | None = None, **options: Any) -> None:
        super().__init__(**options)
        self.kind, self.label_weights = kind, label_weights
        self.add_state("prob", default=[], dist_reduce_fx="cat")
        self.add_state("label", default=[], dist_reduce_fx="cat")

    def update(self, preds: Tensor, target: Tensor) -> None:
        """Add probabilities (B, L) and labels (B, L): 0, 1 or NaN."""
        self.prob.append(preds.detach().float().cpu())
        self.label.append(target.float().cpu())

    def compute(self) -> dict[str, float]:
        """All scores by name."""
        prob, label = (torch.cat(list(part)).numpy() for part in (self.prob, self.label))
        return fast_metrics(label, prob, self.kind, self.label_weights)


def build_metrics(spec: Any, task: TaskConfig) -> nn.ModuleDict:
    """Hemlearn's :class:`Scores`, and a user's metrics by name.

    Args:
        spec: None; metrics by name, or a list of them: each an object, a class, a node ``{_target_: ...}`` or a name
            that a plug-in has registered, with arguments as ``{name: ..., argument: value}``. Offered are ``task``,
            ``num_labels`` and ``num_classes`` as torchmetrics names them, and ``labels``.
        task: Labels and kind.

    Raises:
        ConfigError: One that cannot be built, is no metric, or bears the name of one of hemlearn's.
    """
    # Every process is given all cases: none asks the others for theirs.
    found = nn.ModuleDict({OWN: Scores(task.kind, task.label_weights, sync_on_compute=False)})
    if isinstance(spec, MetricCollection):
        spec = dict(spec.items())
    if not isinstance(spec, Mapping):
        spec = {_label(item): item for item in spec or ()}
    taken = {*METRICS, WEIGHTED, OWN, "labels"}
    count = len(task.labels)
    for name, item in spec.items():
        if item is None:  # taken out on the command line
            continue
        if name in taken or not str(name).replace("_", "").isalnum():
            raise ConfigError(
                f"metrics.{name}: {'a metric of hemlearn has that name' if name in taken else 'not a name'}",
                remedy="name it with letters, digits and _, otherwise than hemlearn's own",
            )
        metric: Metric | None = supplied(
            item,
            f"metrics.{name}",
            kind=Metric,
            task=task.kind,
            num_labels=count,
            num_classes=count,
            labels=list(task.labels),
        )
        if metric is None:
            called = item.get("name") if isinstance(item, Mapping) else item
            raise ConfigError(
                f"metrics.{name}={item!r}: not a torchmetrics Metric{hint(str(called), REGISTRY.names('metrics'))}",
                remedy="write {_target_: torchmetrics.classification.BinaryF1Score, argument: value}",
            )
        metric.sync_on_compute = False
        found[str(name)] = metric
    return found


def direction(metrics: nn.ModuleDict, monitor: str) -> str:
    """``min`` or ``max``: which end of the metric ``monitor`` is good; one of hemlearn's, or of a user's.

    Raises:
        ConfigError: There is none of that name, or it does not say (torchmetrics' ``higher_is_better``).
    """
    if monitor in MONITORS:
        return MONITORS[monitor]
    name = monitor.partition("/")[0]
    known = [*MONITORS, *(key for key in metrics if key != OWN)]
    if name == OWN or name not in metrics:
        raise ConfigError(
            f"task.monitor={monitor!r}: no such metric{hint(monitor, known)}", remedy=f"use one of {', '.join(known)}"
        )
    higher: Any = getattr(metrics[name], "higher_is_better", None)
    if higher is None:
        raise ConfigError(
            f"task.monitor={monitor}: {type(metrics[name]).__name__} does not say which way is better",
            remedy="set higher_is_better = True or False on its class",
        )
    return "max" if higher else "min"


def _label(item: Any) -> str:
    """What a metric of a list is called."""
    if isinstance(item, str):
        return item
    name = item.get("name") if isinstance(item, Mapping) else getattr(item, "name", None)
    cls = item if isinstance(item, type) else type(item)
    return name or _snake((target_of(item) or cls.__name__).rpartition(".")[2])


def _snake(name: str) -> str:
    return "".join(f"_{c.lower()}" if c.isupper() and i else c.lower() for i, c in enumerate(name))


def score(metrics: nn.ModuleDict, prob: Tensor, label: Tensor, task: TaskConfig) -> Values:
    """Every metric of all cases, by name; one with a value per label gives ``name/LABEL``.

    Args:
        metrics: Of :func:`build_metrics`.
        prob: (N, L) probabilities.
        label: (N, L) labels 0, 1 or NaN.
        task: Labels and kind.

    Raises:
        TrainingError: A metric that raises, by name, or one with another shape of result.
    """
    found: dict[str, float] = {}
    for name, module in metrics.items():
        metric: Any = module
        try:
            metric.reset()
            metric.update(*_as_torchmetrics(metric, prob, label, task))
            value = metric.compute()
            metric.reset()
        except Exception as error:  # a stranger's metric may raise anything
            raise TrainingError(
                f"metrics.{name} ({type(metric).__name__}) raised {type(error).__name__}: {error}",
                remedy="correct or remove that metric; what it is given is described in hemlearn.tasks.metrics",
            ) from error
        if name == OWN:
            found |= value
            continue
        items = value.items() if isinstance(value, Mapping) else [("", value)]
        for key, item in items:
            tensor = torch.as_tensor(item, dtype=torch.float64).squeeze()
            whole = f"{name}/{key}" if key else name
            if tensor.ndim == 0:
                found[whole] = float(tensor)
            elif tensor.shape == (len(task.labels),):
                found |= {f"{whole}/{tag}": float(one) for tag, one in zip(task.labels, tensor, strict=True)}
            else:
                raise TrainingError(
                    f"metrics.{name} ({type(metric).__name__}) gives {tuple(tensor.shape)}, neither one number nor one "
                    "per label",
                    remedy="use a metric that computes a scalar",
                )
    return found


def _as_torchmetrics(metric: Any, prob: Tensor, label: Tensor, task: TaskConfig) -> tuple[Tensor, Tensor]:
    if getattr(metric, "takes_unknown", isinstance(metric, WeightedLogLoss)):
        return prob, label
    known = ~torch.isnan(label).any(dim=1)
    prob, target = prob[known], label[known].long()
    if task.kind == "multiclass":
        return prob, target.argmax(dim=1)
    return (prob[:, 0], target[:, 0]) if task.kind == "binary" else (prob, target)
