"""Where log lines go: one handler on standard error, coloured for people, plain for files."""

from __future__ import annotations

import logging
import sys

__all__ = ["configure"]

_MARK = "_varlab_handler"


def configure() -> None:
    """Set up this process's logging, once however often it is called."""
    root = logging.getLogger()
    if any(getattr(handler, _MARK, False) for handler in root.handlers):
        return
    handler = _rich_handler() if sys.stderr.isatty() else _plain_handler()
    setattr(handler, _MARK, True)
    root.addHandler(handler)
    root.setLevel(logging.INFO)
    logging.getLogger("hydra_plugins").setLevel(logging.WARNING)  # launchers announce their every setting


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
    """Writes to what standard error is at the moment, redirected or not."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            print(self.format(record), file=sys.stderr, flush=True)
        except (OSError, ValueError):
            self.handleError(record)


class _Plain(logging.Formatter):
    """One line a message; what isn't information says what it is."""

    def format(self, record: logging.LogRecord) -> str:
        text = super().format(record)
        return text if record.levelno == logging.INFO else f"{record.levelname.lower()}: {text}"
