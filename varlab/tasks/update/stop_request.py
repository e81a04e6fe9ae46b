"""A request to stop: set by a signal handler, read after each update and between the batches of an evaluation."""

from __future__ import annotations

import signal
from collections.abc import Iterable, Iterator
from types import FrameType
from typing import TypeVar

from varlab.errors import Stopped

T = TypeVar("T")


class StopRequest:
    """The signal that asked this rank to stop, and whether an evaluation may be interrupted for it.

    number: of the signal, 0 if none has come. interrupt_at: the position for the message ("after 96 images") while an
    evaluation may be interrupted, empty otherwise. The callback ``Stop`` sets both.
    """

    def __init__(self) -> None:
        self.number = 0
        self.interrupt_at = ""

    def receive(self, number: int, frame: FrameType | None) -> None:
        """Note the first signal: a handler for ``signal.signal``. Raises KeyboardInterrupt at Ctrl-C after another signal."""
        if self.number and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.number = self.number or number

    def check(self) -> None:
        """Raise Stopped if a signal has come and an evaluation may be interrupted."""
        if self.number and self.interrupt_at:
            raise Stopped(self.number, self.interrupt_at)

    def between(self, batches: Iterable[T]) -> Iterator[T]:
        """Pass batches on, with a check before each."""
        for batch in batches:
            self.check()
            yield batch
