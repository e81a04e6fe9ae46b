"""Power laws: the fit and its bootstrap intervals. No run is read here.

A power law y = (a·x)^b (Tian et al. 2024, after Kaplan et al. 2020) is a line in logarithms: log y = b·(log x + log a).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from varlab.errors import VarlabError

__all__ = ["FEWEST", "LEVEL", "Array", "Bounds", "PowerLawFit", "fit_power_law", "means"]

FEWEST = 4
"""Different x that a fit needs: with three, one degree of freedom is left and the interval is too wide to be of use."""

LEVEL = 0.95
_TINY = 1e-300  # smallest standard error, for points exactly on the line
_LARGEST = 690.0  # logarithm whose exponential is still finite

Array = NDArray[np.float64]
Bounds = tuple[float, float]
"""Lower and upper end of a 95% interval."""


@dataclass(frozen=True)
class _Lines:
    """Least-squares lines through points at the same log_x: one, or one for each draw. sigma: residual deviation."""

    log_x: Array
    mean: Array
    slope: Array
    sigma: Array

    @property
    def spread(self) -> float:
        """Σ (log x - mean)²."""
        return float(((self.log_x - self.log_x.mean()) ** 2).sum())

    def slopes(self) -> tuple[Array, Array]:
        """Each line's slope, and its standard error."""
        return self.slope, self.sigma / np.sqrt(self.spread)

    def heights(self, log_x: Array) -> tuple[Array, Array]:
        """Each line's values at some points (the last dimension), and their standard errors."""
        off = log_x - self.log_x.mean()
        width = np.sqrt(1 / len(self.log_x) + off**2 / self.spread)
        return self.mean[..., None] + self.slope[..., None] * off, self.sigma[..., None] * width

    def log_scales(self) -> tuple[Array, Array]:
        """log a = mean / slope - mean of log x, and its standard error to first order (the delta method)."""
        variance = 1 / len(self.log_x) / self.slope**2 + self.mean**2 / self.slope**4 / self.spread
        return self.mean / self.slope - self.log_x.mean(), self.sigma * np.sqrt(variance)


@dataclass(frozen=True)
class PowerLawFit:
    """y = (a·x)^b with 95% intervals. correlation: Pearson's, of log x and log y. x, y: the fitted points, x ascending."""

    a: float
    b: float
    a_interval: Bounds
    b_interval: Bounds
    correlation: float
    x: Array
    y: Array
    _line: _Lines
    _draws: _Lines

    def at(self, x: ArrayLike) -> Array:
        """The fitted values."""
        values: Array = np.exp(self._line.heights(np.log(x))[0])
        return values

    def band(self, x: ArrayLike) -> tuple[Array, Array]:
        """Lower and upper edge of the line's 95% interval at each x (the interval of a new measurement would be wider)."""
        log_x = np.log(x)
        lower, upper = _interval(self._line, self._draws, lambda lines: lines.heights(log_x))
        return np.exp(lower), np.exp(upper)


def fit_power_law(x: ArrayLike, y: ArrayLike, *, draws: int = 4999, seed: int = 0) -> PowerLawFit:
    """Fit y = (a·x)^b by least squares in logarithms; points of equal x (seeds of one size) count as their mean.

    Intervals are a residual bootstrap-t (Efron & Tibshirani 1993, ch. 12.5). Each draw shuffles the residuals, divided by
    √(1 - leverage), over the points and gives each a random sign. The interval's half-width, in standard errors of the
    estimate, is the 95% quantile of the draws' deviations, each in its own standard errors. Plain percentiles of the draws
    would be too narrow for the few sizes of a study. Averaging over seeds first keeps the intervals correct where a size
    misses the line by more than its seeds scatter.

    Raises VarlabError where an x or y is not above 0, or fewer than FEWEST different x are given.
    """
    different, log_y = means(x, y)
    if len(different) < FEWEST:
        raise VarlabError(f"A power law needs at least {FEWEST} different x, not {len(different)}: train more sizes.")
    log_x = np.log(different)
    line = _least_squares(log_x, log_y)
    fitted, _ = line.heights(log_x)
    residuals = log_y - fitted
    adjusted = residuals / np.sqrt(1 - 1 / len(log_x) - (log_x - log_x.mean()) ** 2 / line.spread)
    rng = np.random.default_rng(seed)
    shuffled = rng.permuted(np.tile(adjusted, (draws, 1)), axis=1) * rng.choice([-1.0, 1.0], (draws, len(log_x)))
    drawn = _least_squares(log_x, fitted + shuffled)
    with np.errstate(all="ignore"):  # with slope 0, a is undefined and its interval is everything
        log_a, _ = line.log_scales()
        a_lower, a_upper = _interval(line, drawn, _Lines.log_scales)
    b_lower, b_upper = _interval(line, drawn, _Lines.slopes)
    return PowerLawFit(
        a=_exp(log_a),
        b=float(line.slope),
        a_interval=(_exp(a_lower), _exp(a_upper)),
        b_interval=(float(b_lower), float(b_upper)),
        correlation=_correlation(log_x, log_y),
        x=different,
        y=np.exp(log_y),
        _line=line,
        _draws=drawn,
    )


def means(x: ArrayLike, y: ArrayLike) -> tuple[Array, Array]:
    """The different x in ascending order, and the mean logarithm of y at each; VarlabError where one is not above 0."""
    given_x, given_y = np.asarray(x, dtype=float), np.asarray(y, dtype=float)
    if not ((given_x > 0) & (given_y > 0) & np.isfinite(given_x) & np.isfinite(given_y)).all():
        raise VarlabError("A power law needs numbers above 0: leave out the others.")
    different, where = np.unique(given_x, return_inverse=True)
    return different, np.bincount(where, np.log(given_y)) / np.bincount(where)


def _least_squares(log_x: Array, log_y: Array) -> _Lines:
    """Fit a line to each row of log_y."""
    centred = log_x - log_x.mean()
    mean, slope = log_y.mean(-1), log_y @ centred / (centred @ centred)
    left = log_y - mean[..., None] - slope[..., None] * centred
    return _Lines(log_x, mean, slope, np.sqrt((left**2).sum(-1) / (len(log_x) - 2)))


def _interval(line: _Lines, draws: _Lines, statistic: Callable[[_Lines], tuple[Array, Array]]) -> tuple[Array, Array]:
    """Symmetric bootstrap-t: the estimate ± the 95% quantile of |deviation| / error over the draws, times its own error."""
    estimate, error = statistic(line)
    drawn, errors = statistic(draws)
    half = error * np.quantile(np.abs(drawn - estimate) / np.maximum(errors, _TINY), LEVEL, axis=0)
    return estimate - half, estimate + half


def _correlation(log_x: Array, log_y: Array) -> float:
    return float(np.corrcoef(log_x, log_y)[0, 1]) if np.ptp(log_y) > 0 else 0.0


def _exp(log: Array) -> float:
    """The exponential; infinity beyond what a float holds."""
    return float("inf") if log > _LARGEST else float(np.exp(log))
