"""The page's chapter about scaling: the laws as a table, and drawn."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullFormatter

from varlab.config import Config
from varlab.report.compare import Variant
from varlab.report.page import style
from varlab.report.page.charts import Chart
from varlab.report.stats.power_law import Array, PowerLaw
from varlab.report.stats.scaling_study import Law, Study
from varlab.report.units import si

__all__ = ["chapter"]

_AGAINST = {"N": "parameters N", "C": "least compute C"}


@dataclass(frozen=True)
class _Figure:
    against: str
    title: str
    unit: str
    about: str
    draw: Callable[[Axes, Law, Study], Array]  # → the x that the law is drawn over


def chapter(study: Study, found: Sequence[Law]) -> Config:
    """What the template is given about one study."""
    return {
        "title": f"Scaling of {study.label}" if study.label else "Scaling",
        "headline": _headline(study, found),
        "rows": [_row(law) for law in found],
        "charts": [chart for figure in _FIGURES if (chart := _chart(figure, study, found))],
    }


def _headline(study: Study, found: Sequence[Law]) -> str:
    sizes = f"{len(study.sizes)} sizes from {si(study.sizes[0])} to {si(study.sizes[-1])} parameters, {len(study.runs)} runs"
    told = [law for law in found if law.measure.key == "loss"]
    if not told:
        return f"{sizes}."
    laws = " and ".join(f"({law.against} ÷ {_scale(1 / law.fit.a)})^{_signed(law.fit.b)}" for law in told)
    return f"{sizes}. The loss goes as {laws}."


def _row(law: Law) -> dict[str, str]:
    fit = law.fit
    return {
        "measure": law.measure.label,
        "against": _AGAINST[law.against],
        "exponent": _signed(fit.b),
        "exponent_interval": _between(*map(_signed, fit.b_interval)),
        "scale": _scale(1 / fit.a),
        "scale_interval": _between(*(_scale(1 / a if a else float("inf")) for a in reversed(fit.a_interval))),
        "correlation": f"{fit.correlation:.4f}".replace("-", "−"),
        "points": str(len(fit.x)),
        "paper": "–" if law.paper is None else _signed(law.paper),
        "verdict": _against_paper(law),
    }


def _against_paper(law: Law) -> str:
    if law.paper is None:
        return ""
    low, high = law.fit.b_interval
    if low <= law.paper <= high:
        return "the interval holds it"
    return f"{'shallower' if abs(law.fit.b) < abs(law.paper) else 'steeper'} here"


def _signed(x: float) -> str:
    return f"{x:.3f}".replace("-", "−")


def _scale(x: float) -> str:
    return f"{x:.2g}".replace("e+0", "e").replace("e+", "e").replace("e-0", "e−").replace("inf", "∞")


def _between(low: str, high: str) -> str:
    return f"{low} to {high}"


# -- figures ---------------------------------------------------------------------------------------------------------------


def _chart(figure: _Figure, study: Study, found: Sequence[Law]) -> Chart | None:
    """A panel for each measure; None where no law of this kind was fitted."""
    chosen = [law for law in found if law.against == figure.against]
    if not chosen:
        return None
    with style.theme():
        canvas, axes = style.new_figure(len(chosen))
        for law, axis in zip(chosen, axes, strict=True):
            x = figure.draw(axis, law, study)
            _draw_law(axis, law.fit, x)
            _draw_paper(axis, law, x)
            _finish(axis, law, figure.unit)
        svg = style.to_svg(canvas, label=f"{figure.title}, {study.label}")
    return Chart(figure.title, svg, _legend(study), figure.about)


def _draw_sizes(axis: Axes, law: Law, study: Study) -> Array:
    """A dot a training."""
    assert law.seen is not None
    for x, y in zip(*law.seen, strict=True):
        axis.plot(x, y, "o", markersize=6, color=style.colour(study.sizes.index(int(x))), zorder=3)
    return _widened(law.fit.x)


def _draw_curves(axis: Axes, law: Law, study: Study) -> Array:
    """A line a training, the frontier on it in dots."""
    for index, curve in enumerate(law.curves):
        colour = style.colour(study.sizes.index(int(curve.size)))
        axis.plot(curve.x, curve.y, color=colour, linewidth=1.2, alpha=0.75)
        on_it = [(x, y) for at, x, y in law.points if at == index]
        axis.plot([x for x, _ in on_it], [y for _, y in on_it], "o", markersize=4, color=colour, zorder=3)
    ends = [x for _, x, _ in law.points]
    heights = [y for _, _, y in law.points]
    axis.set_ylim(min(heights) * 0.97, max(heights) * 1.06)
    return _widened(np.array([min(ends), max(ends)]))


_FIGURES = (
    _Figure("N", "Against parameters", "parameters", "Dots: the last validation of each size's longest trainings, a seed each. "
            "Line: (a·N)^b, fitted to the means over seeds; shaded: 95% interval of the line. Dotted: the slope that "
            "Tian et al. (2024) report, through the middle of the points.", _draw_sizes),
    _Figure("C", "Against compute", "training FLOPs", "Lines: validation while training, mean over seeds. Dots: the frontier, "
            "lowest of all at its compute, where two or more sizes were measured. The law is fitted to one of them a training, "
            "where it touches.", _draw_curves),
)  # fmt: skip


def _draw_law(axis: Axes, fit: PowerLaw, x: Array) -> None:
    lower, upper = fit.band(x)
    axis.fill_between(x, lower, upper, color=style.INK, alpha=0.16, linewidth=0)
    axis.plot(x, fit.at(x), color=style.TITLE, linewidth=1.6)


def _draw_paper(axis: Axes, law: Law, x: Array) -> None:
    """The paper's exponent through the middle of the points, as far as the axis reaches."""
    if law.paper is None:
        return
    middle_x, middle_y = np.exp(np.log(law.fit.x).mean()), np.exp(np.log(law.fit.y).mean())
    y = middle_y * (x / middle_x) ** law.paper
    low, high = axis.get_ylim()
    inside = (y >= low) & (y <= high)
    axis.plot(x[inside], y[inside], color=style.INK, linewidth=1.4, linestyle=style.DASHES[2])
    axis.set_ylim(low, high)


def _finish(axis: Axes, law: Law, unit: str) -> None:
    """Both axes logarithmic, with ticks at few round numbers."""
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
    """Four to nine ticks in even steps of 1, 2 or 5: a logarithmic axis over less than a decade has none of its own."""
    steps = [digit * 10.0**power for power in range(-6, 7) for digit in (1, 2, 5)]
    step = next((step for step in steps if (high - low) / step <= 7), steps[-1])
    return [float(tick) for tick in step * np.arange(np.ceil(low / step), np.floor(high / step) + 1)]


def _widened(x: Array) -> Array:
    """Sixty points over the range of x and a little beyond, even in logarithms."""
    margin = (x.max() / x.min()) ** 0.06
    return np.geomspace(x.min() / margin, x.max() * margin, 60)


def _legend(study: Study) -> list[Variant]:
    return [
        Variant(f"{si(size)} parameters", "generator", study.runs[:1], colour=index)
        for index, size in enumerate(study.sizes)
    ]
