"""The frontier of compute: the lowest loss that any training reached with so many FLOPs. Numbers in, numbers out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from varlab.report.scaling import FEWEST, Array, PowerLaw, fit_power_law

__all__ = ["Curve", "Point", "frontier", "frontier_law"]

Point = tuple[int, float, float]
"""Index of the curve, x, y."""

_MOST_ROUNDS = 50


@dataclass(frozen=True)
class Curve:
    """What one training measured along its compute: x ascending, y; at least a point. size: its parameters."""

    size: float
    x: Array
    y: Array


def frontier(curves: Sequence[Curve]) -> list[Point]:
    """(index of the curve, x, y) wherever a curve goes below all that any curve reached at the same x or less, x ascending.

    Only where at least two sizes were measured: before and after, the one size there is would be lowest unopposed.
    """
    sizes = sorted({curve.size for curve in curves})
    if len(sizes) < 2:
        return []
    begins = sorted(min(curve.x[0] for curve in curves if curve.size == size) for size in sizes)
    ends = sorted(max(curve.x[-1] for curve in curves if curve.size == size) for size in sizes)
    points = sorted((x, y, i) for i, curve in enumerate(curves) for x, y in zip(curve.x, curve.y, strict=True))
    lowest, found = np.inf, []
    for x, y, index in points:
        if y < lowest:
            lowest = y
            if begins[1] <= x <= ends[-2]:
                found.append((index, float(x), float(y)))
    return found


def frontier_law(curves: Sequence[Curve], points: Sequence[Point], *, draws: int = 4999) -> PowerLaw | None:
    """The power law of a frontier; None where fewer than FEWEST trainings are on it.

    A training on the frontier counts once, where a line of the law's own slope touches its curve: points of one curve
    share its luck and are no independent measurements, and where curves cross is decided by luck. The slope begins as that
    of all points and is repeated with that of the touching ones until these stay.
    """
    on_it = [curves[index] for index in sorted({index for index, _, _ in points})]
    if len({curve.size for curve in on_it}) < 2:
        return None
    touching = np.array([(x, y) for _, x, y in points])
    for _ in range(_MOST_ROUNDS):
        slope = _slope(touching)
        before, touching = touching, np.array([_touch(curve, slope) for curve in on_it])
        if np.array_equal(before, touching):
            break
    x, y = touching.T
    return fit_power_law(x, y, draws=draws) if len(set(x)) >= FEWEST else None


def _slope(points: Array) -> float:
    log_x, log_y = np.log(points).T
    return float(np.polyfit(log_x, log_y, 1)[0])


def _touch(curve: Curve, slope: float) -> tuple[float, float]:
    """The point of a curve that a line of this slope, coming from below, meets first; in logarithms."""
    first = int(np.argmin(np.log(curve.y) - slope * np.log(curve.x)))
    return float(curve.x[first]), float(curve.y[first])
