"""An index for shards that are there already: others' WebDataset tars, or our own, looked at once more."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from varlab.data.faults import listed, table_of
from varlab.data.format.index import SPLITS, Index, Shard, write_index
from varlab.data.format.labels import number_labels
from varlab.data.format.scan import Looked, Progress, Settings, look_at_all
from varlab.data.format.storage import LocalFolder
from varlab.data.format.table import Row, make_table
from varlab.data.format.tar import Scan
from varlab.errors import VarlabError
from varlab.rng import Rng
from varlab.types import Fault

__all__ = ["build_index"]


def build_index(
    folder: Path,
    *,
    splits: Mapping[str, Sequence[str]],
    settings: Settings,
    source: Mapping[str, Any],
    val_fraction: float,
    seed: int,
    max_bad: float,
    workers: int,
    conditions: str | None = None,
    progress: Progress | None = None,
) -> tuple[Index, list[Fault]]:
    """Look at all shards and write their index and tables. Bad samples are left out, named, and counted in the index.

    conditions: what second images are called, where there are some. val_fraction: where no shard is for val, this share of
    the samples, drawn by seed.

    Raises:
        VarlabError: more bad samples than ``max_bad`` of all; no sample at all; labels that don't fit the classes.
    """
    looked = look_at_all(folder, splits, settings, workers, progress)
    everything = [shard for of in looked.values() for shard in of]
    scans = {shard.file: shard.scan for shard in everything}
    classes = number_labels(scans, label=settings.label, classes=settings.classes)
    seconds, boxes = _seconds(everything)
    conditions = (conditions or "given") if seconds else None
    faults = [fault for shard in everything for fault in shard.scan.faults]
    kept = sum(len(shard.scan.places) for shard in everything)
    bad = sum(fault.samples for fault in faults)
    if not kept:
        raise VarlabError(f"{folder} holds no sample that can be read" + (f": {listed(faults)}." if faults else "."))
    if bad > max_bad * (kept + bad):
        raise VarlabError(
            f"{bad} of {kept + bad} samples in {folder} are bad, over max_bad={max_bad:g}: {listed(faults)}. Mend them, or "
            "leave them out with a larger max_bad."
        )
    if val_fraction and not any(looked.get(SPLITS[1], ())):
        looked = _apart(looked, val_fraction, seed)
    sizes = set().union(*(shard.sizes for shard in everything))
    index = Index(
        folder=LocalFolder(folder),
        source=dict(source),
        classes=classes,
        image_size=sizes.pop() if len(sizes) == 1 else None,
        splits={split: tuple(_entry(shard) for shard in of) for split, of in looked.items()},
        tables={},
        faults=table_of(faults),
        conditions=conditions,
        boxes=boxes,
    )
    tables = {
        split: make_table(_rows(of), conditions=conditions is not None, boxes=boxes)
        for split, of in looked.items()
        if any(shard.scan.places for shard in of)
    }
    return write_index(index, tables), faults


def _entry(shard: Looked) -> Shard:
    return Shard(shard.file, len(shard.scan.places), shard.bytes, shard.sha256)


def _rows(shards: Iterable[Looked]) -> list[Row]:
    return [Row(number, place) for number, shard in enumerate(shards) for place in shard.scan.places]


def _seconds(shards: Sequence[Looked]) -> tuple[bool, bool]:
    """Whether samples have second images, and boxes; where most have one, those without are bad."""
    places = [place for shard in shards for place in shard.scan.places]
    conditions = 2 * sum(place.condition is not None for place in places) > len(places)
    boxes = 2 * sum(place.box is not None for place in places) > len(places)
    for shard in shards:
        kept = []
        for place in shard.scan.places:
            if conditions and place.condition is None:
                shard.scan.faults.append(Fault("no_condition", shard.file, place.key, "no second image"))
            elif boxes and place.box is None:
                shard.scan.faults.append(Fault("no_box", shard.file, place.key, "no box in its json"))
            else:
                kept.append(place)
        shard.scan.places = kept
    return conditions, boxes


def _apart(looked: Mapping[str, list[Looked]], fraction: float, seed: int) -> dict[str, list[Looked]]:
    """The training samples in two: a share of them, drawn at random, is for val."""
    shards = looked[SPLITS[0]]
    n = sum(len(shard.scan.places) for shard in shards)
    chosen = np.zeros(n, dtype=bool)
    chosen[Rng(seed).stream("split").permutation(n)[0, : max(1, round(n * fraction))].numpy()] = True
    halves: dict[str, list[Looked]] = {split: [] for split in SPLITS}
    first = 0
    for shard in shards:
        mine = chosen[first : first + len(shard.scan.places)]
        first += len(mine)
        for split, wanted in zip(SPLITS, (False, True), strict=True):
            places = [place for place, val in zip(shard.scan.places, mine.tolist(), strict=True) if val == wanted]
            halves[split].append(replace(shard, scan=Scan(places, [])))
    return halves
