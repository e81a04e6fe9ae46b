"""Calls that may never come back: each runs in a thread of its own, which is given up in time."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from queue import Empty, SimpleQueue
from typing import Generic, TypeVar

__all__ = ["ATTEMPTS", "CHUNK", "Patience", "grow", "within"]

T = TypeVar("T")

ATTEMPTS = 3
"""Times to ask a server for the same bytes."""

CHUNK = 1 << 18
"""Bytes that each wait must bring, so that a server that drips is given up like a silent one."""

_POLL = 0.2  # seconds


class Patience:
    """How long to wait for a server: ``seconds`` in all, over every attempt at the same bytes and the pauses between them."""

    def __init__(self, seconds: float):
        self.wait = seconds / (ATTEMPTS + 1)
        """Seconds of one attempt."""

    def pause(self, attempt: int) -> None:
        """Sleep after a failed attempt, longer after each."""
        time.sleep(attempt * min(1.0, 2 * self.wait / (ATTEMPTS * (ATTEMPTS - 1))))


class _Call(Generic[T]):
    """A call that has begun."""

    def __init__(self, action: Callable[[], T]):
        self._action, self._outcome = action, SimpleQueue[tuple[T | None, BaseException | None]]()
        threading.Thread(target=self._run, daemon=True).start()  # a process does not wait for it at its end

    def _run(self) -> None:
        try:
            self._outcome.put((self._action(), None))
        except BaseException as error:
            self._outcome.put((None, error))

    def result(self, seconds: float) -> T:
        """What it returned or raised. Raises Empty if it is still running after so long."""
        value, error = self._outcome.get(timeout=seconds)
        if error is not None:
            raise error
        return value  # type: ignore[return-value]  # the other of the two


def within(seconds: float, action: Callable[[], T]) -> T:
    """The result of a call. Raises TimeoutError if it takes longer."""
    try:
        return _Call(action).result(seconds)
    except Empty:
        raise TimeoutError(f"nothing came within {seconds:g} seconds") from None


def grow(seconds: float, action: Callable[[], object], size: Callable[[], int], *, most: int) -> None:
    """Wait for a call that fills a file. size: bytes of the file so far.

    Raises:
        TimeoutError: fewer than ``CHUNK`` bytes came within so many seconds. OSError: more than ``most`` came.
    """
    call, before, deadline = _Call(action), 0, time.monotonic() + seconds
    while True:
        try:
            call.result(min(_POLL, seconds / 4))
            return
        except Empty:
            now = size()
        if now > most:
            raise OSError(f"more than {most} bytes came")
        if now - before >= CHUNK:
            before, deadline = now, time.monotonic() + seconds
        elif time.monotonic() > deadline:
            raise TimeoutError(f"only {now - before} bytes came within {seconds:g} seconds")
