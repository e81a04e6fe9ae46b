"""``varlab bench``: how fast samples come, part by part, beside webdataset's own pipeline on the same files."""

from __future__ import annotations

import logging
import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any

import cv2
import torch
from omegaconf import DictConfig, OmegaConf
from rich.console import Console
from rich.table import Table

from varlab.cli.plain_pipeline import plain_pipeline
from varlab.config import Config
from varlab.data import ShardDataModule, TokenDataModule
from varlab.data.read.benchmark import ReadingSteps
from varlab.files import write_json
from varlab.recipe.assembly import make
from varlab.run.directory import RunDirectory

__all__ = ["run"]

logger = logging.getLogger(__name__)

Work = Callable[[], int]
"""Does some work and says how many images it was."""


def run(cfg: DictConfig, directory: RunDirectory) -> Config:
    """Measure ``cfg.data`` on one core: every part in turn, some rounds of it, medians."""
    config: Config = OmegaConf.to_container(cfg)  # type: ignore[assignment]
    torch.set_num_threads(config["threads"])
    cv2.setNumThreads(0)
    data: ShardDataModule | TokenDataModule = make(config["data"] | {"batch": config["batch"], "workers": 0})
    works = _token_works(data) if isinstance(data, TokenDataModule) else _image_works(data, config)
    rates = _rates(works, rounds=config["rounds"], seconds=config["seconds"])
    _show(rates, data.info.source)
    directory.path.mkdir(parents=True, exist_ok=True)
    figures = {"images_per_second": rates, "path": data.path, "hash": data.info.hash, "batch": config["batch"]}
    write_json(directory.path / "bench.json", figures)
    return figures


def _image_works(data: ShardDataModule, config: Config) -> dict[str, Work]:
    parts = ReadingSteps(data, images=config["images"], batch=config["batch"])
    parts.warm(config["warm_bytes"])
    works: dict[str, Work] = {
        "read and verify": parts.read,
        "decode": parts.decode,
        "crop": parts.crop,
        "decode and crop": parts.decode_and_crop,
        "batch and augment": parts.batch,
        "all together": _endless(lambda: data.train_loader(0, 1 << 40, 0, 1)),
    }
    if config["pipeline"]:
        works["webdataset, Pillow, torchvision"] = _endless(lambda: plain_pipeline(data, batch=config["batch"]))
    return works


def _token_works(data: TokenDataModule) -> dict[str, Work]:
    return {"tokens, all together": _endless(lambda: data.train_loader(0, 1 << 40, 0, 1))}


def _endless(loader: Callable[[], Any]) -> Work:
    """The next batch of a loader, which is begun anew at its end."""
    batches: Iterator[Any] = iter(())

    def work() -> int:
        nonlocal batches
        for batch in batches:
            return len(batch) if not isinstance(batch, tuple | list) else len(batch[0])
        batches = iter(loader())
        return 0

    return work


def _rates(works: dict[str, Work], *, rounds: int, seconds: float) -> dict[str, float]:
    """Images a second of each, the median over rounds in which each has its turn."""
    measured: dict[str, list[float]] = {name: [] for name in works}
    for work in works.values():  # what happens once: files opened, pages cached
        work()
        work()
    for _ in range(rounds):
        for name, work in works.items():
            done, start = 0, time.perf_counter()
            while (spent := time.perf_counter() - start) < seconds:
                done += work()
            measured[name].append(done / spent)
    return {name: round(statistics.median(values), 1) for name, values in measured.items()}


def _show(rates: dict[str, float], source: str) -> None:
    table = Table("on one core", "images/s", "µs/image", title=source)
    for name, rate in rates.items():
        table.add_row(name, f"{rate:,.0f}", f"{1e6 / max(rate, 1e-9):,.1f}")
    console = Console(stderr=True)
    console.print(table)
    alone, together = rates.get("decode and crop"), rates.get("all together")
    if alone and together:
        logger.info("all together is %.0f%% of decode and crop alone", 100 * together / alone)
    plain = rates.get("webdataset, Pillow, torchvision")
    if plain and together:
        logger.info("all together is %.2f times webdataset with Pillow and torchvision", together / plain)
