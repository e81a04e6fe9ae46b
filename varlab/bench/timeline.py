"""Which part of a work ran when: the parts add up to the whole, because every moment belongs to one of them."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from itertools import pairwise
from typing import cast

import torch

from varlab.bench.work import REST, Part

__all__ = ["Seconds", "Timeline"]

Seconds = tuple[float, float]
"""Seconds on the wall and of the processor."""
_Moment = tuple["float | torch.cuda.Event", float]
_ABSENT = object()


class Timeline:
    """Cuts the time between ``start`` and ``stop`` into segments, each of the innermost part that is open.

    On a GPU the moments are events in its stream, so nothing waits for them.
    """

    def __init__(self, device: torch.device):
        self._is_cuda = device.type == "cuda"
        self._open: list[Part] = []
        self._marks: list[tuple[str, _Moment]] = []

    def start(self) -> None:
        """Begin."""
        self._marks = []
        self._mark()

    def stop(self) -> dict[str, Seconds]:
        """End; returns the seconds of each part. On a GPU, waits for it."""
        self._mark()
        if self._is_cuda:
            torch.cuda.synchronize()
        seconds: dict[str, Seconds] = {}
        for (name, before), (_, after) in pairwise(self._marks):
            wall, cpu = seconds.get(name, (0.0, 0.0))
            seconds[name] = wall + _between(before[0], after[0]), cpu + after[1] - before[1]
        return seconds

    @contextmanager
    def watched(self, parts: Sequence[Part]) -> Iterator[None]:
        """Note when the methods of these parts run, inside the block."""
        with ExitStack() as stack:
            for part in parts:
                stack.enter_context(_replaced(part.owner, part.method, self._noted(part)))
            yield

    def _noted(self, part: Part) -> Callable[..., object]:
        """The method of a part, which marks its begin and its end."""
        method: Callable[..., object] = getattr(part.owner, part.method)

        @functools.wraps(method)
        def noted(*args: object, **kwargs: object) -> object:
            if self._open and self._open[-1].closed:
                return method(*args, **kwargs)
            self._open.append(part)
            self._mark()
            try:
                return method(*args, **kwargs)
            finally:
                self._open.pop()
                self._mark()

        return noted

    def _mark(self) -> None:
        """From now on, time belongs to the part that is open; what is only recorded takes no time."""
        if self._is_cuda and torch.cuda.is_current_stream_capturing():
            return
        self._marks.append((self._open[-1].name if self._open else REST, self._now()))

    def _now(self) -> _Moment:
        if not self._is_cuda:
            return time.perf_counter(), time.process_time()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event, time.process_time()


def _between(before: float | torch.cuda.Event, after: float | torch.cuda.Event) -> float:
    if isinstance(before, float) or isinstance(after, float):
        return cast(float, after) - cast(float, before)
    return before.elapsed_time(after) / 1000  # milliseconds


@contextmanager
def _replaced(owner: object, name: str, new: object) -> Iterator[None]:
    """With another attribute of a module, a class or an object (also a frozen one), inside the block."""
    kind = type if isinstance(owner, type) else object
    before = vars(owner).get(name, _ABSENT)
    kind.__setattr__(owner, name, new)
    try:
        yield
    finally:
        if before is _ABSENT:
            kind.__delattr__(owner, name)
        else:
            kind.__setattr__(owner, name, before)
