"""The compute frontier: the lowest loss that any training reached with a number of FLOPs. No run is read here."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from varlab.report.stats.power_law import FEWEST, Array, PowerLawFit, fit_power_law

__all__ = ["LossCurve", "Point", "compute_frontier", "fit_frontier"]

Point = tuple[int, float, float]
"""Index of the curve, x, y."""

_MOST_ROUNDS = 50


@dataclass(frozen=True)
class LossCurve:
    """What a training measured over its compute. size: its parameters. x: ascending, at least one point."""

    size: float
    x: Array
    y: Array


def compute_frontier(curves: Sequence[LossCurve]) -> list[Point]:
    """The points that are lower than all points of any curve at the same x or less, x ascending.

    Only where at least two sizes were measured: outside that range the one measured size would be lowest unopposed.
    """
    sizes = sorted({curve.size for curve in curves})
    if len(sizes) < 2:
        return []
    begins = sorted(min(curve.x[0] for curve in curves if curve.size == size) for size in sizes)
    ends = sorted(max(curve.x[-1] for curve in curves if curve.size == size) for size in sizes)
    points = sorted((x, y, i) for i, curve in enumerate(curves) for x, y in zip(curve.x, curve.y, strict=True))
    lowest, frontier = np.inf, []
    for x, y, index in points:
        if y < lowest:
            lowest = y
            if begins[1] <= x <= ends[-2]:
                frontier.append((index, float(x), float(y)))
    return frontier


def fit_frontier(points: Sequence[Point], *, draws: int = 4999) -> PowerLawFit | None:
    """Fit a power law to a frontier; None where fewer than FEWEST trainings are on it.

    A training on the frontier counts once, at its point that a line of the law's slope, coming from below, touches first:
    points of one curve share its luck and are not independent, and luck decides where curves cross. The first slope is
    that of all points; it is fitted again to the touched points until these stay the same.
    """
    curves = [np.array([(x, y) for at, x, y in points if at == i]) for i in sorted({at for at, _, _ in points})]
    if len(curves) < FEWEST:
        return None
    touched = np.concatenate(curves)
    for _ in range(_MOST_ROUNDS):
        slope = _slope(touched)
        before, touched = touched, np.array([_touch(curve, slope) for curve in curves])
        if np.array_equal(before, touched):
            break
    x, y = touched.T
    return fit_power_law(x, y, draws=draws) if len(set(x)) >= FEWEST else None


def _slope(points: Array) -> float:
    log_x, log_y = np.log(points).T
    return float(np.polyfit(log_x, log_y, 1)[0])


def _touch(curve: Array, slope: float) -> Array:
    log_x, log_y = np.log(curve).T
    touched: Array = curve[np.argmin(log_y - slope * log_x)]
    return touched
