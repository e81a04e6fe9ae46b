"""A run's directory: who may work in it, and how its record, ``run.json``, changes.

One process at a time writes the record, atomically, and reads it again before every change.
"""

from __future__ import annotations

import logging
import math
import os
import shutil
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Literal, TypeAlias

from varlab.config import Config
from varlab.errors import VarlabError
from varlab.files import go_without_lock, process_lock, remove_drafts, write_errors
from varlab.run import provenance
from varlab.run.changes import Changes, Extend, check_resumable, refuse_other_length
from varlab.run.record import FILE, Outcome, Parent, RunRecord, read_record, write_record

__all__ = ["RunDirectory", "images_done"]

logger = logging.getLogger(__name__)

LOCK_PATIENCE = 5.0  # seconds in which the ranks or workers of a killed process end, too
_TRACES = frozenset(
    {
        FILE,
        ".lock",
        "metrics.jsonl",
        "progress",
        "tb",
        "encoding.json",
        "tokenizer.safetensors",
        "condition.safetensors",
        "last.ckpt",  # with which a branch begins: once it has trained, it has a number of images
    }
)
"""What a run writes before it produces anything."""

Branch: TypeAlias = Callable[[RunRecord, Path], RunRecord]


def _from_nothing(asked: RunRecord, path: Path) -> RunRecord:
    return asked


class RunDirectory:
    """One run's directory, locked by this process from ``prepare`` to ``close`` (or as a context manager).

    rank: of this process; only rank 0 locks and writes, the others' changes are dropped.
    held: another process of the same run (the one that started the ranks) has the lock. patience: seconds to wait for the
    lock, which may be infinite, or None for LOCK_PATIENCE.
    """

    def __init__(self, path: Path, *, rank: int = 0, held: bool = False, patience: float | None = None):
        self.path = Path(path)
        self._patience = LOCK_PATIENCE if patience is None else patience
        self.rank = rank
        self.resuming = False  # set by prepare: whether an earlier process began this run
        self._absent = [folder for folder in (self.path, *self.path.parents) if not os.path.lexists(folder)]
        # names in the directory, if this process is the first to begin a run there
        self._before: set[str] | None = None
        self._extended: Outcome | None = None  # of a finished run, until it trains for longer
        self._held = held
        self._lock: int | None = None

    def __enter__(self) -> RunDirectory:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    @property
    def record_path(self) -> Path:
        return self.path / FILE

    def prepare(self, asked: RunRecord, extend: Extend = refuse_other_length, branch: Branch = _from_nothing) -> bool:
        """Lock the directory and begin or resume the run. Returns False if this very run is finished.

        asked: command, configuration, overrides and source; the provenance is added here. If the source (the weights that
        the run reads) has changed, the run starts over. extend: decides whether a training may have another length.
        branch: completes the record of a new run in the directory. A training that resumes with changed keys notes them
        itself, when it has found that its data and its parents are the same.
        Raises VarlabError if the directory holds another run, or another process works on this one.
        """
        self.lock()
        self._remove_leftovers()
        record, changes = self._earlier(asked, extend)
        if record is not None and record.outcome.finished and not changes.length:
            return False
        self.resuming = record is not None
        if record is None:
            record = replace(
                branch(asked, self.path),
                command_line=provenance.command_line(),
                code=provenance.code(),
                versions=provenance.versions(),
                hardware=provenance.hardware(),
            )
        else:
            _warn_of_changes(record, self.path)
            if changes.all:
                logger.info("%s resumes with changes (%s)", self.path, changes, extra={"detail": True})
            if not _is_trained(self.path, record):
                record.config = asked.config
        self._extended = record.outcome if record.outcome.finished else None
        record.attempts += 1
        record.slurm_job = provenance.slurm_job()
        record.outcome = Outcome(values=record.outcome.values)
        self._write(record)
        return True

    def _earlier(self, asked: RunRecord, extend: Extend) -> tuple[RunRecord | None, Changes]:
        """The record of the run to resume, or None to start over, and what changes. VarlabError if it is another run's."""
        if not self.record_path.exists():
            return None, Changes()
        record = self.record()
        if record.outcome.state in ("failed", "stopped") and not _is_trained(self.path, record):
            return None, Changes()  # it ended before its first update, so a corrected run may replace it
        changes = check_resumable(self.path, record, asked, extend)
        if record.source != asked.source:
            logger.info("%s was made from weights that have changed: starting over", self.path)
            return None, Changes()
        return record, changes

    def lock(self) -> None:
        """Lock the directory against other processes, until this process closes it or ends."""
        if self.rank != 0 or self._held or self._lock is not None:
            return
        with write_errors(self.path):
            self.path.mkdir(parents=True, exist_ok=True)
            file = os.open(self.path / ".lock", os.O_RDWR | os.O_CREAT, 0o666)
        started = time.monotonic()
        waiting = self._patience < math.inf  # an endless wait is announced, once
        while not _lock_if_possible(file, self.path / ".lock"):
            holder = os.pread(file, 200, 0).decode(errors="replace").strip() or "unknown"
            if not waiting:
                logger.info("%s is in use by another process (%s): waiting for its end", self.path, holder)
                waiting = True
            if time.monotonic() > started + self._patience:
                os.close(file)
                raise VarlabError(
                    f"{self.path} is in use by another process ({holder}): wait for it, or use another out=."
                )
            time.sleep(0.1)
        if not _is_file(file, self.path / ".lock"):  # its process was refused, and removed the directory
            os.close(file)
            return self.lock()
        self._lock = file
        with write_errors(self.path):
            self._before = None if self.record_path.exists() else _names(self.path) - {".lock"}
            os.truncate(file, 0)
            os.write(file, f"process {os.getpid()} on {socket.gethostname()}".encode())

    def _remove_leftovers(self) -> None:
        """Remove half-written files of a killed process; nobody else writes here while we hold the lock."""
        if self.rank == 0:
            remove_drafts(self.path, self.path / "pictures")

    def close(self) -> None:
        """Unlock the directory."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def discard(self) -> None:
        """Remove what a refused run made: its files, if this process began it and nothing of use is there; empty folders.

        Files and folders that were there before stay.
        """
        if self.rank != 0 or self._held:
            return
        with suppress(OSError):
            made = _names(self.path) - (self._before or set())
            if self._before is not None and made <= _TRACES and not images_done(self.path):
                for name in sorted(made, reverse=True):  # the lock last
                    _remove(self.path / name)
        for folder in self._absent:
            with suppress(OSError):
                folder.rmdir()

    def record(self) -> RunRecord:
        """The record as it is on disk."""
        return read_record(self.path)

    @contextmanager
    def change(self) -> Iterator[RunRecord]:
        """The record, to be changed in a ``with``; rank 0 then writes it, the changes of other ranks are dropped."""
        self.check_still_here()
        record = self.record() if self.rank == 0 else RunRecord()
        yield record
        self._write(record)

    def update(self, **parts: object) -> None:
        """Replace parts of the record; a dict is merged, key by key, into the dict that is there."""
        with self.change() as record:
            for key, value in parts.items():
                old = getattr(record, key)
                if key == "parents" and isinstance(value, Mapping):  # until every caller gives a Parent
                    value = {role: Parent(**one) if isinstance(one, dict) else one for role, one in value.items()}
                joined = {**old, **value} if isinstance(old, dict) and isinstance(value, Mapping) else value
                setattr(record, key, joined)

    def keep(self, values: Config) -> None:
        """Merge what a command returned into the record's outcome."""
        with self.change() as record:
            record.outcome.values |= values

    def finish(self, values: Config) -> None:
        """Mark the run as finished, with what its command returned: the same command then does nothing."""
        with self.change() as record:
            record.outcome = Outcome("finished", None, record.outcome.values | values)
            record.hardware = provenance.hardware()

    def fail(self, error: str) -> None:
        """Mark the run as failed; the same command resumes it."""
        self._end("failed", error)

    def stop(self, why: str) -> None:
        """Mark the run as stopped by a person or by Slurm; the same command resumes it."""
        self._end("stopped", why)

    def _end(self, state: Literal["failed", "stopped"], why: str) -> None:
        with self.change() as record:
            images = images_done(self.path)
            if self._extended and images == self._extended.images:
                record.outcome = self._extended
                return
            record.outcome = Outcome(state, why, record.outcome.values | ({} if images is None else {"images": images}))

    def _write(self, record: RunRecord) -> None:
        if self.rank == 0:
            self.check_still_here()
            write_record(self.path, record)

    def check_still_here(self) -> None:
        """Raise VarlabError if the directory was removed, and perhaps made again, while this process held it."""
        if self._lock is None and not (self._held and not self.record_path.exists()):  # held: by the starting process
            return
        if self._lock is not None and _is_file(self._lock, self.path / ".lock"):
            return
        raise VarlabError(f"{self.path} was removed while the run worked in it: run the same command again.")


def _is_trained(path: Path, record: RunRecord) -> bool:
    """Whether a training made an update here, or saved its state. A branch begins with a state that it did not make."""
    return bool(images_done(path)) or ("from" not in record.parents and (path / "last.ckpt").exists())


def _is_file(descriptor: int, path: Path) -> bool:
    """Whether a path still names the open file."""
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False


def _lock_if_possible(descriptor: int, path: Path) -> bool:
    """False if another process has the lock; on a file system without locks True, with a warning."""
    try:
        return process_lock(descriptor)
    except OSError as error:
        with write_errors(path):
            go_without_lock(path, error)
        return True


def _names(folder: Path) -> set[str]:
    return {entry.name for entry in folder.iterdir()}


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()


def images_done(path: Path) -> int | None:
    """Images consumed, which a training writes into a file at every update."""
    try:
        return int((path / "progress").read_text())
    except (OSError, ValueError):
        return None


def _warn_of_changes(record: RunRecord, path: Path) -> None:
    """Log changed code or versions: a resumed run promises the same bits only where both are the same."""
    code = provenance.code()
    before = record.versions | {key: record.code.get(key) for key in ("commit", "diff")}
    now = provenance.versions() | {key: code[key] for key in ("commit", "diff")}
    if changed := sorted(key for key in before.keys() | now.keys() if before.get(key) != now.get(key)):
        logger.warning("%s resumes with changed code or versions (%s)", path, ", ".join(changed))
