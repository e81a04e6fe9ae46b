"""A run that goes on to another length: ``budget.images`` and ``task.schedule`` may change after it has begun."""

from __future__ import annotations

from pathlib import Path

from varlab.errors import VarlabError
from varlab.recipe.course.course import course_of
from varlab.recipe.course.states import LAST, states, way_out
from varlab.run.record import FILE, RunRecord
from varlab.run.trust import Trust


def extend(path: Path, record: RunRecord, asked: RunRecord) -> None:
    """Raise VarlabError unless the run's last state is one to which both lengths would have led.

    record: the run's, in the directory ``path``. asked: differs from it in the length and the schedule.
    """
    found = states(path)
    reached = next((images for images, file in found.items() if file.name == LAST), None)
    if reached is None and not record.outcome.finished:  # it has saved nothing yet
        return
    trust = Trust.within(asked.config)
    old = course_of(record.config, record, path / FILE, trust)
    new = course_of(asked.config, record, path / FILE, trust)
    until, what = old.meeting(new)
    if reached is None:
        raise VarlabError(f"{path} has no {LAST} to go on from. {way_out(path, record, old, until)}")
    if reached > new.images:
        raise VarlabError(f"{path} has trained {reached} images already: give budget.images={reached} or more.")
    if reached > until:
        earlier = [images for images in found if images <= until]
        raise VarlabError(
            f"{path} cannot go on from {old.images} to {new.images} images: from image {until} on, {what} follows the length, "
            f"and its state is at {reached}. "
            + (
                f"Use from={path} and another out=: that branches from its state at {max(earlier)}."
                if earlier
                else way_out(path, record, old, until)
            )
        )
