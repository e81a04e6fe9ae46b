"""Power laws: exact for exact points, with correct intervals for noisy ones; the compute frontier."""

from __future__ import annotations

import numpy as np
import pytest

from varlab.errors import VarlabError
from varlab.report.stats.frontier import LossCurve, compute_frontier, fit_frontier
from varlab.report.stats.power_law import Array, fit_power_law

SIZES = 4608.0 * np.arange(2, 9) ** 3  # seven, as VAR's rule has them


def law(x: Array, *, a: float = 2e-9, b: float = -0.2) -> Array:
    return (a * x) ** b


@pytest.mark.parametrize(("a", "b"), [(2e-9, -0.23), (4.9e2, -0.016), (2.2e-5, -0.13), (1e-3, 0.4)])
def test_without_noise_the_fit_is_exact(a: float, b: float) -> None:
    fit = fit_power_law(SIZES, law(SIZES, a=a, b=b))
    assert fit.b == pytest.approx(b, rel=1e-8) and fit.a == pytest.approx(a, rel=1e-6)
    assert fit.b_interval == pytest.approx((b, b), rel=1e-6) and fit.a_interval == pytest.approx((a, a), rel=1e-4)
    assert fit.correlation == pytest.approx(np.sign(b))
    assert fit.at(SIZES) == pytest.approx(law(SIZES, a=a, b=b))
    assert all(edge == pytest.approx(law(SIZES, a=a, b=b), rel=1e-6) for edge in fit.band(SIZES))


CASES = {  # sizes, seeds, deviation of log y over seeds (per size), deviation of whole sizes from the line
    "seven sizes, three seeds": (SIZES, 3, 0.02, 0.0),
    "seven sizes, one seed": (SIZES, 1, 0.02, 0.0),
    "five sizes, two seeds": (SIZES[:5], 2, 0.02, 0.0),
    "sizes off the line": (SIZES, 3, 0.02, 0.02),
}


@pytest.mark.parametrize(
    "case", [name if name == "sizes off the line" else pytest.param(name, marks=pytest.mark.slow) for name in CASES]
)
def test_the_intervals_cover_the_truth_93_to_97_times_in_100(case: str) -> None:
    """Of the exponent, the scale and the line's height; 1,000 trials count a share to 0.7 percent, 100 only to two."""
    sizes, seeds, noise, misfit = CASES[case]
    covered = coverage(sizes, seeds, noise, misfit, trials=1000)
    assert all(0.93 <= share <= 0.97 for share in covered), covered


def coverage(sizes: Array, seeds: int, noise: float, misfit: float, *, trials: int) -> Array:
    rng, hits, middle = np.random.default_rng(1), np.zeros(3), np.array([5e5])
    x = np.repeat(sizes, seeds)
    for trial in range(trials):
        off = noise * rng.normal(size=x.shape) + np.repeat(misfit * rng.normal(size=sizes.shape), seeds)
        fit = fit_power_law(x, law(x) * np.exp(off), draws=399, seed=trial)
        lower, upper = fit.band(middle)
        held = ((fit.b_interval, -0.2), (fit.a_interval, 2e-9), ((lower[0], upper[0]), law(middle)[0]))
        hits += [low <= truth <= high for (low, high), truth in held]
    return hits / trials


def test_the_same_points_give_the_same_intervals() -> None:
    y = law(SIZES) * np.exp(0.05 * np.random.default_rng(0).normal(size=7))
    assert fit_power_law(SIZES, y).b_interval == fit_power_law(SIZES, y).b_interval
    assert fit_power_law(SIZES[::-1], y[::-1]).b_interval == fit_power_law(SIZES, y).b_interval


def test_seeds_of_a_size_count_as_their_mean_however_many() -> None:
    x, y = [*SIZES, SIZES[0]], [*law(SIZES), law(SIZES)[0] * 1.1]
    y[0] /= 1.1
    assert fit_power_law(x, y).b == pytest.approx(-0.2)


def test_units_move_the_scale_and_not_the_exponent() -> None:
    y = law(SIZES) * np.exp(0.05 * np.random.default_rng(0).normal(size=7))
    ours, thousands = fit_power_law(SIZES, y), fit_power_law(SIZES / 1e3, y)
    assert thousands.b == pytest.approx(ours.b) and thousands.a == pytest.approx(1e3 * ours.a)
    assert thousands.b_interval == pytest.approx(ours.b_interval)


def test_a_loss_that_does_not_change_has_exponent_zero() -> None:
    fit = fit_power_law(SIZES, np.full(7, 2.5))
    assert fit.b == pytest.approx(0, abs=1e-12) and fit.correlation == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize(
    ("x", "y"), [([1, 2, 4, 8], [1, 1, 1, 0]), ([0, 1, 2, 3], [1, 1, 1, 1]), ([1, 2, 3, 3], [1] * 4)]
)
def test_points_that_cannot_be_fitted_are_refused(x: list[float], y: list[float]) -> None:
    with pytest.raises(VarlabError, match=r"above 0|4 different"):
        fit_power_law(x, y)


def tangents(sizes: Array, *, luck: Array | float = 0.0) -> list[LossCurve]:
    """A curve a size that touches y = (2e-16·x)^-0.13 at one compute, and lies above it before and after; luck moves
    the logarithm of a whole curve."""
    grid = np.linspace(-2.4, 2.4, 25)
    return [
        LossCurve(size, x, law(x, a=2e-16, b=-0.13) * np.exp(0.03 * grid**2 + moved))
        for size, moved in zip(sizes, np.broadcast_to(luck, sizes.shape), strict=True)
        if (x := 6e2 * size**2 * np.exp(grid)) is not None
    ]


SEVEN = np.geomspace(1e4, 1e6, 7)


def test_the_frontier_of_curves_that_touch_a_law_is_the_law() -> None:
    curves = tangents(SEVEN)
    points = compute_frontier(curves)
    assert points == sorted(points, key=lambda point: point[1]) and {index for index, _, _ in points} == set(range(7))
    for index, x, y in points:
        assert y in curves[index].y[curves[index].x == x]
        assert all(y <= curve.y[curve.x <= x].min(initial=np.inf) for curve in curves)
    fit = fit_frontier(points)
    assert fit is not None and len(fit.x) == 7 and fit.b == pytest.approx(-0.13, rel=0.01)


@pytest.mark.slow
def test_the_frontier_interval_covers_the_truth_93_to_97_times_in_100() -> None:
    rng = np.random.default_rng(3)
    drawn = [tangents(SEVEN, luck=0.01 * rng.normal(size=7)) for _ in range(1000)]
    fits = [fit_frontier(compute_frontier(curves), draws=399) for curves in drawn]
    held = [fit.b_interval[0] <= -0.13 <= fit.b_interval[1] for fit in fits if fit is not None]
    assert len(held) > 990 and 0.93 <= np.mean(held) <= 0.97, np.mean(held)


def test_the_frontier_ends_where_a_single_size_is_left() -> None:
    near = LossCurve(1, np.array([1.0, 2, 3]), np.array([5.0, 4, 3]))
    far = LossCurve(2, np.array([2.0, 4, 9]), np.array([6.0, 2, 1]))
    assert compute_frontier([near, far]) == [(0, 2.0, 4.0), (0, 3.0, 3.0)]
    assert compute_frontier([near]) == [] and compute_frontier([]) == []
    assert fit_frontier(compute_frontier([near, far])) is None
