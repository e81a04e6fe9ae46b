"""What a process does while it is watched: programs and code that it starts, connections, and files that it writes."""

from __future__ import annotations

import functools
import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

__all__ = ["Deeds", "watched"]

_PROGRAMS = (
    "os.system",
    "subprocess.Popen",
    "os.exec",
    "os.spawn",
    "os.posix_spawn",
    "os.fork",
    "os.forkpty",
    "pty.spawn",
)
_CODE = ("pickle.find_class", "marshal.loads", "marshal.load", "ctypes.dlopen")
_CHANGES = (
    "os.remove",
    "os.rename",
    "os.mkdir",
    "os.rmdir",
    "os.symlink",
    "os.link",
    "os.truncate",
    "os.chmod",
    "os.chown",
)
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC
_NOWHERE = ("/dev/null", "/proc/self/")


@dataclass
class Deeds:
    """What was done: (what, of what). An import counts where the module was not imported before."""

    executed: set[tuple[str, str]] = field(default_factory=set)
    written: set[str] = field(default_factory=set)

    def outside(self, folder: Path) -> set[str]:
        """The files that were written or changed, but not below this folder."""
        return {path for path in self.written if not Path(path).is_relative_to(folder)}


class _Audit:
    """The hook of this process, which cannot be removed: it sleeps while nobody watches."""

    def __init__(self) -> None:
        self.deeds: Deeds | None = None
        self._mine = threading.local()
        sys.addaudithook(self._hook)

    def _hook(self, event: str, arguments: tuple[Any, ...]) -> None:
        if self.deeds is None or getattr(self._mine, "busy", False):
            return
        self._mine.busy = True  # what follows may raise events of its own
        try:
            self._note(self.deeds, event, arguments)
        finally:
            self._mine.busy = False

    def _note(self, deeds: Deeds, event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open":
            path, mode, flags = arguments
            if (isinstance(mode, str) and set("wax+") & set(mode)) or (mode is None and flags & _WRITING):
                self._write(deeds, path)
        elif event == "import":
            deeds.executed.add((event, str(arguments[0])))
        elif event == "exec":  # of a module, a template, or of what a string said
            deeds.executed.add((event, str(getattr(arguments[0], "co_filename", arguments[0]))))
        elif event in _PROGRAMS or event in _CODE:
            deeds.executed.add((event, str(arguments)[:200]))
        elif event in ("socket.connect", "socket.getaddrinfo"):
            deeds.executed.add((event, str(arguments[1:] if event == "socket.connect" else arguments[:2])))
        elif event in _CHANGES:
            for path in arguments[:2] if event in ("os.rename", "os.link", "os.symlink") else arguments[:1]:
                self._write(deeds, path)

    def _write(self, deeds: Deeds, path: object) -> None:
        if isinstance(path, str | bytes | os.PathLike):
            real = os.path.realpath(os.fsdecode(path))
            if not real.startswith(_NOWHERE):
                deeds.written.add(real)


@functools.cache
def _audit() -> _Audit:
    return _Audit()


@contextmanager
def watched() -> Iterator[Deeds]:
    """What this process does in the body of the ``with``."""
    audit = _audit()
    audit.deeds = deeds = Deeds()
    try:
        yield deeds
    finally:
        audit.deeds = None
