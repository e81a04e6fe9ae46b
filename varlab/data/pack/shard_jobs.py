"""The shards of a packing as separate jobs: any process can do each, again with equal bytes, and finished ones are kept."""

from __future__ import annotations

import io
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from copy import copy
from dataclasses import dataclass, field
from multiprocessing.sharedctypes import Synchronized
from pathlib import Path
from typing import Any

from PIL import Image
from torch.utils.data import Dataset

from varlab.data.faults import BadSampleError
from varlab.data.format.index import SPLITS, Shard
from varlab.data.format.table import CONDITION, SampleRecord, Span
from varlab.data.format.writer import ShardWriter
from varlab.data.image.depth import Deep, Depths
from varlab.data.image.picture import PixelRules, open_picture
from varlab.data.image.resize import STORED, format_of
from varlab.data.pack.conditions import ConditionMaker
from varlab.data.pack.sources.base import ImageSource, Skipped, SourceSample
from varlab.data.pack.sources.file_source import FileSource
from varlab.errors import VarlabError
from varlab.files import digest, require_plain, sha256, write_errors, write_text

__all__ = ["PackedShard", "ShardJobs"]

_ANY_SIZE = 1 << 62  # pixels: the source has its own limit


@dataclass
class PackedShard:
    """A finished shard in the staging folder: its samples, the (H, W) of their images, and what was skipped.

    steps: how often each was done to an image. deep: what its images hold that are more than bytes. converted: those of
    them that the shard holds as bytes, scaled by ``depths``.
    """

    split: str
    shard: Shard
    records: list[SampleRecord] = field(default_factory=list)
    skipped: list[Skipped] = field(default_factory=list)
    sizes: set[tuple[int, int]] = field(default_factory=set)
    steps: Counter[str] = field(default_factory=Counter)
    deep: set[Deep] = field(default_factory=set)
    converted: set[Deep] = field(default_factory=set)
    depths: Mapping[str, int] = field(default_factory=dict)

    def is_scaled_by(self, depths: Depths) -> bool:
        """Whether its converted images are what these depths make of them."""
        return all(self.depths.get(kind, bits) == depths.get(kind, bits) for kind, bits in self.converted)

    def note(self, sample: SourceSample, size: tuple[int, int]) -> None:
        """Count what is known of a sample that it holds."""
        self.sizes.add(size)
        self.steps.update(sample.steps)
        if sample.deep is not None:
            self.deep.add(sample.deep)
            if not isinstance(sample.image, bytes):
                self.converted.add(sample.deep)

    def to_json(self) -> str:
        """The note beside the shard."""
        sets = {name: sorted(getattr(self, name)) for name in ("sizes", "deep", "converted")}
        text = json.dumps({**vars(self), **sets}, default=vars)
        return json.dumps({"digest": digest(text), "note": text})

    @classmethod
    def from_json(cls, text: str) -> PackedShard:
        """Read ``to_json``'s text. Raises ValueError, KeyError or TypeError for any other."""
        outer = json.loads(text)
        if outer["digest"] != digest(outer["note"]):
            raise ValueError("the note was changed")
        raw = json.loads(outer["note"])
        return cls(
            split=raw["split"],
            shard=Shard(**raw["shard"]),
            records=[_record(**record) for record in raw["records"]],
            skipped=[Skipped(**skipped) for skipped in raw["skipped"]],
            sizes={(height, width) for height, width in raw["sizes"]},
            steps=Counter(raw["steps"]),
            deep={Deep(*deep) for deep in raw["deep"]},
            converted={Deep(*deep) for deep in raw["converted"]},
            depths=dict(raw["depths"]),
        )


def _record(image: list[int], condition: list[int] | None, box: list[float] | None, **rest: Any) -> SampleRecord:
    second = None if condition is None else Span(*condition)
    return SampleRecord(image=Span(*image), condition=second, box=None if box is None else tuple(box), **rest)


class ShardJobs(Dataset[PackedShard]):
    """Item i packs the i-th shard, or reads its note if that was packed before.

    staging: the folder of finished shards and their notes. done: a counter of samples, shared by all processes.
    """

    def __init__(
        self,
        source: ImageSource,
        staging: Path,
        *,
        shard_size: int,
        condition: ConditionMaker | None,
        done: Synchronized[int],
    ):
        self._source, self._staging, self._condition, self._done = source, staging, condition, done
        self._shard_size = shard_size
        self._entries = {split: source.entries(split) for split in SPLITS}
        self._jobs = [
            (split, number, entries[first : first + shard_size])
            for split, entries in self._entries.items()
            for number, first in enumerate(range(0, len(entries), shard_size))
        ]
        self.total = sum(map(len, self._entries.values()))
        self.depths: Depths = source.depths if isinstance(source, FileSource) else {}

    def __len__(self) -> int:
        return len(self._jobs)

    def with_depths(self, depths: Depths) -> ShardJobs:
        """The same jobs, once the bits of values that are more than bytes are decided."""
        assert isinstance(self._source, FileSource)
        other = copy(self)
        other._source, other.depths = self._source.with_depths(depths), depths
        return other

    def fingerprint(self) -> str:
        """A digest of everything that decides the shards: those of a staging folder with another one are useless."""
        condition = None if self._condition is None else [self._condition.name, self._condition.describe()]
        settings = [self._source.describe(), list(self._source.classes), self._shard_size, condition]
        return digest([settings, {split: list(map(str, entries)) for split, entries in self._entries.items()}])[:16]

    def path(self, packed: PackedShard) -> Path:
        """The shard's path in the staging folder."""
        return self._staging / packed.shard.file

    def __getitem__(self, i: int) -> PackedShard:
        split, number, entries = self._jobs[i]
        path = self._staging / f"{split}-{number:06d}.tar"
        note = path.with_name(f"{path.name}.json")
        packed = _read_note(note, path)
        if packed is not None and packed.is_scaled_by(self.depths):
            self._count(len(entries))
            return packed
        packed = self._pack(split, path, entries)
        write_text(note, packed.to_json())
        return packed

    def _pack(self, split: str, path: Path, entries: Sequence[Any]) -> PackedShard:
        packed = PackedShard(split, Shard(path.name, 0, 0, ""), depths=self.depths)
        try:
            with write_errors(path), ShardWriter(path) as writer:
                for sample, size, condition in self._samples(split, entries, packed.skipped):
                    packed.note(sample, size)
                    writer.add(sample.key, self._members(sample, condition), label=sample.label or 0, box=sample.box)
        except BaseException:
            path.unlink(missing_ok=True)
            raise
        packed.shard, packed.records = writer.shard(path.name), writer.records
        return packed

    def _samples(
        self, split: str, entries: Sequence[Any], skipped: list[Skipped]
    ) -> Iterator[tuple[SourceSample, tuple[int, int], Image.Image | None]]:
        """The usable samples, each with its (H, W) and its second image."""
        for entry in entries:
            self._count(1)
            sample = self._load(split, entry)
            if isinstance(sample, SourceSample):
                size, second = self._checked_size(sample), self._second_image(sample)
                if not isinstance(second, Skipped):
                    yield sample, size, second
                    continue
                sample = second
            skipped.append(sample)

    def _load(self, split: str, entry: Any) -> SourceSample | Skipped:
        try:
            return self._source.load(split, entry)
        except OSError as e:  # otherwise it would be reported as a failure to write
            raise VarlabError(f"The source's {split} images cannot be read ({e}): see that its files are there.") from e

    def _checked_size(self, sample: SourceSample) -> tuple[int, int]:
        """The (H, W) of a valid sample.

        Raises:
            VarlabError: its label, key, format or size is impossible.
        """
        classes, promised = len(self._source.classes), self._source.image_size
        if sample.label is not None and not 0 <= sample.label < classes:
            raise VarlabError(f"Sample {sample.key} has label {sample.label}, but there are {classes} classes.")
        if "." in sample.key or not sample.key.isascii() or not 0 < len(sample.key) <= 90:
            raise VarlabError(f"The key {sample.key!r} must be unique ASCII without dots, 90 characters at most.")
        size = _size(sample)
        if promised not in (None, size):
            raise VarlabError(f"Sample {sample.key} is {size[1]}×{size[0]}, but the source promised {promised[::-1]}.")
        return size

    def _second_image(self, sample: SourceSample) -> Image.Image | Skipped | None:
        if self._condition is None:
            return None
        image = sample.image
        if isinstance(image, bytes):
            image = open_picture(image, PixelRules(most_pixels=_ANY_SIZE, depths=self.depths)).decode().image()
        return self._condition.draw(sample, image)

    def _members(self, sample: SourceSample, second: Image.Image | None) -> Iterator[tuple[str, bytes]]:
        """The ending and the content of each file of a sample."""
        yield _encode(sample.image)
        if sample.label is not None:
            yield "cls", str(sample.label).encode()
        if second is not None:
            yield CONDITION, _png(second)
        if self._condition is not None and sample.box is not None:
            yield "json", json.dumps({"box": list(sample.box)}).encode()

    def _count(self, samples: int) -> None:
        with self._done.get_lock():
            self._done.value += samples


def _read_note(note: Path, shard: Path) -> PackedShard | None:
    """The note of a shard that was finished earlier, if the shard's bytes are those of then."""
    try:
        packed = PackedShard.from_json(require_plain(note).read_text())
        return packed if sha256(require_plain(shard)) == packed.shard.sha256 else None
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None


def _size(sample: SourceSample) -> tuple[int, int]:
    """The (H, W) of its image."""
    if not isinstance(sample.image, bytes):
        return sample.image.height, sample.image.width
    detail = ""
    try:
        if format_of(sample.image) is not None:
            return open_picture(sample.image, PixelRules(most_pixels=_ANY_SIZE)).size
    except BadSampleError as e:
        detail = f" ({e})"
    raise VarlabError(f"Sample {sample.key} is none of {', '.join(STORED)}{detail}: leave it out.")


def _encode(image: Image.Image | bytes) -> tuple[str, bytes]:
    """File ending and bytes: a PIL image becomes a PNG, encoded bytes stay unchanged."""
    return (STORED[str(format_of(image))], image) if isinstance(image, bytes) else ("png", _png(image))


def _png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    return buffer.getvalue()
