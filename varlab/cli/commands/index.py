"""``varlab index``: make the index of a folder of shards, or check the shards against their index."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

from varlab.cli.dataset_summary import describe_steps, summarise
from varlab.cli.progress_bar import progress_bar
from varlab.config import Config
from varlab.data.faults import KINDS, count_faults
from varlab.data.format.foreign import read_entries
from varlab.data.format.index import FILE, Index, read_index
from varlab.data.format.index_builder import build_index
from varlab.data.format.index_check import check_index
from varlab.data.format.labels import class_names
from varlab.data.format.scan import ScanSettings, split_files
from varlab.data.image.depth import ASSUMED, read_depths
from varlab.files import remove_drafts, require_written
from varlab.json_file import write_json
from varlab.launch.environment import worker_count
from varlab.launch.terminal import show_table
from varlab.run.directory import RunDirectory
from varlab.types import Fault, VarlabError

__all__ = ["run"]

PAGE = "summary.html"

logger = logging.getLogger(__name__)


def run(config: Config, directory: RunDirectory) -> Config:
    """Make the index of the folder ``path``, beside its shards or in ``out``, or check its shards if ``check`` is true."""
    folder = Path(config["path"]).expanduser()
    if config["check"]:
        return _check(config, folder, directory)
    return _make(config, *_shards_at(folder, directory.path if config["out"] is not None else folder))


def _shards_at(folder: Path, place: Path) -> tuple[Path, Path]:
    """The folder of the shards, and that of their index: an index that is made again may name the first."""
    shards = folder / str(_earlier_index(folder).get("shards", ""))
    return (shards, place) if shards.is_dir() else (folder, place)


def _make(config: Config, folder: Path, place: Path) -> Config:
    before = {**_earlier_index(folder), **_earlier_index(place)}
    splits, notes = split_files(folder, config["split"])
    for name in (FILE, "*.samples.npy", PAGE):
        remove_drafts(place, of=f"{name}.*")
    for note in notes:
        logger.info("%s", note)
    count = worker_count(config["workers"], jobs=sum(map(len, splits.values())))
    with progress_bar("scanning shards") as progress:
        index, faults = build_index(
            folder,
            splits=splits,
            settings=_settings(config, before),
            source=before.get("source", {"name": "shards", "path": str(config["path"])}),
            conditions=before.get("conditions"),
            depth=_depth_of_source(before),
            val_fraction=config["val_fraction"],
            seed=config["seed"],
            max_bad=config["max_bad"],
            workers=count,
            progress=progress,
            place=None if place.resolve() == folder.resolve() else place,
        )
    for fault in faults:
        logger.warning("left out: %s", fault)
    bad = [(f.kind, f"{f.shard} {f.key}".strip(), f.detail) for f in faults]
    page = place / PAGE
    duplicates = summarise(index, page, bad=bad, sheet=8, notes=notes)
    require_written(page, place / FILE, *(place / table.file for table in index.tables.values()))
    if index.steps:
        logger.info("images: %s", describe_steps(index))
    counts, left_out = _counts(index.info.counts), _counts(count_faults(faults))
    logger.info("%s: %s samples, %d classes; left out: %s", place / FILE, counts, len(index.classes), left_out)
    found = {"duplicates": asdict(duplicates)} if str(duplicates) else {}
    return {"counts": dict(index.info.counts), "hash": index.hash, "faults": count_faults(faults), **found}


def _check(config: Config, folder: Path, directory: RunDirectory) -> Config:
    index = read_index(folder)
    count = worker_count(config["workers"], jobs=sum(map(len, index.splits.values())))
    with progress_bar("checking shards") as progress:
        faults = check_index(index, settings=_settings(config, {}), workers=count, progress=progress)
    for fault in faults:
        logger.warning("%s", fault)
    report = directory.path / "check.json"
    write_json(report, {"path": str(folder), "hash": index.hash, "faults": [vars(fault) for fault in faults]})
    _show(index, faults)
    if faults:
        raise VarlabError(
            f"{folder} is not what its index says: {_counts(count_faults(faults))}. {report} lists all faults."
        )
    without = f", which left out {_counts(index.faults)}" if index.faults else ""
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
        depths=read_depths(config["depth"], auto={}),
    )


def _earlier_index(folder: Path) -> Config:
    """How the shards were made, from an index of any version; empty if there is none."""
    try:
        raw = read_entries(folder / FILE).raw
    except (OSError, ValueError):
        return {}
    types = {"source": dict, "classes": list, "conditions": str, "shards": str, "depth": dict}
    return {key: raw[key] for key, kind in types.items() if isinstance(raw.get(key), kind)}


def _depth_of_source(before: Config) -> dict[str, int]:
    """The bits of pictures that were packed as bytes, which the shards do not show: without them the hash would change."""
    depth = {} if before.get("source", {}).get("name") == "shards" else before.get("depth", {})
    return {kind: bits for kind, bits in depth.items() if kind in ASSUMED and type(bits) is int and 1 <= bits <= 16}


def _counts(numbers: Mapping[str, int]) -> str:
    return ", ".join(f"{n} {name}" for name, n in numbers.items()) or "none"


def _show(index: Index, faults: list[Fault]) -> None:
    """Print the faults as a table."""
    if not faults:
        return
    rows = [
        (kind, str(n), str(sum(fault.samples for fault in faults if fault.kind == kind)), KINDS[kind])
        for kind, n in count_faults(faults).items()
    ]
    show_table(f"{index.path}: not what its index says", ("kind", "faults", "samples", "what it is"), rows)
