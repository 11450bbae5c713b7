"""``key=value`` command lines of the commands that are not Hydra applications."""

from __future__ import annotations

from hemlearn.config_rules import hint
from hemlearn.errors import ConfigError


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
