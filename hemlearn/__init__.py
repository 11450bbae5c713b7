"""hemlearn: train, compare and believe classifiers of brain hemorrhage on head CT and hydrocephalus on brain MRI.

The names below are imported when they are first used, so that ``import hemlearn`` costs nothing::

    run = hemlearn.train(["experiment=head_ct", "data.root=DIR"])
    run = hemlearn.load("runs/head_ct/0123456789ab")
    hemlearn.compare(["runs/ablation"]).table

Data modules are in ``hemlearn.datamodules``, tasks in ``hemlearn.tasks``.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hemlearn.compare.comparison import compare as compare
    from hemlearn.config.compose import compose as compose
    from hemlearn.data.splits import Holdout as Holdout
    from hemlearn.data.splits import KFold as KFold
    from hemlearn.data.splits import LeaveOneOut as LeaveOneOut
    from hemlearn.data.splits import MonteCarlo as MonteCarlo
    from hemlearn.data.splits import SplitFile as SplitFile
    from hemlearn.plugins import register as register
    from hemlearn.training.run import Run as Run
    from hemlearn.training.run import load as load
    from hemlearn.training.runner import train as train

__version__ = "0.2.0"
_PUBLIC = {
    "Holdout": "data.splits",
    "KFold": "data.splits",
    "LeaveOneOut": "data.splits",
    "MonteCarlo": "data.splits",
    "Run": "training.run",
    "SplitFile": "data.splits",
    "compare": "compare",  # the folder itself can be called
    "compose": "config.compose",
    "load": "training.run",
    "register": "plugins",
    "train": "training.runner",
}
__all__ = ["__version__", *_PUBLIC]


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = import_module(f"{__name__}.{_PUBLIC[name]}")
    return module if name == "compare" else getattr(module, name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_PUBLIC})
