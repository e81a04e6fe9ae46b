"""Comparing variants over seeds: confidence intervals by Student's t, and paired differences.

Two variants of one seed share the initial noise, the order of the data and the noise of sampling, so their difference
varies less than each of them.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import TypeVar

from scipy import stats

__all__ = [
    "LEVEL",
    "MeanInterval",
    "PairedDifference",
    "holm",
    "mean_interval",
    "paired_difference",
    "paired_tests",
    "stands_out",
]

LEVEL = 0.95
Key = TypeVar("Key", bound=Hashable)


@dataclass(frozen=True)
class MeanInterval:
    """A mean over ``n`` seeds with its 95% confidence interval; low and high are nan for a single seed."""

    n: int
    mean: float
    low: float
    high: float


@dataclass(frozen=True)
class PairedDifference(MeanInterval):
    """A mean difference, second minus first, over common seeds. p: of a two-sided paired t-test (nan for one seed)."""

    p: float

    @property
    def excludes_zero(self) -> bool:
        return self.n > 1 and (self.low > 0 or self.high < 0)


def mean_interval(values: Sequence[float]) -> MeanInterval:
    """The mean of at least one number, and its confidence interval by Student's t."""
    mean, n = statistics.fmean(values), len(values)
    if n < 2:
        return MeanInterval(n, mean, math.nan, math.nan)
    half = float(stats.t.ppf((1 + LEVEL) / 2, n - 1)) * statistics.stdev(values) / math.sqrt(n)
    return MeanInterval(n, mean, mean - half, mean + half)


def paired_difference(first: Mapping[int, float], second: Mapping[int, float]) -> PairedDifference | None:
    """second - first, by seed; None where they share no seed."""
    seeds = sorted(first.keys() & second.keys())
    if not seeds:
        return None
    differences = [second[seed] - first[seed] for seed in seeds]
    mean = mean_interval(differences)
    return PairedDifference(mean.n, mean.mean, mean.low, mean.high, p=_p(differences))


def stands_out(p: float) -> bool:
    """The one criterion of pages and tables. p: corrected by ``holm`` for the family of all comparisons that are shown."""
    return p < 1 - LEVEL


def paired_tests(values: Mapping[str, Mapping[int, float]]) -> dict[frozenset[str], float]:
    """p of the difference of every two variants (by seed), corrected by Holm for all pairs that share two seeds.

    With all pairs as the family, the best may be chosen first and compared with the others afterwards: the chance that any
    difference stands out that is none stays below 5%.
    """
    pairs = ((pair, paired_difference(*(values[label] for label in pair))) for pair in combinations(values, 2))
    return holm({frozenset(pair): test.p for pair, test in pairs if test is not None and test.n > 1})


def holm(p: Mapping[Key, float]) -> dict[Key, float]:
    """Correct p-values for several comparisons (Holm 1979): any false alarm is then as rare as in a single test.

    The k-th smallest of m is multiplied by m - k + 1, and raised to the one before it where that is larger.
    """
    adjusted: dict[Key, float] = {}
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
