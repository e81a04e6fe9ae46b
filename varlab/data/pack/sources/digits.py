"""scikit-learn's handwritten digits as a source."""

from __future__ import annotations

import numpy as np
from PIL import Image

from varlab.config import Config
from varlab.data.image.resize import resampling
from varlab.data.pack.sources.base import SourceSample, stratified_split

__all__ = ["Digits"]


class Digits:
    """The 1797 scanned handwritten digits that ship with scikit-learn (UCI, Alpaydin & Kaynak 1998).

    8×8 in 17 grey levels, converted to uint8 and enlarged to ``size`` × ``size``; the class is the digit.
    """

    def __init__(self, *, size: int, resample: str, val_fraction: float, seed: int):
        # imported here because it is heavy, and reading shards does not need it
        from sklearn.datasets import load_digits

        data = load_digits()
        self._images_N88 = np.round(data.images * (255 / 16)).astype(np.uint8)
        self._labels = [int(t) for t in data.target]
        self._split = stratified_split(self._labels, val_fraction=val_fraction, seed=seed)
        self._filter = resampling(resample)
        self._arguments = {"size": size, "resample": resample, "val_fraction": val_fraction, "seed": seed}
        self.classes = tuple(str(name) for name in data.target_names)
        self.image_size = (size, size)

    def describe(self) -> Config:
        """Name and arguments."""
        return {"name": "digits", **self._arguments}

    def entries(self, split: str) -> list[int]:
        """The numbers of the digits in scikit-learn's array."""
        return self._split[split]

    def load(self, split: str, entry: int) -> SourceSample:
        """Load a digit in mode L; the key is its number."""
        image = Image.fromarray(self._images_N88[entry]).resize(self.image_size, self._filter)
        return SourceSample(key=f"{entry:06d}", label=self._labels[entry], image=image)
