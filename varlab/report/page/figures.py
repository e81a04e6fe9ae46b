"""The figures of a report. Each takes variants, draws what their runs logged, and is None where they logged nothing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

from matplotlib.axes import Axes

from varlab.report.compare import Variant
from varlab.report.page import style
from varlab.report.read import Run, Score

__all__ = ["Panel", "codebook", "curves", "fid_against_flops", "per_level"]

_POINTS = 240
"""A line keeps at most this many points: the page stays small, and the eye can't tell."""


@dataclass(frozen=True)
class Panel:
    """One small plot: metrics against a clock. Several metrics in a panel are told apart by their dashes."""

    title: str
    metrics: tuple[str, ...]
    clock: str
    unit: str
    log: bool = False
    names: tuple[str, ...] = ()  # what the dashes mean, where there are several metrics


def curves(variants: Sequence[Variant], panels: Sequence[Panel], *, label: str) -> str | None:
    """Line plots, a panel each; panels for which nobody logged two points are left out."""
    drawn = [panel for panel in panels if any(_lines(variant, panel) for variant in variants)]
    if not drawn:
        return None
    with style.theme():
        figure, axes = style.new_figure(len(drawn))
        for panel, axis in zip(drawn, axes, strict=True):
            _draw_panel(axis, panel, variants)
        return style.to_svg(figure, label=label)


def _lines(variant: Variant, panel: Panel) -> list[tuple[int, list[float], list[float]]]:
    """(index of the metric, x, y) for every run and metric with at least two points."""
    found = [
        (index, *thin(*run.series(metric, panel.clock)))
        for run in variant.runs
        for index, metric in enumerate(panel.metrics)
    ]
    return [line for line in found if len(line[1]) > 1]


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
    """Means over equal runs of points, so that at most a few hundred remain; short series stay as they are."""
    size = -(-len(x) // _POINTS) or 1
    starts = range(0, len(x), size)
    return [fmean(x[i : i + size]) for i in starts], [fmean(y[i : i + size]) for i in starts]


def fid_against_flops(variants: Sequence[Variant], scores: dict[Path, Score | None]) -> str | None:
    """FID while training (line), and the final score under its protocol (diamond), against training FLOPs."""
    runs = [(variant, run) for variant in variants for run in variant.runs]
    tracks = [(variant, *run.series("val/fid", "flops"), _final(run, scores)) for variant, run in runs]
    tracks = [track for track in tracks if track[1] or track[3]]
    if not tracks:
        return None
    with style.theme():
        figure, (axis,) = style.new_figure(1)
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
        return style.to_svg(figure, label="FID against training FLOPs")


def _final(run: Run, scores: dict[Path, Score | None]) -> tuple[float, float] | None:
    score, flops = scores.get(run.path), run.total("flops")
    fid = score.get("fid") if score else None
    return None if fid is None or flops is None else (flops, fid)


def codebook(variants: Sequence[Variant], scores: dict[Path, Score | None]) -> str | None:
    """Codebook usage and perplexity per scale, as bars: the score's where there is one, else as last logged."""
    panels = [("usage", "Codebook usage per scale", "codes in use (%)", 100.0),
              ("perplexity", "Codebook perplexity per scale", "codes, effective number", 1.0)]  # fmt: skip
    bars = {key: _bars(variants, key, scores, scale) for key, _, _, scale in panels}
    return _bar_figure([(bars[key], title, unit) for key, title, unit, _ in panels], "scale, coarse to fine",
                       label="Codebook usage and perplexity per scale")  # fmt: skip


def per_level(variants: Sequence[Variant]) -> str | None:
    """Validation loss and accuracy of each level's tokens, as bars."""
    parts = [(_bars(variants, "loss", {}, 1.0), "Loss per level", "nats per token"),
             (_bars(variants, "accuracy", {}, 100.0), "Accuracy per level", "tokens predicted right (%)")]  # fmt: skip
    return _bar_figure(parts, "level, coarse to fine", label="Validation loss and accuracy per level")


def _bars(
    variants: Sequence[Variant], key: str, scores: dict[Path, Score | None], scale: float
) -> list[tuple[Variant, list[float]]]:
    found = []
    for variant in variants:
        per_run = [heights for run in variant.runs if (heights := _heights(run, scores.get(run.path), key))]
        if per_run:
            found.append((variant, [scale * fmean(level) for level in zip(*per_run, strict=False)]))
    return found


def _heights(run: Run, score: Score | None, key: str) -> list[float]:
    """Per-scale values, coarse to fine: measured ones before validation's, validation's before training's."""
    measured: list[float] = []
    while score and (height := score.get(f"{key}/{len(measured)}")) is not None:
        measured.append(height)
    return measured or run.per_scale(f"val/{key}") or run.per_scale(f"train/{key}")


def _bar_figure(
    parts: Sequence[tuple[list[tuple[Variant, list[float]]], str, str]], xlabel: str, *, label: str
) -> str | None:
    parts = [part for part in parts if part[0]]
    if not parts:
        return None
    with style.theme():
        figure, axes = style.new_figure(len(parts))
        for (bars, title, unit), axis in zip(parts, axes, strict=True):
            _draw_bars(axis, bars)
            axis.set_title(title)
            axis.set_ylabel(unit)
            axis.set_xlabel(xlabel)
        return style.to_svg(figure, label=label)


def _draw_bars(axis: Axes, bars: Sequence[tuple[Variant, list[float]]]) -> None:
    width = 0.8 / len(bars)
    for index, (variant, heights) in enumerate(bars):
        x = [level + (index - (len(bars) - 1) / 2) * width for level in range(len(heights))]
        axis.bar(x, heights, width=width * 0.9, color=style.colour(variant.colour))
    axis.set_xticks(range(max(len(heights) for _, heights in bars)))
    axis.grid(visible=False, axis="x")
    style.value_axis(axis, [height for _, heights in bars for height in heights])
