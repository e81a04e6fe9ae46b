"""Learning-rate schedules on the clock of images."""

from __future__ import annotations

import math

from varlab.types import VarlabError

_SHAPES = {
    "constant": lambda progress, end: 1.0,
    "linear": lambda progress, end: 1.0 + (end - 1.0) * progress,
    "cosine": lambda progress, end: end + (1.0 - end) * 0.5 * (1.0 + math.cos(math.pi * progress)),
    "exponential": lambda progress, end: end**progress,
}


class WarmupDecay:
    """A linear rise from ``start`` to 1, then a decay to ``end`` at the last image; all as factors of the base rate.

    warmup: images (int), or a fraction of the whole training (float in [0, 1)). shape: constant (which ignores ``end``),
    linear, cosine (Loshchilov & Hutter 2017, without restarts) or exponential. hold: fraction of the time after the warm-up
    during which the decay is slower by the factor hold_pace in [0, 1]; 0 keeps the rate at 1. VAR's official ``lin0`` is
    linear with hold 0.05, its ``lin0.3`` linear with hold 0.3 at half the pace.
    """

    def __init__(
        self,
        *,
        warmup: int | float,
        start: float,
        shape: str,
        end: float,
        hold: float = 0.0,
        hold_pace: float = 0.0,
    ):
        if shape not in _SHAPES:
            raise VarlabError(f"schedule.shape is '{shape}': choose one of {', '.join(_SHAPES)}.")
        if warmup < 0 or (isinstance(warmup, float) and warmup >= 1):
            raise VarlabError(f"schedule.warmup is {warmup}: give whole images (an integer) or a fraction below 1.")
        if not 0 <= hold < 1 or not 0 <= hold_pace <= 1:
            raise VarlabError(
                f"schedule.hold is {hold} at hold_pace {hold_pace}: give a fraction below 1, a pace up to 1."
            )
        if shape == "exponential" and end <= 0:
            raise VarlabError(f"schedule.end is {end}, which an exponential decay never reaches: give more than 0.")
        self.warmup, self.start, self.shape, self.end = warmup, start, shape, end
        self.hold, self.hold_pace = hold, hold_pace

    def factor(self, images: int, total_images: int) -> float:
        """The factor for the update that begins after ``images`` of ``total_images``."""
        warmup = self.warmup * total_images if isinstance(self.warmup, float) else self.warmup
        if images < warmup:
            return self.start + (1.0 - self.start) * images / warmup
        progress = (images - warmup) / max(total_images - warmup, 1)
        return _SHAPES[self.shape](self._decayed(min(progress, 1.0)), self.end)

    def _decayed(self, progress: float) -> float:
        """The done fraction of the decay after a fraction of its time: two straight lines that meet at ``hold``."""
        if progress < self.hold:
            return self.hold_pace * progress
        before = self.hold_pace * self.hold
        return before + (1.0 - before) * (progress - self.hold) / (1.0 - self.hold)
