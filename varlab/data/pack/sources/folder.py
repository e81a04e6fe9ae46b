"""Any ImageFolder as a source: one subfolder a class, or that under ``train/`` and ``val/``."""

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

__all__ = ["ENDINGS", "ImageFolder"]

ENDINGS = {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".ppm", ".pgm", ".gif"}

_ONCE = 1 << 20  # bytes that are read at once

Entry = tuple[int, str, int]
"""Place in the split, path below the root, label."""


class ImageFolder:
    """The images of a folder, shorter side brought to ``size``, centre cropped to ``size`` × ``size``.

    A class is a subfolder, in alphabetical order, searched to any depth. Where ``path`` holds both ``train`` and
    ``val`` these are the splits; elsewhere the split is stratified, by ``val_fraction`` and ``seed``. The order in the
    shards is shuffled by ``seed``. A PNG, JPEG or WebP that is already ``size`` × ``size`` goes in byte for byte; with size
    None every one does, see ``Fit``. A file that cannot be decoded is skipped and named.

    Raises:
        VarlabError: no such folder, no images in it, or classes in val that train lacks.
    """

    def __init__(
        self, *, path: str, size: int | None, resample: str, val_fraction: float, seed: int, check: str = "decode"
    ):
        self._root = Path(path).expanduser()
        if not self._root.is_dir():
            raise VarlabError(f"There is no image folder {self._root}: set path to one with class subfolders.")
        self._fit = Fit(size=size, resample=resample, check=check)
        self._arguments = {"path": path, "size": size, "resample": resample, "val_fraction": val_fraction, "seed": seed}
        presplit = all((self._root / split).is_dir() for split in SPLITS)
        self.classes = _classes(self._root / SPLITS[0] if presplit else self._root)
        self.image_size = self._fit.image_size
        if presplit:
            found = {split: self._found(self._root / split) for split in SPLITS}
        else:
            everything = self._found(self._root)
            chosen = stratified_split([label for _, label in everything], val_fraction=val_fraction, seed=seed)
            found = {split: [everything[i] for i in chosen[split]] for split in SPLITS}
        self._split = {split: _shuffled(found[split], seed=seed, name=f"pack/{split}") for split in SPLITS}

    def _found(self, folder: Path) -> list[tuple[str, int]]:
        strangers = sorted(set(_classes(folder)) - set(self.classes))
        if strangers:
            raise VarlabError(f"{folder} has a class {strangers[0]!r}, but train has none: make them agree.")
        found = [
            (os.path.relpath(file, self._root), label)
            for label, name in enumerate(self.classes)
            for file in _files(folder / name)
        ]
        if not found:
            raise VarlabError(f"{folder} holds no images ({', '.join(sorted(ENDINGS))}) in its subfolders.")
        return found

    def describe(self) -> Config:
        """Name and arguments."""
        return {"name": "folder", **self._arguments}

    def entries(self, split: str) -> list[Entry]:
        """The files, shuffled."""
        return self._split[split]

    def load(self, split: str, entry: Entry) -> SourceSample | Skipped:
        """The key is a number and the file's name, made fit for WebDataset."""
        i, name, label = entry
        path = self._root / name
        try:
            image = self._fit(_read(path))
        except (BadSampleError, OSError) as e:
            return Skipped(name, str(e))
        key = f"{i:08d}-{re.sub('[^A-Za-z0-9_-]', '_', path.stem)[:60]}"
        return SourceSample(key=key, label=label, image=image, file=name)


def _classes(folder: Path) -> tuple[str, ...]:
    names = sorted(p.name for p in folder.iterdir() if p.is_dir() and not p.name.startswith("."))
    if not names:
        raise VarlabError(f"{folder} has no subfolders: an image folder needs one for each class.")
    return tuple(names)


def _files(folder: Path) -> Iterator[str]:
    """The images below a folder, in order of their paths. Strings: a million Path objects take their time."""
    found = (f"{where}/{name}" for where, _, names in os.walk(folder, followlinks=True) for name in names)
    yield from sorted((path for path in found if _ending(path) in ENDINGS), key=lambda path: path.split("/"))


def _ending(path: str) -> str:
    return "." + path.rpartition(".")[2].lower()


def _read(path: Path) -> bytes:
    """A small file's content, with as few calls to the system as it takes: half of the time of packing files as they are."""
    file = os.open(path, os.O_RDONLY)
    try:
        parts = [os.read(file, _ONCE)]
        while parts[-1]:
            parts.append(os.read(file, _ONCE))
        return parts[0] if len(parts) == 2 else b"".join(parts)
    finally:
        os.close(file)


def _shuffled(found: list[tuple[str, int]], *, seed: int, name: str) -> list[Entry]:
    order = Rng(seed).stream(name).permutation(len(found))[0].tolist()
    return [(i, *found[place]) for i, place in enumerate(order)]
