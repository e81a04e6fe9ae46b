"""``varlab bench``: measure how fast samples are read, part by part, beside webdataset's own pipeline on the same files."""

from __future__ import annotations

import logging
import statistics
import time
from collections.abc import Mapping

import cv2
import torch

from varlab.config import Config
from varlab.data import ShardDataModule, TokenDataModule
from varlab.files import require_writable
from varlab.json_file import write_json
from varlab.launch.terminal import show_table
from varlab.recipe.benchmark import Work, image_works, loader_work, plain_work
from varlab.recipe.objects import make
from varlab.run.directory import RunDirectory

__all__ = ["run"]

logger = logging.getLogger(__name__)

_TOGETHER, _PLAIN = "all together", "webdataset, Pillow, torchvision"


def run(config: Config, directory: RunDirectory) -> Config:
    """Measure ``config["data"]`` on one core: each part takes its turn in every round, and its median counts."""
    require_writable(directory.path, "give another folder for the figures with out=DIR")
    torch.set_num_threads(config["threads"])
    cv2.setNumThreads(0)
    data: ShardDataModule | TokenDataModule = make(config["data"] | {"batch": config["batch"], "workers": 0})
    rates = _rates(_works(data, config), rounds=config["rounds"], seconds=config["seconds"])
    _show(rates, data.info.source)
    figures = {"images_per_second": rates, "path": data.path, "hash": data.info.hash, "batch": config["batch"]}
    write_json(directory.path / "bench.json", figures)
    return figures


def _works(data: ShardDataModule | TokenDataModule, config: Config) -> dict[str, Work]:
    if isinstance(data, TokenDataModule):
        return {"tokens, all together": loader_work(data)}
    works = image_works(data, images=config["images"], batch=config["batch"])
    _warm(data, config["warm_bytes"])
    return works | ({_PLAIN: plain_work(data, batch=config["batch"])} if config["pipeline"] else {})


def _warm(data: ShardDataModule, most_bytes: int) -> None:
    """Read the samples once, up to ``most_bytes``, so that the disk is not measured."""
    reader = data.reader("train")
    for i in range(len(reader)):
        most_bytes -= len(reader.encoded(i))
        if most_bytes < 0:
            return


def _rates(works: Mapping[str, Work], *, rounds: int, seconds: float) -> dict[str, float]:
    """Images a second of each work: the median over the rounds."""
    measured: dict[str, list[float]] = {name: [] for name in works}
    for work in works.values():  # the first calls open files and fill caches
        work()
        work()
    for _ in range(rounds):
        for name, work in works.items():
            done, start = 0, time.perf_counter()
            while (spent := time.perf_counter() - start) < seconds:
                done += work()
            measured[name].append(done / spent)
    return {name: round(statistics.median(values), 1) for name, values in measured.items()}


def _show(rates: Mapping[str, float], source: str) -> None:
    rows = [(name, f"{rate:,.0f}", f"{1e6 / max(rate, 1e-9):,.1f}") for name, rate in rates.items()]
    show_table(source, ("on one core", "images/s", "µs/image"), rows)
    alone, together, plain = (rates.get(name) for name in ("decode and crop", _TOGETHER, _PLAIN))
    if alone and together:
        logger.info("%s is %.0f%% of decode and crop alone", _TOGETHER, 100 * together / alone)
    if plain and together:
        logger.info("%s is %.2f times webdataset with Pillow and torchvision", _TOGETHER, together / plain)
