"""The progress bar of commands that work through shards."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

__all__ = ["progress_bar"]


@contextmanager
def progress_bar(title: str) -> Iterator[Callable[[int, int], None]]:
    """A bar with the remaining time, shown on terminals only and at once; yields a function of (done, total)."""
    console = Console(stderr=True)
    columns = (
        SpinnerColumn(),
        *Progress.get_default_columns(),
        TextColumn("left"),
        TimeElapsedColumn(),
        TextColumn("passed"),
    )
    count = TextColumn("{task.completed}/{task.total}")
    # The bar's own thread starts only after the worker processes were forked.
    progress = Progress(*columns, count, console=console, disable=not console.is_terminal, auto_refresh=False)
    progress.live.transient = True
    task = progress.add_task(f"{title}: waiting for the first images", total=None)

    def advance(done: int, total: int) -> None:
        progress.update(task, completed=done, total=total, description=title)
        if not (progress.disable or progress.live.auto_refresh):
            progress.stop()
            progress.live.auto_refresh, progress.live.transient = True, False
            progress.start()

    progress.start()
    try:
        yield advance
    finally:
        if not progress.disable:
            progress.stop()
