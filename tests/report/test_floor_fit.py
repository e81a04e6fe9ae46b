"""Power laws above a floor: exact for exact points, with intervals that cover the truth whether or not there is a floor."""

from __future__ import annotations

import numpy as np
import pytest

from varlab.errors import VarlabError
from varlab.report.stats.floor_fit import FEWEST_ABOVE_FLOOR, fit_above_floor
from varlab.report.stats.power_law import Array, fit_power_law

SIZES = 4608.0 * np.arange(2, 9) ** 3


def law(x: Array, *, floor: float, a: float, b: float) -> Array:
    return floor + (a * x) ** b


@pytest.mark.parametrize(
    ("floor", "a", "b"), [(2.5, 1e-4, -0.3), (1.0, 1e-3, -0.5), (0.2, 2e-9, -0.2), (5.0, 1e-5, -1.2)]
)
def test_without_noise_the_fit_is_exact(floor: float, a: float, b: float) -> None:
    fit = fit_above_floor(SIZES, law(SIZES, floor=floor, a=a, b=b))
    assert fit is not None and fit.bends
    assert (fit.floor, fit.a, fit.b) == (
        pytest.approx(floor, rel=1e-3), pytest.approx(a, rel=1e-2), pytest.approx(b, rel=1e-3)
    )  # fmt: skip
    assert fit.at(SIZES) == pytest.approx(law(SIZES, floor=floor, a=a, b=b), rel=1e-6)
    assert fit.floor_interval == pytest.approx((floor, floor), rel=1e-3) and fit.b_interval == pytest.approx(
        (b, b), rel=1e-2
    )


def test_a_line_has_no_floor() -> None:
    y = law(SIZES, floor=0.0, a=2e-9, b=-0.2)
    fit, line = fit_above_floor(SIZES, y), fit_power_law(SIZES, y)
    assert fit is not None and not fit.bends and fit.floor == pytest.approx(0, abs=1e-4)
    assert fit.b == pytest.approx(line.b, rel=1e-4) and fit.a == pytest.approx(line.a, rel=1e-2)


@pytest.mark.parametrize(
    ("floor", "noise"),
    [(2.5, 0.005), pytest.param(2.5, 0.02, marks=pytest.mark.slow), pytest.param(2.0, 0.002, marks=pytest.mark.slow)],
)
def test_the_intervals_cover_the_truth(floor: float, noise: float) -> None:
    """At least 93 times in 100: wide intervals that a bound cuts off may cover more often than 97 times."""
    rng, hits, trials = np.random.default_rng(1), np.zeros(2), 200
    for _ in range(trials):
        fit = fit_above_floor(SIZES, law(SIZES, floor=floor, a=1e-4, b=-0.3) * np.exp(noise * rng.normal(size=7)))
        assert fit is not None and fit.b_interval[0] <= fit.b <= fit.b_interval[1]
        hits += [low <= truth <= high for (low, high), truth in ((fit.floor_interval, floor), (fit.b_interval, -0.3))]
    assert (hits / trials >= 0.915).all(), hits / trials  # 0.93 less the error of so few trials


def test_where_there_is_no_floor_one_is_rarely_claimed() -> None:
    """In 1 of 20 at most, as the bound on the floor is one-sided there."""
    rng = np.random.default_rng(2)
    y = law(SIZES, floor=0.0, a=2e-9, b=-0.2)
    claimed = [fit.bends for _ in range(200) if (fit := fit_above_floor(SIZES, y * np.exp(0.02 * rng.normal(size=7))))]
    assert len(claimed) == 200 and np.mean(claimed) <= 0.06


def test_few_points_have_no_such_fit_and_seeds_count_as_their_mean() -> None:
    y = law(SIZES, floor=1.0, a=1e-4, b=-0.3)
    assert fit_above_floor(SIZES[: FEWEST_ABOVE_FLOOR - 1], y[: FEWEST_ABOVE_FLOOR - 1]) is None
    seeds = np.concatenate([y * 1.1, y / 1.1])
    fit, mean = fit_above_floor(np.tile(SIZES, 2), seeds), fit_above_floor(SIZES, y)
    assert fit is not None and mean is not None and fit.floor == pytest.approx(mean.floor, rel=1e-3)
    with pytest.raises(VarlabError, match="above 0"):
        fit_above_floor(SIZES, y - 2)


def test_an_exponent_that_any_steepness_fits_has_no_lower_end() -> None:
    """One high point and a plateau: how steeply it falls between them is unknown."""
    fit = fit_above_floor([1, 10, 100, 1000, 10000], [3.0, 1.001, 1.0, 0.999, 1.0])
    assert fit is not None and fit.b_interval[0] == -np.inf and fit.bends
