"""A folder of images as a source: one subfolder per class, also below ``train/`` and ``val/``."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

from varlab.config import Config
from varlab.data.faults import BadSampleError
from varlab.data.format.index import SPLITS
from varlab.data.image.resize import Fit
from varlab.data.pack.sources.base import Skipped, SourceSample, stratified_split
from varlab.errors import VarlabError
from varlab.rng import Rng

__all__ = ["IMAGE_ENDINGS", "ImageFolder"]

IMAGE_ENDINGS = {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".ppm", ".pgm", ".gif"}

_CHUNK = 1 << 20  # bytes per read

Entry = tuple[int, str, int]
"""Number in the split, path below the root, label."""


class ImageFolder:
    """The images of a folder, each as ``Fit`` brings it to size.

    A class is a subfolder, in alphabetical order, searched to any depth. If ``path`` holds both ``train`` and ``val``,
    these are the splits; otherwise the split is stratified, by ``val_fraction`` and ``seed``. ``seed`` also shuffles the
    order in the shards. A file that cannot be decoded is skipped and named.

    Raises:
        VarlabError: the folder is missing or has no images, or val has a class that train lacks.
    """

    def __init__(
        self, *, path: str, size: int | None, resample: str, val_fraction: float, seed: int, check: str = "decode"
    ):
        self._root = Path(path).expanduser()
        if not self._root.is_dir():
            raise VarlabError(f"There is no image folder {self._root}: set path to one with class subfolders.")
        self._fit = Fit(size=size, resample=resample, check=check)
        self._arguments = {"path": path, "size": size, "resample": resample, "val_fraction": val_fraction, "seed": seed}
        self.image_size = self._fit.image_size
        if all((self._root / split).is_dir() for split in SPLITS):
            self.classes = _classes(self._root / SPLITS[0])
            splits = {split: self._images(self._root / split) for split in SPLITS}
        else:
            self.classes = _classes(self._root)
            images = self._images(self._root)
            chosen = stratified_split([label for _, label in images], val_fraction=val_fraction, seed=seed)
            splits = {split: [images[i] for i in chosen[split]] for split in SPLITS}
        self._split = {split: _shuffled(images, seed=seed, name=f"pack/{split}") for split, images in splits.items()}

    def _images(self, folder: Path) -> list[tuple[str, int]]:
        """Path and label of each image below a folder of classes."""
        unknown = sorted(set(_classes(folder)) - set(self.classes))
        if unknown:
            raise VarlabError(f"{folder} has a class {unknown[0]!r}, but train has none: make them agree.")
        images = [
            (os.path.relpath(file, self._root), label)
            for label, name in enumerate(self.classes)
            for file in _files(folder / name)
        ]
        if not images:
            raise VarlabError(f"{folder} holds no images ({', '.join(sorted(IMAGE_ENDINGS))}) in its subfolders.")
        return images

    def describe(self) -> Config:
        """Name and arguments."""
        return {"name": "folder", **self._arguments}

    def entries(self, split: str) -> list[Entry]:
        """The files, shuffled."""
        return self._split[split]

    def load(self, split: str, entry: Entry) -> SourceSample | Skipped:
        """Load a file; the key is its number and a form of its name that WebDataset accepts."""
        i, name, label = entry
        try:
            image = self._fit(_read(self._root / name))
        except (BadSampleError, OSError) as e:
            return Skipped(name, str(e))
        key = f"{i:08d}-{re.sub('[^A-Za-z0-9_-]', '_', Path(name).stem)[:60]}"
        return SourceSample(key=key, label=label, image=image, file=name)


def _classes(folder: Path) -> tuple[str, ...]:
    names = sorted(p.name for p in folder.iterdir() if p.is_dir() and not p.name.startswith("."))
    if not names:
        raise VarlabError(f"{folder} has no subfolders: an image folder needs one for each class.")
    return tuple(names)


def _files(folder: Path) -> Iterator[str]:
    """The images below a folder, in order of their paths. They are strings: a million Path objects would be slow."""
    paths = (f"{where}/{name}" for where, _, names in os.walk(folder, followlinks=True) for name in names)
    yield from sorted((path for path in paths if _ending(path) in IMAGE_ENDINGS), key=lambda path: path.split("/"))


def _ending(path: str) -> str:
    return "." + path.rpartition(".")[2].lower()


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


def _shuffled(images: list[tuple[str, int]], *, seed: int, name: str) -> list[Entry]:
    order = Rng(seed).stream(name).permutation(len(images))[0].tolist()
    return [(i, *images[place]) for i, place in enumerate(order)]
