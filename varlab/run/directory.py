"""A run's directory and its record, ``run.json``.

The record is the run's memory: what was asked, what it was made with, how far it came. It is written whole or not at
all, by one process at a time, and is read again before every change, so that whoever holds the directory may add to it.
"""

from __future__ import annotations

import fcntl
import json
import logging
import os
import socket
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from varlab.config import Config
from varlab.errors import VarlabError
from varlab.files import remove_drafts, write_json
from varlab.moved import current_targets
from varlab.run import provenance

__all__ = ["IGNORED", "RunDirectory", "differences", "read_run"]

logger = logging.getLogger(__name__)

# Keys that say how or where a run is done: two configurations that differ only here are one run.
IGNORED = ("out", "name", "launch", "shrink")
LOCK_PATIENCE = 5.0  # seconds: what the ranks or workers of a killed process may take to follow it
_MOST_NAMED = 6  # differing keys listed in an error


class RunDirectory:
    """One run's directory, held by this process between ``prepare`` and ``close`` (or as a context manager).

    rank: of this process; only rank 0 locks and writes, the others' changes are dropped.
    held: another process of the same run (the one that started the ranks) holds the lock already. patience: seconds to
    wait for the lock, or None for LOCK_PATIENCE.
    """

    def __init__(self, path: Path, *, rank: int = 0, held: bool = False, patience: float | None = None):
        self.path = Path(path)
        self._patience = LOCK_PATIENCE if patience is None else patience
        self.rank = rank
        self.resuming = False  # known after prepare: the run was begun before
        self._held = held
        self._lock: int | None = None

    def __enter__(self) -> RunDirectory:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    @property
    def record_path(self) -> Path:
        return self.path / "run.json"

    def prepare(
        self,
        *,
        command: str,
        config: Mapping[str, Any],
        overrides: list[str],
        name: str | None = None,
        choices: Mapping[str, Any] | None = None,
        source: str | None = None,
    ) -> bool:
        """Take the directory for this run. False: the very same run is finished, there is nothing to do.

        config: resolved, plain JSON types. choices: the options taken from the config groups. source: hash of the trained
        weights that this run looks at; what was made from others is made anew.
        Raises VarlabError where another run lives here, or another process is at work on this one.
        """
        self.lock()
        self._clear()
        before = self.read() if self.record_path.exists() else None
        if before is not None and _came_nowhere(before, self.path):
            before = None
        if before is not None:
            self._check_same(before, command, config)
            if before.get("source") != source:
                logger.info("%s was made from other weights: making it anew", self.path)
                before = None
        if before is not None and before["outcome"]["state"] == "finished":
            return False
        self.resuming = before is not None
        record = before or _new_record(command, config, overrides, name, choices) | {"source": source}
        if self.resuming:
            _warn_of_changes(record, self.path)
        record |= {"attempts": record.get("attempts", 0) + 1, "slurm_job": provenance.slurm_job()}
        self._write(record | {"outcome": record["outcome"] | {"state": "running", "error": None}})
        return True

    def lock(self) -> None:
        """Hold the directory against other processes. A POSIX lock: it dies with this process, not its forks."""
        if self.rank != 0 or self._held or self._lock is not None:
            return
        self.path.mkdir(parents=True, exist_ok=True)
        file = os.open(self.path / ".lock", os.O_RDWR | os.O_CREAT, 0o666)
        deadline = time.monotonic() + self._patience
        while True:
            try:
                fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except OSError:
                if time.monotonic() > deadline:
                    holder = os.read(file, 200).decode(errors="replace").strip() or "unknown"
                    os.close(file)
                    raise VarlabError(
                        f"{self.path} is in use by another process ({holder}): wait for it, or take another out="
                    ) from None
                time.sleep(0.1)
        os.truncate(file, 0)
        os.write(file, f"process {os.getpid()} on {socket.gethostname()}".encode())
        self._lock = file

    def _clear(self) -> None:
        """Remove what a killed process left half written; the lock says that nobody is writing here."""
        if self.rank == 0:
            remove_drafts(self.path, self.path / "pictures")

    def close(self) -> None:
        """Let the directory go."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def read(self) -> Config:
        """run.json as it stands."""
        return read_run(self.path)

    def update(self, **fields: Any) -> None:
        """Merge into the record: dicts join the dict they meet key by key, everything else replaces."""
        if self.rank != 0:
            return
        record = self.read()
        for key, value in fields.items():
            old = record.get(key)
            record[key] = {**old, **value} if isinstance(old, dict) and isinstance(value, Mapping) else value
        self._write(record)

    def finish(self, outcome: Mapping[str, Any]) -> None:
        """The run is done: running it again does nothing."""
        self.update(outcome={**outcome, "state": "finished", "error": None}, hardware=provenance.hardware())

    def fail(self, error: str) -> None:
        """The run could not go on; running it again resumes it."""
        self._end("failed", error)

    def stop(self, why: str) -> None:
        """Somebody asked the run to stop: a person or Slurm. Running it again resumes it."""
        self._end("stopped", why)

    def _end(self, state: str, why: str) -> None:
        done = _progress(self.path)
        images = {} if done is None else {"images": done}
        self.update(outcome={**images, "state": state, "error": why})

    def _write(self, record: Mapping[str, Any]) -> None:
        if self.rank == 0:
            write_json(self.record_path, record)

    def _check_same(self, before: Mapping[str, Any], command: str, config: Mapping[str, Any]) -> None:
        """Raises VarlabError unless the run that lives here is the one that was asked for."""
        if before.get("command") != command:
            raise VarlabError(f"{self.path} holds a run of 'varlab {before.get('command')}': take another out=")
        differing = differences(before.get("config") or {}, config)
        if differing:
            more = f" and {len(differing) - _MOST_NAMED} more" if len(differing) > _MOST_NAMED else ""
            raise VarlabError(
                f"{self.path} holds a run of another configuration: {', '.join(differing[:_MOST_NAMED])}{more}; "
                "take another out=, or ask for the same again to resume it"
            )


def _new_record(
    command: str,
    config: Mapping[str, Any],
    overrides: list[str],
    name: str | None,
    choices: Mapping[str, Any] | None,
) -> Config:
    return {
        "command": command,
        "name": name,
        "overrides": overrides,
        "choices": dict(choices or {}),
        "command_line": provenance.command_line(),
        "config": dict(config),
        "code": provenance.code(),
        "versions": provenance.versions(),
        "hardware": provenance.hardware(),
        "seed": config.get("seed"),
        "data": None,
        "parents": {},
        "auto": {},
        "budget": {},
        "cost": {},
        "resumes": [],
        "outcome": {"state": "running", "error": None},
    }


def _came_nowhere(record: Mapping[str, Any], path: Path) -> bool:
    """A run that failed before its first update leaves nothing to resume: a corrected one may take its place."""
    return record["outcome"]["state"] in ("failed", "stopped") and not (
        _progress(path) or (path / "last.ckpt").exists()
    )


def _progress(path: Path) -> int | None:
    """Images consumed, which a training leaves in a file at every update."""
    try:
        return int((path / "progress").read_text())
    except (OSError, ValueError):
        return None


def _warn_of_changes(record: Mapping[str, Any], path: Path) -> None:
    """Resuming promises the same bits only for the same code and versions: say so where they have changed."""
    then = {**(record.get("versions") or {}), **{k: (record.get("code") or {}).get(k) for k in ("commit", "diff")}}
    code = provenance.code()
    now = {**provenance.versions(), "commit": code["commit"], "diff": code["diff"]}
    changed = sorted(key for key in then.keys() | now.keys() if then.get(key) != now.get(key))
    if changed:
        logger.warning("%s is resumed with changed code or versions (%s)", path, ", ".join(changed))


def differences(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
    """The keys at which two configurations differ, as ``key: before → after``, without those of IGNORED."""
    old, new = _flat(current_targets(before)), _flat(current_targets(after))
    keys = sorted(key for key in old.keys() | new.keys() if old.get(key, _ABSENT) != new.get(key, _ABSENT))
    return [f"{key}: {old.get(key, _ABSENT)} → {new.get(key, _ABSENT)}" for key in keys if not _is_ignored(key)]


_ABSENT = "(absent)"


def _is_ignored(key: str) -> bool:
    return any(key == name or key.startswith(f"{name}.") for name in IGNORED)


def _flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Dotted keys to JSON texts, so that 1, 1.0 and true stay apart, and lists and tuples do not."""
    flat: dict[str, str] = {}
    for key, value in config.items():
        if isinstance(value, Mapping) and value:
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = json.dumps(value)
    return flat


def read_run(path: Path) -> Config:
    """The record of a run directory. Raises VarlabError where there is none, or a damaged one."""
    file = Path(path) / "run.json"
    try:
        record = json.loads(file.read_text())
    except FileNotFoundError:
        raise VarlabError(f"{path} is not a run directory: it has no run.json") from None
    except (OSError, ValueError) as error:
        raise VarlabError(f"{file} cannot be read ({error})") from error
    if not isinstance(record, dict) or "state" not in (record.get("outcome") or {}):
        raise VarlabError(f"{file} is not the record of a run")
    return record
