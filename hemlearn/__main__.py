"""``hemlearn COMMAND [OPTIONS]``: dispatch only; each command imports what it needs when it runs."""

from __future__ import annotations

import io
import os
import signal
import sys
from importlib import import_module
from pathlib import Path

from hemlearn import __version__
from hemlearn.util import interrupts
from hemlearn.util.console import abandon_stdout, console_error, tell
from hemlearn.util.errors import HemlearnError, hint
from hemlearn.util.files import disk_error

COMMANDS = {
    "train": "train one run or a sweep, test the best checkpoint, write the run folder",
    "compare": "table, tests, one page and figures from finished run folders",
    "runs": "the runs in a folder: hash, settings that differ, state, headline metric",
    "predict": "DICOM, NIfTI, pictures or a manifest through finished runs: probabilities per slice, series, patient",
    "evaluate": "a finished run on another data set (external validation)",
    "explain": "Grad-CAM overlays of a run's test slices; with check=true, whether the maps mean anything",
    "errors": "a run's most confident errors and borderline cases as pictures, on one page",
    "export": "a finished run as one ONNX or torch.export file, parity checked, with its model card",
    "plan": "patients a study of AUROCs needs, and what a finished run's test set can resolve",
    "index": "read and validate a data set: counts, patients, what was skipped, duplicates",
    "prepare": "decode a data set into its memory-mapped slice store",
    "phantom": "write a synthetic head CT or brain MRI set in the layout of a real one",
    "submit": "predict an RSNA 2019 test folder and write the Kaggle submission file",
    "prune": "what can be made again (stores, embeddings, last checkpoints ...): its size, and its removal",
    "doctor": "versions, devices, backbone weights at hand, W&B mode",
}

# Modules of hemlearn.commands; the function of a command is called as the command.
_MODULES = {
    "data": ("index", "prepare", "phantom", "prune", "doctor"),
    "train": ("train",),
    "apply": ("predict", "evaluate", "explain", "errors", "export", "submit"),
    "runs": ("runs", "compare", "plan"),
}

USAGE = """usage: hemlearn COMMAND [OPTIONS]

Train, compare and believe classifiers of brain hemorrhage on head CT and hydrocephalus on brain MRI.

commands:
{commands}

`hemlearn COMMAND --help` explains one command with examples. Without any data,
`hemlearn train` writes a small synthetic set, trains on it and reports.
"""


def _open_streams() -> None:
    """Let every stream be there (a daemon may have closed them) and take every letter, whatever the locale."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, Path(os.devnull).open("w", encoding="utf-8"))  # noqa: SIM115 - for the whole command
        elif isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _stdout_error(raised: OSError | None) -> OSError | None:
    """Why standard output takes no more, where that is so; it is then left alone."""
    error = console_error()
    try:
        sys.stdout.flush()
        if raised is not None and raised.filename is None:  # whose it is tells one more line alone
            os.write(sys.stdout.fileno(), b"\n")
    except OSError as now:  # also a stream without a file, such as that of a notebook
        error = error or (None if isinstance(now, io.UnsupportedOperation) else now)
    if error is not None:
        abandon_stdout()
    return error


def main(argv: list[str] | None = None) -> int:
    """Run a command and return its exit status: 0 done, 1 failed, 2 wrong call, 130, 141 or 143 interrupted."""
    arguments = sys.argv[1:] if argv is None else argv
    _open_streams()
    try:
        status = _command(arguments)
    except OSError as raised:
        error = _stdout_error(raised)
        if error is None:
            if (told := disk_error(raised, *_named_places(arguments))) is None:
                raise
            tell(f"hemlearn {arguments[0]}: {told}", file=sys.stderr)
            return 1
    else:
        error = _stdout_error(None)
    if error is None:
        return status
    if isinstance(error, BrokenPipeError):  # whoever read the output, such as `head`, has gone; nothing is left to say
        return 141  # as a shell calls SIGPIPE
    reason = error.strerror or str(error)
    tell(
        f"hemlearn: standard output cannot be written ({reason})\n  Fix: send it to a place with room", file=sys.stderr
    )
    return 1


def _command(arguments: list[str]) -> int:
    listed = "\n".join(f"  {name:9} {text}" for name, text in COMMANDS.items())
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(USAGE.format(commands=listed))
        return 0 if arguments else 2
    if arguments[0] in ("-V", "--version"):
        print(f"hemlearn {__version__}")
        return 0
    command, *rest = arguments
    if command not in COMMANDS:
        near = hint(command, COMMANDS)
        tell(f"hemlearn: unknown command '{command}'{near}\n\ncommands:\n{listed}", file=sys.stderr)
        return 2
    status, number = 1, 0
    try:
        with interrupts.handled():
            place = next(name for name, commands in _MODULES.items() if command in commands)
            status = getattr(import_module(f"hemlearn.commands.{place}"), command)(rest)
    except HemlearnError as error:
        if interrupts.received() is None:
            tell(f"hemlearn {command}: {error}", file=sys.stderr)
            return error.exit_status
    except KeyboardInterrupt:
        number = interrupts.received() or signal.SIGINT
    except BaseException:
        if interrupts.received() is None:
            raise
    number = interrupts.received() or number
    interrupts.forget()
    if not number:
        return status
    tell(
        f"hemlearn {command}: {interrupts.describe(number)}; the same command continues where it stopped",
        file=sys.stderr,
    )
    return 128 + number


def _named_places(words: list[str]) -> list[Path]:
    """Folders that the command line names: one of them may be full."""
    values = (word.partition("=")[2] for word in words)
    return [Path(value).expanduser() for value in values if value and "\0" not in value and len(value) < 1000]


if __name__ == "__main__":
    sys.exit(main())
