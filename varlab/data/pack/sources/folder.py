"""A folder of images as a source: one subfolder per class, with or without splits, or images without labels."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

from varlab.config import Config
from varlab.data.faults import BadSampleError
from varlab.data.folders.class_names import printable
from varlab.data.folders.layout import read_layout
from varlab.data.folders.tree import Tree
from varlab.data.format.index import SPLITS
from varlab.data.format.labels import UNLABELLED
from varlab.data.pack.sources.base import Skipped, SourceSample, stratified_split, val_notes
from varlab.data.pack.sources.file_source import FileSource
from varlab.data.pack.sources.source_paths import image_folder
from varlab.errors import VarlabError
from varlab.rng import Rng

__all__ = ["ImageFolder"]

_CHUNK = 1 << 20  # bytes per read
_USUAL_WORDS: Mapping[str, str | None] = MappingProxyType({"skip": None, "val": None, "train": None})

Entry = tuple[int, str, int | None]
"""Number in the split, path below the root, label."""


class ImageFolder(FileSource):
    """The images of a folder, each as ``Fit`` brings it to size.

    A class is a subfolder, searched to any depth. Folders named train, val … above or in the classes are splits (see
    ``read_layout``); without a val the split is stratified, by ``val_fraction`` and ``seed``. ``seed`` also shuffles the
    order in the shards. A file that cannot be decoded is skipped and named. Images without any subfolder, or of a single
    class, have no labels.

    Args:
        split: for train and val, the names of their folders, or patterns with | between them, and for ``skip``, folders to
            leave out; null takes the usual words. None: every folder is a class.
        allow_empty: whether a folder without images is a class. label: "none" if no folder is a class: then all images are
            packed without labels.

    Raises:
        VarlabError: the folder is missing or has no images; its folders can be understood in two ways; val has a class that
            train lacks.
    """

    def __init__(
        self,
        *,
        path: str,
        size: int | None,
        resample: str,
        val_fraction: float,
        seed: int,
        check: str = "decode",
        split: Mapping[str, str | None] | None = _USUAL_WORDS,
        allow_empty: bool | None = None,
        most_pixels: int = 1 << 27,
        depth: int | str = "auto",
        whole: bool | None = None,
        label: str | None = None,
    ):
        super().__init__(size=size, resample=resample, check=check, most_pixels=most_pixels, depth=depth, whole=whole)
        self._root = image_folder(path)
        if label not in (None, "none"):
            raise VarlabError(f"source.label={label} is unknown: use none, or null for the names of folders.")
        self._arguments: Config = {
            "path": path,
            "size": size,
            "resample": resample,
            "val_fraction": val_fraction,
            "seed": seed,
        }
        if split is None or any(split.values()):
            self._arguments["split"] = None if split is None else dict(split)
        if allow_empty:
            self._arguments["allow_empty"] = True
        if label:
            self._arguments["label"] = label
        layout = read_layout(Tree(self._root), split=split, allow_empty=bool(allow_empty), labelled=not label)
        self.classes = layout.classes or UNLABELLED
        splits = _split(layout.splits, val_fraction, seed)
        labels = {name: [label or 0 for _, label in images] for name, images in splits.items()}
        self.notes = [*layout.notes, *val_notes(labels, self.classes)]
        """Sentences about what was passed over or decided."""
        self._split = {name: _shuffled(images, seed=seed, name=f"pack/{name}") for name, images in splits.items()}

    def describe(self) -> Config:
        """Name and arguments."""
        return {"name": "folder", **self._arguments, **self._reading}

    def entries(self, split: str) -> list[Entry]:
        """The files, shuffled."""
        return self._split[split]

    def load(self, split: str, entry: Entry) -> SourceSample | Skipped:
        """Load a file; the key is its number and a form of its name that WebDataset accepts."""
        i, name, label = entry
        try:
            image, steps, deep = self._fit(_read(self._root / name), name)
        except (BadSampleError, OSError) as e:
            return Skipped(printable(name), printable(str(e)))
        key = f"{i:08d}-{re.sub('[^A-Za-z0-9_-]', '_', Path(name).stem)[:60]}"
        return SourceSample(key=key, label=label, image=image, file=name, steps=steps, deep=deep)


def _split(
    given: Mapping[str, Sequence[tuple[str, int | None]]], fraction: float, seed: int
) -> dict[str, Sequence[tuple[str, int | None]]]:
    """The images of train and val: as the folder has them, or a share of each class for val."""
    if given.get("val"):
        return {split: given.get(split, ()) for split in SPLITS}
    images = [*given.get("train", ()), *given.get("all", ())]
    chosen = stratified_split([label or 0 for _, label in images], val_fraction=fraction, seed=seed)
    return {split: [images[i] for i in chosen[split]] for split in SPLITS}


def _read(path: Path) -> bytes:
    """A small file's content with as few system calls as possible: they take half of the time of packing unchanged files."""
    file = os.open(path, os.O_RDONLY)
    try:
        parts = [os.read(file, _CHUNK)]
        while parts[-1]:
            parts.append(os.read(file, _CHUNK))
        return parts[0] if len(parts) == 2 else b"".join(parts)
    finally:
        os.close(file)


def _shuffled(images: Sequence[tuple[str, int | None]], *, seed: int, name: str) -> list[Entry]:
    order = Rng(seed).stream(name).permutation(len(images))[0].tolist()
    return [(i, *images[place]) for i, place in enumerate(order)]
