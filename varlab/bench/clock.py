"""The clock of all kinds: works take turns in rounds, and the medians over the rounds count."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from varlab.bench.peak_memory import peak, reset_peak
from varlab.bench.timeline import Seconds, Timeline
from varlab.bench.work import Work
from varlab.config import Config

__all__ = ["Round", "breakdown", "measure", "spread"]


@dataclass(frozen=True, kw_only=True)
class Round:
    """One round of one work. seconds, cpu_seconds: of a turn. parts: seconds of all turns. peak: bytes."""

    turns: int
    images: int
    seconds: float
    cpu_seconds: float
    parts: dict[str, Seconds]
    peak: int


def measure(works: Sequence[Work], *, device: torch.device, rounds: int, seconds: float) -> list[list[Round]]:
    """The rounds of each work. In each round every work takes ``seconds``, or one turn if that takes longer."""
    turns = [_turns(work, device, seconds) for work in works]
    measured: list[list[Round]] = [[] for _ in works]
    for _ in range(rounds):
        for done, work, count in zip(measured, works, turns, strict=True):
            done.append(_round(work, count, device))
    return measured


def _turns(work: Work, device: torch.device, seconds: float) -> int:
    """How many turns fill these seconds. The first turn opens files, fills caches and compiles."""
    work.turn()
    _wait(device)
    start = time.perf_counter()
    work.turn()
    _wait(device)
    return max(1, round(seconds / (time.perf_counter() - start)))


def _round(work: Work, turns: int, device: torch.device) -> Round:
    timeline = Timeline(device)
    reset_peak(device)
    with timeline.watched(work.parts):
        _wait(device)
        wall, cpu = time.perf_counter(), time.process_time()
        timeline.start()
        images = sum(work.turn() for _ in range(turns))
        parts = timeline.stop()
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    return Round(
        turns=turns,
        images=images,
        seconds=wall / turns,
        cpu_seconds=cpu / turns,
        parts=parts,
        peak=peak(device),
    )


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def spread(values: Sequence[float]) -> dict[str, float]:
    """The median, the least and the largest."""
    figures = {"median": statistics.median(values), "min": min(values), "max": max(values)}
    return {name: rounded(value) for name, value in figures.items()}


def breakdown(rounds: Sequence[Round]) -> Config:
    """Seconds and CPU seconds of each part in a turn, largest first. They add up to the medians of the whole.

    Each part has the share of the median that it has of the sum of all rounds.
    """
    wholes = [statistics.median(r.seconds for r in rounds), statistics.median(r.cpu_seconds for r in rounds)]
    names = dict.fromkeys(name for one in rounds for name in one.parts)
    sums = {name: [sum(r.parts.get(name, (0.0, 0.0))[i] for r in rounds) for i in (0, 1)] for name in names}
    totals = [sum(part[i] for part in sums.values()) or 1.0 for i in (0, 1)]
    parts = {
        name: {key: rounded(wholes[i] * part[i] / totals[i]) for i, key in enumerate(("seconds", "cpu_seconds"))}
        for name, part in sums.items()
    }
    return dict(sorted(parts.items(), key=lambda item: -item[1]["seconds"]))


def rounded(value: float) -> float:
    """A figure with five digits."""
    return float(f"{value:.5g}")
