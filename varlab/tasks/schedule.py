"""Learning-rate schedules on the clock of images."""

from __future__ import annotations

import math

from varlab.types import VarlabError

_SHAPES = {
    "constant": lambda progress, end: 1.0,
    "linear": lambda progress, end: 1.0 + (end - 1.0) * progress,
    "cosine": lambda progress, end: end + (1.0 - end) * 0.5 * (1.0 + math.cos(math.pi * progress)),
}


class WarmupDecay:
    """A linear rise from ``start`` to 1, then a decay to ``end`` at the last image; all as factors of the base rate.

    warmup: images (int), or a fraction of the whole training (float in [0, 1)). shape: constant, linear or cosine
    (Loshchilov & Hutter 2017, without restarts). end is not used by the constant shape. hold: fraction of the time after the
    warm-up that stays at 1 (VAR's official ``lin0`` is linear with 0.05).
    """

    def __init__(self, *, warmup: int | float, start: float, shape: str, end: float, hold: float = 0.0):
        if shape not in _SHAPES:
            raise VarlabError(f"schedule.shape is '{shape}': choose one of {', '.join(_SHAPES)}.")
        if warmup < 0 or (isinstance(warmup, float) and warmup >= 1):
            raise VarlabError(f"schedule.warmup is {warmup}: give whole images (an integer) or a fraction below 1.")
        if not 0 <= hold < 1:
            raise VarlabError(f"schedule.hold is {hold}: give a fraction below 1.")
        self.warmup, self.start, self.shape, self.end, self.hold = warmup, start, shape, end, hold

    def factor(self, images: int, total_images: int) -> float:
        """The factor for the update that begins after ``images`` of ``total_images`` were consumed."""
        warmup = self.warmup * total_images if isinstance(self.warmup, float) else self.warmup
        if images < warmup:
            return self.start + (1.0 - self.start) * images / warmup
        progress = (images - warmup) / max(total_images - warmup, 1)
        falling = max(progress - self.hold, 0.0) / (1 - self.hold)
        return _SHAPES[self.shape](min(falling, 1.0), self.end)
