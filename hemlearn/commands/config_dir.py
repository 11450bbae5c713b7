"""``--config-dir DIR`` for commands that compose one configuration and are not Hydra applications."""

from __future__ import annotations

from collections.abc import Sequence

from hemlearn.errors import ConfigError

FLAGS = ("--config-dir", "-cd")  # as Hydra spells them for `hemlearn train`


def take_config_dir(argv: Sequence[str]) -> tuple[list[str], str | None]:
    """Overrides, and the folder of the user's own YAML groups if one is given (the last one counts).

    Raises:
        ConfigError: The flag without a folder, or another flag.
    """
    rest: list[str] = []
    folder: str | None = None
    items = iter(argv)
    for text in items:
        name, equals, value = text.partition("=")
        if name in FLAGS:
            folder = value if equals else next(items, "")
            if not folder:
                raise ConfigError(f"{name}: no folder given", remedy="give a folder of YAML groups: --config-dir DIR")
        elif text.startswith("-"):
            raise ConfigError(f"{text}: unknown flag", remedy="use KEY=VALUE, --config-dir DIR or --help")
        else:
            rest.append(text)
    return rest, folder
