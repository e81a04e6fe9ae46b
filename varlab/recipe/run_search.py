"""The search for a run that ``auto`` names: the nearest finished training that fits."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeGuard

from varlab.config import Config
from varlab.order import BaseOrder
from varlab.recipe.objects import make
from varlab.run.record import FILE, RunRecord, read_record
from varlab.run.run_tree import run_folders
from varlab.types import DataInfo, VarlabError

logger = logging.getLogger(__name__)

RUNS = Path("runs")
_LARGEST = 1024  # tokens along a side; a record with more is a mistake


def nearest_run(near: Path, fits: Callable[[RunRecord], bool], missing: str) -> Path:
    """Return the nearest finished training that fits. Raises VarlabError(missing) if there is none."""
    for path, record in _finished_trainings(near):
        if fits(record):
            return path
    raise VarlabError(missing)


def smallest_tokenizer(near: Path, info: DataInfo, order: Config) -> Path:
    """Return, of the tokenizers trained on these images that fit the order, the one with the fewest tokens."""
    fitting, unfit = [], ""
    for i, (path, record) in enumerate(_finished_trainings(near)):
        if record.holds == "tokenizer" and same_images(record, info):
            try:
                fitting.append((_positions(order, record), i, path))
            except VarlabError as error:
                unfit = f" {path} does not fit: {error}"
    if not fitting:
        raise VarlabError(
            f"No finished tokenizer trained on {info.path} under {RUNS}/ fits the order {order['_target_']}: "
            "train one (varlab train task=tokenizer tokenizer=multi or single), or name its directory with "
            f"tokenizer_run=DIR.{unfit}"
        )
    path = min(fitting)[2]
    logger.info("tokenizer_run=auto took %s", path)
    return path


def same_images(record: RunRecord, info: DataInfo) -> bool:
    """Whether a run was trained on the same images of the same shards."""
    asked = record.config.get("data")
    view = asked.get("view", "image") if isinstance(asked, dict) else "image"
    return (record.data or {}).get("hash") == info.hash and view == info.view


def _finished_trainings(near: Path) -> Iterator[tuple[Path, RunRecord]]:
    """Finished trainings under runs/ and beside a directory: those with most folders in common first, then the newest.

    What cannot be read is named, and passed over.
    """
    roots = [root for root in (RUNS, near.parent) if root.is_dir() and root.resolve() != Path.cwd()]
    refused: list[OSError] = []
    folders = {folder.resolve() for root in roots for folder in run_folders(root, refused.append)}
    for error in refused:
        logger.warning("unreadable: %s (%s)", error.filename, error.strerror)

    def place(folder: Path) -> tuple[int, float]:
        try:
            newest = (folder / FILE).stat().st_mtime
        except OSError:
            newest = 0.0
        return -len(Path(os.path.commonpath([folder, near.resolve()])).parts), -newest

    for folder in sorted(folders, key=place):
        try:
            record = read_record(folder)
        except VarlabError as error:
            logger.warning("unreadable: %s", error)
            continue
        if record.command == "train" and record.outcome.finished:
            yield Path(os.path.relpath(folder)), record


def _positions(order: Config, record: RunRecord) -> int:
    """Tokens of an image in this order, over the scales that a run's record names. Raises VarlabError if they don't fit."""
    scales = record.build.get("scales") or record.build["tokenizer"].get("scales")
    if not _are_scales(scales):
        raise VarlabError("its record does not name the scales of its tokenizer")
    made: BaseOrder = make(order, scales=tuple((h, w) for h, w in scales))
    return made.num_positions


def _are_scales(value: object) -> TypeGuard[list[list[int]]]:
    return isinstance(value, list) and all(
        isinstance(pair, list) and len(pair) == 2 and all(type(n) is int and 0 < n <= _LARGEST for n in pair)
        for pair in value
    )
