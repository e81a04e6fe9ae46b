"""Spatial conditions (VQGAN, Esser et al. 2021, section 4.1): the second image of a sample, made or found in packing."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

import numpy as np
from PIL import Image

from varlab.config import Config
from varlab.data.faults import BadSampleError
from varlab.data.image.resize import cover, open_image, resampling
from varlab.data.pack.sources.base import Skipped, SourceSample
from varlab.data.pack.sources.folder import ENDINGS
from varlab.errors import VarlabError

__all__ = ["ConditionMaker", "CropBoxes", "Edges", "LowResolution", "PairedImages"]


class ConditionMaker(Protocol):
    """What a sample is packed with. ``name`` goes into the index; None stands for no second image."""

    @property
    def name(self) -> str | None: ...
    def describe(self) -> Config: ...  # the arguments, JSON types
    def draw(self, sample: SourceSample, image: Image.Image) -> Image.Image | Skipped | None: ...  # of the image's size


class Edges:
    """Canny's edges (1986) of the grey image, white on black.

    sigma: of the Gaussian before the derivative, in pixels. low, high: thresholds of the gradient of an image in [0, 1];
    what lies between them counts where it hangs together with what lies above.
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
        from skimage.feature import canny  # a second to import, and no business of whoever only reads shards

        grey_HW = np.asarray(image.convert("L"), dtype=np.float64) / 255
        found_HW = canny(grey_HW, sigma=self._sigma, low_threshold=self._low, high_threshold=self._high)
        return Image.fromarray(found_HW.astype(np.uint8) * 255)


class LowResolution:
    """The image reduced by ``factor`` and brought back: what super-resolution starts from. resample: the way back's filter."""

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
        """The image's own mode. Reduced by the mean over squares, which aliases nothing."""
        return image.reduce(self._factor).resize(image.size, self._filter)


class PairedImages:
    """Images of another folder with the same paths (segmentation maps, depth): ``path``/<class>/<name>.<any ending>.

    Brought to size and cropped as the images are. resample: nearest keeps the colours of a segmentation apart. A sample
    whose condition is missing or cannot be decoded is skipped and named.

    Raises:
        VarlabError: no such folder; and in packing, a source whose samples come from no files.
    """

    name = "folder"

    def __init__(self, *, path: str, resample: str):
        self._root, self._path, self._resample = Path(path).expanduser(), path, resample
        self._filter = resampling(resample)
        if not self._root.is_dir():
            raise VarlabError(f"There is no folder of conditions {self._root}: set condition.path to one.")

    def describe(self) -> Config:
        """The arguments."""
        return {"path": self._path, "resample": self._resample}

    def draw(self, sample: SourceSample, image: Image.Image) -> Image.Image | Skipped:
        """Mode L or RGB."""
        if sample.file is None:
            raise VarlabError(f"Sample {sample.key} comes from no file, so condition=folder has nothing to look for.")
        stem = self._root / Path(sample.file).with_suffix("")
        file = next((f for e in sorted(ENDINGS) if (f := stem.with_name(stem.name + e)).is_file()), None)
        if file is None:
            return Skipped(sample.file, f"has no condition {stem}.*")
        try:
            return cover(open_image(file), (image.height, image.width), self._filter)
        except BadSampleError as e:
            return Skipped(sample.file, f"has a condition that {e}")


class CropBoxes:
    """No second image, but where each sample lies in its picture: what ``condition=coordinates`` is trained on."""

    name = None

    def describe(self) -> Config:
        """No arguments."""
        return {}

    def draw(self, sample: SourceSample, image: Image.Image) -> None:
        """Only asks whether the source tells it."""
        if sample.box is None:
            raise VarlabError(
                f"Sample {sample.key} does not say where in a larger picture it lies: coordinates need source=photos."
            )
