"""Pack a source into a shard set: plain WebDataset tars and their index, all of it or nothing."""

from __future__ import annotations

import logging
import multiprocessing
import shutil
import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from ctypes import c_longlong
from dataclasses import asdict, replace
from multiprocessing.sharedctypes import Synchronized
from pathlib import Path

from torch.utils.data import DataLoader

from varlab.config import Config
from varlab.data.format.index import FILE, SPLITS, Index, Shard
from varlab.data.format.index_writer import index_shards
from varlab.data.format.scan import Progress
from varlab.data.format.table import SampleRecord
from varlab.data.image.depth import Depths, describe_depths, widest
from varlab.data.pack.conditions import ConditionMaker
from varlab.data.pack.shard_jobs import PackedShard, ShardJobs
from varlab.data.pack.sources.base import ImageSource
from varlab.data.pack.sources.source_paths import require_other_folder
from varlab.data.workers import worker_results
from varlab.errors import VarlabError
from varlab.files import remove_drafts, write_errors

__all__ = ["pack"]

STAGING = ".packing"

log = logging.getLogger(__name__)


def pack(
    source: ImageSource,
    out: str | Path,
    *,
    shard_size: int,
    workers: int = 0,
    progress: Progress | None = None,
    condition: ConditionMaker | None = None,
) -> Config:
    """Write the shards of ``source`` and their index into the folder ``out``.

    Equal sources give equal bytes with any number of workers. Shards are packed in a staging folder and moved when all are
    on disk, then the index is written; until then an older shard set stays intact. After a stop, the same call continues
    after the last finished shard.

    Args:
        shard_size: samples per shard, before any are skipped. workers: processes; 0 packs in this one. progress: receives
            the number of samples that are done, and of all.
        condition: makes the second image of each sample (``<key>.cond.png``). With any condition, a sample's box is stored
            too, if the source knows it (``<key>.json``: {"box": [top, left, bottom, right]}, in [0, 1]).
    Returns:
        {"images": {split: n}, "counts": {split: {class: n}}, "shards": n, "skipped": [{"name", "reason"}], "hash",
        "steps": {what was done on the way to bytes: number of images}, "depth": {kind of deep values: bits}}.
    Raises:
        VarlabError: the source has nothing to pack or impossible samples, the disk is full, or ``out`` is the folder that
            the source reads.
    """
    if shard_size < 1:
        raise VarlabError(f"shard_size is {shard_size}, but a shard holds at least one image.")
    folder = Path(out)
    require_other_folder(source.describe().get("path"), folder)
    staging = folder / STAGING
    done = _counter(workers)
    jobs = ShardJobs(source, staging, shard_size=shard_size, condition=condition, done=done)
    with write_errors(folder):
        _open_staging(staging, jobs.fingerprint())
    try:
        packed, depths = _run_at_one_depth(jobs, workers, done, progress)
    except VarlabError:
        remove_drafts(staging)
        if not any(staging.glob("*.tar.json")):  # no finished shard to continue from
            shutil.rmtree(staging, ignore_errors=True)
        raise
    try:
        _check(packed)
    except VarlabError:
        shutil.rmtree(staging, ignore_errors=True)
        raise
    index = _publish(source, folder, jobs, packed, condition, depths)
    shutil.rmtree(staging, ignore_errors=True)
    done_to = {"steps": dict(index.steps), "depth": dict(index.depth)}
    shards = sum(map(len, index.splits.values()))
    return {**_summary(source, packed), "shards": shards, "hash": index.hash, **done_to}


def _counter(workers: int) -> Synchronized[int]:
    """A number that workers share. The system's locks may be missing (no /dev/shm), and one process does without them."""
    if workers:
        return multiprocessing.get_context("fork").Value("q", 0)
    return Synchronized(c_longlong(0), threading.RLock())  # type: ignore[arg-type]  # it takes any lock


def _open_staging(staging: Path, fingerprint: str) -> None:
    """Make the staging folder; it is cleared first if it belongs to another packing."""
    mark = staging / "of"
    if staging.is_dir() and not (mark.is_file() and mark.read_bytes() == fingerprint.encode()):
        shutil.rmtree(staging)
    staging.mkdir(parents=True, exist_ok=True)
    mark.write_text(fingerprint)


def _run_at_one_depth(
    jobs: ShardJobs, workers: int, done: Synchronized[int], progress: Progress | None
) -> tuple[list[PackedShard], Depths]:
    """Pack all shards; pack those again whose images of more than 8 bits were scaled otherwise than the whole set needs."""
    packed = _run(jobs, workers, done, progress)
    depths = {**widest(deep for shard in packed for deep in shard.deep), **jobs.depths}
    if not all(shard.is_scaled_by(depths) for shard in packed):
        log.info("packing some shards again: images with values of more than 8 bits hold %s", describe_depths(depths))
        done.value = 0
        packed = _run(jobs.with_depths(depths), workers, done, progress)
    return packed, {kind: depths[kind] for kind in sorted({kind for s in packed for kind, _ in s.deep})}


def _run(jobs: ShardJobs, workers: int, done: Synchronized[int], progress: Progress | None) -> list[PackedShard]:
    """Pack all shards, and return them in order."""
    loader = DataLoader(
        jobs,
        batch_size=None,
        num_workers=min(workers, len(jobs)),
        multiprocessing_context="fork" if workers else None,  # the source is not copied
        prefetch_factor=1 if workers else None,
    )
    shards = iter(loader)  # starts the workers: a fork must come before the thread
    with _reporting(progress, done, jobs.total):
        return list(worker_results(shards))


@contextmanager
def _reporting(progress: Progress | None, done: Synchronized[int], total: int) -> Iterator[None]:
    """Report the progress a few times a second, and once at the end."""
    if progress is None:
        yield
        return
    stop = threading.Event()

    def report() -> None:
        while not stop.wait(0.2):
            progress(done.value, total)

    thread = threading.Thread(target=report, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
        progress(done.value, total)


def _check(packed: Sequence[PackedShard]) -> None:
    """Raises VarlabError if there is no training image, or a key occurs twice."""
    skipped = [skipped for shard in packed for skipped in shard.skipped]
    if not any(shard.records for shard in packed if shard.split == SPLITS[0]):
        first = f"; the first, {skipped[0].name}: {skipped[0].reason}" if skipped else ""
        raise VarlabError(f"Nothing to pack: the source gave no training image ({len(skipped)} skipped){first}.")
    for split in SPLITS:
        keys = Counter(record.key for shard in packed if shard.split == split for record in shard.records)
        (key, times), *_ = keys.most_common(1) or [("", 1)]
        if times > 1:
            raise VarlabError(f"The key {key!r} must be unique, but {times} {split} samples have it.")


def _publish(
    source: ImageSource,
    folder: Path,
    jobs: ShardJobs,
    packed: Sequence[PackedShard],
    condition: ConditionMaker | None,
    depths: Depths,
) -> Index:
    """Move the shards to their final names, then write the index. An old index is removed before its shards."""
    packed = [shard for shard in packed if shard.records]
    splits: dict[str, list[tuple[Shard, list[SampleRecord]]]] = {split: [] for split in SPLITS}
    with write_errors(folder):
        (folder / FILE).unlink(missing_ok=True)
        for shard in packed:
            done = splits[shard.split]
            name = f"{shard.split}-{len(done):06d}.tar"  # without gaps, even if a shard was empty
            jobs.path(shard).replace(folder / name)
            done.append((replace(shard.shard, file=name), shard.records))
    return index_shards(
        folder,
        splits,
        source=_described(source, condition),
        classes=source.classes,
        sizes=set[tuple[int, int]]().union(*(shard.sizes for shard in packed)),
        faults={},
        conditions=None if condition is None else condition.name,
        boxes=condition is not None and all(record.box for shard in packed for record in shard.records),
        depth=depths,
        steps=sum((shard.steps for shard in packed), Counter[str]()),
    )


def _described(source: ImageSource, condition: ConditionMaker | None) -> Config:
    """How the set was made."""
    description = source.describe()
    if condition is None or condition.name is None:
        return description
    arguments = ", ".join(f"{key}={value}" for key, value in condition.describe().items())
    return {**description, "condition": f"{condition.name}({arguments})"}


def _summary(source: ImageSource, packed: Sequence[PackedShard]) -> Config:
    """The number of images by split and class, and what was skipped, in JSON types."""
    counts = {split: Counter(r.label for s in packed if s.split == split for r in s.records) for split in SPLITS}
    return {
        "images": {split: count.total() for split, count in counts.items()},
        "counts": {
            split: {name: count[label] for label, name in enumerate(source.classes)} for split, count in counts.items()
        },
        "skipped": [asdict(skipped) for shard in packed for skipped in shard.skipped],
    }
