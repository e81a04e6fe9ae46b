"""``varlab pack``: pack images into WebDataset shards."""

from __future__ import annotations

import logging
from dataclasses import asdict

from varlab.cli.conclusion import say_next
from varlab.cli.dataset_summary import describe_steps, summarise
from varlab.cli.progress_bar import progress_bar
from varlab.config import Config, shell_word
from varlab.data.format.index import SPLITS, read_index
from varlab.data.pack.conditions import ConditionMaker
from varlab.data.pack.packer import pack
from varlab.data.pack.sources.base import notes_of
from varlab.launch.environment import worker_count
from varlab.recipe.objects import make, target_of
from varlab.renames import current_targets
from varlab.run.directory import RunDirectory
from varlab.tokenizer.condition import Condition
from varlab.types import VarlabError

__all__ = ["run"]

logger = logging.getLogger(__name__)

_NAMED = 50  # skipped images that the log names; summary.html and run.json name all


def run(config: Config, directory: RunDirectory) -> Config:
    """Pack the images of ``source`` into shards in the run's directory, each with a condition if it is asked for."""
    source, condition = make(config["source"]), _condition(config.get("condition"))
    notes = notes_of(source)
    for note in notes:
        logger.info("%s", note)
    jobs = sum(-(-len(source.entries(split)) // max(config["shard_size"], 1)) for split in SPLITS)
    with progress_bar("packing") as progress:
        summary = pack(
            source,
            directory.path,
            shard_size=config["shard_size"],
            workers=worker_count(config["workers"], jobs=jobs),
            progress=progress,
            condition=condition,
        )
    bad = [("skipped", skipped["name"], skipped["reason"]) for skipped in summary["skipped"]]
    for skipped in summary["skipped"][:_NAMED]:
        logger.warning("%s is skipped: %s", skipped["name"], skipped["reason"])
    index = read_index(directory.path)
    page = directory.path / "summary.html"
    duplicates = summarise(index, page, bad=bad, sheet=config["sheet"], notes=notes)
    if index.steps:
        logger.info("images: %s", describe_steps(index))
    images = ", ".join(f"{count} {split}" for split, count in summary["images"].items())
    without = f"; {len(summary['skipped'])} skipped" if summary["skipped"] else ""
    logger.info("packed %s images into %d shards%s: %s", images, summary["shards"], without, directory.path)
    task = "classifier" if index.info.num_classes > 1 else "rotation"
    judge = f"varlab train task={task} data=folder data.path={shell_word(str(directory.path))} budget.seconds=300"
    say_next(page, f"{judge} (docs/own-images.md names the steps after it)")
    summary["notes"] = notes
    return {"summary": summary | ({"duplicates": asdict(duplicates)} if str(duplicates) else {})}


def _condition(config: Config | None) -> ConditionMaker | None:
    """What each sample is packed with: the part ``packing`` of a training's condition, or a condition that is only packed."""
    if config is None:
        return None
    config = current_targets({"condition": config})["condition"]
    if "packing" in config:
        return make(config["packing"])
    target = target_of(config)
    if isinstance(target, type) and issubclass(target, Condition):
        raise VarlabError("This condition is for training: pack with edges, lowres, folder or coordinates.")
    return make(config)
