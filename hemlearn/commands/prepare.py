"""``hemlearn prepare``: decode a data set into its slice store before training needs it."""

from __future__ import annotations

from hemlearn.commands import read, take_config_dir
from hemlearn.config.requests import PrepareRequest

HELP = """usage: hemlearn prepare data=NAME data.root=DIR [data.image_size=192] [data.fit=letterbox] [--config-dir DIR]
       [KEY=VALUE ...]

Decode every slice once into a memory-mapped store under the cache folder (data.cache_dir, $HEMLEARN_CACHE, or
~/.cache/hemlearn). Interrupted work continues; a finished store is used as it is. `train` does this when needed.

examples:
  hemlearn prepare data=head_ct data.root=/data/head_ct data.image_size=256
"""


def main(argv: list[str]) -> int:
    """Build the store, or say that it is there."""
    words, config_dir = take_config_dir(argv)
    request = read(PrepareRequest, words, HELP)
    if request is None:
        return 0
    from hemlearn.config.compose import compose
    from hemlearn.training.build import build_datamodule
    from hemlearn.util.console import set_up_logging

    config = compose(request.overrides, config_dir)
    set_up_logging()
    store = build_datamodule(config).store
    size = store.array.nbytes / 2**20
    print(
        f"store {store.folder}\n{store.array.shape[0]} slices of {store.array.shape[1]} x {store.array.shape[2]}, "
        f"{store.array.dtype} ({store.unit}), {size:.1f} MiB"
    )
    return 0
