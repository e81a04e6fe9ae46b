"""The directory of a run that is only described: nothing is written there."""

from __future__ import annotations

from pathlib import Path

from varlab.run.directory import RunDirectory
from varlab.run.record import RunRecord


class DryDirectory(RunDirectory):
    """A directory that need not exist, with a new record. Its rank is one that writes nothing."""

    def __init__(self, path: Path, record: RunRecord):
        super().__init__(path, rank=1)
        self._record = record

    def record(self) -> RunRecord:
        """The record that the run would begin with."""
        return self._record
