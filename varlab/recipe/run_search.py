"""The search for a run that ``auto`` names: the nearest finished training that fits. Imports no torch."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator
from pathlib import Path

from varlab.errors import VarlabError
from varlab.info import DataInfo
from varlab.run.record import FILE, RunRecord, read_record
from varlab.run.run_tree import run_folders

logger = logging.getLogger(__name__)

RUNS = Path("runs")
BESIDE = 3
"""How many folders below the one that holds a run are searched: that may be a home directory."""


def nearest_run(
    near: Path, fits: Callable[[RunRecord], bool], missing: str, warn: Callable[..., None] = logger.warning
) -> Path:
    """Return the nearest finished training that fits. Raises VarlabError(missing) if there is none."""
    for path, record in finished_trainings(near, warn):
        if fits(record):
            return path
    raise VarlabError(missing)


def nearest_classifier(near: Path, role: str, info: DataInfo, warn: Callable[..., None] = logger.warning) -> Path:
    """Return the nearest finished classifier of a role (judge or perceptual) that was trained on these images."""
    task = "classifier" if info.num_classes > 1 else "rotation"
    missing = (
        f"No finished classifier with role={role} trained on {info.path} lies under {RUNS}/: train one (varlab train "
        f"task={task} role={role}{' seed=1' if role == 'perceptual' else ''} data=shards data.path={info.path} "
        "budget.images=100000), or name its directory."
    )
    return nearest_run(near, lambda run: run.build.get("role") == role and same_images(run, info), missing, warn)


def tokenizers_of(
    near: Path, info: DataInfo, warn: Callable[..., None] = logger.warning
) -> list[tuple[Path, RunRecord]]:
    """Return the finished tokenizers that were trained on these images, nearest first."""
    finished = finished_trainings(near, warn)
    return [(path, record) for path, record in finished if record.holds == "tokenizer" and same_images(record, info)]


def no_tokenizer(info: DataInfo, order: str, unfit: str = "") -> VarlabError:
    """Return the error about images on which no tokenizer was trained that fits. unfit: why one does not."""
    return VarlabError(
        f"No finished tokenizer trained on {info.path} under {RUNS}/ fits the order {order}: "
        "train one (varlab train task=tokenizer tokenizer=multi or single), or name its directory with "
        f"tokenizer_run=DIR.{unfit}"
    )


def same_images(record: RunRecord, info: DataInfo) -> bool:
    """Whether a run was trained on the same images of the same shards."""
    asked = record.config.get("data")
    view = asked.get("view", "image") if isinstance(asked, dict) else "image"
    return (record.data or {}).get("hash") == info.hash and view == info.view


def finished_trainings(near: Path, warn: Callable[..., None] = logger.warning) -> Iterator[tuple[Path, RunRecord]]:
    """Yield finished trainings under runs/ and near a directory: those with most folders in common first, then the newest.

    What cannot be read is named by ``warn``, and passed over.
    """
    refused: list[OSError] = []
    folders = {
        folder.resolve()
        for root, depth in ((RUNS, None), (near.parent, BESIDE))
        if root.is_dir() and root.resolve() != Path.cwd()
        for folder in run_folders(root, refused.append, depth=depth)
    }
    for error in refused:
        warn("unreadable: %s (%s)", error.filename, error.strerror)

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
            warn("unreadable: %s", error)
            continue
        if record.command == "train" and record.outcome.finished:
            yield Path(os.path.relpath(folder)), record
