"""From a source to a shard set: plain WebDataset tars and their index, all of it or nothing."""

from __future__ import annotations

import hashlib
import io
import json
import os
import tarfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from itertools import chain, islice
from pathlib import Path
from typing import Any

from PIL import Image, UnidentifiedImageError

from varlab.data.conditions import Condition
from varlab.data.index import FILE, SPLITS, Index, Shard, write_index, writing
from varlab.data.sources import Sample, Skipped, Source
from varlab.errors import VarlabError

__all__ = ["pack"]

PARTIAL = ".partial"
ENDINGS = {"PNG": "png", "JPEG": "jpg", "WEBP": "webp"}


def pack(
    source: Source,
    out: str | Path,
    *,
    shard_size: int,
    progress: Callable[[int], None] | None = None,
    condition: Condition | None = None,
) -> dict[str, Any]:
    """Write the shards of ``source`` and their index into the folder ``out``. The same source gives the same bytes.

    Shards are written under temporary names and renamed once all of them are safe on disk; the index comes last. A
    shard set that was there before stays whole until then.

    Args:
        shard_size: samples per shard. progress: told how many samples are written so far, after each one.
        condition: gives each sample a second image (``<key>.cond.png``), and where the source knows it, its place in the
            picture that it was cut from (``<key>.json``: {"box": [top, left, bottom, right]}, in [0, 1]).
    Returns:
        {"images": {split: n}, "counts": {split: {class: n}}, "shards": n, "skipped": [{"name", "reason"}], "hash"}.
    Raises:
        VarlabError: a source with nothing to pack or with impossible samples, or a disk that is full.
    """
    if shard_size < 1:
        raise VarlabError(f"shard_size is {shard_size}, but a shard holds at least one image.")
    folder = Path(out)
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    packer = _Packer(source, folder, progress, condition)
    try:
        splits = {split: packer.write_split(split, shard_size) for split in SPLITS}
        packer.check()
        index = packer.index(splits)
        _publish(index)
    finally:
        for leftover in chain.from_iterable(folder.glob(f".{split}-*.tar{PARTIAL}") for split in SPLITS):
            leftover.unlink(missing_ok=True)
    return {**packer.summary(), "shards": sum(map(len, splits.values())), "hash": index.hash}


def _publish(index: Index) -> None:
    """Give the finished shards their names, then the index. No index stands beside shards it does not describe."""
    with writing(index.path):
        (index.path / FILE).unlink(missing_ok=True)
        for shard in chain.from_iterable(index.splits.values()):
            _temporary(index.path, shard.file).replace(index.path / shard.file)
    write_index(index)


def _temporary(folder: Path, file: str) -> Path:
    return folder / f".{file}{PARTIAL}"


class _Packer:
    """The packing of one source: what was written, what was skipped."""

    def __init__(
        self, source: Source, folder: Path, progress: Callable[[int], None] | None, condition: Condition | None
    ):
        self._source, self._folder, self._progress, self._condition = source, folder, progress, condition
        self._boxed = condition is not None  # until a sample has no box
        self._counts: dict[str, Counter[int]] = {split: Counter() for split in SPLITS}
        self._skipped: list[Skipped] = []

    def write_split(self, split: str, shard_size: int) -> tuple[Shard, ...]:
        """All shards of a split, still under their temporary names."""
        samples, shards = self._usable(split), list[Shard]()
        while (first := next(samples, None)) is not None:
            name = f"{split}-{len(shards):06d}.tar"
            shards.append(self._write_shard(name, split, chain([first], islice(samples, shard_size - 1))))
        return tuple(shards)

    def index(self, splits: dict[str, tuple[Shard, ...]]) -> Index:
        """What the shards say of themselves."""
        made, condition = self._source.describe(), self._condition
        if condition is not None and condition.name is not None:
            arguments = ", ".join(f"{key}={value}" for key, value in condition.describe().items())
            made = {**made, "condition": f"{condition.name}({arguments})"}
        return Index(
            path=self._folder,
            source=made,
            classes=tuple(self._source.classes),
            image_size=self._source.image_size,
            splits=splits,
            conditions=None if condition is None else condition.name,
            boxes=self._boxed,
        )

    def _usable(self, split: str) -> Iterator[tuple[Sample, Image.Image | None]]:
        """The samples that can be packed, each with its condition."""
        classes, keys = self._source.classes, set[str]()
        for item in self._items(split):
            if isinstance(item, Skipped):
                self._skipped.append(item)
                continue
            if not 0 <= item.label < len(classes):
                raise VarlabError(f"Sample {item.key} has label {item.label}, but there are {len(classes)} classes.")
            if item.key in keys or "." in item.key or not item.key.isascii() or len(item.key) > 90:
                raise VarlabError(f"The key {item.key!r} must be unique ASCII without dots, 90 characters at most.")
            keys.add(item.key)
            drawn = None if self._condition is None else self._condition.draw(item, _decoded(item))
            if isinstance(drawn, Skipped):
                self._skipped.append(drawn)
                continue
            yield item, drawn

    def _items(self, split: str) -> Iterator[Sample | Skipped]:
        try:
            yield from self._source.samples(split)
        except OSError as e:  # else it would pass for a failure to write
            raise VarlabError(f"The source's {split} images cannot be read ({e}): see that its files are there.") from e

    def _write_shard(self, name: str, split: str, samples: Iterable[tuple[Sample, Image.Image | None]]) -> Shard:
        path, before = _temporary(self._folder, name), self._counts[split].total()
        with writing(self._folder / name), path.open("wb") as file:
            with tarfile.open(fileobj=file, mode="w", format=tarfile.USTAR_FORMAT) as tar:
                for sample, drawn in samples:
                    for ending, content in self._members(sample, drawn):
                        _add(tar, f"{sample.key}.{ending}", content)
                    self._count(split, sample.label)
            file.flush()
            os.fsync(file.fileno())
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        return Shard(name, self._counts[split].total() - before, path.stat().st_size, digest)

    def _members(self, sample: Sample, drawn: Image.Image | None) -> Iterator[tuple[str, bytes]]:
        """Ending and content of each file of a sample."""
        yield _encode(sample, self._source.image_size)
        yield "cls", str(sample.label).encode()
        if drawn is not None:
            ending, content = _encode(replace(sample, image=drawn), self._source.image_size)
            yield f"cond.{ending}", content
        if self._condition is not None and sample.box is not None:
            yield "json", json.dumps({"box": list(sample.box)}).encode()
        self._boxed = self._boxed and sample.box is not None

    def _count(self, split: str, label: int) -> None:
        self._counts[split][label] += 1
        if self._progress is not None:
            self._progress(sum(c.total() for c in self._counts.values()))

    def check(self) -> None:
        """Training needs images."""
        if not self._counts["train"]:
            raise VarlabError(f"Nothing to pack: the source gave no training image ({len(self._skipped)} skipped).")

    def summary(self) -> dict[str, Any]:
        """What happened, in JSON types."""
        return {
            "images": {split: count.total() for split, count in self._counts.items()},
            "counts": {
                split: {name: count[label] for label, name in enumerate(self._source.classes)}
                for split, count in self._counts.items()
            },
            "skipped": [{"name": s.name, "reason": s.reason} for s in self._skipped],
        }


def _encode(sample: Sample, image_size: tuple[int, int]) -> tuple[str, bytes]:
    """File ending and bytes: a PIL image becomes PNG, encoded bytes stay what they are."""
    if isinstance(sample.image, bytes):
        encoded = sample.image
        try:
            with Image.open(io.BytesIO(encoded), formats=list(ENDINGS)) as image:
                ending, size = ENDINGS[str(image.format)], image.size
        except UnidentifiedImageError as e:
            raise VarlabError(f"Sample {sample.key} is none of {', '.join(ENDINGS)}: leave it out.") from e
    else:
        ending, size, encoded = "png", sample.image.size, _png(sample.image)
    if size != image_size[::-1]:
        raise VarlabError(f"Sample {sample.key} is {size[0]}×{size[1]}, but the source promised {image_size[::-1]}.")
    return ending, encoded


def _png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    return buffer.getvalue()


def _decoded(sample: Sample) -> Image.Image:
    """What a condition is drawn from."""
    if not isinstance(sample.image, bytes):
        return sample.image
    with Image.open(io.BytesIO(sample.image)) as image:
        return image.convert("L" if image.mode == "L" else "RGB")


def _add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    member = tarfile.TarInfo(name)  # mtime, owner and group are 0: nothing of this machine or hour gets in
    member.size = len(content)
    tar.addfile(member, io.BytesIO(content))
