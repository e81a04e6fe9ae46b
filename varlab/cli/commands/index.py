"""``varlab index``: an index for shards that are there, or a check of them."""

from __future__ import annotations

import json
import logging
from pathlib import Path

from omegaconf import DictConfig, OmegaConf
from rich.console import Console
from rich.table import Table

from varlab.cli.dataset_summary import summarise
from varlab.cli.progress_bar import progress_bar
from varlab.config import Config
from varlab.data.faults import KINDS, count_faults
from varlab.data.format.index import FILE, Index, read_index
from varlab.data.format.index_builder import build_index
from varlab.data.format.index_check import check_index
from varlab.data.format.labels import class_names
from varlab.data.format.scan import ScanSettings, split_files
from varlab.files import write_json
from varlab.launch.environment import worker_count
from varlab.run.directory import RunDirectory
from varlab.types import Fault, VarlabError

__all__ = ["run"]

logger = logging.getLogger(__name__)


def run(cfg: DictConfig, directory: RunDirectory) -> Config:
    """Make the index of ``cfg.path``, or compare the shards there with the one they have."""
    config: Config = OmegaConf.to_container(cfg)  # type: ignore[assignment]
    folder = Path(config["path"]).expanduser()
    if not folder.is_dir():
        raise VarlabError(f"There is no folder {folder}: give the one that the shards lie in.")
    return _check(config, folder, directory) if config["check"] else _make(config, folder)


def _make(config: Config, folder: Path) -> Config:
    before = _before(folder)
    splits = split_files(folder, config["split"])
    count = worker_count(config["workers"], jobs=sum(map(len, splits.values())))
    with progress_bar("looking at shards") as progress:
        index, faults = build_index(
            folder,
            splits=splits,
            settings=_settings(config, before),
            source=before.get("source", {"name": "shards", "path": str(config["path"])}),
            conditions=before.get("conditions"),
            val_fraction=config["val_fraction"],
            seed=config["seed"],
            max_bad=config["max_bad"],
            workers=count,
            progress=progress,
        )
    for fault in faults:
        logger.warning("left out: %s", fault)
    bad = [(f.kind, f"{f.shard} {f.key}".strip(), f.detail) for f in faults]
    summarise(index, folder / "summary.html", bad=bad, sheet=8)
    counts = ", ".join(f"{n} {split}" for split, n in index.info.counts.items())
    logger.info("%s: %s samples, %d classes; left out: %s", folder / FILE, counts, len(index.classes), _said(faults))
    return {"counts": dict(index.info.counts), "hash": index.hash, "faults": count_faults(faults)}


def _check(config: Config, folder: Path, directory: RunDirectory) -> Config:
    index = read_index(folder)
    count = worker_count(config["workers"], jobs=sum(map(len, index.splits.values())))
    with progress_bar("checking shards") as progress:
        faults = check_index(index, settings=_settings(config, {}), workers=count, progress=progress)
    for fault in faults:
        logger.warning("%s", fault)
    directory.path.mkdir(parents=True, exist_ok=True)
    report = directory.path / "check.json"
    write_json(report, {"path": str(folder), "hash": index.hash, "faults": [vars(fault) for fault in faults]})
    _show(index, faults)
    if faults:
        raise VarlabError(f"{folder} is not what its index says: {_said(faults)}. All of it is in {report}.")
    left_out = ", ".join(f"{n} {kind}" for kind, n in index.faults.items())
    without = f", which left out {left_out}" if left_out else ""
    logger.info("%s is whole: every shard and every image is what its index says%s", folder, without)
    return {"faults": {}}


def _settings(config: Config, before: Config) -> ScanSettings:
    size = config["size"]
    return ScanSettings(
        label=config["label"],
        classes=class_names(config["classes"] or before.get("classes")),
        decode=config["decode"],
        most_pixels=config["most_pixels"],
        size=None if size is None else (int(size[0]), int(size[1])),
    )


def _before(folder: Path) -> Config:
    """What an index of any version that is there says of how the shards were made."""
    try:
        told = json.loads((folder / FILE).read_text())
        return {key: told[key] for key in ("source", "classes", "conditions") if key in told}
    except (OSError, ValueError, TypeError):
        return {}


def _said(faults: list[Fault]) -> str:
    return ", ".join(f"{n} {kind}" for kind, n in count_faults(faults).items()) or "none"


def _show(index: Index, faults: list[Fault]) -> None:
    """A table of what is wrong, on a terminal and off it."""
    if not faults:
        return
    table = Table("kind", "faults", "samples", "what it is", title=f"{index.path}: not what its index says")
    for kind, n in count_faults(faults).items():
        lost = sum(fault.samples for fault in faults if fault.kind == kind)
        table.add_row(kind, str(n), str(lost), KINDS[kind])
    Console(stderr=True).print(table)
