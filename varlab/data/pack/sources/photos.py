"""Crops from the photographs that ship inside scikit-image's wheel: real images at any size without a download."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.resources import as_file, files

import torch
from PIL import Image
from torch import Tensor

from varlab.config import Config
from varlab.data.format.index import SPLITS
from varlab.data.image.crop import Box
from varlab.data.image.resize import resampling
from varlab.data.pack.sources.base import Skipped, SourceSample
from varlab.errors import VarlabError
from varlab.rng import Rng

__all__ = ["Photos", "regions"]


def regions(width: int, height: int, *, size: int, val_fraction: float) -> dict[str, Box] | None:
    """Two disjoint parts of a photograph, cut across its longer side: val takes ``val_fraction`` of it at the end, or
    ``size`` pixels where that is more. None where not both can hold a ``size`` × ``size`` crop."""
    long = max(width, height)
    val = max(size, round(long * val_fraction))
    if min(width, height) < size or long - val < size:
        return None
    cut = long - val
    if width >= height:
        return {"train": Box(0, 0, height, cut), "val": Box(0, cut, height, width)}
    return {"train": Box(0, 0, cut, width), "val": Box(cut, 0, height, width)}


class Photos:
    """Random square crops, brought to ``size`` × ``size``; the class is the photograph.

    Train and val crops come from separate regions of each photograph. A photograph too small for that at this size is
    skipped, named and no class.

    Args:
        photos: names of image files in scikit-image's data folder, without ending.
        size: pixels a side. train_crops, val_crops: crops from every photograph.
        zoom: a crop's side is drawn uniformly from ``size`` to ``zoom * size`` pixels (as far as the region reaches),
            then reduced to ``size``; 1 takes the pixels as they are.
        resample: the filter of that reduction. val_fraction: of the longer side. seed: of the crops' places.

    Raises:
        VarlabError: a photograph that scikit-image does not ship, or none large enough.
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
        self._arguments = {"photos": list(photos), "size": size, "train_crops": train_crops, "val_crops": val_crops}
        self._arguments |= {"zoom": zoom, "resample": resample, "val_fraction": val_fraction, "seed": seed}
        self._size, self._zoom, self._filter, self._rng = size, zoom, resampling(resample), Rng(seed)
        self._crops = dict(zip(SPLITS, (train_crops, val_crops), strict=True))
        self._regions: dict[str, dict[str, Box]] = {}
        self._skipped: list[Skipped] = []
        self._opened: dict[str, Image.Image] = {}
        self._known: dict[tuple[str, str], list[Box]] = {}
        for name in photos:
            self._survey(name, val_fraction)
        if not self._regions:
            raise VarlabError(f"No photograph is large enough for separate {size}-pixel crops: choose a smaller size.")
        self.classes = tuple(self._regions)
        self.image_size = (size, size)

    def _survey(self, name: str, val_fraction: float) -> None:
        width, height = _open(name).size
        found = regions(width, height, size=self._size, val_fraction=val_fraction)
        if found is not None:
            self._regions[name] = found
            return
        reason = f"{width}×{height} has no separate regions for train and val crops of {self._size} pixels"
        self._skipped.append(Skipped(name, reason))

    def describe(self) -> Config:
        """Name and arguments."""
        return {"name": "photos", **self._arguments}

    def region(self, photo: str, split: str) -> Image.Image:
        """The part of a photograph that the crops of a split come from, as it is."""
        return _cut(_open(photo), self._regions[photo][split])

    def boxes(self, photo: str, split: str) -> list[Box]:
        """Where the crops of that photograph lie: a function of (seed, photo, split, crop number) alone."""
        region = self._regions[photo][split]
        u_N3 = self._rng.stream(f"crop/{photo}/{split}", ids=torch.arange(self._crops[split])).uniform(3).double()
        largest = min(region.width, region.height, int(self._size * self._zoom))
        side_N = self._size + _floor(u_N3[:, 0] * (largest - self._size + 1))
        left_N = region.left + _floor(u_N3[:, 1] * (region.width - side_N + 1))
        top_N = region.top + _floor(u_N3[:, 2] * (region.height - side_N + 1))
        return [Box.at(*place) for place in torch.stack([top_N, left_N, side_N, side_N], 1).tolist()]

    def entries(self, split: str) -> list[tuple[int, str] | Skipped]:
        """Crop by crop, taking the photographs in turn; first those that are too small."""
        crops = [(i, name) for i in range(self._crops[split]) for name in self.classes]
        return [*(self._skipped if split == SPLITS[0] else ()), *crops]

    def load(self, split: str, entry: tuple[int, str] | Skipped) -> SourceSample | Skipped:
        """Mode L or RGB, as the photograph is."""
        if isinstance(entry, Skipped):
            return entry
        i, name = entry
        if name not in self._opened:
            self._opened[name] = _open(name)
        image, box = self._opened[name], self._boxes(name, split)[i]
        crop = _cut(image, box).resize((self._size, self._size), self._filter)
        return SourceSample(
            key=f"{i:06d}-{name}", label=self.classes.index(name), image=crop, box=box.shares(image.height, image.width)
        )

    def _boxes(self, photo: str, split: str) -> list[Box]:
        if (photo, split) not in self._known:
            self._known[photo, split] = self.boxes(photo, split)
        return self._known[photo, split]


def _cut(image: Image.Image, box: Box) -> Image.Image:
    return image.crop((box.left, box.top, box.right, box.bottom))


def _floor(x_N: Tensor) -> Tensor:
    return x_N.floor().to(torch.int64)


def _open(name: str) -> Image.Image:
    folder = files("skimage") / "data"
    for ending in ("png", "jpg"):
        with as_file(folder / f"{name}.{ending}") as path:
            if path.is_file():
                image = Image.open(path)
                return image.convert("L" if image.mode == "L" else "RGB")
    raise VarlabError(f"The installed scikit-image ships no photograph {name!r}: take it out of source.photos.")
