"""What the length of a training decides at each of its updates, and until when two trainings do the same."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from varlab.config import Config
from varlab.errors import VarlabError
from varlab.run.record import RunRecord
from varlab.run.trust import Trust

if TYPE_CHECKING:
    from varlab.tasks import Revival, WarmupDecay

RATE, REVIVAL = "the learning rate (task.schedule)", "the revival of codes (task.revival.until)"


@dataclass(frozen=True)
class Course:
    """The parts of a training that depend on its length: everything else about an update follows from the images before it.

    images: the length, in whole batches. revival: None where no code is revived.
    """

    schedule: WarmupDecay
    revival: Revival | None
    batch: int
    images: int

    def at(self, images: int) -> dict[str, object]:
        """What the length decides for the update that begins after ``images``, by what it is called in a sentence."""
        revives = self.revival is not None and self.revival.due(images, images + self.batch, self.images)
        return {RATE: self.schedule.factor(images, self.images), REVIVAL: revives}

    def meeting(self, other: Course) -> tuple[int, str]:
        """The images until which both do the same at every update, and what differs then (empty: one of them ends)."""
        end = min(self.images, other.images)
        for images in range(0, end, self.batch):
            mine, others = self.at(images), other.at(images)
            if mine != others:
                return images, next(name for name in mine if mine[name] != others[name])
        return end, ""


def course_of(config: Config, record: RunRecord, source: Path, trust: Trust) -> Course:
    """The course of a training's configuration.

    record: of a run with this configuration, or with the same one at another length. source: its file. trust: what it may
    build. Raises VarlabError for a task without ``task.schedule``, and if the length is not known in images.
    """
    # A command that neither extends nor branches a run must start without torch.
    from varlab.recipe.objects import make

    task: Config = config["task"]
    schedule, revival = task.get("schedule"), task.get("revival")
    if not schedule:
        raise VarlabError(f"{source} names no task.schedule, so where its training may be continued is not known.")
    trust.check([schedule, revival], source)
    images = _length(config, record, source)
    return Course(make(schedule), make(revival) if revival else None, config["data"]["batch"], images)


def _length(config: Config, record: RunRecord, source: Path) -> int:
    """Images in whole batches. A budget of time or FLOPs is known in images only for the run that has it."""
    budget, batch = config["budget"], config["data"]["batch"]
    images = budget.get("images")
    if isinstance(images, int | float) and 0 < images < math.inf:
        return math.ceil(images / batch) * batch
    if budget == record.config["budget"] and record.budget.get("images"):
        return int(record.budget["images"])
    flops, spent, known = budget.get("flops"), record.budget.get("flops"), "N"
    if isinstance(flops, int | float) and spent:
        known = str(round(flops / spent * record.budget["images"]))
    raise VarlabError(
        f"A training that continues {source.parent} needs its length in images: give budget.images={known}."
    )
