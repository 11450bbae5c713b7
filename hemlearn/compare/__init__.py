"""Finished runs side by side: pooled over folds and seeds, tested pairwise, written as page and tables.

``hemlearn.compare(["runs/ablation"])`` calls :func:`hemlearn.compare.comparison.compare`: the folder and the function
share their name, so the module itself can be called. Reads run folders through ``training.run``; only ``commands`` and
the public names import it.
"""

from __future__ import annotations

import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hemlearn.compare.comparison import Comparison


class _Callable(ModuleType):
    def __call__(self, *args: Any, **kwargs: Any) -> Comparison:
        from hemlearn.compare.comparison import compare

        return compare(*args, **kwargs)


sys.modules[__name__].__class__ = _Callable
