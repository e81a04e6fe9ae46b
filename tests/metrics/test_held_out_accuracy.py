"""When a judge's accuracy is above the guess's by more than chance."""

from __future__ import annotations

from math import comb

import pytest

from varlab.metrics.distribution.inception_score import FileInceptionScore
from varlab.metrics.distribution.kernel_distance import KID
from varlab.metrics.distribution.repeated_images import RepeatedImages
from varlab.metrics.held_out_accuracy import HeldOutAccuracy


def at_least(right: int, images: int, chance: float) -> float:
    """The probability of so many right answers by guessing."""
    return sum(comb(images, n) * chance**n * (1 - chance) ** (images - n) for n in range(right, images + 1))


@pytest.mark.parametrize("images", [10, 37])
@pytest.mark.parametrize("chance", [0.1, 0.5])
def test_a_judge_has_learned_where_guessing_seldom_does_as_well(images: int, chance: float) -> None:
    """For each number of right answers, by the exact sum."""
    found = [
        HeldOutAccuracy(accuracy=right / images, majority=chance, images=images).learned for right in range(images + 1)
    ]
    assert found == [at_least(right, images, chance) < 0.05 for right in range(images + 1)]
    assert True in found and False in found


def test_which_way_scores_are_better() -> None:
    assert FileInceptionScore.higher_is_better is True
    assert RepeatedImages.higher_is_better is KID.higher_is_better is False
