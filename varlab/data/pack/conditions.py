"""Spatial conditions (VQGAN, Esser et al. 2021, section 4.1): makers of a sample's second image, used while packing."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

import numpy as np
from PIL import Image

from varlab.config import Config
from varlab.data.faults import BadSampleError
from varlab.data.folders.class_names import canonical, printable
from varlab.data.folders.picture_files import is_picture, is_system
from varlab.data.image.depth import ASSUMED, read_depths
from varlab.data.image.picture import PixelRules, read_picture
from varlab.data.image.resize import cover, resampling
from varlab.data.pack.sources.base import Skipped, SourceSample
from varlab.errors import VarlabError

__all__ = ["ConditionMaker", "CropBoxes", "Edges", "LowResolution", "PairedImages"]


class ConditionMaker(Protocol):
    """Makes the second image of a sample, in the size of its image. ``name`` is in the index; None: it makes no image."""

    @property
    def name(self) -> str | None: ...
    def describe(self) -> Config: ...  # the arguments, in JSON types
    def draw(self, sample: SourceSample, image: Image.Image) -> Image.Image | Skipped | None: ...


class Edges:
    """Canny's edges (1986) of the grey image, white on black.

    sigma: of the Gaussian before the derivative, in pixels. low, high: thresholds of the gradient of an image in [0, 1]; what
    lies between them counts if it is connected to what lies above.
    """

    name = "edges"

    def __init__(self, *, sigma: float, low: float, high: float):
        if sigma <= 0 or not 0 <= low <= high:
            raise VarlabError(f"Edges with sigma={sigma}, low={low}, high={high} need sigma > 0 and 0 <= low <= high.")
        self._sigma, self._low, self._high = sigma, low, high

    def describe(self) -> Config:
        """The arguments."""
        return {"sigma": self._sigma, "low": self._low, "high": self._high}

    def draw(self, sample: SourceSample, image: Image.Image) -> Image.Image:
        """Mode L, 0 or 255."""
        return self.of(image)

    def of(self, image: Image.Image) -> Image.Image:
        """The edges of any image."""
        # imported here because it takes a second, and only packing needs it
        from skimage.feature import canny

        grey_HW = np.asarray(image.convert("L"), dtype=np.float64) / 255
        edge_HW = canny(grey_HW, sigma=self._sigma, low_threshold=self._low, high_threshold=self._high)
        return Image.fromarray(edge_HW.astype(np.uint8) * 255)


class LowResolution:
    """The image reduced by ``factor`` and enlarged again: the input of super-resolution. resample: filter of enlarging."""

    name = "lowres"

    def __init__(self, *, factor: int, resample: str):
        if factor < 2:
            raise VarlabError(f"condition.factor is {factor}, but a reduced image needs at least 2.")
        self._factor, self._resample = factor, resample
        self._filter = resampling(resample)

    def describe(self) -> Config:
        """The arguments."""
        return {"factor": self._factor, "resample": self._resample}

    def draw(self, sample: SourceSample, image: Image.Image) -> Image.Image:
        """The image's own mode. Each pixel is the mean of a square first, so that nothing aliases."""
        return image.reduce(self._factor).resize(image.size, self._filter)


class PairedImages:
    """Images of another folder with equal paths (segmentation maps, depth): ``path``/<class>/<name>.<any ending>.

    They are resized and cropped as the images are. resample: nearest keeps the colours of a segmentation apart. A sample is
    skipped and named if its condition is missing or cannot be decoded. most_pixels: of a condition. depth: the bits of
    values that are more than bytes, see ``read_depths``; auto: 16, and floats in [0, 1].

    Raises:
        VarlabError: the folder is missing; while packing, the samples of the source come from no files.
    """

    name = "folder"

    def __init__(self, *, path: str, resample: str, most_pixels: int = 1 << 27, depth: int | str = "auto"):
        self._root, self._path, self._resample = Path(path).expanduser(), path, resample
        self._filter = resampling(resample)
        self._listed: dict[Path, dict[str, Path]] = {}
        self._reading: Config = {"most_pixels": most_pixels, "depth": depth}
        depths = read_depths(depth, auto=ASSUMED)
        self._rules = PixelRules(most_pixels=most_pixels, depths=depths, keys="condition.")
        if not self._root.is_dir():
            raise VarlabError(f"There is no folder of conditions {self._root}: set condition.path to one.")

    def describe(self) -> Config:
        """The arguments."""
        return {"path": self._path, "resample": self._resample, **self._reading}

    def draw(self, sample: SourceSample, image: Image.Image) -> Image.Image | Skipped:
        """Mode L or RGB."""
        if sample.file is None:
            raise VarlabError(f"Sample {sample.key} comes from no file: condition=folder needs source=folder.")
        stem = self._root / Path(sample.file).with_suffix("")
        file = self._pictures(stem.parent).get(canonical(stem.name))
        if file is None:
            return Skipped(printable(sample.file), printable(f"has no condition {stem}.*"))
        try:
            condition = read_picture(file, self._rules).image()
            return cover(condition, (image.height, image.width), self._filter)
        except BadSampleError as e:
            return Skipped(printable(sample.file), printable(f"has a condition that cannot be used: {e}"))

    def _pictures(self, folder: Path) -> dict[str, Path]:
        """The pictures in a folder by their names without endings; of two with one name, the first."""
        if folder not in self._listed:
            files = sorted(folder.iterdir(), reverse=True) if folder.is_dir() else []
            pictures = [file for file in files if not is_system(file.name) and file.is_file() and is_picture(file)]
            self._listed[folder] = {canonical(file.stem): file for file in pictures}
        return self._listed[folder]


class CropBoxes:
    """No second image: the box of each crop in its picture, for trainings with ``condition=coordinates``."""

    name = None

    def describe(self) -> Config:
        """No arguments."""
        return {}

    def draw(self, sample: SourceSample, image: Image.Image) -> None:
        """Raise VarlabError if the source gives no box."""
        if sample.box is None:
            raise VarlabError(f"Sample {sample.key} is not a crop of a larger picture: coordinates need source=photos.")
