"""What a source of images is, and how one without a split is split."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from PIL import Image

from varlab.config import Config
from varlab.data.format.index import SPLITS
from varlab.errors import VarlabError
from varlab.rng import Rng

__all__ = ["ImageSource", "Skipped", "SourceSample", "samples", "stratified_split"]


@dataclass(frozen=True)
class SourceSample:
    """One image on its way into a shard.

    key: unique within the split, at most 90 ASCII characters, without dots (WebDataset cuts names there).
    label: in [0, classes); None where the source has no labels.
    image: a PIL image, mode L or RGB, or the encoded bytes of a PNG, JPEG or WebP.
    file: its path below the source's folder, where it comes from one.
    box: where it lies in the picture that it was cut from, as (top, left, bottom, right) in [0, 1].
    """

    key: str
    label: int | None
    image: Image.Image | bytes
    file: str | None = None
    box: tuple[float, float, float, float] | None = None


@dataclass(frozen=True)
class Skipped:
    """Something that could not be used: its name, and why."""

    name: str
    reason: str


class ImageSource(Protocol):
    """What ``pack`` packs. It is copied into worker processes, which load different samples of it."""

    @property
    def classes(self) -> Sequence[str]: ...  # the names, in label order
    @property
    def image_size(self) -> tuple[int, int] | None: ...  # (H, W) of every sample, None where they differ
    def describe(self) -> Config: ...  # "name" and the arguments, JSON types
    def entries(
        self, split: str
    ) -> Sequence[Any]: ...  # what there is to load, in order: cheap, and the same every time
    def load(self, split: str, entry: Any) -> SourceSample | Skipped: ...


def samples(source: ImageSource, split: str) -> Iterator[SourceSample | Skipped]:
    """The samples of a split, loaded one after another."""
    for entry in source.entries(split):
        yield source.load(split, entry)


def stratified_split(labels: Sequence[int], *, val_fraction: float, seed: int) -> dict[str, list[int]]:
    """Indices of ``labels`` per split, ascending. Each class gives ``val_fraction`` of its members, rounded, to val;
    at least one (val_fraction 0 aside), as long as train keeps one.

    Raises:
        VarlabError: val_fraction outside [0, 1).
    """
    if not 0 <= val_fraction < 1:
        raise VarlabError(f"val_fraction is {val_fraction}, but must lie in [0, 1).")
    split: dict[str, list[int]] = {name: [] for name in SPLITS}
    label_N = np.asarray(labels, dtype=np.int64)
    for label in np.unique(label_N):
        member_n = np.flatnonzero(label_N == label)
        shuffled_n = member_n[Rng(seed).stream("split", ids=int(label)).permutation(len(member_n))[0].numpy()]
        val = round(len(member_n) * val_fraction)
        if val_fraction > 0:
            val = min(max(val, 1), len(member_n) - 1)
        split["val"] += shuffled_n[:val].tolist()
        split["train"] += shuffled_n[val:].tolist()
    return {name: sorted(indices) for name, indices in split.items()}
