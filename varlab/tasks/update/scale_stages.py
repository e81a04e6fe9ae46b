"""Progressive training of a next-scale generator: from the first scales to all of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Self

import torch
from torch import Tensor

from varlab.types import VarlabError

_FAINTEST = 0.01  # the least weight of a new scale


class ScaleStages:
    """Which scales are trained after how many images, as VAR's official code has it (its ``pg``, ``pg0``, ``pgwp``).

    until: the fraction of the training after which all scales are trained. first: the index of the last scale of the first
    stage, which lasts for the learning rate's warm-up at least. Between, the last scale grows linearly with the images, rounded
    to the nearest. warmup: images (int), or a fraction of the training (float), over which the weight of a stage's new scale
    grows from 0.01 to 1; the scales of the first stage, and the last scale of all, have their full weight at once. A token
    weighs as much in every stage: 1 over the tokens of all scales.
    """

    def __init__(self, *, until: float, first: int, warmup: int | float):
        if not 0 < until <= 1 or first < 0 or warmup < 0:
            raise VarlabError(
                f"task.stages: until={until} is a fraction, first={first} and warmup={warmup} are at least 0."
            )
        self.until, self.first, self.warmup = until, first, warmup
        self._lengths: tuple[int, ...] = ()

    def checked(self, lengths: Sequence[int]) -> Self:
        """Take the tokens of each scale. Raises VarlabError if there is no scale to add."""
        if self.first >= len(lengths) - 1:
            raise VarlabError(
                f"task.stages.first={self.first} is not below the last of {len(lengths)} scales: leave task.stages=null."
            )
        self._lengths = tuple(lengths)
        return self

    def begins(self, total_images: int, warmup: float) -> list[int]:
        """After how many images each scale is trained; 0 for the first stage's. warmup: images of the learning rate's."""
        last = len(self._lengths) - 1
        span = max(self.until * total_images - warmup, 0.0) / (last - self.first)
        # a stage begins where rounding to the nearest scale turns to its own
        later = [round(warmup + span * (scale - self.first - 0.5)) for scale in range(self.first + 1, last + 1)]
        return [0] * (self.first + 1) + later

    def last_scale(self, images: int, total_images: int, warmup: float) -> int:
        """The index of the last scale that is trained after so many images."""
        return max(scale for scale, begin in enumerate(self.begins(total_images, warmup)) if images >= begin)

    def tokens(self, images: int, total_images: int, warmup: float) -> int:
        """How many tokens of an image are trained."""
        return sum(self._lengths[: self.last_scale(images, total_images, warmup) + 1])

    def weights(self, images: int, total_images: int, warmup: float) -> Tensor:
        """weight_L of the tokens' losses, of all scales; they sum to 1 after the last stage has begun."""
        last = self.last_scale(images, total_images, warmup)
        weights = [torch.full((length,), 1 / sum(self._lengths)) for length in self._lengths]
        grows = self.warmup * total_images if isinstance(self.warmup, float) else self.warmup
        if self.first < last < len(self._lengths) - 1 and grows:
            since = images - self.begins(total_images, warmup)[last]
            weights[last] *= min(max(since / grows, _FAINTEST), 1.0)
        return torch.cat(weights)
