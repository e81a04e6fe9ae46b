"""The terminal: log lines, warnings, errors and tables pass here, and control characters in them are shown escaped.

They may hold what a stranger's file says: a state, a class name, an error of a record.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from typing import TextIO

from varlab.files import printable

__all__ = ["configure", "leave_out_details", "open_closed_streams", "quiet", "say", "show_table"]

_MARK = "_varlab_handler"


def say(text: str, *, error: bool = False) -> None:
    """Print a text on standard output, or on standard error. Where that cannot take an error, nobody can be told."""
    stream = sys.stderr if error else sys.stdout
    with suppress(OSError) if error else nullcontext():
        print(_encodable(printable(text), stream), file=stream, flush=error)


def _encodable(text: str, stream: TextIO | None) -> str:
    """The text with escapes for the characters that a stream's encoding lacks, as ASCII lacks those of a path."""
    encoding = getattr(stream, "encoding", None) or "utf-8"
    return text.encode(encoding, "backslashreplace").decode(encoding)


def open_closed_streams() -> None:
    """Give standard input, output and error that a shell has closed (``>&-``) to /dev/null.

    The next file of this process would get their numbers otherwise, and a library's messages would land in it.
    """
    for number, name, mode in ((0, "stdin", "r"), (1, "stdout", "w"), (2, "stderr", "w")):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest number that is free: this one
        if getattr(sys, name) is None:
            setattr(sys, name, open(number, mode, closefd=False))  # noqa: SIM115


def show_table(title: str, header: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Print a table on standard error: a column of single words, as of numbers, is as wide as they are."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table, rows = Table(title=Text(printable(title))), list(rows)
    for name, *cells in zip(header, *rows, strict=True):
        table.add_column(name, overflow="fold", no_wrap=not any(" " in cell for cell in cells))
    for row in rows:
        table.add_row(*(Text(printable(cell)) for cell in row))
    Console(stderr=True).print(table)


def configure() -> None:
    """Set up this process's logging: one handler on standard error, coloured on a terminal, plain in files.

    Python's warnings go there, too. Further calls only set the level again, which someone may have changed since.
    """
    root = logging.getLogger()
    root.setLevel(logging.INFO)
    if any(getattr(handler, _MARK, False) for handler in root.handlers):
        return
    handler = _rich_handler() if sys.stderr.isatty() else _plain_handler()
    setattr(handler, _MARK, True)
    handler.addFilter(_is_for_people)
    root.addHandler(handler)
    logging.captureWarnings(True)
    # Hydra's launchers log every setting.
    logging.getLogger("hydra_plugins").setLevel(logging.WARNING)


@contextmanager
def quiet() -> Iterator[None]:
    """Show no log lines and no warnings in a ``with``, but errors."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)


def _is_for_people(record: logging.LogRecord) -> bool:
    """Whether a line is a warning, or not one of torch, which logs its caches when Python ends."""
    return record.levelno >= logging.WARNING or not record.name.startswith("torch")


def leave_out_details() -> None:
    """Show no lines with ``extra={"detail": True}`` from now on: they repeat, or advise what another command does itself."""
    for handler in logging.getLogger().handlers:
        if getattr(handler, _MARK, False):
            handler.addFilter(lambda record: not getattr(record, "detail", False))


def _plain_handler() -> logging.Handler:
    handler = _StandardError()
    handler.setFormatter(_Plain())
    return handler


def _rich_handler() -> logging.Handler:
    from rich.console import Console
    from rich.logging import RichHandler

    handler = RichHandler(console=Console(stderr=True), show_path=False, log_time_format="%H:%M:%S", markup=False)
    handler.setFormatter(_Printable("%(message)s"))
    return handler


class _StandardError(logging.Handler):
    """A handler that writes to the current standard error, also after it was redirected."""

    def emit(self, record: logging.LogRecord) -> None:
        with suppress(OSError, ValueError):  # full or closed
            print(self.format(record), file=sys.stderr, flush=True)


class _Printable(logging.Formatter):
    """A formatter whose text, with tracebacks, is safe for a terminal."""

    def format(self, record: logging.LogRecord) -> str:
        return printable(super().format(record).rstrip())


class _Plain(_Printable):
    """A formatter with one line a message, and the level in front unless it is INFO."""

    def format(self, record: logging.LogRecord) -> str:
        text = super().format(record)
        return text if record.levelno == logging.INFO else f"{record.levelname.lower()}: {text}"
