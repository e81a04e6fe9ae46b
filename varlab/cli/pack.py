"""``varlab pack``: images into WebDataset shards."""

from __future__ import annotations

import functools
import logging
from typing import Any

from hydra.utils import instantiate
from omegaconf import DictConfig
from rich.console import Console
from rich.progress import MofNCompleteColumn, Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn

from varlab.cli.rundir import RunDirectory
from varlab.data.conditions import Boxes, Condition
from varlab.data.pack import pack
from varlab.types import VarlabError

__all__ = ["run"]

logger = logging.getLogger(__name__)


def run(cfg: DictConfig, directory: RunDirectory) -> dict[str, Any]:
    """Pack ``cfg.source`` into shards of ``cfg.shard_size`` images in the run's directory, with a condition if asked."""
    source, condition = instantiate(cfg.source), _condition(cfg.get("condition"))
    console = Console(stderr=True)
    columns = (SpinnerColumn(), TextColumn("packing"), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task("packing", total=None)
        written = functools.partial(_show, bar, task)
        summary = pack(source, directory.path, shard_size=cfg.shard_size, progress=written, condition=condition)
    images = ", ".join(f"{count} {split}" for split, count in summary["images"].items())
    skipped = f"; {len(summary['skipped'])} skipped" if summary["skipped"] else ""
    logger.info("packed %s images into %d shards%s: %s", images, summary["shards"], skipped, directory.path)
    return {"summary": summary}


def _condition(config: DictConfig | None) -> Condition | None:
    """What each sample is packed with, from conf/condition, which training reads too."""
    if config is None:
        return None
    if "_target_" in config:
        made: Condition = instantiate(config)
        return made
    if config.kind == "coordinates":
        return Boxes()
    raise VarlabError(f"condition={config.kind} is for training: pack with edges, lowres, folder or coordinates.")


def _show(bar: Progress, task: TaskID, written: int) -> None:
    bar.update(task, completed=written)
