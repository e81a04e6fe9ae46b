"""The progress bar of commands that work through shards."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

__all__ = ["progress_bar"]


class Advance(Protocol):
    """Called with the images that are done, all images, and what is done with them; with 0 images before it begins."""

    def __call__(self, done: int, total: int, what: str = ..., /) -> None: ...


@contextmanager
def progress_bar(title: str) -> Iterator[Advance]:
    """A bar with the remaining time, shown on terminals only and at once; yields ``Advance``."""
    console = Console(stderr=True)
    columns = (
        SpinnerColumn(),
        *Progress.get_default_columns(),
        TextColumn("left"),
        TimeElapsedColumn(),
        TextColumn("passed"),
    )
    count = TextColumn("{task.completed}/{task.total}")
    progress = Progress(*columns, count, console=console, disable=not console.is_terminal, auto_refresh=False)
    progress.live.transient = True
    task = progress.add_task(_waiting(title), total=None)

    def draw_by_thread(asked: bool) -> None:
        if not progress.disable and progress.live.auto_refresh != asked:
            progress.stop()
            progress.live.auto_refresh, progress.live.transient = asked, not asked
            progress.start()

    def advance(done: int, total: int, what: str = title, /) -> None:
        # The bar's own thread runs only while images come: worker processes are forked before that.
        if done:
            progress.update(task, completed=done, total=total, description=what)
            draw_by_thread(True)
        else:
            draw_by_thread(False)
            progress.reset(task, total=None, description=_waiting(what))
            progress.refresh()

    progress.start()
    try:
        yield advance
    finally:
        if not progress.disable:
            progress.stop()


def _waiting(what: str) -> str:
    return f"{what}: waiting for the first images"
