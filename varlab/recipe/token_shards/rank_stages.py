"""Stages of a work that several ranks share, and that meet only through files in the directory of their run."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

from varlab.config import Config
from varlab.json_file import read_json, write_sealed_json
from varlab.run.directory import RunDirectory
from varlab.types import VarlabError

__all__ = ["RankStages", "read_notice"]

T = TypeVar("T")

_POLL = 0.2  # seconds between checks of what other ranks have done


class RankStages:
    """Rank 0 announces a stage in the directory of the run, which no other run writes; the other ranks wait for it.

    run: whose ranks these are. directory: where the work is written. file: name of the notice.
    """

    def __init__(self, run: RunDirectory, directory: RunDirectory, *, file: str):
        self._run, self._directory, self._notice = run, directory, run.path / "ranks" / file

    def agree(self, stage: str, world: int) -> None:
        """Announce the stage (rank 0), or wait until it is announced."""
        attempt = self._run.record().attempts
        if self._directory.rank != 0:
            self.wait(lambda: read_notice(self._notice).get(stage) == attempt)
        elif world > 1:
            write_sealed_json(self._notice, read_notice(self._notice) | {stage: attempt})

    def wait(self, moment: Callable[[], T]) -> T:
        """Wait for a moment. If another rank dies, the process that started the ranks ends this one, too."""
        while not (value := moment()):
            self._directory.check_still_here()
            time.sleep(_POLL)
        return value


def read_notice(file: Path) -> Config:
    """A small JSON object; empty where there is none that can be read."""
    with suppress(FileNotFoundError, VarlabError):
        content = read_json(file)
        return content if isinstance(content, dict) else {}
    return {}
