"""The files of a shard set by name, and the storage that is a folder on this machine."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple, Protocol

from varlab.files import require_plain

__all__ = ["LocalFolder", "Storage", "StoredFile"]


class StoredFile(NamedTuple):
    """A file of a shard set. size: bytes. sha256: of the whole file; empty if it is not known."""

    name: str
    size: int
    sha256: str = ""


class Storage(Protocol):
    """The files of a shard set, by name."""

    @property
    def name(self) -> str: ...  # the path or URL, as the user gave it
    @property
    def most_open(self) -> int: ...  # files that a process may keep open
    def local(
        self, file: str, size: int | None = None, sha256: str = ""
    ) -> Path: ...  # its path on this machine; OSError if unavailable
    def prefetch(self, files: Sequence[StoredFile]) -> None: ...  # files that are read soon


class LocalFolder:
    """A folder on this machine."""

    most_open = 512  # a process may usually have 1024

    def __init__(self, path: Path):
        self.path, self.name = path, str(path)

    def local(self, file: str, size: int | None = None, sha256: str = "") -> Path:
        """The file itself. Raises OSError if it is missing, or no plain file."""
        return require_plain(self.path / file)

    def prefetch(self, files: Sequence[StoredFile]) -> None:
        """Do nothing: the files are here."""
