"""Compare shards with their index."""

from __future__ import annotations

from dataclasses import replace

from varlab.data.format.index import Index, Shard
from varlab.data.format.scan import Progress, ScanSettings, scan_shards
from varlab.data.format.tar import ShardScan
from varlab.data.storage.local_folder import LocalFolder
from varlab.info import Fault

__all__ = ["check_index"]


def check_index(index: Index, *, settings: ScanSettings, workers: int, progress: Progress | None = None) -> list[Fault]:
    """Every difference between the shards and their index: hash each shard, and decode each image."""
    storage = index.shard_storage
    assert isinstance(storage, LocalFolder)
    settings = replace(settings, decode=True, classes=index.classes, size=index.image_size, depths=index.depth)
    files = {split: [shard.file for shard in shards] for split, shards in index.splits.items()}
    scans = scan_shards(storage.path, files, settings, workers, progress)
    faults: list[Fault] = []
    for split, shards in index.splits.items():
        table = index.table(split) if split in index.tables else None
        for number, (shard, scan) in enumerate(zip(shards, scans[split], strict=True)):
            rows = () if table is None else table[table["shard"] == number]
            faults += _differences(
                shard, scan, {row["key"].decode(errors="backslashreplace"): int(row["check"]) for row in rows}
            )
    return faults


def _differences(shard: Shard, scan: ShardScan, indexed: dict[str, int]) -> list[Fault]:
    """The faults of one shard, and the indexed samples that it lacks or has with other bytes. indexed: hash of each key."""
    present = {record.key: record.image.check for record in scan.records}
    if scan.sha256 == shard.sha256:
        return [fault for fault in scan.faults if fault.key in indexed and fault.key not in present]
    faults, named = list(scan.faults), {fault.key for fault in scan.faults}
    for key, check in indexed.items():
        if key not in named and present.get(key) != check:
            faults.append(
                Fault("changed", shard.file, key, "other bytes" if key in present else "missing in the shard")
            )
    if any(fault.samples for fault in faults):
        return faults
    if scan.sha256:
        return [*faults, Fault("changed", shard.file, "", "another sha256 than the index states", samples=0)]
    return [replace(fault, samples=len(indexed)) for fault in faults]
