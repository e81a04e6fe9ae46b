"""The interface of a source of images, and the split of a source that has none."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from varlab.config import Config
from varlab.data.folders.class_names import named
from varlab.data.format.index import SPLITS
from varlab.data.image.depth import Deep
from varlab.errors import VarlabError
from varlab.rng import Rng

__all__ = ["ImageSource", "Skipped", "SourceSample", "notes_of", "require_train", "stratified_split", "val_notes"]


@dataclass(frozen=True)
class SourceSample:
    """One image of a source, to be packed.

    key: unique within the split, at most 90 ASCII characters, without dots (WebDataset cuts names there).
    label: in [0, classes); None if the source has no labels.
    image: a PIL image, mode L or RGB, or the encoded bytes of a PNG, JPEG or WebP.
    file: its path below the source's folder, if it comes from one.
    box: the crop's (top, left, bottom, right) in the original picture, in [0, 1], if it is a crop.
    steps, deep: what was done to it, and what its file holds if that is not bytes, see ``Picture``.
    """

    key: str
    label: int | None
    image: Image.Image | bytes
    file: str | None = None
    box: tuple[float, float, float, float] | None = None
    steps: tuple[str, ...] = ()
    deep: Deep | None = None


@dataclass(frozen=True)
class Skipped:
    """Something that a source could not use: its name, and the reason."""

    name: str
    reason: str


class ImageSource(Protocol):
    """Images for ``pack``. It is copied into worker processes; each loads other samples.

    ``entries`` lists what can be loaded, in order. It is cheap, and equal in every process. A source may also have
    ``notes``: sentences about what it passed over or decided, see ``notes_of``.
    """

    @property
    def classes(self) -> Sequence[str]: ...  # the names, in label order
    @property
    def image_size(self) -> tuple[int, int] | None: ...  # (H, W) of every sample, None if they differ
    def describe(self) -> Config: ...  # "name" and the arguments, in JSON types
    def entries(self, split: str) -> Sequence[Any]: ...
    def load(self, split: str, entry: Any) -> SourceSample | Skipped: ...


def notes_of(source: ImageSource) -> list[str]:
    """The sentences of a source about what it passed over or decided, to be said before the work begins."""
    return list(getattr(source, "notes", ()))


def require_train(root: Path, files: Sequence[str], images: int) -> None:
    """Raise VarlabError if a source's files give no image to train."""
    if not images:
        raise VarlabError(
            f"{root} has no image for train: its files are named for val ({named(files)}). source.split.val=none takes them "
            "for train."
        )


def val_notes(labels: Mapping[str, Sequence[int] | NDArray[np.int64]], classes: Sequence[str]) -> list[str]:
    """Sentences about classes without val images. labels: of the images of each split."""
    if not len(labels["val"]):
        return ["no image is for val: a training on it needs val.skip=true"]
    count_K = np.bincount(np.asarray(labels["train"], dtype=np.int64), minlength=len(classes))
    val_K = np.bincount(np.asarray(labels["val"], dtype=np.int64), minlength=len(classes))
    without = [name for name, n, val in zip(classes, count_K, val_K, strict=True) if n and not val]
    return (
        [f"too few images for val in {len(without):,} of {len(classes):,} classes: {named(without)}"] if without else []
    )


def stratified_split(labels: Sequence[int], *, val_fraction: float, seed: int) -> dict[str, list[int]]:
    """The indices of ``labels`` for each split, ascending.

    Each class gives ``val_fraction`` of its members, rounded, to val; at least one (unless val_fraction is 0) if train keeps
    one.

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
