"""A disk that fails at a chosen moment, for tests of what a command does then."""

from __future__ import annotations

import io
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

__all__ = ["VANISHED", "Disk"]

VANISHED = -1
"""In the place of an errno: the folder is removed, once."""


class Disk:
    """A folder whose disk fails at some moment. A moment is a change of a file's or a folder's name, or its opening.

    at: the number of the moment, or the beginning of the name of the file that is touched then.
    """

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch):
        self.folder, self.moments, self.fault, self.at = folder, 0, 0, ""
        self.has_failed = False
        plain, plain_os = io.open, os.open

        def opened(file: Any, mode: str = "r", *rest: Any, **more: Any) -> Any:
            if set(mode) & set("wax+"):
                self.touch(file)
            return plain(file, mode, *rest, **more)

        def opened_by_os(path: Any, flags: int, *rest: Any, **more: Any) -> int:
            if flags & (os.O_WRONLY | os.O_RDWR):
                self.touch(path)
            return plain_os(path, flags, *rest, **more)

        monkeypatch.setattr(io, "open", opened)
        monkeypatch.setattr("builtins.open", opened)
        monkeypatch.setattr(os, "open", opened_by_os)
        for name, place in (("mkdir", 0), ("replace", 1), ("rename", 1)):
            monkeypatch.setattr(os, name, self._watched(getattr(os, name), place))

    def _watched(self, plain: Callable[..., object], place: int) -> Callable[..., object]:
        return lambda *paths, **more: self.touch(paths[place]) or plain(*paths, **more)

    def fails(self, fault: int, at: int | str) -> None:
        """Fail from a moment on; never, without a fault."""
        self.fault, self.at, self.moments, self.has_failed = fault, at, 0, False

    def touch(self, path: object) -> None:
        """Count a moment; raise OSError if the disk fails."""
        if isinstance(path, int) or not Path(os.fsdecode(path)).absolute().is_relative_to(self.folder):
            return
        self.moments += 1
        name = Path(os.fsdecode(path)).name.lstrip(".")
        now = self.moments > self.at if isinstance(self.at, int) else name.startswith(self.at)
        if not self.fault or not (now or self.has_failed):
            return
        self.strike(path)

    def strike(self, path: object) -> None:
        """Raise OSError, or remove the folder once."""
        if self.fault != VANISHED:
            self.has_failed = True
            raise OSError(self.fault, os.strerror(self.fault), os.fsdecode(path))
        if not self.has_failed:
            self.has_failed = True
            shutil.rmtree(self.folder)
