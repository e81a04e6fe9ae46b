"""The figures of a report: each draws what the runs of variants logged, and is empty where they logged nothing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from statistics import fmean

from matplotlib.axes import Axes

from varlab.report.page import style
from varlab.report.runs import Run
from varlab.report.score_files import number
from varlab.report.variants import Variant

__all__ = ["Bars", "Panel", "bars", "curves", "fid_against_flops"]

_MOST_POINTS = 240
"""Points of a line: the page stays small, and the difference is invisible."""

_MOST_CLASSES = 40
"""Classes of a bar plot."""

_MOST_LINES = 48
"""Runs of a plot: of many seeds the first are drawn."""


@dataclass(frozen=True)
class Panel:
    """One small line plot of metrics against a clock. names: of the metrics, where several differ by their dashes."""

    title: str
    metrics: tuple[str, ...]
    clock: str
    unit: str
    log: bool = False
    names: tuple[str, ...] = ()


def curves(variants: Sequence[Variant], panels: Sequence[Panel], *, label: str) -> str:
    """Line plots, one for each panel of which a run logged two points."""
    variants = _few_seeds(variants)
    drawn = [panel for panel in panels if any(_lines(variant, panel) for variant in variants)]
    return style.draw_figure([partial(_draw_panel, panel=panel, variants=variants) for panel in drawn], label=label)


def _few_seeds(variants: Sequence[Variant]) -> list[Variant]:
    most = max(_MOST_LINES // max(len(variants), 1), 1)
    return [replace(variant, runs=variant.runs[:most]) for variant in variants]


def _lines(variant: Variant, panel: Panel) -> list[tuple[int, list[float], list[float]]]:
    """(index of the metric, x, y) for every run and metric with at least two points."""
    lines = [
        (index, *thin(*run.series(metric, panel.clock)))
        for run in variant.runs
        for index, metric in enumerate(panel.metrics)
    ]
    return [line for line in lines if len(line[1]) > 1]


def _draw_panel(axis: Axes, panel: Panel, variants: Sequence[Variant]) -> None:
    values: list[float] = []
    for variant in variants:
        for index, x, y in _lines(variant, panel):
            dashes = style.DASHES[index % 3] if len(panel.metrics) > 1 else style.dashes(variant.colour)
            axis.plot(x, y, color=style.colour(variant.colour), linestyle=dashes, alpha=0.9)
            values += y
    axis.set_title(panel.title)
    axis.set_ylabel(panel.unit)
    style.value_axis(axis, values, log=panel.log)
    style.clock_axis(axis, panel.clock)
    for index, name in enumerate(panel.names):
        axis.plot([], [], color=style.INK, linestyle=style.DASHES[index % 3], label=name)
    if panel.names:
        axis.legend(frameon=False, fontsize=10.5, ncols=2, loc="upper center", bbox_to_anchor=(0.5, -0.22))


def thin(x: Sequence[float], y: Sequence[float]) -> tuple[list[float], list[float]]:
    """Average neighbouring points, so that a long series keeps at most a few hundred."""
    size = -(-len(x) // _MOST_POINTS) or 1
    starts = range(0, len(x), size)
    return [fmean(x[i : i + size]) for i in starts], [fmean(y[i : i + size]) for i in starts]


def fid_against_flops(variants: Sequence[Variant]) -> str:
    """FID while training (line) and the final score under its protocol (diamond) against training FLOPs.

    Empty where no run has two points.
    """
    runs = [(variant, run) for variant in _few_seeds(variants) for run in variant.runs]
    tracks = [(variant, *run.series("val/fid", "flops"), _final(run)) for variant, run in runs]
    tracks = [(variant, x, y, final) for variant, x, y, final in tracks if x or final]
    drawn = any(len(x) + bool(final) > 1 for _, x, _, final in tracks)
    panels = [partial(_draw_fid, tracks=tracks)] if drawn else []
    return style.draw_figure(panels, label="FID against training FLOPs")


Final = tuple[float, float] | None


def _draw_fid(axis: Axes, tracks: Sequence[tuple[Variant, list[float], list[float], Final]]) -> None:
    values: list[float] = []
    for variant, x, y, final in tracks:
        colour, dashes = style.colour(variant.colour), style.dashes(variant.colour)
        axis.plot(x, y, marker="o", markersize=4, linestyle=dashes, color=colour)
        if final:
            axis.plot(*final, "D", color=colour, markersize=10, markeredgecolor=style.PAPER, markeredgewidth=1.5)
        values += y + ([final[1]] if final else [])
    axis.set_ylabel("FID (lower is better)")
    style.value_axis(axis, values, log=True)
    style.clock_axis(axis, "flops")


def _final(run: Run) -> Final:
    flops, fid = run.total("flops"), run.value("fid")
    return None if fid is None or flops is None else (flops, fid)


@dataclass(frozen=True)
class Bars:
    """One small bar plot of a metric over the scales of a tokenizer or the levels of a sequence."""

    title: str
    metric: str
    unit: str
    scale: float = 1.0

    def heights(self, variant: Variant) -> list[float]:
        """The mean over runs for each scale, coarse to fine; empty where no run has the metric."""
        per_run = [heights for run in variant.runs if (heights := _heights(run, self.metric))]
        return [self.scale * fmean(level) for level in zip(*per_run, strict=False)]


def bars(variants: Sequence[Variant], plots: Sequence[Bars], *, xlabel: str, label: str) -> str:
    """Bar plots, one for each metric that a run has."""
    heights = {plot: [(v, of_it) for v in variants if (of_it := plot.heights(v))] for plot in plots}
    panels = [partial(_draw_bars, plot=plot, bars=of_it, xlabel=xlabel) for plot, of_it in heights.items() if of_it]
    return style.draw_figure(panels, label=label)


def _heights(run: Run, metric: str) -> list[float]:
    """A metric for each scale: from the score, else from validation, else from training. ``by_class/…``: for each class."""
    part, _, name = metric.partition("/")
    if part == "by_class":
        values = run.score.by_class.get(name) if run.score else None
        known = values if isinstance(values, list) and len(values) <= _MOST_CLASSES else []
        return [number(value) or 0.0 for value in known]
    scored: list[float] = []
    while run.score and (height := run.score.get(f"{metric}/{len(scored)}")) is not None:
        scored.append(height)
    return scored or run.per_scale(f"val/{metric}") or run.per_scale(f"train/{metric}")


def _draw_bars(axis: Axes, plot: Bars, bars: Sequence[tuple[Variant, list[float]]], xlabel: str) -> None:
    width = 0.8 / len(bars)
    for index, (variant, heights) in enumerate(bars):
        x = [level + (index - (len(bars) - 1) / 2) * width for level in range(len(heights))]
        axis.bar(x, heights, width=width * 0.9, color=style.colour(variant.colour))
    axis.set_xticks(range(max(len(heights) for _, heights in bars)))
    axis.grid(visible=False, axis="x")
    style.value_axis(axis, [0.0, *(height for _, heights in bars for height in heights)])
    axis.set_title(plot.title)
    axis.set_ylabel(plot.unit)
    axis.set_xlabel(xlabel)
