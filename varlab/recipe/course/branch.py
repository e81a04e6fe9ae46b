"""``from=RUN``: begin a run with a state of another, which has trained with the same settings until there."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from varlab.errors import VarlabError
from varlab.files import atomic_write, digest, sha256
from varlab.recipe.course.course import course_of
from varlab.recipe.course.states import LAST, states, way_out
from varlab.run.changes import compare_runs, described, differing_rows
from varlab.run.config_keys import Use, counted
from varlab.run.record import FILE, Parent, RunRecord, read_record
from varlab.run.run_tree import run_folders
from varlab.run.trust import Trust

logger = logging.getLogger(__name__)

CARRIED = ("tokenizer.safetensors", "condition.safetensors", "metrics.jsonl")
"""Files that a branch takes over beside the state; the journal is cut back to where the branch begins."""


@dataclass(frozen=True)
class Trunk:
    """A run, and its state from which another begins. images: of the state. file: its checkpoint."""

    run: Path
    record: RunRecord
    images: int
    file: Path


def branch(asked: RunRecord, path: Path) -> RunRecord:
    """The record of a new run in ``path`` that begins with a state of the trunk that its key ``from`` names.

    The trunk's latest state to which both courses lead is taken; what the branch needs of the trunk is copied. Without
    ``from``, the record is returned as it is. Raises VarlabError if the trunk has other settings, or no such state.
    """
    if not asked.config.get("from"):
        return asked
    trunk = _find(Path(asked.config["from"]), asked, path)
    logger.info("%s begins with the state of %s after %d images", path, trunk.run, trunk.images)
    for source, name in [(trunk.file, LAST), *((trunk.run / name, name) for name in CARRIED)]:
        if source.is_file():
            with source.open("rb") as content, atomic_write(path / name) as copy:
                shutil.copyfileobj(content, copy, 1 << 20)
    parent = Parent(run=str(trunk.run), file=str(trunk.file), weights_sha256=sha256(path / LAST), images=trunk.images)
    record = trunk.record
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


def _find(place: Path, asked: RunRecord, path: Path) -> Trunk:
    """The trunk at a place: that run; of a folder of runs, the finished one with the latest state that fits."""
    if (place / FILE).exists() or not place.is_dir():
        return _trunk(place, asked)
    fitting = []
    for run in run_folders(place):
        with suppress(VarlabError):
            if run.resolve() != path.resolve() and read_record(run).outcome.finished:
                fitting.append(_trunk(run, asked))
    if not fitting:
        raise VarlabError(
            f"from={place} holds no finished training with these settings and a state before its length matters: name one run, "
            "and the error says what does not fit."
        )
    return max(fitting, key=lambda trunk: trunk.images)


def _trunk(run: Path, asked: RunRecord) -> Trunk:
    """The run with its latest state to which both courses lead. VarlabError for other settings, or without such a state."""
    record = read_record(run)
    if record.command != "train" or not record.budget.get("images"):
        raise VarlabError(f"from={run} holds no training that has begun: name the directory of one.")
    changes = compare_runs(record.config, asked.config)
    if rows := described(differing_rows(record, changes)):
        more = f" and {len(rows) - 6} more" if len(rows) > 6 else ""
        raise VarlabError(
            f"from={run} was trained with other settings ({', '.join(rows[:6])}{more}): give the same ones. Only the budget, "
            "task.schedule and what has no influence on the weights may differ."
        )
    if changes.rounded:
        logger.warning("equal to one straight run up to rounding (%s)", ", ".join(described(changes.rounded)))
    return Trunk(run, record, *_state(run, record, asked))


def _state(run: Path, record: RunRecord, asked: RunRecord) -> tuple[int, Path]:
    """(its images, file) of the run's latest checkpoint to which both courses lead."""
    trust = Trust.within(asked.config)
    old = course_of(record.config, record, run / FILE, trust)
    new = course_of(asked.config, record, run / FILE, trust)
    until, what = old.meeting(new)
    found = states(run)
    if fitting := [images for images in found if images <= until]:
        return max(fitting), found[max(fitting)]
    if not found:
        raise VarlabError(f"from={run} has no checkpoint. {way_out(run, record, old, until)}")
    why = f"{what} follows the length" if what else "one of them ends"
    raise VarlabError(
        f"from={run} cannot be continued to {new.images} images: from image {until} on, {why}, and its first state is at "
        f"{min(found)}. {way_out(run, record, old, until)}"
    )
