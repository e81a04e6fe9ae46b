"""Logging: one handler on standard error, coloured on a terminal, plain in files."""

from __future__ import annotations

import logging
import sys

__all__ = ["configure"]

_MARK = "_varlab_handler"


def configure() -> None:
    """Set up this process's logging; further calls do nothing."""
    root = logging.getLogger()
    if any(getattr(handler, _MARK, False) for handler in root.handlers):
        return
    handler = _rich_handler() if sys.stderr.isatty() else _plain_handler()
    setattr(handler, _MARK, True)
    root.addHandler(handler)
    root.setLevel(logging.INFO)
    # Hydra's launchers log every setting.
    logging.getLogger("hydra_plugins").setLevel(logging.WARNING)


def _plain_handler() -> logging.Handler:
    handler = _StandardError()
    handler.setFormatter(_Plain())
    return handler


def _rich_handler() -> logging.Handler:
    from rich.console import Console
    from rich.logging import RichHandler

    handler = RichHandler(console=Console(stderr=True), show_path=False, log_time_format="%H:%M:%S", markup=False)
    handler.setFormatter(logging.Formatter("%(message)s"))
    return handler


class _StandardError(logging.Handler):
    """A handler that writes to the current standard error, also after it was redirected."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            print(self.format(record), file=sys.stderr, flush=True)
        except (OSError, ValueError):
            self.handleError(record)


class _Plain(logging.Formatter):
    """A formatter with one line a message, and the level in front unless it is INFO."""

    def format(self, record: logging.LogRecord) -> str:
        text = super().format(record)
        return text if record.levelno == logging.INFO else f"{record.levelname.lower()}: {text}"
