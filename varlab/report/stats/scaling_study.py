"""Scaling studies among the runs of a report: generators that differ in size and budget only, and their scaling laws."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from varlab.config import Config
from varlab.report.runs import Run, science
from varlab.report.score_files import number
from varlab.report.stats.floor_fit import FloorFit, fit_above_floor
from varlab.report.stats.frontier import LossCurve, Point, compute_frontier, fit_frontier
from varlab.report.stats.power_law import FEWEST, Array, PowerLawFit, fit_power_law
from varlab.report.text import csv_text, markdown_table, percent
from varlab.run.config_keys import Use
from varlab.run.record import Parent

__all__ = ["Measure", "ScalingLaw", "ScalingStudy", "find_studies", "fit_laws", "scaling_csv", "scaling_table"]


@dataclass(frozen=True)
class Measure:
    """What is fitted: a validation metric, or 1 minus it. paper_N, paper_C: the exponents that Tian et al. (2024) report
    over the blocks' parameters N and over the least compute C; None where they report none."""

    key: str
    label: str
    unit: str
    metric: str
    error: bool  # 1 - metric
    paper_N: float | None
    paper_C: float | None

    def value(self, line: Config) -> float | None:
        """The measure at a log point; None where it was not validated there or is not above 0.

        An accuracy counts only beside a loss: scoring during training logs the judge's accuracy under the same name.
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
class ScalingStudy:
    """Finished generators of at least FEWEST sizes that differ in size, budget and seed only. sizes: parameters, ascending."""

    label: str
    runs: tuple[Run, ...]
    sizes: tuple[int, ...]

    @property
    def measures(self) -> list[Measure]:
        """The measures to fit; with a single level, the last level is all levels."""
        has_levels = any(len(run.per_scale("val/loss")) > 1 for run in self.runs)
        return [measure for measure in MEASURES if has_levels or not measure.key.endswith("/last")]

    @property
    def flops(self) -> tuple[float, float]:
        """Training FLOPs: as they were spent, where runs share the state of a trunk (``from=``); and of each run alone."""
        alone = sum(run.total("flops") or 0.0 for run in self.runs)
        shared = [run.record.parents["from"] for run in self.runs if "from" in run.record.parents]
        present = {run.path.resolve() for run in self.runs}
        elsewhere: dict[str, int] = {}  # trunks that are no run of the study count once
        for trunk in shared:
            if Path(trunk.run).resolve() not in present:
                elsewhere[trunk.run] = max(trunk.flops, elsewhere.get(trunk.run, 0))
        return alone - sum(trunk.flops for trunk in shared) + sum(elsewhere.values()), alone

    @property
    def saving(self) -> str:
        """One sentence about the training that branches did not repeat; empty where all runs trained alone."""
        spent, alone = self.flops
        if spent >= alone:
            return ""
        return (
            f"Runs share the beginnings of their trainings: {spent:.2e} FLOPs were spent, {percent(1 - spent / alone)} less "
            f"than the {alone:.2e} of the same runs one by one."
        )

    def longest(self, measure: Measure, key: str = "parameters") -> tuple[list[int], list[float]]:
        """(number of parameters, last validation) of the longest trainings of each size. key: of the number in the record.

        Runs whose record lacks the number are left out (``block_parameters`` of earlier versions).
        """
        most = {size: max(_images(run) for run in self.runs if _size(run) == size) for size in self.sizes}
        ends = [
            (size, values[-1])
            for run in self.runs
            if _images(run) == most[_size(run)]
            and (values := list(_track(run, measure).values()))
            and (size := int(number(run.record.cost.get(key)) or 0))
        ]
        return [size for size, _ in ends], [value for _, value in ends]

    def curves(self, measure: Measure) -> list[LossCurve]:
        """A curve for each size and budget over training FLOPs: the geometric mean over seeds, where all have a point."""
        groups: dict[tuple[int, float], list[dict[float, float]]] = {}
        for run in self.runs:
            groups.setdefault((_size(run), _images(run)), []).append(_track(run, measure))
        return [
            LossCurve(float(size), np.array(common), np.exp([np.mean([np.log(t[x]) for t in tracks]) for x in common]))
            for (size, _), tracks in sorted(groups.items())
            if (common := sorted(set.intersection(*map(set, tracks))))
        ]


@dataclass(frozen=True)
class ScalingLaw:
    """A power law of a measure over the blocks' parameters ("N"), all parameters ("P") or the least compute ("C").

    floor: the same points fitted with a floor; None for too few. paper: the paper's exponent. points: of the compute frontier.
    seen: (x, y) of every training in a law over parameters.
    """

    measure: Measure
    against: str
    fit: PowerLawFit
    floor: FloorFit | None
    paper: float | None
    curves: tuple[LossCurve, ...] = ()
    points: tuple[Point, ...] = ()
    seen: tuple[Array, Array] | None = None


def find_studies(runs: Sequence[Run]) -> list[ScalingStudy]:
    """The scaling studies among the runs: groups with enough sizes for a fit."""
    groups: dict[str, list[Run]] = {}
    for run in runs:
        if run.order and run.finished and _size(run):
            groups.setdefault(_shared(run), []).append(run)
    sized = [(group, tuple(sorted({_size(run) for run in group}))) for group in groups.values()]
    studies = [ScalingStudy(group[0].order, tuple(group), sizes) for group, sizes in sized if len(sizes) >= FEWEST]
    labels = [study.label for study in studies]
    return [
        replace(study, label=f"{study.label}, {study.runs[0].path.parent.as_posix()}")
        if labels.count(study.label) > 1
        else study
        for study in studies
    ]


def fit_laws(study: ScalingStudy) -> list[ScalingLaw]:
    """The laws of every measure over parameters and over compute, where there are enough points for a fit."""
    fits = (_fit_over_blocks, _fit_over_all, _fit_over_compute)
    laws = (fit(study, measure) for measure in study.measures for fit in fits)
    return [law for law in laws if law]


def _fit_over_blocks(study: ScalingStudy, measure: Measure) -> ScalingLaw | None:
    """Over the paper's N, which leaves out embeddings and the head: 73,728·depth³ in VAR."""
    return _fit_over_size(study, measure, "N", "block_parameters", measure.paper_N)


def _fit_over_all(study: ScalingStudy, measure: Measure) -> ScalingLaw | None:
    return _fit_over_size(study, measure, "P", "parameters", None)


def _fit_over_size(
    study: ScalingStudy, measure: Measure, against: str, key: str, paper: float | None
) -> ScalingLaw | None:
    x, y = study.longest(measure, key)
    if len(set(x)) < FEWEST:
        return None
    seen = (np.array(x, dtype=float), np.array(y))
    return ScalingLaw(measure, against, fit_power_law(x, y), fit_above_floor(x, y), paper, seen=seen)


def _fit_over_compute(study: ScalingStudy, measure: Measure) -> ScalingLaw | None:
    curves = study.curves(measure)
    points = compute_frontier(curves)
    fit = fit_frontier(points)
    if fit is None:
        return None
    floor = fit_above_floor(fit.x, fit.y)
    return ScalingLaw(measure, "C", fit, floor, measure.paper_C, curves=tuple(curves), points=tuple(points))


def _track(run: Run, measure: Measure) -> dict[float, float]:
    """A measure by the FLOPs of a training, in the order of logging."""
    pairs = ((number(line.get("flops")), measure.value(line)) for line in run.metrics)
    return {x: y for x, y in pairs if x and y is not None}


def _size(run: Run) -> int:
    """Parameters; 0 where the record has none."""
    return int(number(run.record.cost.get("parameters")) or 0)


def _images(run: Run) -> float:
    return run.total("images") or 0.0


def _shared(run: Run) -> str:
    """What all runs of a study have in common, with the tokenizer's weights and the images."""
    tokenizer = run.record.parents.get("tokenizer", Parent()).weights_sha256
    parts = [run.order, tokenizer, (run.record.data or {}).get("hash"), science(run.config, Use.SCIENCE | Use.SCALING)]
    return json.dumps(parts, sort_keys=True, default=str)


def scaling_table(laws: Sequence[ScalingLaw]) -> list[str]:
    """The laws of a study as a table in Markdown, with the paper's exponents."""
    header = ["L = (a·x)^b", "x", "b", "b in the paper", "a", "correlation", "points", "L∞, with a floor", "b above it"]
    return markdown_table(header, map(_table_row, laws))


def _table_row(law: ScalingLaw) -> list[str]:
    fit = law.fit
    exponent = "{:.3f} [{:.3f}, {:.3f}]".format(fit.b, *fit.b_interval)
    paper = "" if law.paper is None else str(law.paper)
    x = {"N": "blocks' parameters", "P": "all parameters", "C": "least FLOPs"}[law.against]
    numbers = [exponent, paper, f"{fit.a:.2e}", f"{fit.correlation:.4f}", str(len(fit.x))]
    return [law.measure.label, x, *numbers, *_floor_cells(law.floor)]


def _floor_cells(floor: FloorFit | None) -> list[str]:
    if floor is None:
        return ["", ""]
    low, high = floor.floor_interval
    return [
        f"{floor.floor:.3g} [{low:.3g}, {high:.3g}]",
        "{:.3f} [{:.3f}, {:.3f}]".format(floor.b, *floor.b_interval),
    ]


def scaling_csv(laws: Mapping[str, Sequence[ScalingLaw]]) -> str:
    """The text of scaling.csv: a row for every law of every study. a is per parameter, or per FLOP."""
    header = ["study", "measure", "against", "b", "b_low", "b_high", "a", "a_low", "a_high", "correlation", "points",
              "smallest", "largest", "paper_b", "floor", "floor_low", "floor_high", "floor_b", "floor_b_low", "floor_b_high",
              "floor_a"]  # fmt: skip
    rows = [
        [study, law.measure.key, law.against, fit.b, *fit.b_interval, fit.a, *fit.a_interval, fit.correlation,
         len(fit.x), fit.x[0], fit.x[-1], law.paper,
         *((floor.floor, *floor.floor_interval, floor.b, *floor.b_interval, floor.a) if (floor := law.floor) else [None] * 7)]
        for study, of_it in laws.items() for law in of_it if (fit := law.fit)
    ]  # fmt: skip
    return csv_text(header, rows)
