"""Where the files of a shard set lie: in a folder, or behind a URL, from where whole files come into a bounded cache."""

from __future__ import annotations

import fcntl
import hashlib
import logging
import os
import time
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol

from varlab.config import Config
from varlab.errors import VarlabError
from varlab.files import locked

__all__ = ["Folder", "LocalFolder", "RemoteFolder", "folder_at"]

log = logging.getLogger(__name__)

ATTEMPTS = 3  # at fetching a file, one, two … seconds apart


class Folder(Protocol):
    """The files of a shard set, by name."""

    @property
    def name(self) -> str: ...  # as the user gave it
    @property
    def most_open(self) -> int: ...  # files that a process may hold open
    def local(self, file: str, size: int | None = None) -> Path: ...  # where it can be opened; OSError where it cannot
    def prefetch(self, files: Sequence[tuple[str, int]]) -> None: ...  # these, of such sizes, will soon be wanted


def folder_at(path: str | Path, *, cache: str | Path, cache_bytes: int) -> Folder:
    """A folder on this machine, or one behind a URL that fsspec knows (s3://, gs://, http://, file:// …).

    cache: the folder that remote files come into, beside those of other sets. cache_bytes: all of them together.
    """
    if "://" not in str(path):
        return LocalFolder(Path(path))
    return RemoteFolder(str(path), cache=Path(cache), cache_bytes=cache_bytes)


class LocalFolder:
    """Files where they are."""

    most_open = 512  # a process may usually have 1024

    def __init__(self, path: Path):
        self.path = path

    @property
    def name(self) -> str:
        """The path."""
        return str(self.path)

    def local(self, file: str, size: int | None = None) -> Path:
        """The file itself."""
        return self.path / file

    def prefetch(self, files: Sequence[tuple[str, int]]) -> None:
        """Nothing to fetch."""


class RemoteFolder:
    """Files of a URL, each fetched whole into the cache by whichever process of this machine needs it first.

    Where the cache is full, what was used longest ago goes. A file that is open somewhere stays readable there.
    """

    most_open = 32  # what is open keeps its room on the disk

    def __init__(self, url: str, *, cache: Path, cache_bytes: int):
        self.name = url.rstrip("/")
        self._cache = cache.expanduser() / hashlib.sha256(self.name.encode()).hexdigest()[:16]
        self._root, self._limit = cache.expanduser(), cache_bytes
        self._fs: Any = None
        self._pool: ThreadPoolExecutor | None = None
        self._coming: dict[str, Future[Path]] = {}
        self._pid = os.getpid()

    def __getstate__(self) -> Config:
        return {**self.__dict__, "_fs": None, "_pool": None, "_coming": {}, "_pid": -1}

    def local(self, file: str, size: int | None = None) -> Path:
        """The file in the cache, fetched if it is not there.

        Raises:
            OSError: it could not be fetched. VarlabError: the cache cannot hold it.
        """
        path = self._cache / file
        with suppress(FileNotFoundError):
            os.utime(path)
            return path
        path.parent.mkdir(parents=True, exist_ok=True)
        with locked(lock := path.with_name(f".{path.name}.lock")) as coming:
            if not path.is_file():
                coming.truncate(size or 0)  # until it is here, its lock has its size: others make room beside it
                self._make_room(size or 0, keep=path, lock=lock)
                self._fetch(file, path, size)
                coming.truncate(0)
        return path

    def prefetch(self, files: Sequence[tuple[str, int]]) -> None:
        """Fetch these in the background, one after another. Errors are left to whoever reads."""
        self._after_fork()
        self._pool = self._pool or ThreadPoolExecutor(1, thread_name_prefix="fetch")
        for file, size in files:
            if file not in self._coming and not (self._cache / file).is_file():
                self._coming[file] = self._pool.submit(self.local, file, size)
        self._coming = {file: future for file, future in self._coming.items() if not future.done()}

    def _after_fork(self) -> None:
        """The parent's threads and connections are not ours."""
        if self._pid != os.getpid():
            self._pool, self._fs, self._coming, self._pid = None, None, {}, os.getpid()

    def _fetch(self, file: str, path: Path, size: int | None) -> None:
        partial = path.with_name(f".{path.name}.{os.getpid()}.part")
        try:
            for attempt in range(1, ATTEMPTS + 1):
                try:
                    self._filesystem().get_file(f"{self.name}/{file}", str(partial))
                    break
                except FileNotFoundError:
                    raise
                except Exception as e:  # every kind of file system has its own
                    if attempt == ATTEMPTS:
                        raise OSError(f"could not be fetched ({e})") from e
                    log.warning("%s/%s: %s; trying again", self.name, file, e)
                    time.sleep(attempt)
            if size is not None and partial.stat().st_size != size:
                log.warning("%s/%s has %d bytes, its index says %d", self.name, file, partial.stat().st_size, size)
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)

    def _filesystem(self) -> Any:
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
            found = [(s.st_mtime, s.st_size, p) for p in self._root.rglob("*.tar") for s in [_stat(p)] if s is not None]
            coming = sum(_reserved(other) for other in self._root.rglob(".*.lock") if other != lock)
            total = sum(bytes_ for _, bytes_, _ in found) + coming + size
            for _, bytes_, path in sorted(found):
                if total <= self._limit:
                    break
                if path != keep:
                    path.unlink(missing_ok=True)
                    total -= bytes_


def _reserved(lock: Path) -> int:
    """Bytes that are being fetched under a lock; what a killed process left there counts for nothing."""
    with suppress(OSError), lock.open("a") as file:
        size = os.fstat(file.fileno()).st_size
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return size
    return 0


def _stat(path: Path) -> os.stat_result | None:
    try:
        return path.stat()
    except FileNotFoundError:  # another process made room
        return None
