"""Files: the one atomic write, the one digest and the one lock."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import stat
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, BinaryIO

from varlab.errors import VarlabError

__all__ = [
    "atomic_write",
    "digest",
    "locked",
    "process_lock",
    "remove_drafts",
    "require_plain",
    "require_writable",
    "sha256",
    "write_errors",
    "write_json",
    "write_text",
]


@contextmanager
def atomic_write(path: Path) -> Iterator[BinaryIO]:
    """A binary file that appears under its name only when it is complete and on disk.

    It is written beside ``path`` as ``.NAME.PID.tmp``, synced, and renamed over it. Raises VarlabError if the disk refuses
    (full, read-only); the previous content of ``path`` then stays.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with write_errors(path):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with temporary.open("wb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
            _sync_directory(path.parent)
        finally:
            with suppress(OSError):
                temporary.unlink()


def require_writable(folder: Path, remedy: str) -> None:
    """Raise VarlabError, with a remedy, if no file can be made in a folder, which is made if it is not there."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise VarlabError(f"{folder} cannot be written ({error.strerror or error}): {remedy}.") from error


def require_plain(path: Path) -> Path:
    """The path, unless a pipe, a socket or a device has it: reading one could wait for ever. Raises OSError, also if nothing
    is there."""
    if not stat.S_ISREG(path.stat().st_mode):
        raise OSError(errno.EINVAL, "it is no plain file", str(path))
    return path


def remove_drafts(*folders: Path) -> None:
    """Remove what killed processes left half written in these folders; nobody may be writing there."""
    for folder in folders:
        for draft in folder.glob(".*.tmp"):
            draft.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    r"""Write a UTF-8 text file atomically. Half characters, of file names that are no UTF-8, become ``\udce9``."""
    with atomic_write(path) as file:
        file.write(text.encode(errors="backslashreplace"))


def write_json(path: Path, value: Mapping[str, object] | Sequence[object]) -> None:
    """Write a JSON file atomically, readable for people."""
    write_text(path, json.dumps(value, indent=1, ensure_ascii=False) + "\n")


@contextmanager
def write_errors(path: Path) -> Iterator[None]:
    """Turn an OSError of the body into one sentence about the file that could not be written."""
    try:
        yield
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        remedy = "the disk is full: make room" if full else f"{error.strerror or error}: make it writable"
        raise VarlabError(f"Could not write {path}: {remedy} and run the same command again.") from error


def _sync_directory(directory: Path) -> None:
    """Sync the rename itself, so that it survives a power cut; not every file system can."""
    with suppress(OSError):
        descriptor = os.open(directory, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def sha256(path: Path) -> str:
    """The SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def digest(value: object) -> str:
    """The SHA-256 of a value in JSON types, in hexadecimal: equal for equal values, whatever the order of keys."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


@contextmanager
def locked(path: Path) -> Iterator[IO[str]]:
    """Hold a lock file for the length of a ``with``, against other processes and other threads; waits for it.

    The lock belongs to the open file, so a forked child that keeps the file open keeps the lock.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield file


def process_lock(descriptor: int) -> bool:
    """Try to lock an open file for the life of this process; whether it worked.

    A POSIX lock: it ends with this process and not with its forks, and it works across the nodes of a cluster. Closing any
    descriptor of the same file in this process releases it.
    """
    try:
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True
