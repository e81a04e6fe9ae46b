"""A power law above a floor, y = L∞ + (a·x)^b with b below 0: what a line in logarithms cannot show. No run is read here."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy import optimize, stats

from varlab.report.stats.power_law import LEVEL, Array, Bounds, means

__all__ = ["FEWEST_ABOVE_FLOOR", "FloorFit", "fit_above_floor"]

FEWEST_ABOVE_FLOOR = 5
"""Different x that a fit needs: three numbers are fitted, and one degree of freedom would leave intervals of no use."""

_STEEPEST, _FLATTEST = -4.0, -0.002
_HIGHEST = 0.9999  # floor, as a share of the lowest y
_TINY = 1e-20  # squares of points exactly on a curve


@dataclass(frozen=True)
class FloorFit:
    """y = floor + (a·x)^b with 95% intervals. b_interval begins at -∞ where no exponent is too steep for the points.

    bends: whether the interval of the floor excludes 0, so that a straight line in logarithms does not fit the points.
    """

    floor: float
    a: float
    b: float
    floor_interval: Bounds
    b_interval: Bounds

    @property
    def bends(self) -> bool:
        return self.floor_interval[0] > 0

    def at(self, x: ArrayLike) -> Array:
        """The fitted values."""
        values: Array = self.floor + (self.a * np.asarray(x, dtype=float)) ** self.b
        return values


def fit_above_floor(x: ArrayLike, y: ArrayLike) -> FloorFit | None:
    """Fit by least squares of relative errors; points of equal x (seeds of one size) count as their geometric mean.

    None for fewer than FEWEST_ABOVE_FLOOR different x. The intervals are likelihood profiles (Bates & Watts 1988, ch. 6): the
    values with which the other two numbers fit the points to within 1 + F/(n - 3) of the least squares, F the 95% quantile
    of the F distribution with 1 and n - 3 degrees of freedom. They assume normal errors of one relative size around the
    curve, and no line. Raises VarlabError where an x or y is not above 0.
    """
    different, log_y = means(x, y)
    n, value = len(different), np.exp(log_y)
    if n < FEWEST_ABOVE_FLOOR:
        return None
    centre = np.exp(np.log(different).mean())
    points = _Points(different / centre, value)
    highest = _HIGHEST * float(value.min())
    b = points.best_exponent()
    floor, scale, least = points.at_exponent(b)
    limit = least * (1 + stats.f.ppf(LEVEL, 1, n - 3) / (n - 3)) + _TINY
    low, high = (_end(points.at_floor, floor, end, limit) for end in (0.0, highest))
    steep, flat = (_end(lambda x: points.at_exponent(x)[2], b, end, limit) for end in (_STEEPEST, _FLATTEST))
    return FloorFit(
        floor=floor,
        a=float(scale ** (1 / b) / centre),
        b=b,
        floor_interval=(low, high),
        b_interval=(steep if steep > _STEEPEST else -np.inf, flat),
    )


@dataclass(frozen=True)
class _Points:
    x: Array
    y: Array

    def at_exponent(self, b: float) -> tuple[float, float, float]:
        """(floor, scale, squared relative errors): the best with this exponent."""
        level, power = 1 / self.y, self.x**b / self.y
        (floor, _), *_ = np.linalg.lstsq(np.stack([level, power], 1), np.ones_like(level))
        floor = float(np.clip(floor, 0.0, _HIGHEST * self.y.min()))
        scale = float(power @ (1 - floor * level) / (power @ power))
        return floor, scale, float(((1 - floor * level - scale * power) ** 2).sum())

    def best_exponent(self, floor: float | None = None) -> float:
        """The exponent of the least squares, with this floor or with any: the best of many, and what is best near it."""
        tried = -np.geomspace(-_STEEPEST, -_FLATTEST, 60)
        at = int(np.argmin([self._squares(b, floor) for b in tried]))
        near = (tried[max(at - 1, 0)], tried[min(at + 1, len(tried) - 1)])
        found = optimize.minimize_scalar(
            self._squares, bounds=near, args=(floor,), method="bounded", options={"xatol": 1e-12}
        )
        return float(min((found.x, tried[at]), key=lambda b: self._squares(b, floor)))

    def at_floor(self, floor: float) -> float:
        """Squared relative errors: the least with this floor."""
        return self._squares(self.best_exponent(floor), floor)

    def _squares(self, b: float, floor: float | None) -> float:
        if floor is None:
            return self.at_exponent(b)[2]
        power, above = self.x**b / self.y, 1 - floor / self.y
        return float(((above - power * (power @ above / (power @ power))) ** 2).sum())


def _end(squares: Callable[[float], float], best: float, end: float, limit: float) -> float:
    """Where the squares reach the limit, from the best number on towards an end."""
    if squares(end) <= limit:
        return end
    found = optimize.brentq(lambda x: squares(x) - limit, best, end) if squares(best) < limit else best
    return float(found)
