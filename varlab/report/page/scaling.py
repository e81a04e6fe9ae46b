"""The page's chapter on a scaling study: its laws as a table and as figures."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullFormatter

from varlab.config import Config
from varlab.report.page import style
from varlab.report.page.charts import Chart
from varlab.report.stats.power_law import Array, PowerLawFit
from varlab.report.stats.scaling_study import ScalingLaw, ScalingStudy
from varlab.report.text import minus, si
from varlab.report.variants import Variant

__all__ = ["scaling_chapter"]

_AGAINST = {"N": "blocks' parameters N", "P": "all parameters P", "C": "least compute C"}


def scaling_chapter(study: ScalingStudy, laws: Sequence[ScalingLaw]) -> Config:
    """What the template needs about one study."""
    return {
        "title": f"Scaling of {study.label}" if study.label else "Scaling",
        "headline": _headline(study, laws),
        "rows": [_row(law) for law in laws],
        "charts": [chart for figure in _FIGURES if (chart := _chart(figure, study, laws))],
    }


def _headline(study: ScalingStudy, laws: Sequence[ScalingLaw]) -> str:
    sizes = f"{len(study.sizes)} sizes from {si(study.sizes[0])} to {si(study.sizes[-1])} parameters, {len(study.runs)} runs"
    terms = [
        f"({law.against} ÷ {_scale(_inverse(law.fit.a))})^{_exponent(law.fit.b)}"
        for law in laws
        if law.measure.key == "loss"
    ]
    law = f" The loss goes as {' and '.join(terms)}." if terms else ""
    return f"{sizes}.{law} {study.saving}".rstrip()


def _row(law: ScalingLaw) -> dict[str, str]:
    fit = law.fit
    return {
        "measure": law.measure.label,
        "against": _AGAINST[law.against],
        "exponent": _exponent(fit.b),
        "exponent_interval": " to ".join(map(_exponent, fit.b_interval)),
        "scale": _scale(_inverse(fit.a)),
        "scale_interval": " to ".join(_scale(_inverse(a)) for a in reversed(fit.a_interval)),
        "correlation": minus(f"{fit.correlation:.4f}"),
        "points": str(len(fit.x)),
        "paper": "–" if law.paper is None else _exponent(law.paper),
        "comparison": _compare_to_paper(law),
        **_floor(law),
    }


def _floor(law: ScalingLaw) -> dict[str, str]:
    """The fit with a floor, and whether a line is enough."""
    floor = law.floor
    if floor is None:
        return dict.fromkeys(("floor", "floor_interval", "above", "above_interval", "bends"), "–")
    return {
        "floor": f"{floor.floor:.3g}",
        "floor_interval": " to ".join(f"{end:.3g}" for end in floor.floor_interval),
        "above": _exponent(floor.b),
        "above_interval": " to ".join(_exponent(end).replace("inf", "∞") for end in floor.b_interval),
        "bends": "bends: no line" if floor.bends else "a line fits",
    }


def _compare_to_paper(law: ScalingLaw) -> str:
    if law.paper is None:
        return ""
    low, high = law.fit.b_interval
    if low <= law.paper <= high:
        return "within the interval"
    return f"{'shallower' if abs(law.fit.b) < abs(law.paper) else 'steeper'} here"


def _exponent(x: float) -> str:
    return minus(f"{x:.3f}")


def _inverse(a: float) -> float:
    """Where a law is 1; infinity for a law so flat that its ``a`` is 0."""
    return 1 / a if a else float("inf")


def _scale(x: float) -> str:
    return f"{x:.2g}".replace("e+0", "e").replace("e+", "e").replace("e-0", "e−").replace("inf", "∞")


# -- figures -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Figure:
    against: str
    title: str
    unit: str
    about: str
    draw: Callable[[Axes, ScalingLaw, ScalingStudy], Array]  # → the x over which the law is drawn


def _chart(figure: _Figure, study: ScalingStudy, laws: Sequence[ScalingLaw]) -> Chart | None:
    """A panel for each measure; None where no law of this kind was fitted."""
    panels = [
        partial(_draw_panel, law=law, study=study, figure=figure) for law in laws if law.against == figure.against
    ]
    svg = style.draw_figure(panels, label=f"{figure.title}, {study.label}")
    return Chart(figure.title, svg, _legend(study), figure.about) if svg else None


def _draw_panel(axis: Axes, law: ScalingLaw, study: ScalingStudy, figure: _Figure) -> None:
    x = figure.draw(axis, law, study)
    _draw_law(axis, law.fit, x)
    if law.floor is not None:
        axis.plot(x, law.floor.at(x), color=style.TITLE, linewidth=1.2, linestyle=style.DASHES[1])
    _draw_paper(axis, law, x)
    _label_axes(axis, law, figure.unit)


def _draw_sizes(axis: Axes, law: ScalingLaw, study: ScalingStudy) -> Array:
    """A dot for each training."""
    assert law.seen is not None
    sizes = sorted(set(law.seen[0]))
    for x, y in zip(*law.seen, strict=True):
        axis.plot(x, y, "o", markersize=6, color=style.colour(sizes.index(x)), zorder=3)
    return _widened(law.fit.x)


def _draw_curves(axis: Axes, law: ScalingLaw, study: ScalingStudy) -> Array:
    """A line for each training, with dots where it is on the frontier."""
    for index, curve in enumerate(law.curves):
        colour = style.colour(study.sizes.index(int(curve.size)))
        axis.plot(curve.x, curve.y, color=colour, linewidth=1.2, alpha=0.75)
        on_it = [(x, y) for at, x, y in law.points if at == index]
        axis.plot([x for x, _ in on_it], [y for _, y in on_it], "o", markersize=4, color=colour, zorder=3)
    _, x, y = np.array(law.points).T
    axis.set_ylim(min(y) * 0.97, max(y) * 1.06)
    return _widened(x)


_DOTS = (
    "Dots: the last validation of each size's longest trainings, one for each seed. Line: (a·x)^b, fitted to the means over "
    "seeds; shaded: its 95% interval if the law is a line. Dashed: the fit with a floor."
)
_FIGURES = (
    _Figure("N", "Against the blocks' parameters", "parameters of the blocks", f"{_DOTS} Dotted: the slope that Tian et al. "
            "(2024) report, through the middle of the points; they count the blocks, too.", _draw_sizes),
    _Figure("P", "Against all parameters", "parameters", _DOTS, _draw_sizes),
    _Figure("C", "Against compute", "training FLOPs", "Lines: validation during training, mean over seeds. Dots: the compute "
            "frontier, the lowest values at their compute, where two or more sizes were measured. The law is fitted to one "
            "dot for each training: the one that touches it. Dashed: the same with a floor.", _draw_curves),
)  # fmt: skip


def _draw_law(axis: Axes, fit: PowerLawFit, x: Array) -> None:
    lower, upper = fit.band(x)
    axis.fill_between(x, lower, upper, color=style.INK, alpha=0.16, linewidth=0)
    axis.plot(x, fit.at(x), color=style.TITLE, linewidth=1.6)


def _draw_paper(axis: Axes, law: ScalingLaw, x: Array) -> None:
    """The paper's exponent through the middle of the points, within the limits of the axis."""
    if law.paper is None:
        return
    middle_x, middle_y = np.exp(np.log(law.fit.x).mean()), np.exp(np.log(law.fit.y).mean())
    y = middle_y * (x / middle_x) ** law.paper
    low, high = axis.get_ylim()
    inside = (y >= low) & (y <= high)
    axis.plot(x[inside], y[inside], color=style.INK, linewidth=1.4, linestyle=style.DASHES[2])
    axis.set_ylim(low, high)


def _label_axes(axis: Axes, law: ScalingLaw, unit: str) -> None:
    """Make both axes logarithmic, with ticks at few round numbers."""
    axis.set_xscale("log")
    axis.set_yscale("log")
    axis.set_title(law.measure.label)
    axis.set_ylabel(law.measure.unit)
    axis.set_xlabel(unit)
    axis.xaxis.set_major_locator(LogLocator(numticks=9))
    axis.xaxis.set_major_formatter(FuncFormatter(lambda x, _: si(x)))
    axis.yaxis.set_major_locator(FixedLocator(_round_numbers(*axis.get_ylim())))
    axis.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:.4g}"))
    axis.yaxis.set_minor_formatter(NullFormatter())
    axis.xaxis.set_minor_formatter(NullFormatter())


def _round_numbers(low: float, high: float) -> list[float]:
    """Four to nine ticks in even steps of 1, 2 or 5; matplotlib sets none on a logarithmic axis shorter than a decade."""
    steps = [digit * 10.0**power for power in range(-6, 7) for digit in (1, 2, 5)]
    step = next((step for step in steps if (high - low) / step <= 7), steps[-1])
    return [float(tick) for tick in step * np.arange(np.ceil(low / step), np.floor(high / step) + 1)]


def _widened(x: Array) -> Array:
    """Sixty points, evenly spaced in logarithms, over the range of x and a little beyond."""
    margin = (x.max() / x.min()) ** 0.06
    return np.geomspace(x.min() / margin, x.max() * margin, 60)


def _legend(study: ScalingStudy) -> list[Variant]:
    return [
        Variant(f"{si(size)} parameters", "generator", study.runs[:1], colour=index)
        for index, size in enumerate(study.sizes)
    ]
