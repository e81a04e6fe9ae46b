"""The course of a training: until when two lengths ask for the same updates."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from varlab.recipe.course.course import RATE, REVIVAL, Course
from varlab.tasks import Revival, WarmupDecay


def course(images: int, revival: Revival | None = None, **changes: object) -> Course:
    settings = {"warmup": 16, "start": 0.1, "shape": "linear", "end": 0.1} | changes
    return Course(WarmupDecay(**settings), revival, 8, images)


@pytest.mark.parametrize(
    ("old", "new", "until"),
    [
        (course(64, shape="constant"), course(128, shape="constant"), 64),
        (course(64, cooldown=0), course(128, cooldown=0), 64),
        (course(64, cooldown=0), course(128, cooldown=32), 64),
        (
            course(128, cooldown=32),
            course(160, cooldown=32),
            104,
        ),  # the first update of the cool-down has the full rate
        (course(128, cooldown=0.25), course(64, cooldown=0.25), 56),
        (course(64), course(128), 24),
        (course(64, warmup=0.25), course(128, warmup=0.25), 8),  # both begin with ``start``
        (course(64, shape="cosine"), course(64, shape="linear"), 24),
    ],
)
def test_lengths_meet_until_the_rate_follows_them(old: Course, new: Course, until: int) -> None:
    assert old.meeting(new)[0] == new.meeting(old)[0] == until


def test_the_revival_of_codes_may_follow_the_length() -> None:
    """Only if one of them revives at an update where the other does not."""
    fraction, images = Revival(every=16, until=0.5), Revival(every=16, until=32)
    assert course(64, fraction, cooldown=0).meeting(course(128, fraction, cooldown=0)) == (40, REVIVAL)
    assert course(64, images, cooldown=0).meeting(course(128, images, cooldown=0)) == (64, "")
    seldom = Revival(every=128, until=0.5)
    assert course(64, seldom, cooldown=0).meeting(course(128, seldom, cooldown=0)) == (64, "")
    assert course(64).meeting(course(128))[1] == RATE


@given(st.integers(0, 300), st.integers(1, 300) | st.floats(0.01, 0.99), st.sampled_from(["linear", "cosine", "sqrt"]))
def test_the_rate_is_held_between_warm_up_and_cool_down(warmup: int, cooldown: float, shape: str) -> None:
    schedule = WarmupDecay(warmup=warmup, start=0.0, shape=shape, end=0.0, cooldown=cooldown)
    begin = 1000 - (cooldown if isinstance(cooldown, int) else 1000 * cooldown)
    factors = [schedule.factor(images, 1000) for images in range(1001)]
    assert all(factor == 1 for image, factor in enumerate(factors) if warmup <= image < begin)
    after = factors[max(warmup, int(begin) + 1) :]
    assert all(a >= b for a, b in itertools.pairwise(after)) and factors[-1] == pytest.approx(0)
