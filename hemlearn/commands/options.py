"""``key=value`` command lines of the commands that are not Hydra applications."""

from __future__ import annotations

from collections.abc import Sequence

from hemlearn.util.errors import ConfigError, hint


def parse_options(argv: list[str], defaults: dict[str, str | None], command: str) -> dict[str, str | None]:
    """Options of a command as strings.

    Args:
        argv: Arguments of the form ``key=value``.
        defaults: Every key with its default; None is required to be given by the caller's own check.
        command: Name for messages.

    Raises:
        ConfigError: Listing every argument that is malformed or unknown, with the nearest key.
    """
    found = dict(defaults)
    problems = []
    for text in argv:
        key, equals, value = text.partition("=")
        if not equals:
            problems.append(f"{text!r}: not of the form key=value")
        elif key not in defaults:
            problems.append(f"unknown key '{key}'{hint(key, defaults)}")
        else:
            found[key] = value
    if problems:
        raise ConfigError("; ".join(problems), remedy=f"hemlearn {command} --help lists the keys")
    return found


def whole_number(options: dict[str, str | None], key: str, least: int) -> int:
    """An option as an integer of at least ``least``.

    Raises:
        ConfigError: Naming key and value.
    """
    value = options[key]
    try:
        number = int(str(value))
    except ValueError as error:
        raise ConfigError(f"{key}={value}: not a whole number", remedy=f"give {least} or more") from error
    if number < least:
        raise ConfigError(f"{key}={value}: too small", remedy=f"give {least} or more")
    return number


# --- ``--config-dir DIR`` for commands that compose one configuration and are not Hydra applications.


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
