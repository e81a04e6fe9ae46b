"""The figures of a measurement as a line of JSON."""

from __future__ import annotations

import json
import os
import statistics
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from varlab.bench.clock import Round, breakdown, measure, rounded, spread
from varlab.bench.device import datasheet_rate, device_name, product
from varlab.bench.work import Work, Works
from varlab.config import Config
from varlab.files import write_text
from varlab.run import provenance

__all__ = ["add_lines", "clock", "measured_lines"]

_NO_SETTING = (
    "out",
    "name",
    "against",
    "launch",
    "rounds",
    "seconds",
    "threads",
    "product",
    "works",
    "planner",
    "trust",
    "device",
)


def measured_lines(config: Config, works: Works, device: torch.device, before: int) -> list[Config]:
    """Measure; return a line for each work. before: bytes of memory that were held before the works were built.

    The product of matrices takes its turn in the same rounds, so what slows the machine down slows both.
    """
    counted = any(work.flops_per_image for work in works.works)
    everything = [*works.works, *([product(config, device)] if counted else [])]
    rounds = measure(everything, device=device, rounds=config["rounds"], seconds=config["seconds"])
    place = _conditions(device) | {"precision": config["precision"], "memory_before": before}
    settings = {key: value for key, value in config.items() if key not in _NO_SETTING}
    reference = (everything[-1], rounds[-1]) if counted else None
    return [
        {"what": config["what"]}
        | _figures(work, of, reference, place)
        | place
        | {"facts": works.facts, "settings": settings}
        for work, of in zip(works.works, rounds, strict=False)
    ]


def clock(line: Mapping[str, object]) -> str:
    """The seconds of a line that say most: on a CPU its own, which other programs on the machine hardly change."""
    return "seconds" if line["device_type"] == "cuda" else "cpu_seconds"


def _conditions(device: torch.device) -> Config:
    """Where and when, and the load of the machine."""
    code, machine = provenance.code(), provenance.hardware()
    return {
        "device": device_name(device, machine["cpu"]),
        "device_type": device.type,
        "threads": torch.get_num_threads(),
        "cores": machine["cores"],
        "load": rounded(os.getloadavg()[0]),
        "torch": torch.__version__,
        "version": code["version"],
        "commit": code["commit"],
        "changed": bool(code["diff"] or code["untracked"]),
        "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
    }


def _figures(
    work: Work, rounds: Sequence[Round], reference: tuple[Work, Sequence[Round]] | None, place: Config
) -> Config:
    """All figures of a work. reference: the matrix product in the same rounds. place: the conditions."""
    images = statistics.median(r.images / r.turns for r in rounds)
    made: Config = {
        "work": work.name,
        "images": images,
        "rounds": len(rounds),
        "turns": rounds[0].turns,
        "seconds": spread([r.seconds for r in rounds]),
        "cpu_seconds": spread([r.cpu_seconds for r in rounds]),
        "images_per_second": rounded(statistics.median(r.images / (r.seconds * r.turns) for r in rounds)),
        "peak_memory": max(r.peak for r in rounds),
        "parts": breakdown(rounds),
    }
    return made | (_rates(work, rounds, reference, place) if work.flops_per_image else {})


def _rates(
    work: Work, rounds: Sequence[Round], reference: tuple[Work, Sequence[Round]] | None, place: Config
) -> Config:
    """TFLOP/s, and their shares of the measured rate of matrix products (by ``clock``) and of the datasheet's."""
    rate = _rate(work, rounds, "seconds")
    made: Config = {"flops_per_image": work.flops_per_image, "tflops_per_second": rounded(rate)}
    if reference is not None:
        made["product_tflops_per_second"] = rounded(_rate(*reference, "seconds"))
        made["share_of_product"] = rounded(_rate(work, rounds, clock(place)) / _rate(*reference, clock(place)))
    most = datasheet_rate(place["device"], place["precision"])
    return made | {"mfu": None if most is None else rounded(rate / most)}


def _rate(work: Work, rounds: Sequence[Round], name: str) -> float:
    """TFLOP/s, the median over the rounds. name: of the seconds."""
    assert work.flops_per_image is not None
    flops = work.flops_per_image * rounds[0].images / rounds[0].turns
    return flops / max(statistics.median(getattr(r, name) for r in rounds), 1e-9) / 1e12


def add_lines(path: Path, lines: Sequence[Config]) -> None:
    """Append lines to a file, which is written as a whole."""
    before = path.read_text(encoding="utf-8") if path.is_file() else ""
    write_text(path, before + "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))
