"""Learning-rate schedules on the clock of images."""

from __future__ import annotations

import math

from varlab.types import VarlabError

_SHAPES = {
    "constant": lambda progress, end: 1.0,
    "linear": lambda progress, end: 1.0 + (end - 1.0) * progress,
    "cosine": lambda progress, end: end + (1.0 - end) * 0.5 * (1.0 + math.cos(math.pi * progress)),
    "exponential": lambda progress, end: end**progress,
    "sqrt": lambda progress, end: 1.0 + (end - 1.0) * math.sqrt(progress),
}


class WarmupDecay:
    """A linear rise from ``start`` to 1, then a decay to ``end`` at the last image; all as factors of the base rate.

    warmup: images (int), or a fraction of the whole training (float in [0, 1)). shape: constant (which ignores ``end``),
    linear, cosine (Loshchilov & Hutter 2017, without restarts), exponential, or sqrt (the 1 - sqrt of Hägele et al. 2024).
    cooldown: the decay takes only the last images (int, or a fraction of the training), and before it the rate is 1, whatever
    the length of the training (warm-up, hold, cool-down: Hu et al. 2024, MiniCPM); 0: no decay; None: it begins after the
    warm-up. hold: fraction of the time after the warm-up during which the decay is slower by the factor hold_pace in [0, 1];
    0 keeps the rate at 1. VAR's official ``lin0`` is linear with hold 0.05, its ``lin0.3`` linear with hold 0.3 at half the
    pace.
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
        cooldown: int | float | None = None,
    ):
        if shape not in _SHAPES:
            raise VarlabError(f"schedule.shape is '{shape}': choose one of {', '.join(_SHAPES)}.")
        for name, part in (("warmup", warmup), ("cooldown", 0 if cooldown is None else cooldown)):
            if part < 0 or (isinstance(part, float) and part >= 1):
                raise VarlabError(f"schedule.{name} is {part}: give whole images (an integer) or a fraction below 1.")
        if cooldown is not None and hold:
            raise VarlabError(f"schedule.cooldown={cooldown} has a hold phase already: set task.schedule.hold=0.")
        if not 0 <= hold < 1 or not 0 <= hold_pace <= 1:
            raise VarlabError(
                f"schedule.hold is {hold} at hold_pace {hold_pace}: give a fraction below 1, a pace up to 1."
            )
        if shape == "exponential" and end <= 0:
            raise VarlabError(f"schedule.end is {end}, which an exponential decay never reaches: give more than 0.")
        self.warmup, self.start, self.shape, self.end = warmup, start, shape, end
        self.hold, self.hold_pace, self.cooldown = hold, hold_pace, cooldown

    def factor(self, images: int, total_images: int) -> float:
        """The factor for the update that begins after ``images`` of ``total_images``."""
        warmup = self.warmup_images(total_images)
        if images < warmup:
            return self.start + (1.0 - self.start) * images / warmup
        begin = warmup if self.cooldown is None else max(total_images - _images(self.cooldown, total_images), warmup)
        if images < begin:
            return 1.0
        progress = (images - begin) / max(total_images - begin, 1)
        return _SHAPES[self.shape](self._decayed(min(progress, 1.0)), self.end)

    def warmup_images(self, total_images: int) -> int | float:
        """How many images the warm-up takes."""
        return _images(self.warmup, total_images)

    def _decayed(self, progress: float) -> float:
        """The done fraction of the decay after a fraction of its time: two straight lines that meet at ``hold``."""
        if progress < self.hold:
            return self.hold_pace * progress
        before = self.hold_pace * self.hold
        return before + (1.0 - before) * (progress - self.hold) / (1.0 - self.hold)


def _images(part: int | float, total_images: int) -> int | float:
    return part * total_images if isinstance(part, float) else part
