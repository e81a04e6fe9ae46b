"""Load everything that a source lists."""

from __future__ import annotations

from collections.abc import Iterator

from varlab.data.pack.sources.base import ImageSource, Skipped, SourceSample


def load_all(source: ImageSource, split: str) -> Iterator[SourceSample | Skipped]:
    """The samples of a split, in order."""
    for entry in source.entries(split):
        yield source.load(split, entry)


def load_samples(source: ImageSource, split: str) -> list[SourceSample]:
    """The usable samples of a split."""
    return [sample for sample in load_all(source, split) if isinstance(sample, SourceSample)]


def load_skipped(source: ImageSource) -> list[Skipped]:
    """What could not be used, of both splits."""
    return [item for split in ("train", "val") for item in load_all(source, split) if isinstance(item, Skipped)]
