"""What is meant for people: an error they can mend, and a stop they (or Slurm) asked for."""

from __future__ import annotations

import signal


class VarlabError(Exception):
    """Something a person can mend. Its text is one sentence: what was wrong, where, what to do."""


class Stopped(BaseException):
    """A signal asked to stop, and the state is saved. No Exception: as with Ctrl-C, nothing that follows is begun."""

    def __init__(self, number: int, where: str):
        self.number, self.where = number, where
        super().__init__(f"Stopped by {signal.Signals(number).name} {where}; the same command goes on from there.")

    def __reduce__(self) -> tuple[type[Stopped], tuple[int, str]]:
        """Between processes."""
        return Stopped, (self.number, self.where)
