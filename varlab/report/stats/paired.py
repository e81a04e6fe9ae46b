"""Variants against each other over seeds: intervals of Student's t, and paired differences, seed by seed.

Two variants of one seed share initial noise of the data order and of sampling; their difference varies less than they do.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from scipy import stats

__all__ = ["Difference", "Interval", "holm", "interval", "paired"]

LEVEL = 0.95


@dataclass(frozen=True)
class Interval:
    """A mean over ``n`` seeds and its 95% confidence interval; without one (nan) for a single seed."""

    n: int
    mean: float
    low: float
    high: float


@dataclass(frozen=True)
class Difference(Interval):
    """A mean difference, second less first, over the seeds that both have. p: of a two-sided paired t-test (nan: unknown)."""

    p: float

    @property
    def clear(self) -> bool:
        """Whether the interval leaves out zero."""
        return self.n > 1 and (self.low > 0 or self.high < 0)


def interval(values: Sequence[float]) -> Interval:
    """Of the mean of at least one number, by Student's t."""
    mean, n = statistics.fmean(values), len(values)
    if n < 2:
        return Interval(n, mean, math.nan, math.nan)
    half = float(stats.t.ppf((1 + LEVEL) / 2, n - 1)) * statistics.stdev(values) / math.sqrt(n)
    return Interval(n, mean, mean - half, mean + half)


def paired(first: Mapping[int, float], second: Mapping[int, float]) -> Difference | None:
    """second - first, by seed; None where they share no seed."""
    seeds = sorted(first.keys() & second.keys())
    if not seeds:
        return None
    differences = [second[seed] - first[seed] for seed in seeds]
    found = interval(differences)
    return Difference(found.n, found.mean, found.low, found.high, p=_p(differences))


def holm(p: Mapping[str, float]) -> dict[str, float]:
    """p-values of several comparisons, made larger so that the chance of one false alarm among all is as small as of one alone
    (Holm 1979): the k-th smallest of m times m - k + 1, and no smaller than those before it."""
    adjusted: dict[str, float] = {}
    largest = 0.0
    for k, name in enumerate(sorted(p, key=lambda name: p[name])):
        largest = max(largest, min(1.0, (len(p) - k) * p[name]))
        adjusted[name] = largest
    return adjusted


def _p(differences: Sequence[float]) -> float:
    n = len(differences)
    if n < 2:
        return math.nan
    spread = statistics.stdev(differences)
    if spread == 0:
        return 1.0 if differences[0] == 0 else 0.0
    t = statistics.fmean(differences) / (spread / math.sqrt(n))
    return float(2 * stats.t.sf(abs(t), n - 1))
