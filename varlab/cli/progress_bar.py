"""The progress bar of commands that work through shards."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

__all__ = ["progress_bar"]


@contextmanager
def progress_bar(title: str) -> Iterator[Callable[[int, int], None]]:
    """A bar with the remaining time, shown on terminals only; yields a function of (done, total)."""
    console = Console(stderr=True)
    columns = (
        SpinnerColumn(),
        *Progress.get_default_columns(),
        TextColumn("left"),
        TimeElapsedColumn(),
        TextColumn("passed"),
    )
    count = TextColumn("{task.completed}/{task.total}")
    progress = Progress(*columns, count, console=console, disable=not console.is_terminal)
    task = progress.add_task(title, total=None)

    def advance(done: int, total: int) -> None:
        progress.update(task, completed=done, total=total)
        # The bar has a thread, so it starts only after the worker processes were forked.
        progress.start()

    try:
        yield advance
    finally:
        if not progress.disable:
            progress.stop()
