"""How many processes a command works with, and the bar that shows how far they are."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from varlab.errors import VarlabError

__all__ = ["bar", "workers"]


def workers(setting: object, *, jobs: int) -> int:
    """Processes for so many jobs; ``auto`` takes the cores that this process may use, and none of its own for one job."""
    if setting == "auto":
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        return 0 if jobs < 2 or cores < 2 else min(jobs, cores)
    if not isinstance(setting, int) or setting < 0:
        raise VarlabError(f"workers={setting} must be a whole number, 0 to work in this process, or auto.")
    return setting


@contextmanager
def bar(what: str) -> Iterator[Callable[[int, int], None]]:
    """A progress bar with the time that is left, on a terminal; told (done, total)."""
    console = Console(stderr=True)
    columns = (SpinnerColumn(), TextColumn(what), BarColumn(), MofNCompleteColumn())
    shown = Progress(
        *columns, TimeElapsedColumn(), TimeRemainingColumn(), console=console, disable=not console.is_terminal
    )
    task = shown.add_task(what, total=None)
    started = False

    def tell(done: int, total: int) -> None:
        nonlocal started
        if not started:  # not before processes were forked: the bar has a thread
            shown.start()
            started = True
        shown.update(task, completed=done, total=total)

    try:
        yield tell
    finally:
        if started:
            shown.stop()
