"""From minutes to images: the arithmetic of a plan."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TypeVar

from varlab.start.pace import Pace

__all__ = ["generator_images", "in_rounds", "judge_images", "sample_count", "time_left", "tokenizer_images"]

T = TypeVar("T")


def in_rounds(jobs: Sequence[T], lanes: int) -> list[list[T]]:
    """The jobs in rounds of at most ``lanes`` at the same time, as even as can be."""
    count = math.ceil(len(jobs) / lanes)
    size = math.ceil(len(jobs) / count) if count else 1
    return [list(jobs[i : i + size]) for i in range(0, len(jobs), size)]


def judge_images(pace: Pace, seconds: float, *, batch: int, train_images: int, epochs: int) -> int:
    """Images of a classifier: what fits in the seconds after its trial, and at most so many epochs."""
    images = pace.images + pace.images_in(seconds - pace.overhead)
    return _whole_batches(min(images, epochs * train_images), batch, least=pace.images)


def tokenizer_images(pace: Pace, seconds: float, *, batch: int, late_from: float) -> int:
    """Images of a tokenizer in the seconds after its trial. late_from: images after which its discriminator learns."""
    images = pace.images_in(seconds - pace.overhead, late_from=max(late_from - pace.images, 0.0))
    return _whole_batches(pace.images + images, batch, least=pace.images)


def generator_images(
    paces: Mapping[str, Pace], seconds: float, *, rounds: int, batch: int, faster: float = 1.0
) -> dict[str, int]:
    """Images of each generator at equal FLOPs: so many that the slowest one ends in its part of the seconds.

    rounds: how many generators are trained one after another. faster: than the paces say.
    """
    each = seconds / rounds
    flops = min(pace.flops * pace.images_in(faster * (each - pace.overhead)) for pace in paces.values())
    return {name: _whole_batches(flops / pace.flops, batch, least=pace.images) for name, pace in paces.items()}


def time_left(total: float, *, spent: float, reserved: float, least: float) -> float:
    """Seconds of the total that are neither spent nor reserved, but never fewer than ``least``."""
    return max(total - spent - reserved, least)


def sample_count(paces: Sequence[Pace], seconds: float, *, least: int, most: int) -> int:
    """Samples of a score that the slowest generator draws in the seconds, at the rate of its training."""
    slowest = min(pace.flops_per_second / pace.sampling_flops for pace in paces)
    return min(max(int(slowest * seconds), least), most)


def _whole_batches(images: float, batch: int, *, least: int) -> int:
    """At most so many images, in whole batches, but not fewer than ``least``."""
    return max(int(images // batch) * batch, least)
