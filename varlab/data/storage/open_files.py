"""Files of a shard set that are kept open, and read part by part."""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Sequence
from contextlib import suppress
from io import FileIO

from xxhash import xxh3_64_intdigest

from varlab.data.faults import BadSampleError
from varlab.data.patience import ATTEMPTS
from varlab.data.storage.local_folder import LocalFolder, Storage, StoredFile

__all__ = ["OpenFiles"]


class OpenFiles:
    """Files of a storage, each opened once per process; the least recently used are closed."""

    def __init__(self, storage: Storage, files: Sequence[StoredFile]):
        self._storage, self._files = storage, files
        self._open: OrderedDict[int, FileIO] = OrderedDict()

    def read(self, number: int, offset: int, size: int, check: int) -> bytes:
        """Part of a file. check: its hash (xxh3, 64 bits).

        Raises:
            BadSampleError: missing, cut or changed.
        """
        try:
            content = os.pread(self._file(number).fileno(), size, offset)
        except OSError as e:
            raise BadSampleError("missing", e.strerror or str(e)) from e
        if len(content) < size:
            raise BadSampleError("cut", f"{len(content)} of its {size} bytes")
        if xxh3_64_intdigest(content) != check:
            raise BadSampleError("changed", "other bytes than were indexed")
        return content

    def size_of(self, number: int) -> int | None:
        """Bytes of a local file, -1 if it is missing; None for a remote one."""
        if not isinstance(self._storage, LocalFolder):
            return None
        try:
            return self._storage.local(self._files[number].name).stat().st_size
        except OSError:
            return -1

    def prefetch(self, numbers: Sequence[int]) -> None:
        """Announce files that are read soon."""
        self._storage.prefetch([self._files[number] for number in numbers])

    def _file(self, number: int) -> FileIO:
        if number not in self._open:
            self._open[number] = self._opened(number)
            if len(self._open) > self._storage.most_open:
                self._open.popitem(last=False)[1].close()
        self._open.move_to_end(number)
        return self._open[number]

    def _opened(self, number: int) -> FileIO:
        """Open a file. Another process may drop it from the cache just before: it is then fetched again."""
        for _ in range(ATTEMPTS - 1):
            with suppress(FileNotFoundError):
                return self._storage.local(*self._files[number]).open("rb", buffering=0)
        return self._storage.local(*self._files[number]).open("rb", buffering=0)

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_open": OrderedDict()}

    def __del__(self) -> None:
        for file in self._open.values():
            file.close()
