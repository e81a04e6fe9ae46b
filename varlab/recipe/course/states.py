"""The states that a run holds: its last checkpoint, and those that ``checkpoint.keep`` kept."""

from __future__ import annotations

import math
import re
from pathlib import Path

from varlab.recipe.course.course import Course
from varlab.run.record import RunRecord

LAST = "last.ckpt"


def states(run: Path) -> dict[int, Path]:
    """The checkpoints of a run by the images of their state. Raises VarlabError if the last one is damaged."""
    from varlab.checkpoint import peek_images

    names = ((re.fullmatch(r"kept-(\d{1,15})\.ckpt", file.name), file) for file in run.iterdir())
    kept = {int(name[1]): file for name, file in names if name}
    last = run / LAST
    return kept | ({peek_images(last): last} if last.is_file() else {})


def way_out(run: Path, record: RunRecord, course: Course, until: int) -> str:
    """One sentence: what a user can do whose run has no state at or before ``until`` images, and what that loses.

    course: the run's own.
    """
    schedule = course.schedule
    if schedule.cooldown is not None and until > 0:
        first = f"Train it again with checkpoint.keep=[{until}] and another out=, and branch from there with from="
    else:
        images = math.ceil(schedule.warmup * course.images) if isinstance(schedule.warmup, float) else schedule.warmup
        first = (
            f"Train it again with a constant rate (task.schedule.warmup={images} task.schedule.cooldown=0) and another out=: "
            "any length can follow"
        )
    if record.holds not in ("tokenizer", "generator") or not record.outcome.finished:
        return f"{first}."
    return (
        f"{first}; or use init={run} and another out=, which takes the weights, but loses the optimizer's moments, the "
        "averages and the position in the data."
    )
