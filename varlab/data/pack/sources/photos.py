"""Crops of the photographs that ship with scikit-image: real images at any size without a download."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.resources import as_file, files

import torch
from PIL import Image
from torch import Tensor

from varlab.config import Config
from varlab.data.format.index import SPLITS
from varlab.data.image.crop import Box
from varlab.data.image.picture import PixelRules, read_picture
from varlab.data.image.resize import resampling
from varlab.data.pack.sources.base import Skipped, SourceSample
from varlab.errors import VarlabError
from varlab.rng import Rng

__all__ = ["Photos", "regions"]

_RULES = PixelRules(most_pixels=1 << 27)

Entry = tuple[int, str] | Skipped
"""Number of the crop, name of the photograph; or a photograph that is too small."""


def regions(width: int, height: int, *, size: int, val_fraction: float) -> dict[str, Box] | None:
    """The disjoint train and val regions of a photograph, cut across its longer side; None if it is too small.

    val takes ``val_fraction`` of that side at the end, or ``size`` pixels if that is more. Each region holds a
    ``size`` × ``size`` crop.
    """
    long = max(width, height)
    cut = long - max(size, round(long * val_fraction))
    if min(width, height) < size or cut < size:
        return None
    if width >= height:
        return {"train": Box(0, 0, height, cut), "val": Box(0, cut, height, width)}
    return {"train": Box(0, 0, cut, width), "val": Box(cut, 0, height, width)}


class Photos:
    """Random square crops, resized to ``size`` × ``size``; the class is the photograph.

    Train and val crops come from separate regions of each photograph. A photograph that is too small for both is skipped and
    named, and is no class.

    Args:
        photos: names of image files in scikit-image's data folder, without ending.
        size: pixels of a side. train_crops, val_crops: crops of every photograph.
        zoom: the side of a crop is uniform between ``size`` and ``zoom * size`` pixels (within the region) and is then
            reduced to ``size``; 1 keeps the pixels.
        resample: the filter of that reduction. val_fraction: of the longer side. seed: of the crops' places.

    Raises:
        VarlabError: scikit-image does not ship a photograph, or none is large enough.
    """

    def __init__(
        self,
        *,
        photos: Sequence[str],
        size: int,
        train_crops: int,
        val_crops: int,
        zoom: float,
        resample: str,
        val_fraction: float,
        seed: int,
    ):
        if zoom < 1:
            raise VarlabError(f"zoom is {zoom}, but a crop cannot be smaller than its result: set at least 1.")
        self._arguments: Config = {"photos": list(photos), "size": size, "train_crops": train_crops}
        self._arguments |= {"val_crops": val_crops, "zoom": zoom, "resample": resample}
        self._arguments |= {"val_fraction": val_fraction, "seed": seed}
        self._size, self._zoom, self._filter, self._rng = size, zoom, resampling(resample), Rng(seed)
        self._crops = dict(zip(SPLITS, (train_crops, val_crops), strict=True))
        self._photos = {name: _open(name) for name in photos}
        parts = {n: regions(*image.size, size=size, val_fraction=val_fraction) for n, image in self._photos.items()}
        self._regions = {name: part for name, part in parts.items() if part is not None}
        self._skipped = [self._too_small(name) for name, part in parts.items() if part is None]
        if not self._regions:
            raise VarlabError(f"No photograph is large enough for separate {size}-pixel crops: choose a smaller size.")
        self._boxes = {(name, split): self.boxes(name, split) for name in self._regions for split in SPLITS}
        self.classes = tuple(self._regions)
        self.image_size = (size, size)

    def _too_small(self, name: str) -> Skipped:
        width, height = self._photos[name].size
        crops = f"train and val crops of {self._size} pixels"
        return Skipped(name, f"{width}×{height} has no separate regions for {crops}")

    def describe(self) -> Config:
        """Name and arguments."""
        return {"name": "photos", **self._arguments}

    def region(self, photo: str, split: str) -> Image.Image:
        """The part of a photograph that contains the crops of a split."""
        return _cut(self._photos[photo], self._regions[photo][split])

    def boxes(self, photo: str, split: str) -> list[Box]:
        """The crops of a photograph: a function of (seed, photo, split, crop number) alone."""
        region = self._regions[photo][split]
        u_N3 = self._rng.stream(f"crop/{photo}/{split}", ids=torch.arange(self._crops[split])).uniform(3).double()
        largest = min(region.width, region.height, int(self._size * self._zoom))
        side_N = self._size + _floor(u_N3[:, 0] * (largest - self._size + 1))
        left_N = region.left + _floor(u_N3[:, 1] * (region.width - side_N + 1))
        top_N = region.top + _floor(u_N3[:, 2] * (region.height - side_N + 1))
        return [Box.at(*place) for place in torch.stack([top_N, left_N, side_N, side_N], 1).tolist()]

    def entries(self, split: str) -> list[Entry]:
        """For train, the photographs that are too small; then the first crop of each photograph, the second …"""
        crops = [(i, name) for i in range(self._crops[split]) for name in self.classes]
        return [*(self._skipped if split == SPLITS[0] else ()), *crops]

    def load(self, split: str, entry: Entry) -> SourceSample | Skipped:
        """Cut out a crop, in mode L or RGB as its photograph."""
        if isinstance(entry, Skipped):
            return entry
        i, name = entry
        image, box = self._photos[name], self._boxes[name, split][i]
        return SourceSample(
            key=f"{i:06d}-{name}",
            label=self.classes.index(name),
            image=_cut(image, box).resize(self.image_size, self._filter),
            box=box.shares(image.height, image.width),
        )


def _cut(image: Image.Image, box: Box) -> Image.Image:
    return image.crop((box.left, box.top, box.right, box.bottom))


def _floor(x_N: Tensor) -> Tensor:
    return x_N.floor().to(torch.int64)


def _open(name: str) -> Image.Image:
    for ending in ("png", "jpg"):
        with as_file(files("skimage") / "data" / f"{name}.{ending}") as path:
            if path.is_file():
                return read_picture(path, _RULES).image()
    raise VarlabError(f"The installed scikit-image ships no photograph {name!r}: take it out of source.photos.")
