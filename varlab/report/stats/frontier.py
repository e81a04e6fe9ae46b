"""The frontier of compute: the lowest loss that any training reached with so many FLOPs. Numbers in, numbers out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from varlab.report.stats.power_law import FEWEST, Array, PowerLaw, fit_power_law

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


def frontier_law(points: Sequence[Point], *, draws: int = 4999) -> PowerLaw | None:
    """The power law of a frontier; None where fewer than FEWEST trainings are on it.

    A training on the frontier counts once, at the one of its points there that a line of the law's own slope, coming from
    below, meets first: points of one curve share its luck and are no independent measurements, and where curves cross is
    decided by luck. The slope begins as that of all points and is repeated with that of the touched ones until these stay.
    """
    spans = [np.array([(x, y) for at, x, y in points if at == i]) for i in sorted({at for at, _, _ in points})]
    if len(spans) < FEWEST:
        return None
    touched = np.concatenate(spans)
    for _ in range(_MOST_ROUNDS):
        slope = _slope(touched)
        before, touched = touched, np.array([_touch(span, slope) for span in spans])
        if np.array_equal(before, touched):
            break
    x, y = touched.T
    return fit_power_law(x, y, draws=draws) if len(set(x)) >= FEWEST else None


def _slope(points: Array) -> float:
    log_x, log_y = np.log(points).T
    return float(np.polyfit(log_x, log_y, 1)[0])


def _touch(span: Array, slope: float) -> Array:
    log_x, log_y = np.log(span).T
    touched: Array = span[np.argmin(log_y - slope * log_x)]
    return touched
