"""The conditions that ``varlab sample`` makes images from: files, or those of the val split."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from varlab.config import Config
from varlab.data.folders.picture_files import is_picture, is_system
from varlab.data.image.depth import ASSUMED, read_depths
from varlab.data.image.picture import PixelRules
from varlab.data.image.resize import centre_of_file
from varlab.recipe.finished_run import FinishedRun
from varlab.sample import Sampler
from varlab.score.image_sampler import ValConditions
from varlab.tokenizer.condition import SpatialCondition
from varlab.types import VarlabError, to_float


class SamplingConditions:
    """The condition of each sample: from ``cond`` (an image, or a folder of them) or from the val split; and the size.

    For a run without a condition, labels, tokens and images are None.
    """

    def __init__(self, config: Config, run: FinishedRun):
        self._model = run.model
        h, w = self._model.tokenizer.image_size
        self.size: tuple[int, int] = (h, w) if config["size"] is None else _size(config["size"])
        self.large = self.size != (h, w)
        self._images: Tensor | None = None
        self._val_conditions: ValConditions | None = None
        condition = self._model.condition
        if config["cond"] is not None:
            depths = read_depths(config["depth"], auto=ASSUMED)
            self._images = self._read(Path(config["cond"]), PixelRules(config["most_pixels"], depths))
        elif condition is not None and not self.large:
            data = run.data()
            condition.check(data.info)
            self._val_conditions = ValConditions(data=data, condition=condition)
        elif isinstance(condition, SpatialCondition):
            raise VarlabError(
                "size= with a spatial condition needs conditions of that size: give cond=FILE or a folder."
            )

    def _read(self, path: Path, rules: PixelRules) -> Tensor:
        """cond_u8_N3HW."""
        if not isinstance(self._model.condition, SpatialCondition):
            raise VarlabError(f"cond={path} is an image, but this run is not conditioned on images: leave cond out.")
        files = [path]
        if path.is_dir():
            files = sorted(f for f in path.iterdir() if not is_system(f.name) and f.is_file() and is_picture(f))
        if not files or not all(f.is_file() for f in files):
            raise VarlabError(f"cond={path} is neither an image nor a folder of images.")
        bilinear = Image.Resampling.BILINEAR
        return torch.stack([centre_of_file(f, self.size, bilinear, rules, setting="cond")[0] for f in files])

    def labels(self, ids_B: Tensor) -> Tensor | None:
        """Return label_B of the val images that give these samples their conditions; None without them."""
        return None if self._val_conditions is None else self._val_conditions.images(ids_B).label_B

    def tokens(self, ids_B: Tensor) -> Tensor | None:
        """Return cond_BN of these samples, at the trained size."""
        if self._val_conditions is not None:
            return self._val_conditions.tokens(ids_B, self._model.device)[0]
        images = self._own_images(ids_B)
        return None if images is None else self._model.condition_tokens(to_float(images))

    def _own_images(self, ids_B: Tensor) -> Tensor | None:
        """cond_u8_B3HW from ``cond``, over and over; None without ``cond``."""
        return None if self._images is None else self._images[ids_B % len(self._images)]

    def sample(self, label_B: Tensor, *, ids_B: Tensor, draw_ids_B: Tensor, seed: int, sampler: Sampler) -> Tensor:
        """Sample img_B3HW of the size that is asked for. draw_ids_B: what the randomness depends on."""
        draw: Config = {"seed": seed, "ids_B": draw_ids_B} | asdict(sampler)
        if not self.large:
            return self._model.sample(label_B, cond_BN=self.tokens(ids_B), **draw)
        images = self._own_images(ids_B)
        cond_B3HW = None if images is None else to_float(images)
        return self._model.sample_large(label_B, size=self.size, cond_img_B3HW=cond_B3HW, **draw)

    def shown(self, ids_B: Tensor) -> Tensor | None:
        """Return the conditions as images, img_u8_B3HW; None if the run has no condition."""
        return self._own_images(ids_B) if self._val_conditions is None else self._val_conditions.shown(ids_B)


def _size(asked: object) -> tuple[int, int]:
    if not isinstance(asked, list) or len(asked) != 2 or not all(isinstance(n, int) and n > 0 for n in asked):
        raise VarlabError(f"size={asked} must be height and width in pixels: size=[128,192].")
    return asked[0], asked[1]
