"""Storage behind a URL: its files are fetched whole into a bounded cache."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import logging
import os
import threading
import time
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from varlab.data.format.foreign import inside
from varlab.data.patience import ATTEMPTS, Patience, grow
from varlab.data.storage.local_folder import LocalFolder, Storage, StoredFile
from varlab.errors import VarlabError
from varlab.files import locked, require_plain, sha256, write_errors

if TYPE_CHECKING:
    from fsspec import AbstractFileSystem

__all__ = ["RemoteFolder", "storage_at"]

log = logging.getLogger(__name__)

_FAILED = "failed"  # written into a lock file for those who waited for it
_OWN_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)
_UNKNOWN = 1 << 32  # bytes at most of a file whose size no index states


def storage_at(path: str | Path, *, cache: str | Path, cache_bytes: int, timeout: float = 180.0) -> Storage:
    """The storage at a path, or behind a URL that fsspec knows (s3://, gs://, http://, file:// …).

    cache: the folder for remote files, shared by all shard sets. cache_bytes: its bound. timeout: see ``Patience``.
    """
    if "://" not in str(path):
        return LocalFolder(Path(path))
    return RemoteFolder(str(path), cache=Path(cache), cache_bytes=cache_bytes, timeout=timeout)


class RemoteFolder:
    """Files behind a URL. The first process of this machine that needs a file fetches it into the cache.

    Only whole files whose size and hash are those of the index enter the cache. A file that could not be fetched is
    remembered, and not asked for again. A full cache drops the files that were used longest ago; processes that have one
    open can go on reading it.
    """

    most_open = 32  # an open file keeps its room on the disk

    def __init__(self, url: str, *, cache: Path, cache_bytes: int, timeout: float):
        self.name = url.rstrip("/")
        self._root, self._limit = cache.expanduser(), cache_bytes
        self._cache = self._root / hashlib.sha256(self.name.encode()).hexdigest()[:16]
        self._patience = Patience(timeout)
        self._failed: dict[str, str] = {}  # why a file could not be fetched
        self._reset()

    def _reset(self) -> None:
        """Begin without threads and connections: a forked process cannot use its parent's."""
        self._fs: AbstractFileSystem | None = None
        self._pool: ThreadPoolExecutor | None = None
        self._fetches: dict[str, Future[Path]] = {}
        self._pid = os.getpid()

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_fs": None, "_pool": None, "_fetches": {}, "_pid": -1}

    def local(self, file: str, size: int | None = None, sha256: str = "") -> Path:
        """The file in the cache; it is fetched if it is not there.

        Raises:
            OSError: it could not be fetched, now or before. VarlabError: the cache cannot hold it.
        """
        path = self._place(file, sha256)
        with suppress(FileNotFoundError):
            os.utime(require_plain(path))
            return path
        if file not in self._failed:
            try:
                self._ensure(StoredFile(file, -1 if size is None else size, sha256), path)
                return path
            except OSError as e:
                self._failed[file] = e.strerror or str(e)
        raise OSError(self._failed[file])

    def _place(self, file: str, sha256: str) -> Path:
        """Where a file lies in the cache: below a folder that is called by its hash, if that is known."""
        path = self._cache / sha256[:16] / inside(file)
        if not Path(os.path.realpath(path.parent)).is_relative_to(os.path.realpath(self._root)):
            raise VarlabError(f"{path} leads out of the cache by a link: remove it.")
        return path

    def _ensure(self, file: StoredFile, path: Path) -> None:
        """Fetch a file, if no other process does. Raises OSError if it, or the other one, failed."""
        with write_errors(path.parent):
            path.parent.mkdir(parents=True, exist_ok=True)
        since, size = time.time(), max(file.size, 0)
        with locked(lock := path.with_name(f".{path.name}.lock")) as reservation:
            if path.is_file():
                return
            status = os.fstat(reservation.fileno())
            if status.st_size == len(_FAILED) and status.st_mtime > since:
                raise OSError("could not be fetched by another process")
            # the lock file has the size of the file until that is here: others leave room for it
            reservation.truncate(size)
            self._make_room(size, keep=path, lock=lock)
            try:
                self._fetch(file.name, path, file)
            except OSError:
                reservation.truncate(0)
                reservation.write(_FAILED)
                raise
            reservation.truncate(0)

    def prefetch(self, files: Sequence[StoredFile]) -> None:
        """Fetch these in the background, one after another. Errors occur when a file is read."""
        self._after_fork()
        self._pool = self._pool or ThreadPoolExecutor(1, thread_name_prefix="fetch")
        for file in files:
            if file.name not in self._fetches and not self._place(file.name, file.sha256).is_file():
                self._fetches[file.name] = self._pool.submit(self.local, *file)
        self._fetches = {file: future for file, future in self._fetches.items() if not future.done()}

    def _after_fork(self) -> None:
        if self._pid != os.getpid():
            self._reset()

    def _fetch(self, name: str, path: Path, file: StoredFile) -> None:
        for attempt in range(1, ATTEMPTS + 1):
            partial = path.with_name(f".{path.name}.{os.getpid()}.{attempt}.part")
            try:
                self._copy(name, partial, most=_UNKNOWN if file.size < 0 else file.size)
                _verify(partial, file)
                partial.replace(path)
                return
            except FileNotFoundError:
                raise
            except Exception as e:  # each file system has exceptions of its own
                if isinstance(e, OSError) and e.errno in _OWN_DISK:
                    raise VarlabError(
                        f"Could not write {path}: {e.strerror}: make room, or set data.remote_cache."
                    ) from e
                if attempt == ATTEMPTS:
                    raise OSError(f"could not be fetched ({e})") from e
                log.warning("%s/%s: %s; trying again", self.name, name, e)
                self._patience.pause(attempt)
            finally:
                partial.unlink(missing_ok=True)

    def _copy(self, name: str, partial: Path, *, most: int) -> None:
        """Copy a file, as long as it grows."""
        given_up = threading.Event()

        def copy() -> None:
            self._filesystem().get_file(f"{self.name}/{name}", str(partial))
            if given_up.is_set():
                partial.unlink(missing_ok=True)

        try:
            grow(self._patience.wait, copy, lambda: _size(partial), most=most)
        finally:
            given_up.set()

    def _filesystem(self) -> AbstractFileSystem:
        self._after_fork()
        if self._fs is None:
            import fsspec

            try:
                self._fs, _ = fsspec.core.url_to_fs(self.name, skip_instance_cache=True)
            except (ImportError, ValueError) as e:
                raise VarlabError(f"{self.name} cannot be read: {e}.") from e
        return self._fs

    def _make_room(self, size: int, *, keep: Path, lock: Path) -> None:
        if size > self._limit:
            raise VarlabError(f"{self.name} has a shard of {size} bytes: raise data.remote_bytes above {self._limit}.")
        with locked(self._root / ".room"):
            # reservations first: a fetch that ends meanwhile then counts twice, never not at all
            reserved = sum(_reserved(other) for other in self._root.rglob(".*.lock") if other != lock)
            kept = sorted((s.st_mtime, s.st_size, p) for p in self._root.rglob("*.tar") for s in [_stat(p)] if s)
            total = size + reserved + sum(bytes_ for _, bytes_, _ in kept)
            for _, bytes_, path in kept:
                if total <= self._limit:
                    break
                if path != keep:
                    path.unlink(missing_ok=True)
                    total -= bytes_


def _reserved(lock: Path) -> int:
    """Bytes of the file that is fetched under a lock; 0 if the process that held it is gone."""
    with suppress(OSError), lock.open("a") as file:
        size = os.fstat(file.fileno()).st_size
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return size
    return 0


def _verify(partial: Path, file: StoredFile) -> None:
    """Raise OSError if a file is not the one that the index states."""
    if file.size >= 0 and (size := partial.stat().st_size) != file.size:
        raise OSError(f"{size} bytes came, its index states {file.size}")
    if file.sha256 and sha256(partial) != file.sha256:
        raise OSError("other bytes came than were indexed")


def _size(path: Path) -> int:
    status = _stat(path)
    return status.st_size if status else 0


def _stat(path: Path) -> os.stat_result | None:
    with suppress(FileNotFoundError):  # another process made room
        return path.stat()
    return None
