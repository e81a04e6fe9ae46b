"""The shards of a split as open files."""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

from varlab.data.faults import BadSampleError
from varlab.data.format.index import Shard
from varlab.data.format.storage import Folder, LocalFolder

__all__ = ["OpenShards"]


class OpenShards:
    """The shards of a split, each opened once per process, those used longest ago closed first."""

    def __init__(self, folder: Folder, shards: tuple[Shard, ...]):
        self._folder, self._shards = folder, shards
        self._open: OrderedDict[int, int] = OrderedDict()
        self._pid = os.getpid()

    def read(self, shard: int, size: int, offset: int) -> bytes:
        """So many bytes (fewer at the end) from that offset on. BadSampleError where the shard cannot be read."""
        try:
            return os.pread(self._descriptor(shard), size, offset)
        except OSError as e:
            raise BadSampleError("missing", e.strerror or str(e)) from e

    def size_of(self, shard: int) -> int | None:
        """Bytes of a local shard, -1 where it is missing; None for a remote one."""
        if not isinstance(self._folder, LocalFolder):
            return None
        path = self._folder.local(self._shards[shard].file)
        return path.stat().st_size if path.is_file() else -1

    def prefetch(self, files: list[tuple[str, int]]) -> None:
        """Hand on to the folder."""
        self._folder.prefetch(files)

    def _descriptor(self, shard: int) -> int:
        if self._pid != os.getpid():  # forked: the parent's descriptors are the parent's to close
            self._open, self._pid = OrderedDict(), os.getpid()
        if shard in self._open:
            self._open.move_to_end(shard)
            return self._open[shard]
        told = self._shards[shard]
        self._open[shard] = os.open(self._folder.local(told.file, told.bytes), os.O_RDONLY)
        if len(self._open) > self._folder.most_open:
            os.close(self._open.popitem(last=False)[1])
        return self._open[shard]

    def __getstate__(self) -> Mapping[str, Any]:
        return {**self.__dict__, "_open": OrderedDict(), "_pid": -1}

    def __del__(self) -> None:
        if getattr(self, "_pid", -1) == os.getpid():
            for fd in self._open.values():
                os.close(fd)
