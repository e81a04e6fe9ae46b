"""What the sources of encoded images share: how an image is brought to size."""

from __future__ import annotations

from copy import copy
from typing import Self

from varlab.config import Config
from varlab.data.image.depth import Depths, read_depths
from varlab.data.image.picture import PixelRules
from varlab.data.image.resize import Fit

__all__ = ["FileSource"]


class FileSource:
    """A source of encoded images, each of which ``Fit`` brings to size.

    size, resample, check, whole: see ``Fit``. most_pixels: larger images are skipped. depth: the bits of values that are more
    than bytes, see ``read_depths``; auto: the largest value of the data set decides.
    """

    def __init__(
        self,
        *,
        size: int | None,
        resample: str,
        check: str,
        most_pixels: int,
        depth: int | str,
        whole: bool | None = None,
    ):
        rules = PixelRules(most_pixels=most_pixels, depths=read_depths(depth, auto={}), keys="source.")
        self._fit = Fit(size=size, resample=resample, check=check, rules=rules, whole=bool(whole))
        self._reading: Config = {"most_pixels": most_pixels, "depth": depth} | ({"whole": True} if whole else {})
        self.image_size = self._fit.image_size

    @property
    def depths(self) -> Depths:
        """The bits of values that are more than bytes, as far as they are decided."""
        return self._fit.rules.depths

    def with_depths(self, depths: Depths) -> Self:
        """The same source with these bits decided."""
        other = copy(self)
        other._fit = self._fit.with_depths(depths)
        return other
