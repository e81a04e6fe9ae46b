"""Shards against their index."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from numpy.typing import NDArray

from varlab.data.format.index import Index, Shard
from varlab.data.format.scan import Looked, Progress, Settings, look_at_all
from varlab.data.format.storage import LocalFolder
from varlab.types import Fault

__all__ = ["check_index"]


def check_index(index: Index, *, settings: Settings, workers: int, progress: Progress | None = None) -> list[Fault]:
    """Everything in which the shards are not what their index says: every shard's hash, and every image decoded."""
    assert isinstance(index.folder, LocalFolder)
    wanted = replace(settings, decode=True, classes=index.classes, size=index.image_size)
    files = {split: [shard.file for shard in shards] for split, shards in index.splits.items()}
    looked = look_at_all(index.folder.path, files, wanted, workers, progress)
    faults: list[Fault] = []
    for split, shards in index.splits.items():
        table = index.table(split) if split in index.tables else None
        for number, (shard, now) in enumerate(zip(shards, looked[split], strict=True)):
            mine = None if table is None else table[table["shard"] == number]
            faults += _differences(shard, now, mine)
    return faults


def _differences(shard: Shard, now: Looked, table: NDArray[Any] | None) -> list[Fault]:
    """What is wrong with one shard: its own faults, and the samples of the index that are not there as they were."""
    if now.sha256 == shard.sha256:
        bad = {place.key for place in now.scan.places}
        keys = () if table is None else {key.decode() for key in table["key"]}
        return [fault for fault in now.scan.faults if fault.key in keys and fault.key not in bad]
    faults = list(now.scan.faults)
    named = {fault.key for fault in faults}
    here = {place.key: place.check for place in now.scan.places}
    for row in table if table is not None else ():
        key = row["key"].decode()
        if here.get(key) != int(row["check"]) and key not in named:
            faults.append(Fault("changed", shard.file, key, "not there any more" if key not in here else "other bytes"))
    if not faults or all(fault.samples == 0 for fault in faults):
        lost = 0 if table is None else len(table)
        if now.sha256:
            return [*faults, Fault("changed", shard.file, "", "another sha256 than the index says", samples=0)]
        return [replace(fault, samples=lost) for fault in faults]
    return faults
