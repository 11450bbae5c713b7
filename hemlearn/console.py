"""Whether a person is watching, and how log lines look to them."""

from __future__ import annotations

import logging
import sys


def on_terminal() -> bool:
    """Whether standard output is a terminal; elsewhere bars and colours give way to plain log lines."""
    return sys.stdout.isatty()


def set_up_logging() -> None:
    """Send log lines to standard output: coloured on a terminal, plain elsewhere. Repeated calls change nothing."""
    root = logging.getLogger()
    if any(getattr(handler, "hemlearn", False) for handler in root.handlers):
        return
    for handler in list(root.handlers):  # Hydra's own console handler would write each line twice
        if isinstance(handler, logging.StreamHandler) and not isinstance(handler, logging.FileHandler):
            root.removeHandler(handler)
    if on_terminal():
        from rich.console import Console
        from rich.logging import RichHandler

        chosen: logging.Handler = RichHandler(console=Console(), show_path=False, log_time_format="[%X]")
    else:
        chosen = _Stdout()
        chosen.setFormatter(logging.Formatter("[%(asctime)s] %(levelname)s %(message)s", "%Y-%m-%d %H:%M:%S"))
    chosen.hemlearn = True  # type: ignore[attr-defined]
    root.addHandler(chosen)
    root.setLevel(logging.INFO)
    for noisy in ("matplotlib", "PIL", "fsspec", "urllib3", "numexpr"):
        logging.getLogger(noisy).setLevel(logging.WARNING)


class _Stdout(logging.Handler):
    """Writes to whatever ``sys.stdout`` is at the time, so that redirected output is followed."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            sys.stdout.write(self.format(record) + "\n")
            sys.stdout.flush()
        except (OSError, ValueError):
            self.handleError(record)
