"""Which label of a run is which label of a data set."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from hemlearn.config_rules import hint
from hemlearn.errors import ConfigError
from hemlearn.schema import TaskConfig


def parse_map(text: str | None, task: TaskConfig) -> dict[str, str]:
    """``labels=hemorrhage:any,bleed:any`` as run label -> data label; nothing given: empty.

    Raises:
        ConfigError: A part that is no pair, a label that the run does not have, or one named twice.
    """
    found: dict[str, str] = {}
    for part in (text or "").strip("[]{} ").split(","):
        if not part.strip():
            continue
        ours, colon, theirs = (item.strip() for item in part.partition(":"))
        if not colon or not ours or not theirs:
            raise ConfigError(
                f"labels={text}: {part!r} is not RUN_LABEL:DATA_LABEL", remedy="for example labels=hemorrhage:any"
            )
        if ours not in task.labels:
            raise ConfigError(
                f"labels={text}: the run has no label '{ours}'{hint(ours, task.labels)}; it predicts "
                f"{', '.join(task.labels)}",
                remedy="name the run's label first",
            )
        if ours in found:
            raise ConfigError(f"labels={text}: '{ours}' twice", remedy="give every label of the run once")
        found[ours] = theirs
    return found


def match_labels(given: dict[str, str], task: TaskConfig, held: Sequence[str], name: str) -> dict[str, str]:
    """Run label -> data label of everything that can be judged, in the order of the run's labels.

    Without ``given`` every label of the run must be there by its own name. With it, labels of the run that are neither
    given nor there are left out.

    Raises:
        ConfigError: Naming both lists.
    """
    pairs = {label: given.get(label, label) for label in task.labels}
    absent = [label for label, theirs in pairs.items() if theirs not in held]
    lists = f"the run predicts {', '.join(task.labels)}; data={name} holds {', '.join(held) or 'no labels'}"
    wrong = [label for label in absent if label in given]
    if wrong:
        theirs = given[wrong[0]]
        text = f"labels={wrong[0]}:{theirs}: data={name} has no label '{theirs}'{hint(theirs, held)}; {lists}"
        raise ConfigError(text, remedy="after the colon stands a label of the data set")
    kept = {label: theirs for label, theirs in pairs.items() if label not in absent}
    if absent and (not given or task.kind == "multiclass" or not kept):
        shown = held[-1] if held else "LABEL"
        raise ConfigError(
            f"labels do not match: {lists}; without a partner: {', '.join(absent)}",
            remedy=f"say which belong together: labels={absent[0]}:{shown}",
        )
    return kept


def narrowed(task: TaskConfig, labels: Sequence[str], level: str) -> TaskConfig:
    """The task with some of its labels, judged at ``level``."""
    if list(labels) == list(task.labels) and level == task.level:
        return task
    weights = task.label_weights
    if weights is not None:
        weights = [weight for weight, label in zip(weights, task.labels, strict=True) if label in labels]
    kind = "binary" if task.kind == "multilabel" and len(labels) == 1 else task.kind
    monitor = "log_loss" if kind == "binary" and task.monitor == "weighted_log_loss" else task.monitor
    return replace(
        task,
        labels=list(labels),
        level=level,
        kind=kind,
        monitor=monitor,
        label_weights=None if kind == "binary" else weights,
        sides=[pair for pair in task.sides if set(pair) <= set(labels)],
    )
