"""An earlier run that a command could continue: it differs only in keys without influence on the weights."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from varlab.errors import VarlabError
from varlab.run.changes import Changes, check_resumable
from varlab.run.directory import images_done
from varlab.run.record import FILE, RunRecord, read_record

__all__ = ["neighbour_hint"]

_MOST = 100  # records read, the newest first


def neighbour_hint(path: Path, asked: RunRecord) -> str:
    """A sentence that names the run beside a new directory which the command could continue; empty if there is none."""
    for file in sorted(path.parent.glob(f"*/{FILE}"), key=_age)[:_MOST]:
        with suppress(VarlabError, OSError):
            record = read_record(file.parent)
            changes = check_resumable(file.parent, record, asked)
            if changes.all and record.source == asked.source and (images := images_done(file.parent)):
                return _hint(file.parent, record, changes, images)
    return ""


def _age(file: Path) -> float:
    try:
        return -file.stat().st_mtime
    except OSError:
        return 0.0


def _hint(path: Path, record: RunRecord, changes: Changes, images: int) -> str:
    state = "finished" if record.outcome.finished else f"ended after {images} images: add out={path} to continue it"
    return f"{path} holds the same run ({changes}), {state}"
