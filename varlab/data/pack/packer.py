"""From a source to a shard set: plain WebDataset tars and their index, all of it or nothing."""

from __future__ import annotations

import multiprocessing
import shutil
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch.utils.data import DataLoader

from varlab.config import Config
from varlab.data.format.index import FILE, SPLITS, Index, Shard, write_index
from varlab.data.format.storage import LocalFolder
from varlab.data.format.table import Row, make_table
from varlab.data.pack.conditions import Condition
from varlab.data.pack.shard_jobs import Made, Parts
from varlab.data.pack.sources.base import Source
from varlab.errors import VarlabError
from varlab.files import remove_drafts, write_errors

__all__ = ["Progress", "pack"]

WORKSHOP = ".packing"

Progress = Callable[[int, int], None]
"""Told how many samples are looked at, and how many there are."""


def pack(
    source: Source,
    out: str | Path,
    *,
    shard_size: int,
    workers: int = 0,
    progress: Progress | None = None,
    condition: Condition | None = None,
) -> Config:
    """Write the shards of ``source`` and their index into the folder ``out``. The same source gives the same bytes, by any
    number of workers.

    Shards are made in a folder of their own and moved once all of them are safe on disk; the index comes last. A shard set
    that was there before stays whole until then. Stopped, the same call goes on after the last whole shard.

    Args:
        shard_size: samples per shard, before any are skipped. workers: processes; 0 works in this one.
        condition: gives each sample a second image (``<key>.cond.png``), and where the source knows it, its place in the
            picture that it was cut from (``<key>.json``: {"box": [top, left, bottom, right]}, in [0, 1]).
    Returns:
        {"images": {split: n}, "counts": {split: {class: n}}, "shards": n, "skipped": [{"name", "reason"}], "hash"}.
    Raises:
        VarlabError: a source with nothing to pack or with impossible samples, a disk that is full, or ``out`` is the folder
            that the source reads.
    """
    if shard_size < 1:
        raise VarlabError(f"shard_size is {shard_size}, but a shard holds at least one image.")
    folder = Path(out)
    _check_apart(source, folder)
    workshop = folder / WORKSHOP
    written = multiprocessing.get_context("fork").Value("q", 0)
    parts = Parts(source, workshop, shard_size=shard_size, condition=condition, written=written)
    with write_errors(folder):
        _open_workshop(workshop, parts.fingerprint())
    try:
        made = list(_make(parts, workers, written, progress))
    except VarlabError:
        remove_drafts(workshop)
        if not any(workshop.glob("*.tar.json")):  # nothing to go on from
            shutil.rmtree(workshop, ignore_errors=True)
        raise
    try:
        _check(made)
    except VarlabError:
        shutil.rmtree(workshop, ignore_errors=True)
        raise
    index = _publish(source, folder, parts, [m for m in made if m.places], condition)
    shutil.rmtree(workshop, ignore_errors=True)
    return {**_summary(source, made), "shards": sum(map(len, index.splits.values())), "hash": index.hash}


def _check_apart(source: Source, folder: Path) -> None:
    """Raises VarlabError where new shards could take the places of the source's own."""
    path = source.describe().get("path")
    if path is not None and Path(path).expanduser().resolve() == folder.resolve():
        raise VarlabError(f"{folder} is where the source lies: pack into another folder with out=.")


def _open_workshop(workshop: Path, fingerprint: str) -> None:
    """The workshop of this very packing, with what is finished already; that of another one is cleared."""
    mark = workshop / "of"
    if workshop.is_dir() and not (mark.is_file() and mark.read_text() == fingerprint):
        shutil.rmtree(workshop)
    workshop.mkdir(parents=True, exist_ok=True)
    mark.write_text(fingerprint)


def _make(parts: Parts, workers: int, written: Any, progress: Progress | None) -> Iterator[Made]:
    """All shards in order."""
    loader = DataLoader(
        parts,
        batch_size=None,
        num_workers=min(workers, len(parts)),
        multiprocessing_context="fork" if workers else None,  # the source is not copied
        prefetch_factor=1 if workers else None,
    )
    made = iter(loader)  # starts the workers, before there is a thread
    with _telling(progress, written, parts.total):
        try:
            yield from made
        except VarlabError as e:  # torch puts the worker's whole traceback into its text
            raise VarlabError(str(e).rsplit("VarlabError: ", 1)[-1].strip()) from e


@contextmanager
def _telling(progress: Progress | None, written: Any, total: int) -> Iterator[None]:
    """Tells the progress a few times a second, and once at the end."""
    if progress is None:
        yield
        return
    done = threading.Event()

    def tell() -> None:
        while not done.wait(0.2):
            progress(written.value, total)

    thread = threading.Thread(target=tell, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
        progress(written.value, total)


def _check(made: list[Made]) -> None:
    """Raises VarlabError where there is nothing to train on, or a key comes twice."""
    skipped = sum(len(m.skipped) for m in made)
    if not any(m.places for m in made if m.split == SPLITS[0]):
        raise VarlabError(f"Nothing to pack: the source gave no training image ({skipped} skipped).")
    for split in SPLITS:
        keys = Counter(place.key for m in made if m.split == split for place in m.places)
        (key, times), *_ = keys.most_common(1) or [("", 1)]
        if times > 1:
            raise VarlabError(f"The key {key!r} must be unique, but {times} {split} samples have it.")


def _publish(source: Source, folder: Path, parts: Parts, made: list[Made], condition: Condition | None) -> Index:
    """Move the finished shards to their names, then write the index. No index stands beside shards it does not describe."""
    shards: dict[str, list[Shard]] = {split: [] for split in SPLITS}
    rows: dict[str, list[Row]] = {split: [] for split in SPLITS}
    with write_errors(folder):
        (folder / FILE).unlink(missing_ok=True)
        for m in made:
            number = len(shards[m.split])
            shard = replace(m.shard, file=f"{m.split}-{number:06d}.tar")  # none are numbered that came out empty
            parts.path(m).replace(folder / shard.file)
            shards[m.split].append(shard)
            rows[m.split] += [Row(number, place) for place in m.places]
    conditions = None if condition is None else condition.name
    boxes = condition is not None and all(m.boxed for m in made)
    sizes = set().union(*(m.sizes for m in made))
    index = Index(
        folder=LocalFolder(folder),
        source=_made(source, condition),
        classes=tuple(source.classes),
        image_size=source.image_size or (sizes.pop() if len(sizes) == 1 else None),
        splits={split: tuple(of) for split, of in shards.items()},
        tables={},
        conditions=conditions,
        boxes=boxes,
    )
    tables = {s: make_table(of, conditions=conditions is not None, boxes=boxes) for s, of in rows.items() if of}
    return write_index(index, tables)


def _made(source: Source, condition: Condition | None) -> Config:
    """How the set was made."""
    made = source.describe()
    if condition is None or condition.name is None:
        return made
    arguments = ", ".join(f"{key}={value}" for key, value in condition.describe().items())
    return {**made, "condition": f"{condition.name}({arguments})"}


def _summary(source: Source, made: list[Made]) -> Config:
    """What happened, in JSON types."""
    counts = {split: sum((m.counts for m in made if m.split == split), Counter[int]()) for split in SPLITS}
    return {
        "images": {split: count.total() for split, count in counts.items()},
        "counts": {
            split: {name: count[label] for label, name in enumerate(source.classes)} for split, count in counts.items()
        },
        "skipped": [{"name": s.name, "reason": s.reason} for m in made for s in m.skipped],
    }
