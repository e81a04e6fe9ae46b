"""The two exceptions that users see, an error with a remedy and a stop at a signal; and what the system refuses."""

from __future__ import annotations

import errno
import signal

_FULL = (errno.ENOSPC, errno.EDQUOT)
_REMEDIES = {
    "make it writable": (errno.EROFS, errno.EACCES, errno.EPERM),
    "it was removed or its disk is gone: put it back": (errno.ENOENT, errno.ESTALE, errno.ENODEV, errno.ENXIO),
    "something else has this name: name another place (out=DIR)": (errno.ENOTDIR, errno.EISDIR, errno.EEXIST),
    "give it a shorter name": (errno.ENAMETOOLONG,),
    "let this user open more files (ulimit -n)": (errno.EMFILE, errno.ENFILE),
    "repair its disk or name another place (out=DIR)": (errno.EIO, errno.ETIMEDOUT, errno.EHOSTDOWN, errno.ENOTCONN),
}
"""What to do about an errno."""


class VarlabError(Exception):
    """An error that the user can correct. Its text says what was wrong, where, and what to do."""


class Stopped(BaseException):
    """A signal asked to stop, and the state is saved. Like KeyboardInterrupt, it is no Exception: handlers do not catch it."""

    def __init__(self, number: int, where: str):
        self.number, self.where = number, where
        super().__init__(f"Stopped by {signal.Signals(number).name} {where}: run the same command again to resume.")

    def __reduce__(self) -> tuple[type[Stopped], tuple[int, str]]:
        """Make the exception picklable, to send it between processes."""
        return Stopped, (self.number, self.where)


def how_it_ended(code: int) -> str:
    """The end of a child process in words. code: its exit code; below 0: the negative number of the signal that killed it."""
    if code >= 0:
        return f"ended with exit code {code}"
    likely = ", most often because memory ran out" if code == -signal.SIGKILL else ""
    return f"was killed by {signal.Signals(-code).name}{likely}"


def system_refusal(error: OSError) -> str | None:
    """Why the operating system refused, and what to do; None for an error of a program."""
    if error.errno in _FULL:
        return "the disk is full: make room and run the same command again."
    remedy = next((remedy for remedy, numbers in _REMEDIES.items() if error.errno in numbers), None)
    return remedy and f"{error.strerror}: {remedy} and run the same command again."
