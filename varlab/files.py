"""Files: the one atomic write, the one digest and the one lock."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import logging
import os
import re
import shutil
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import IO, BinaryIO

from varlab.errors import VarlabError, system_refusal

__all__ = [
    "atomic_write",
    "digest",
    "go_without_lock",
    "locked",
    "printable",
    "process_lock",
    "read_bytes",
    "remove_drafts",
    "require_file",
    "require_plain",
    "require_room",
    "require_writable",
    "require_written",
    "sha256",
    "write_errors",
    "write_text",
]


logger = logging.getLogger(__name__)


@contextmanager
def atomic_write(path: Path, *, durable: bool = True, make_folder: bool = True) -> Iterator[BinaryIO]:
    """A binary file that appears under its name only when it is complete and on disk.

    It is written beside ``path`` as ``.NAME.PID.tmp``, synced, and renamed over it. Raises VarlabError if the disk refuses
    (full, read-only), where the previous content of ``path`` stays, and if the file has vanished with its folder. durable:
    False for a file that can be made again, which is not synced. make_folder: False where the folder was there before, so that
    a file does not come back alone after its folder was removed.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with write_errors(path):
        try:
            if make_folder:
                path.parent.mkdir(parents=True, exist_ok=True)
            with temporary.open("wb") as file:
                yield file
                file.flush()
                if durable:
                    os.fsync(file.fileno())
            temporary.replace(path)
            if durable:
                _sync_directory(path.parent)
            path.stat()  # fails where somebody removed the folder meanwhile
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


def require_file(path: Path, what: str) -> None:
    """Raise VarlabError unless a file exists. what: kind of file, for the sentence."""
    if not path.is_file():
        raise VarlabError(f"There is no {what} {path}: correct its path.")


def require_room(folder: Path, size: int) -> None:
    """Raise VarlabError unless the disk of a folder has room for so many bytes."""
    if (free := shutil.disk_usage(folder).free) < size:
        raise VarlabError(
            f"{folder} needs {size / 1e6:,.1f} MB or more, but {free / 1e6:,.1f} MB of the disk are free: the disk is full: "
            "make room and run the same command again."
        )


def require_written(*files: Path) -> None:
    """Raise VarlabError unless all files of a result, which were just written, are there: their folder may have vanished and
    have been made again between two of them."""
    for file in files:
        with write_errors(file):
            file.stat()


def require_plain(path: Path) -> Path:
    """The path, unless a pipe, a socket or a device has it: reading one could wait for ever. Raises OSError, also if nothing
    is there."""
    if not stat.S_ISREG(path.stat().st_mode):
        raise OSError(errno.EINVAL, "it is no plain file", str(path))
    return path


def remove_drafts(*folders: Path, of: str = "*") -> None:
    """Remove what killed processes left half written in these folders, where nobody may be writing now.

    of: a pattern of the names that the files would have had, for a folder that is not varlab's alone.
    """
    for folder in folders:
        for draft in folder.glob(f".{of}.tmp"):
            draft.unlink(missing_ok=True)


def write_text(path: Path, text: str, *, durable: bool = True, make_folder: bool = True) -> None:
    r"""Write a UTF-8 text file by ``atomic_write``. Half characters, of file names that are no UTF-8, become ``\udce9``."""
    with atomic_write(path, durable=durable, make_folder=make_folder) as file:
        file.write(text.encode(errors="backslashreplace"))


def read_bytes(path: Path, most: int) -> bytes:
    """The bytes of a regular file. Raises FileNotFoundError; VarlabError where it is too large, or cannot be read."""
    try:
        with require_plain(path).open("rb") as file:
            # A plain read(most + 1) would reserve that much memory for each small file.
            content = file.read(min(most, os.fstat(file.fileno()).st_size) + 1)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise VarlabError(f"{path} cannot be read ({error.strerror or error}): put a readable file there.") from error
    if len(content) > most:
        raise VarlabError(f"{path} has more than {most:,} bytes, which no such file of varlab has: write it again.")
    return content


_UNPRINTABLE = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff\ufeff]"
)
"""Control characters but tab and newline, what changes the direction of text, and half characters."""


def printable(text: str) -> str:
    r"""A text for a terminal: control characters, which may be commands to it, are shown as ``\x1b``."""
    return _UNPRINTABLE.sub(lambda match: ascii(match.group())[1:-1], text)


@contextmanager
def write_errors(path: Path) -> Iterator[None]:
    """Turn an OSError of the body into one sentence about the file that could not be written."""
    try:
        yield
    except OSError as error:
        why = system_refusal(error) or f"{error.strerror or error}: make it writable and run the same command again."
        raise VarlabError(f"Could not write {path}: {why}") from error


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

    The lock belongs to the open file, so a forked child that keeps the file open keeps the lock. Raises VarlabError where
    the folder cannot be written.
    """
    with write_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("a")
    with file:
        with write_errors(path):
            try:
                fcntl.flock(file, fcntl.LOCK_EX)
            except OSError as error:
                go_without_lock(path, error)
        yield file


def process_lock(descriptor: int) -> bool:
    """Try to lock an open file for the life of this process; whether it worked. Raises OSError if no lock can be had there.

    A POSIX lock: it ends with this process and not with its forks, and it works across the nodes of a cluster. Closing any
    descriptor of the same file in this process releases it.
    """
    try:
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):  # what POSIX has for a lock of another process
        return False
    return True


def go_without_lock(path: Path, error: OSError) -> None:
    """Warn, once per folder, that a file system has no locks (NFS with nolock, Lustre without flock); raise another error."""
    if error.errno not in (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP, errno.EINVAL):
        raise error
    _warn_without_lock(path.parent, error.strerror)


@cache
def _warn_without_lock(folder: Path, why: str) -> None:
    logger.warning(
        "the file system of %s has no locks (%s), so nothing keeps a second process out: start one command there at a time",
        folder,
        why,
    )
