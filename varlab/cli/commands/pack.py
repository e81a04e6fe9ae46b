"""``varlab pack``: images into WebDataset shards."""

from __future__ import annotations

import logging
from typing import Any

from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from varlab.cli.dataset_summary import summarise
from varlab.cli.progress_bar import progress_bar
from varlab.config import Config
from varlab.data.format.index import SPLITS, read_index
from varlab.data.pack.conditions import ConditionMaker, CropBoxes
from varlab.data.pack.packer import pack
from varlab.launch.environment import worker_count
from varlab.moved import resolve_targets
from varlab.run.directory import RunDirectory
from varlab.types import VarlabError

__all__ = ["run"]

logger = logging.getLogger(__name__)

_SAID = 50  # skipped images that are named in the log; summary.html and run.json name all


def run(cfg: DictConfig, directory: RunDirectory) -> Config:
    """Pack ``cfg.source`` into shards of ``cfg.shard_size`` images in the run's directory, with a condition if asked."""
    source, condition = _made(cfg.source), _condition(cfg.get("condition"))
    jobs = sum(-(-len(source.entries(split)) // max(cfg.shard_size, 1)) for split in SPLITS)
    with progress_bar("packing") as progress:
        summary = pack(
            source,
            directory.path,
            shard_size=cfg.shard_size,
            workers=worker_count(cfg.workers, jobs=jobs),
            progress=progress,
            condition=condition,
        )
    bad = [("skipped", skipped["name"], skipped["reason"]) for skipped in summary["skipped"]]
    for skipped in summary["skipped"][:_SAID]:
        logger.warning("%s is skipped: %s", skipped["name"], skipped["reason"])
    summarise(read_index(directory.path), directory.path / "summary.html", bad=bad, sheet=cfg.sheet)
    images = ", ".join(f"{count} {split}" for split, count in summary["images"].items())
    without = f"; {len(summary['skipped'])} skipped" if summary["skipped"] else ""
    logger.info("packed %s images into %d shards%s: %s", images, summary["shards"], without, directory.path)
    return {"summary": summary}


def _condition(config: DictConfig | None) -> ConditionMaker | None:
    """What each sample is packed with, from conf/condition, which training reads too."""
    if config is None:
        return None
    if "_target_" in config:
        made: ConditionMaker = _made(config)
        return made
    if config.kind == "coordinates":
        return CropBoxes()
    raise VarlabError(f"condition={config.kind} is for training: pack with edges, lowres, folder or coordinates.")


def _made(config: DictConfig) -> Any:
    return instantiate(resolve_targets(OmegaConf.to_container(config, resolve=True)))  # type: ignore[arg-type]
