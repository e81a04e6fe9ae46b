"""``from=RUN``: begin a run with a state of another, which has trained with the same settings until there."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from varlab.errors import VarlabError
from varlab.files import atomic_write, digest, sha256
from varlab.recipe.course.course import course_of
from varlab.recipe.course.states import LAST, states, way_out
from varlab.run.changes import compare_runs, described, differing_rows
from varlab.run.config_keys import Use, counted
from varlab.run.record import FILE, Parent, RunRecord, read_record
from varlab.run.trust import Trust

logger = logging.getLogger(__name__)

CARRIED = ("tokenizer.safetensors", "condition.safetensors", "metrics.jsonl")
"""Files that a branch takes over beside the state; the journal is cut back to where the branch begins."""


def branch(asked: RunRecord, path: Path) -> RunRecord:
    """The record of a new run in ``path`` that begins with a state of the run that its key ``from`` names.

    The trunk's latest state to which both courses lead is taken; what the branch needs of the trunk is copied. Without
    ``from``, the record is returned as it is. Raises VarlabError if the trunk has other settings, or no such state.
    """
    if not asked.config.get("from"):
        return asked
    trunk = Path(asked.config["from"])
    record = _trunk(asked, trunk, path)
    images, file = _state(asked, trunk, record)
    logger.info("%s begins with the state of %s after %d images", path, trunk, images)
    for source, name in [(file, LAST), *((trunk / name, name) for name in CARRIED)]:
        if source.is_file():
            with source.open("rb") as content, atomic_write(path / name) as copy:
                shutil.copyfileobj(content, copy, 1 << 20)
    parent = Parent(run=str(trunk), file=str(file), weights_sha256=sha256(path / LAST), images=images)
    return replace(
        asked,
        auto=record.auto,
        data=record.data,
        parents=record.parents | {"from": parent},
        checkpoint_hash=record.checkpoint_hash or digest([counted(record.config, Use.CHECKPOINT), record.auto]),
    )


def trunk_cost(record: RunRecord, flops_at: Callable[[int], int]) -> dict[str, Parent]:
    """The trunk of a branch as a parent, with the FLOPs that its training had cost where the branch begins."""
    trunk = record.parents.get("from")
    return {"from": replace(trunk, flops=flops_at(trunk.images))} if trunk else {}


def _trunk(asked: RunRecord, trunk: Path, path: Path) -> RunRecord:
    """The record of the run that ``from`` names. VarlabError unless it is another training with the same settings."""
    if trunk.resolve() == path.resolve():
        raise VarlabError(f"from={trunk} is the run itself: leave from= out to resume it, or give another out=.")
    record = read_record(trunk)
    if record.command != "train" or not record.budget.get("images"):
        raise VarlabError(f"from={trunk} holds no training that has begun: name the directory of one.")
    changes = compare_runs(record.config, asked.config)
    if rows := described(differing_rows(record, changes)):
        more = f" and {len(rows) - 6} more" if len(rows) > 6 else ""
        raise VarlabError(
            f"from={trunk} was trained with other settings ({', '.join(rows[:6])}{more}): give the same ones. Only the budget, "
            "task.schedule and what has no influence on the weights may differ."
        )
    if changes.rounded:
        logger.warning("%s: equal to one straight run up to rounding (%s)", path, ", ".join(described(changes.rounded)))
    return record


def _state(asked: RunRecord, trunk: Path, record: RunRecord) -> tuple[int, Path]:
    """(its images, file) of the trunk's latest checkpoint to which both courses lead."""
    trust = Trust.within(asked.config)
    new = course_of(asked.config, record, trunk / FILE, trust)
    until, what = course_of(record.config, record, trunk / FILE, trust).meeting(new)
    found = states(trunk)
    if fitting := [images for images in found if images <= until]:
        return max(fitting), found[max(fitting)]
    if not found:
        raise VarlabError(f"from={trunk} has no checkpoint. {way_out(trunk, record, new, until)}")
    why = f"{what} follows the length" if what else "one of them ends"
    raise VarlabError(
        f"from={trunk} cannot be continued to {new.images} images: from image {until} on, {why}, and its first state is at "
        f"{min(found)}. {way_out(trunk, record, new, until)}"
    )
