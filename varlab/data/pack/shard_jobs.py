"""The shards of a packing, each made on its own: by any process, again with the same bytes, and kept until all are there."""

from __future__ import annotations

import hashlib
import io
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from PIL import Image
from torch.utils.data import Dataset

from varlab.data.faults import BadSampleError
from varlab.data.format.index import SPLITS, Shard
from varlab.data.format.tar import Place
from varlab.data.format.writer import ShardWriter
from varlab.data.image.decode import header
from varlab.data.image.resize import format_of
from varlab.data.pack.conditions import Condition
from varlab.data.pack.sources.base import Sample, Skipped, Source
from varlab.errors import VarlabError
from varlab.files import write_errors, write_text

__all__ = ["Made", "Parts"]

ENDINGS = {"PNG": "png", "JPEG": "jpg", "WEBP": "webp"}


@dataclass
class Made:
    """A finished shard, still in the workshop: what is in it, and what was skipped on the way. sizes: (H, W) of its images."""

    split: str
    shard: Shard
    places: list[Place]
    counts: Counter[int]
    skipped: list[Skipped]
    boxed: bool
    sizes: set[tuple[int, int]]

    def to_json(self) -> str:
        """All of it."""
        places = [(p.key, p.span, p.check, p.format, p.label, p.condition, p.box) for p in self.places]
        counts, sizes = list(self.counts.items()), sorted(self.sizes)
        plain = {"split": self.split, "shard": vars(self.shard), "skipped": [vars(s) for s in self.skipped]}
        return json.dumps({**plain, "boxed": self.boxed, "places": places, "counts": counts, "sizes": sizes})

    @staticmethod
    def from_json(text: str) -> Made:
        """What ``to_json`` wrote. ValueError, KeyError, TypeError where it did not."""
        raw = json.loads(text)
        return Made(
            split=raw["split"],
            shard=Shard(**raw["shard"]),
            places=[_place(*place) for place in raw["places"]],
            counts=Counter(dict(map(tuple, raw["counts"]))),
            skipped=[Skipped(**s) for s in raw["skipped"]],
            boxed=raw["boxed"],
            sizes={(height, width) for height, width in raw["sizes"]},
        )


def _place(key: str, span: Any, check: int, form: str, label: int, condition: Any, box: Any) -> Place:
    second = None if condition is None else ((condition[0][0], condition[0][1]), condition[1])
    return Place(key, (span[0], span[1]), check, form, label, second, None if box is None else tuple(box))


class Parts(Dataset[Made]):
    """Item i is the i-th shard of the packing, made when it is asked for; or taken up, where it was made before.

    workshop: folder of finished shards and their notes. written: a shared counter of samples, for whoever shows progress.
    """

    def __init__(
        self, source: Source, workshop: Path, *, shard_size: int, condition: Condition | None, written: Any = None
    ):
        self._source, self._workshop, self._condition, self._written = source, workshop, condition, written
        self._entries = {split: source.entries(split) for split in SPLITS}
        self._parts = [
            (split, number, range(first, min(first + shard_size, len(entries))))
            for split, entries in self._entries.items()
            for number, first in enumerate(range(0, len(entries), shard_size))
        ]
        self.total = sum(map(len, self._entries.values()))

    def __len__(self) -> int:
        return len(self._parts)

    def fingerprint(self) -> str:
        """Of all that decides the shards: a workshop with another one holds nothing of use."""
        told: list[Any] = [
            self._source.describe(),
            list(self._source.classes),
            [[s, n, len(r)] for s, n, r in self._parts],
        ]
        if self._condition is not None:
            told.append([self._condition.name, self._condition.describe()])
        digest = hashlib.sha256(json.dumps(told, sort_keys=True, default=str).encode())
        for entries in self._entries.values():
            digest.update(repr([str(entry) for entry in entries]).encode())
        return digest.hexdigest()[:16]

    def path(self, made: Made) -> Path:
        """Where its shard lies."""
        return self._workshop / made.shard.file

    def __getitem__(self, i: int) -> Made:
        split, number, chosen = self._parts[i]
        name = f"{split}-{number:06d}.tar"
        note = self._workshop / f"{name}.json"
        before = _read_note(note, self._workshop / name)
        if before is not None:
            self._count(len(chosen))
            return before
        made = self._make(split, name, [self._entries[split][j] for j in chosen])
        write_text(note, made.to_json())
        return made

    def _make(self, split: str, name: str, entries: Sequence[Any]) -> Made:
        path = self._workshop / name
        counts, skipped, boxed = Counter[int](), list[Skipped](), self._condition is not None
        sizes = set[tuple[int, int]]()
        try:
            with write_errors(path), ShardWriter(path) as writer:
                for sample, drawn in self._usable(split, entries, skipped):
                    boxed = boxed and sample.box is not None
                    sizes.add(_size(sample))
                    writer.add(sample.key, self._members(sample, drawn), label=sample.label or 0, box=sample.box)
                    counts[sample.label or 0] += 1
        except BaseException:
            path.unlink(missing_ok=True)
            raise
        return Made(split, writer.shard(name), writer.places, counts, skipped, boxed, sizes)

    def _usable(
        self, split: str, entries: Sequence[Any], skipped: list[Skipped]
    ) -> Iterator[tuple[Sample, Image.Image | None]]:
        """The samples that can be packed, each with its condition."""
        for entry in entries:
            self._count(1)
            item = self._load(split, entry)
            if isinstance(item, Sample):
                _check(item, len(self._source.classes))
                drawn = None if self._condition is None else self._condition.draw(item, _decoded(item))
                if not isinstance(drawn, Skipped):
                    yield item, drawn
                    continue
                item = drawn
            skipped.append(item)

    def _load(self, split: str, entry: Any) -> Sample | Skipped:
        try:
            return self._source.load(split, entry)
        except OSError as e:  # else it would pass for a failure to write
            raise VarlabError(f"The source's {split} images cannot be read ({e}): see that its files are there.") from e

    def _members(self, sample: Sample, drawn: Image.Image | None) -> Iterator[tuple[str, bytes]]:
        """Ending and content of each file of a sample."""
        yield _encode(sample, self._source.image_size)
        if sample.label is not None:
            yield "cls", str(sample.label).encode()
        if drawn is not None:
            ending, content = _encode(replace(sample, image=drawn), self._source.image_size)
            yield f"cond.{ending}", content
        if self._condition is not None and sample.box is not None:
            yield "json", json.dumps({"box": list(sample.box)}).encode()

    def _count(self, samples: int) -> None:
        if self._written is not None:
            with self._written.get_lock():
                self._written.value += samples


def _read_note(note: Path, shard: Path) -> Made | None:
    """A shard that was finished earlier and is still whole."""
    try:
        made = Made.from_json(note.read_text())
        return made if shard.stat().st_size == made.shard.bytes else None
    except (OSError, ValueError, KeyError, TypeError, IndexError):
        return None


def _check(sample: Sample, classes: int) -> None:
    if sample.label is not None and not 0 <= sample.label < classes:
        raise VarlabError(f"Sample {sample.key} has label {sample.label}, but there are {classes} classes.")
    if "." in sample.key or not sample.key.isascii() or not 0 < len(sample.key) <= 90:
        raise VarlabError(f"The key {sample.key!r} must be unique ASCII without dots, 90 characters at most.")


def _size(sample: Sample) -> tuple[int, int]:
    """(H, W) of its image."""
    if not isinstance(sample.image, bytes):
        return sample.image.height, sample.image.width
    form = format_of(sample.image)
    try:
        if form is not None:
            return header(sample.image, form)
    except BadSampleError as e:
        raise VarlabError(f"Sample {sample.key} is none of {', '.join(ENDINGS)} ({e}): leave it out.") from e
    raise VarlabError(f"Sample {sample.key} is none of {', '.join(ENDINGS)}: leave it out.")


def _encode(sample: Sample, promised: tuple[int, int] | None) -> tuple[str, bytes]:
    """File ending and bytes: a PIL image becomes PNG, encoded bytes stay what they are."""
    if promised is not None and (size := _size(sample)) != promised:
        raise VarlabError(f"Sample {sample.key} is {size[1]}×{size[0]}, but the source promised {promised[::-1]}.")
    if isinstance(sample.image, bytes):
        return ENDINGS[str(format_of(sample.image))], sample.image
    return "png", _png(sample.image)


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
