"""``varlab bench``: measure how fast one kind of varlab's work is done here, and what its time is spent on."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

from varlab.bench.device import resolved, settings_of
from varlab.bench.earlier_lines import differences, partner, read_lines, times_as_fast
from varlab.bench.line import add_lines, clock, measured_lines
from varlab.bench.peak_memory import held
from varlab.bench.work import Works
from varlab.config import Config
from varlab.files import require_writable
from varlab.json_file import write_json
from varlab.launch.terminal import show_table
from varlab.recipe.finished_run import device_of
from varlab.recipe.objects import make
from varlab.run.directory import RunDirectory
from varlab.run.record import read_finished

__all__ = ["run"]

logger = logging.getLogger(__name__)


_COLUMNS = ("work", "images/s", "ms/image", "CPU\nms/image", "rounds", "TFLOP/s", "of\nproducts", "of card")
_TOGETHER, _PLAIN = "all together", "webdataset, Pillow, torchvision"


def run(config: Config, directory: RunDirectory) -> Config:
    """Measure the work of ``conf/what``: a line of JSON for each, and their rates in bench.json."""
    require_writable(directory.path, "give another folder for the figures with out=DIR")
    earlier = None if config["against"] is None else read_lines(Path(config["against"]))
    device = device_of(config["device"])
    config = config | {"precision": resolved(config["precision"], device)} | _of_run(config)
    before = held(device)
    with settings_of(config, device):
        works: Works = make(config["works"])(config=config, device=device)
        lines = measured_lines(config, works, device, before)
    _show(config["what"], works, lines)
    rates = {line["work"]: line["images_per_second"] for line in lines}
    write_json(directory.path / "bench.json", {"images_per_second": rates, **works.facts, "batch": config.get("batch")})
    add_lines(directory.path / "bench.jsonl", lines)
    if earlier is not None:
        _compare(lines, earlier, config["against"])
    return {"images_per_second": rates}


def _of_run(config: Config) -> Config:
    """The settings that follow from ``run=``: the run's own networks, in place of those of new ones."""
    if config.get("run") is None:
        return {}
    build = read_finished(Path(config["run"])).build
    classes = {"num_classes": len(build["classes"])} if "transformer" in config and build.get("classes") else {}
    return {key: build[key] for key in config.keys() & build.keys()} | classes


def _show(what: str, works: Works, lines: Sequence[Config]) -> None:
    threads = lines[0]["threads"]
    place = f"{lines[0]['device']}, {threads} thread{'s' * (threads != 1)}, {lines[0]['precision']}"
    columns = [_COLUMNS, *map(_row, lines)]
    shown = [column for column in zip(*columns, strict=True) if any(column[1:])]
    header, *rows = zip(*shown, strict=True)
    show_table(f"{what}, {works.title}: {place}", header, rows)
    for line in lines:
        parts = {name: part[clock(line)] for name, part in line["parts"].items()}
        if len(parts) > 1:
            whole = max(sum(parts.values()), 1e-9)
            largest_first = sorted(parts.items(), key=lambda item: -item[1])
            shares = ", ".join(f"{name} {part / whole:.0%}" for name, part in largest_first)
            logger.info("%s: %s", line["work"], shares)
    logger.info("at most %.0f MB of memory", max(line["peak_memory"] for line in lines) / 1e6)
    rates = {line["work"]: line["images_per_second"] for line in lines}
    alone, together, plain = (rates.get(name) for name in ("decode and crop", _TOGETHER, _PLAIN))
    if alone and together:
        logger.info("%s is %.0f%% of decode and crop alone", _TOGETHER, 100 * together / alone)
    if plain and together:
        logger.info("%s is %.2f times webdataset with Pillow and torchvision", _TOGETHER, together / plain)


def _row(line: Config) -> tuple[str, ...]:
    """A line of the table. rounds: the fastest and the slowest one as shares of the median."""
    of_rounds = line[clock(line)]
    least, most = (of_rounds[name] / max(of_rounds["median"], 1e-9) for name in ("min", "max"))
    return (
        line["work"],
        f"{line['images_per_second']:,.4g}",
        *(f"{1e3 * line[name]['median'] / line['images']:,.4g}" for name in ("seconds", "cpu_seconds")),
        f"{least:.2f}-{most:.2f}",
        f"{line['tflops_per_second']:.3g}" if "tflops_per_second" in line else "",
        f"{line['share_of_product']:.0%}" if "share_of_product" in line else "",
        f"{line['mfu']:.0%}" if line.get("mfu") is not None else "",
    )


def _compare(lines: Sequence[Config], earlier: Sequence[Config], source: str) -> None:
    """Print how many times as fast each line is as its partner, and name those that have none."""
    rows = []
    for line in lines:
        other = partner(line, earlier)
        if other is None:
            apart = differences(line, earlier)
            why = f" ({apart})" if apart else ""
            logger.warning("%s has no line with the same settings in %s%s", line["work"], source, why)
            continue
        wall, cpu = times_as_fast(line, other)
        place = other["device"] if other["device"] != line["device"] else ""
        rows.append((line["work"], f"{wall:.2f}", f"{cpu:.2f}", str(other["commit"] or other["version"])[:8], place))
    if rows:
        show_table(
            f"times as fast as {source}", ("work", "by seconds", "by CPU seconds", "code", "on another device"), rows
        )
