"""The look of figures: one palette, thin axes, no frame. Colours are CSS variables, so figures follow light and dark."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import TypeAlias

import matplotlib
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

from varlab.report.page.palette import PALETTE
from varlab.report.text import minus, si, significant

__all__ = [
    "DASHES", "INK", "PAPER", "TITLE",
    "clock_axis", "colour", "dashes", "draw_figure", "is_drawn", "value_axis",
]  # fmt: skip

_LEAST_RANGE = 0.05  # of the values that an axis shows: a smaller difference looks as small as it is

LineStyle: TypeAlias = str | tuple[int, tuple[float, ...]]

DASHES: tuple[LineStyle, ...] = ("-", (0, (5, 2)), (0, (1.5, 1.5)))

# Placeholders that matplotlib can draw with; _svg replaces them by variables of the page's stylesheet.
INK, GRID, PAPER, TITLE = "#010203", "#040506", "#070809", "#0a0b0c"
_VARIABLES = {INK: "ink-soft", GRID: "line", PAPER: "card", TITLE: "ink"} | {
    light: f"c{index}" for index, (light, _) in enumerate(PALETTE)
}


def colour(index: int) -> str:
    """The palette's colour for a variant, as matplotlib draws it."""
    return PALETTE[index % len(PALETTE)][0]


def dashes(index: int) -> LineStyle:
    """The line style for a variant: solid until the palette is used up."""
    return DASHES[index // len(PALETTE) % len(DASHES)]


def _theme() -> AbstractContextManager[None]:
    """matplotlib's settings while a figure is drawn. Text stays text, so that the page's font applies."""
    return matplotlib.rc_context(
        {
            "svg.fonttype": "none", "font.family": "sans-serif", "font.size": 11.5, "axes.titlecolor": TITLE,
            "axes.titlesize": 12, "axes.titlelocation": "left", "axes.titleweight": "bold", "axes.titlepad": 12,
            "axes.labelsize": 11, "axes.edgecolor": GRID, "axes.labelcolor": INK, "text.color": INK,
            "xtick.color": GRID, "ytick.color": GRID, "xtick.labelcolor": INK, "ytick.labelcolor": INK,
            "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True, "axes.axisbelow": True,
            "grid.color": GRID, "grid.linewidth": 0.8, "xtick.major.size": 0, "ytick.major.size": 0,
            "xtick.minor.size": 0, "ytick.minor.size": 0, "axes.facecolor": "none", "figure.facecolor": "none",
            "lines.linewidth": 2.0, "lines.solid_capstyle": "round", "axes.unicode_minus": True, "text.usetex": False,
        }
    )  # fmt: skip


def draw_figure(panels: Sequence[Callable[[Axes], None]], *, label: str) -> str:
    """Draw panels side by side as an ``<svg>`` element; empty without panels. label: for screen readers."""
    if not panels:
        return ""
    with _theme():
        figure, axes = _new_figure(len(panels))
        for draw, axis in zip(panels, axes, strict=True):
            draw(axis)
        return _svg(figure, label)


def _new_figure(panels: int) -> tuple[Figure, list[Axes]]:
    """A figure with at most two panels in a row, except three that share one."""
    columns = 3 if panels == 3 else min(panels, 2)
    rows = -(-panels // columns)
    layout = ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.1)
    figure = Figure(figsize=(11.4, 3.3 * rows if columns > 1 else 3.8), layout=layout)
    return figure, [figure.add_subplot(rows, columns, index + 1) for index in range(panels)]


def _svg(figure: Figure, label: str) -> str:
    """The figure as an ``<svg>`` element for the page itself: scalable, labelled, coloured by the stylesheet."""
    buffer = io.StringIO()
    # ids differ between the figures of a page, and stay the same when the page is written again
    salt = re.sub(r"\W", "", label)
    with matplotlib.rc_context({"svg.hashsalt": salt, "svg.id": f"fig{salt}"}):
        FigureCanvasSVG(figure).print_svg(buffer, metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")))
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    for placeholder, variable in _VARIABLES.items():
        text = text.replace(placeholder, f"var(--{variable})")
    text = re.sub(r'font-family: [^;"]*|font: ([\d.]+px) [^;"]*', _page_font, text)
    viewbox = re.search(r'viewBox="[^"]*"', text)
    head = f'<svg class="figure" role="img" aria-label="{label}" {viewbox.group() if viewbox else ""}'
    return re.sub(r"^<svg[^>]*", head + ' xmlns:xlink="http://www.w3.org/1999/xlink"', text, count=1)


def _page_font(match: re.Match[str]) -> str:
    return f"font-size: {match.group(1)}; font-family: inherit" if match.group(1) else "font-family: inherit"


def is_drawn(index: int, svg: str) -> bool:
    """Whether a figure contains the colour of a variant."""
    return f"var(--c{index % len(PALETTE)})" in svg


def clock_axis(axes: Axes, clock: str) -> None:
    """The horizontal axis of a training: images or FLOPs, with SI prefixes."""
    axes.set_xlabel({"images": "training images", "flops": "training FLOPs"}[clock])
    axes.xaxis.set_major_locator(MaxNLocator(nbins=6, steps=[1, 2, 2.5, 5, 10]))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: si(x)))
    axes.grid(visible=False, axis="x")
    axes.set_xlim(0, 1.04 * axes.dataLim.x1)  # a mark at the end is not cut


def value_axis(axes: Axes, values: Sequence[float], *, log: bool = False) -> None:
    """The vertical axis; with ``log``, logarithmic if the values span more than a factor of eight.

    It is wider than the values where these differ by a few percent only.
    """
    if log and values and min(values) > 0 and max(values) / min(values) > 8:
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0), numticks=12))
        axes.yaxis.set_minor_formatter(NullFormatter())
    else:
        axes.yaxis.set_major_locator(MaxNLocator(nbins=6, steps=[1, 2, 2.5, 5, 10]))
        low, high = (min(values), max(values)) if values else (0.0, 0.0)
        if high - low < (least := _LEAST_RANGE * max(abs(low), abs(high))):
            axes.set_ylim((low + high - least) / 2, (low + high + least) / 2)
    axes.yaxis.set_major_formatter(FuncFormatter(lambda y, _: _tick(y)))


def _tick(y: float) -> str:
    text = si(y) if abs(y) >= 1e4 else significant(y) if abs(y) < 1e-3 else f"{y:.4g}"
    return minus(text)
