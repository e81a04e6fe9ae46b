"""Scaling studies among the runs of a report: generators that differ in size and budget alone, and the laws they follow."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from varlab.report.compare import science
from varlab.report.read import Run, number
from varlab.report.stats.frontier import Curve, Point, frontier, frontier_law
from varlab.report.stats.power_law import FEWEST, Array, PowerLaw, fit_power_law
from varlab.run.record import Use, flatten

__all__ = ["MEASURES", "Law", "Measure", "Study", "laws", "scaling_csv", "scaling_table", "studies"]


@dataclass(frozen=True)
class Measure:
    """What is fitted: a metric of a validation, or 1 minus it; and the exponents that Tian et al. (2024) report for it
    over parameters N and over the least compute C; None where they are not at hand."""

    key: str
    label: str
    unit: str
    metric: str
    error: bool  # 1 - metric
    paper_N: float | None
    paper_C: float | None

    def value(self, line: Mapping[str, Any]) -> float | None:
        """The measure at a log point, None where it was not validated there or is not above 0.

        An accuracy counts only beside a loss: in-training scores log their judge's under the same name.
        """
        measured = number(line.get(self.metric))
        if measured is None or number(line.get("val/loss")) is None:
            return None
        measured = 1 - measured if self.error else measured
        return measured if measured > 0 else None


MEASURES = (
    Measure("loss", "Loss, all levels", "nats per token", "val/loss", False, -0.20, -0.16),
    Measure("loss/last", "Loss, last level", "nats per token", "val/loss/last", False, -0.23, -0.13),
    Measure("error", "Error rate, all levels", "share of tokens wrong", "val/accuracy", True, -0.010, None),
    Measure("error/last", "Error rate, last level", "share of tokens wrong", "val/accuracy/last", True, -0.016, None),
)


@dataclass(frozen=True)
class Study:
    """Finished generators of at least FEWEST sizes, alike in all but size, budget and seed. sizes: their parameters,
    ascending."""

    label: str
    runs: tuple[Run, ...]
    sizes: tuple[int, ...]

    @property
    def measures(self) -> list[Measure]:
        """With a single level the last one says nothing of its own."""
        levelled = any(len(run.per_scale("val/loss")) > 1 for run in self.runs)
        return [measure for measure in MEASURES if levelled or not measure.key.endswith("/last")]

    def longest(self, measure: Measure) -> tuple[list[int], list[float]]:
        """(parameters, last validation) of each size's longest trainings: what N is held against."""
        most = {size: max(_images(run) for run in self.runs if _size(run) == size) for size in self.sizes}
        ends = [
            (_size(run), found[-1])
            for run in self.runs
            if _images(run) == most[_size(run)] and (found := _track(run, measure)[1])
        ]
        return [size for size, _ in ends], [value for _, value in ends]

    def curves(self, measure: Measure) -> list[Curve]:
        """A curve for each size and budget over training FLOPs: the geometric mean over seeds, where all have a point."""
        groups: dict[tuple[int, float], list[dict[float, float]]] = {}
        for run in self.runs:
            track = dict(zip(*_track(run, measure), strict=True))
            groups.setdefault((_size(run), _images(run)), []).append(track)
        return [
            Curve(float(size), np.array(common), np.exp([np.mean([np.log(t[x]) for t in tracks]) for x in common]))
            for (size, _), tracks in sorted(groups.items())
            if (common := sorted(set.intersection(*map(set, tracks))))
        ]


@dataclass(frozen=True)
class Law:
    """One line of the table: a measure against parameters ("N") or the least compute ("C")."""

    measure: Measure
    against: str
    fit: PowerLaw
    paper: float | None
    curves: tuple[Curve, ...] = ()
    points: tuple[Point, ...] = ()  # of the frontier
    seen: tuple[Array, Array] | None = None  # every training that went into a law of N


def studies(runs: Sequence[Run]) -> list[Study]:
    """The scaling studies there are, by what they share; none where sizes are too few for a fit."""
    groups: dict[str, list[Run]] = {}
    for run in runs:
        if run.kind == "generator" and run.finished and _size(run):
            groups.setdefault(_shared(run), []).append(run)
    found = [
        Study(group[0].order, tuple(group), tuple(sorted({_size(run) for run in group}))) for group in groups.values()
    ]
    found = [study for study in found if len(study.sizes) >= FEWEST]
    labels = [study.label for study in found]
    return [
        replace(study, label=f"{study.label}, {_folder(study)}") if labels.count(study.label) > 1 else study
        for study in found
    ]


def laws(study: Study) -> list[Law]:
    """Of every measure, against parameters and against compute, as far as there are points for a fit."""
    return [
        law for measure in study.measures for law in (_over_size(study, measure), _over_compute(study, measure)) if law
    ]


def _over_size(study: Study, measure: Measure) -> Law | None:
    x, y = study.longest(measure)
    if len(set(x)) < FEWEST:
        return None
    seen = (np.array(x, dtype=float), np.array(y))
    return Law(measure, "N", fit_power_law(x, y), measure.paper_N, seen=seen)


def _over_compute(study: Study, measure: Measure) -> Law | None:
    curves = study.curves(measure)
    points = frontier(curves)
    fit = frontier_law(points)
    if fit is None:
        return None
    return Law(measure, "C", fit, measure.paper_C, curves=tuple(curves), points=tuple(points))


def _track(run: Run, measure: Measure) -> tuple[list[float], list[float]]:
    """A measure over a training's FLOPs."""
    pairs = ((number(line.get("flops")), measure.value(line)) for line in run.metrics)
    points = {x: y for x, y in pairs if x and y is not None}
    return list(points), list(points.values())


def _size(run: Run) -> int:
    """Parameters, 0 where the record has none."""
    return int(number(run.part("cost").get("parameters")) or 0)


def _images(run: Run) -> float:
    return run.total("images") or 0.0


def _shared(run: Run) -> str:
    """All that the runs of a study have in common, the tokenizer's weights and the images included."""
    config = science(run.config, Use.SCIENCE | Use.SCALING)
    tokenizer = flatten(run.part("parents")).get("tokenizer.weights_sha256")
    return json.dumps([run.order, tokenizer, run.part("data").get("hash"), config], sort_keys=True, default=str)


def _folder(study: Study) -> str:
    return Path(study.runs[0].path).parent.as_posix()


def scaling_table(found: Sequence[Law]) -> list[str]:
    """The laws of a study as a table in Markdown: exponents beside the paper's."""
    lines = ["| L = (a·x)^b | x | b | of the paper | a | correlation | points |", "|---|---|---|---|---|---|---|"]
    for law in found:
        fit, x = law.fit, {"N": "parameters", "C": "least FLOPs"}[law.against]
        low, high = fit.b_interval
        lines.append(
            f"| {law.measure.label} | {x} | {fit.b:.3f} [{low:.3f}, {high:.3f}] | {'' if law.paper is None else law.paper} "
            f"| {fit.a:.2e} | {fit.correlation:.4f} | {len(fit.x)} |"
        )
    return lines


def scaling_csv(found: Mapping[str, Sequence[Law]]) -> str:
    """The text of scaling.csv: a row for every law of every study. a is per parameter, or per FLOP."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["study", "measure", "against", "b", "b_low", "b_high", "a", "a_low", "a_high", "correlation", "points",
                     "smallest", "largest", "paper_b"])  # fmt: skip
    for study, of_it in found.items():
        for law in of_it:
            fit = law.fit
            writer.writerow([study, law.measure.key, law.against, fit.b, *fit.b_interval, fit.a, *fit.a_interval,
                             fit.correlation, len(fit.x), fit.x[0], fit.x[-1], law.paper])  # fmt: skip
    return text.getvalue()
