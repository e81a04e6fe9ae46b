"""Build the index of existing shards: WebDataset tars from elsewhere, or our own once more."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from varlab.config import Config
from varlab.data.faults import BadSampleError, count_faults, describe_faults
from varlab.data.format.index import SPLITS, Index
from varlab.data.format.index_writer import index_shards
from varlab.data.format.scan import Progress, ScanSettings, number_labels, scan_shards
from varlab.data.format.table import SampleRecord
from varlab.data.format.tar import ShardScan
from varlab.data.image.depth import Depths, widest
from varlab.errors import VarlabError
from varlab.info import Fault
from varlab.rng import Rng

__all__ = ["build_index"]

_OPTIONAL = {"condition": ("no_condition", "no second image"), "box": ("no_box", "no box in its json")}


def build_index(
    folder: Path,
    *,
    splits: Mapping[str, Sequence[str]],
    settings: ScanSettings,
    source: Config,
    val_fraction: float,
    seed: int,
    max_bad: float,
    workers: int,
    conditions: str | None = None,
    depth: Depths | None = None,
    progress: Progress | None = None,
    place: Path | None = None,
) -> tuple[Index, list[Fault]]:
    """Scan all shards, and write their index and tables. Bad samples are left out, returned and counted in the index.

    place: the folder of the index, None if that is beside the shards. conditions: the name of the second images, if there are
    any. depth: of images before they were packed. val_fraction: if no shard is for val, this share of the samples, drawn by
    seed.

    Raises:
        VarlabError: the share of bad samples is above ``max_bad``; there is no sample at all; labels don't fit the classes.
    """
    scans = scan_shards(folder, splits, settings, workers, progress)
    every = [scan for of in scans.values() for scan in of]
    classes = number_labels(every, label=settings.label, classes=settings.classes)
    usual = _drop_incomplete(every)
    faults = [fault for scan in every for fault in scan.faults]
    _check_faults(folder, faults, sum(len(scan.records) for scan in every), max_bad)
    if val_fraction and not scans.get("val"):
        scans = _split_off_val(scans["train"], val_fraction, seed)
    index = index_shards(
        folder,
        {split: [(scan.shard, scan.records) for scan in of] for split, of in scans.items()},
        source=source,
        classes=classes,
        sizes=set[tuple[int, int]]().union(*(scan.sizes for scan in every)),
        faults=count_faults(faults),
        conditions=(conditions or "given") if "condition" in usual else None,
        boxes="box" in usual,
        depth={**(depth or {}), **_depths(every, settings)},
        steps=sum((scan.steps for scan in every), Counter[str]()),
        place=place,
    )
    return index, faults


def _depths(scans: Sequence[ShardScan], settings: ScanSettings) -> Depths:
    """The bits of values that are more than bytes, if any image holds such."""
    found = widest(deep for scan in scans for deep in scan.deep)
    return {kind: settings.depths.get(kind, bits) for kind, bits in found.items()}


def _drop_incomplete(scans: Sequence[ShardScan]) -> list[str]:
    """Turn samples without the second image, or the box, that most samples have into faults; return what most have."""
    records = [record for scan in scans for record in scan.records]
    usual = [n for n in _OPTIONAL if 2 * sum(getattr(record, n) is not None for record in records) > len(records)]

    def complete(record: SampleRecord) -> SampleRecord:
        for name in usual:
            if getattr(record, name) is None:
                raise BadSampleError(*_OPTIONAL[name])
        return record

    for scan in scans:
        scan.update(complete)
    return usual


def _check_faults(folder: Path, faults: Sequence[Fault], kept: int, max_bad: float) -> None:
    """Raises VarlabError if no sample was kept, or too many were not."""
    if not kept:
        raise VarlabError(
            f"{folder} holds no sample that can be read" + (f": {describe_faults(faults)}." if faults else ".")
        )
    bad = sum(fault.samples for fault in faults)
    if bad > max_bad * (kept + bad):
        raise VarlabError(
            f"{bad} of {kept + bad} samples in {folder} are bad, over max_bad={max_bad:g}: {describe_faults(faults)}. "
            "Repair them, or leave them out with a larger max_bad."
        )


def _split_off_val(scans: Sequence[ShardScan], fraction: float, seed: int) -> dict[str, list[ShardScan]]:
    """Give a random share of the training samples to val. Both splits then name every shard."""
    n = sum(len(scan.records) for scan in scans)
    val_N = np.zeros(n, dtype=bool)
    val_N[Rng(seed).stream("split").permutation(n)[0, : max(1, round(n * fraction))].numpy()] = True
    chosen = np.split(val_N, np.cumsum([len(scan.records) for scan in scans]))
    return {split: list(map(_only, scans, chosen, [split == "val"] * len(scans))) for split in SPLITS}


def _only(scan: ShardScan, chosen_n: NDArray[np.bool_], wanted: bool) -> ShardScan:
    return replace(scan, records=[record for record, c in zip(scan.records, chosen_n, strict=True) if c == wanted])
