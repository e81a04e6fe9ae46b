"""A length in seconds: so many updates as fit, where later ones may cost more."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from varlab.tasks.callbacks.time_budget import _affordable


class Costs:
    """What is asked of a task: its clock, and FLOPs that grow from ``start`` images on."""

    def __init__(self, images: int, batch: int, start: int, extra: int):
        self.images, self.pending, self._start, self._extra = images, batch, start, extra

    def flops_at(self, images: int) -> int:
        return 100 * images + self._extra * max(images - self._start, 0)


@given(
    batch=st.integers(1, 64),
    done=st.integers(1, 16),
    later=st.integers(0, 5000),
    extra=st.integers(0, 500),
    pace=st.floats(1, 1e4),
    seconds=st.floats(-1, 100),
)
def test_the_seconds_are_filled(batch: int, done: int, later: int, extra: int, pace: float, seconds: float) -> None:
    """At the FLOPs a second of the trial: the last update begins within the seconds."""
    images = batch * done
    task: Any = Costs(images, batch, images + later, extra)
    updates = _affordable(task, pace, seconds)

    def takes(updates: int) -> float:
        return (task.flops_at(images + updates * batch) - task.flops_at(images)) / (100 * pace)

    assert takes(updates) >= min(seconds, 0) - 1e-9
    assert updates >= 0 and (updates == 0 or takes(updates - 1) < seconds * (1 + 1e-9))
    assert takes(updates) >= seconds * (1 - 1e-9) or seconds <= 0
