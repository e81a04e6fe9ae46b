"""The two exceptions that users see: an error with a remedy, and a stop at a signal."""

from __future__ import annotations

import signal


class VarlabError(Exception):
    """An error that the user can correct. Its text says what was wrong, where, and what to do."""


class Stopped(BaseException):
    """A signal asked to stop, and the state is saved. Like KeyboardInterrupt, it is no Exception: handlers do not catch it."""

    def __init__(self, number: int, where: str):
        self.number, self.where = number, where
        super().__init__(f"Stopped by {signal.Signals(number).name} {where}: run the same command again to resume.")

    def __reduce__(self) -> tuple[type[Stopped], tuple[int, str]]:
        """Make the exception picklable, to send it between processes."""
        return Stopped, (self.number, self.where)
