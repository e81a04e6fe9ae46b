"""Any ImageFolder as a source: one subfolder a class, or that under ``train/`` and ``val/``."""

from __future__ import annotations

import io
import logging
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from varlab.data.index import SPLITS
from varlab.data.sources import Sample, Skipped, resampling, stratified_split
from varlab.errors import VarlabError
from varlab.rng import Rng

__all__ = ["ENDINGS", "UNREADABLE", "Folder", "fit", "opaque"]

log = logging.getLogger(__name__)

ENDINGS = {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".ppm", ".pgm", ".gif"}
STORABLE = {"PNG", "JPEG", "WEBP"}  # what a reader of shards decodes
UNREADABLE = (OSError, ValueError, SyntaxError, EOFError, Image.DecompressionBombError)  # bad files, to Pillow

Entry = tuple[Path, int]  # file, label


class Folder:
    """The images of a folder, shorter side brought to ``size``, centre cropped to ``size`` × ``size``.

    A class is a subfolder, in alphabetical order, searched to any depth. Where ``path`` holds both ``train`` and
    ``val`` these are the splits; elsewhere the split is stratified, by ``val_fraction`` and ``seed``. The order in the
    shards is shuffled by ``seed``. A PNG, JPEG or WebP that is already ``size`` × ``size`` goes in byte for byte. A
    file that cannot be decoded is skipped and named.

    Raises:
        VarlabError: no such folder, no images in it, or classes in val that train lacks.
    """

    def __init__(self, *, path: str, size: int, resample: str, val_fraction: float, seed: int):
        self._root = Path(path).expanduser()
        if not self._root.is_dir():
            raise VarlabError(f"There is no image folder {self._root}: set path to one with class subfolders.")
        self._size, self._filter = size, resampling(resample)
        self._arguments = {"path": path, "size": size, "resample": resample, "val_fraction": val_fraction, "seed": seed}
        presplit = all((self._root / split).is_dir() for split in SPLITS)
        self.classes = _classes(self._root / SPLITS[0] if presplit else self._root)
        self.image_size = (size, size)
        if presplit:
            entries = {split: self._entries(self._root / split) for split in SPLITS}
        else:
            everything = self._entries(self._root)
            chosen = stratified_split([label for _, label in everything], val_fraction=val_fraction, seed=seed)
            entries = {split: [everything[i] for i in chosen[split]] for split in SPLITS}
        self._split = {split: _shuffled(entries[split], seed=seed, name=f"pack/{split}") for split in SPLITS}

    def _entries(self, folder: Path) -> list[Entry]:
        strangers = sorted(set(_classes(folder)) - set(self.classes))
        if strangers:
            raise VarlabError(f"{folder} has a class {strangers[0]!r}, but train has none: make them agree.")
        found = [
            (file, label)
            for label, name in enumerate(self.classes)
            for file in sorted((folder / name).rglob("*"))
            if file.suffix.lower() in ENDINGS and file.is_file()
        ]
        if not found:
            raise VarlabError(f"{folder} holds no images ({', '.join(sorted(ENDINGS))}) in its subfolders.")
        return found

    def describe(self) -> dict[str, Any]:
        """Name and arguments."""
        return {"name": "folder", **self._arguments}

    def samples(self, split: str) -> Iterator[Sample | Skipped]:
        """The key is a number and the file's name, made fit for WebDataset."""
        for i, (file, label) in enumerate(self._split[split]):
            name = str(file.relative_to(self._root))
            try:
                image = self._load(file)
            except UNREADABLE as e:
                log.warning("image %s is skipped: %s", name, e)
                yield Skipped(name, f"cannot be decoded ({e})")
                continue
            key = f"{i:08d}-{re.sub('[^A-Za-z0-9_-]', '_', file.stem)[:60]}"
            yield Sample(key=key, label=label, image=image, file=name)

    def _load(self, file: Path) -> Image.Image | bytes:
        encoded = file.read_bytes()
        with Image.open(io.BytesIO(encoded)) as image:
            image.load()
            turned = image.getexif().get(0x0112, 1) != 1  # EXIF orientation
            plain = image.format in STORABLE and image.mode in ("L", "RGB") and "transparency" not in image.info
            if plain and not turned and image.size == (self._size, self._size) and getattr(image, "n_frames", 1) == 1:
                return encoded
            return fit(opaque(ImageOps.exif_transpose(image)), size=self._size, resample=self._filter)


def _classes(folder: Path) -> tuple[str, ...]:
    names = sorted(p.name for p in folder.iterdir() if p.is_dir() and not p.name.startswith("."))
    if not names:
        raise VarlabError(f"{folder} has no subfolders: an image folder needs one for each class.")
    return tuple(names)


def _shuffled(entries: list[Entry], *, seed: int, name: str) -> list[Entry]:
    return [entries[i] for i in Rng(seed).stream(name).permutation(len(entries))[0].tolist()]


def opaque(image: Image.Image) -> Image.Image:
    """Mode L or RGB: transparency is laid over white, and 16-bit grey keeps its upper 8 bits."""
    if image.mode in ("L", "RGB"):
        if "transparency" not in image.info:
            return image
    elif image.mode == "1":
        return image.convert("L")
    elif image.mode.startswith("I"):
        return Image.fromarray((np.asarray(image).astype(np.int64).clip(0, 65535) >> 8).astype(np.uint8))
    if "A" in image.mode or "a" in image.mode or "transparency" in image.info:
        rgba = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")
    return image.convert("RGB")


def fit(image: Image.Image, *, size: int, resample: Image.Resampling) -> Image.Image:
    """Shorter side to ``size`` pixels, then the centre ``size`` × ``size``."""
    ratio = size / min(image.size)
    width, height = (max(size, round(side * ratio)) for side in image.size)
    left, upper = (width - size) // 2, (height - size) // 2
    return image.resize((width, height), resample).crop((left, upper, left + size, upper + size))
