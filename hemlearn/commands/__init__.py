"""The commands, each a function ``COMMAND(argv) -> exit status``; ``help/COMMAND.txt`` is what ``--help`` prints.

A command reads its options, calls one function of a room below and prints what came of it. Heavy packages are imported
when it runs, not before, so that ``--help`` answers at once. Nothing imports this room but ``__main__``.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

from hemlearn.config.base import Request
from hemlearn.util.errors import CallError

R = TypeVar("R", bound=Request)
FLAGS = ("--config-dir", "-cd")  # as Hydra spells them for `hemlearn train`


def help_text(command: str, options: str) -> str:
    """``help/COMMAND.txt`` with the options in their place."""
    text = (Path(__file__).parent / "help" / f"{command}.txt").read_text(encoding="utf-8")
    return text.replace("{options}", options)


def read(kind: type[R], argv: Sequence[str], command: str) -> R | None:
    """The request of a command line, the words after ``command``; None when help was asked for, and printed.

    Raises:
        CallError: Listing every argument that is malformed, unknown, wrong or missing.
    """
    if "-h" in argv or "--help" in argv:
        print(help_text(command, kind.options()))
        return None
    return kind.parse(argv)


def take_config_dir(argv: Sequence[str]) -> tuple[list[str], str | None]:
    """Words without ``--config-dir DIR``, and the folder of the user's own YAML groups (the last one counts).

    Raises:
        CallError: The flag without a folder, or another flag.
    """
    rest: list[str] = []
    folder: str | None = None
    items = iter(argv)
    for text in items:
        name, equals, value = text.partition("=")
        if name in FLAGS:
            folder = value if equals else next(items, "")
            if not folder:
                raise CallError(f"{name}: no folder given", remedy="give a folder of YAML groups: --config-dir DIR")
        elif text.startswith("-") and text not in ("-h", "--help"):
            raise CallError(f"{text}: unknown flag", remedy="use KEY=VALUE, --config-dir DIR or --help")
        else:
            rest.append(text)
    return rest, folder
