"""The conditions that ``varlab sample`` makes images from: files, or the val split's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from varlab.config import Config
from varlab.data.faults import BadSampleError
from varlab.data.image.resize import cover, open_image, pixels
from varlab.data.pack.sources.folder import IMAGE_ENDINGS
from varlab.model import Model
from varlab.recipe.finished_run import shards
from varlab.score.image_sampler import ValConditions
from varlab.tokenizer.condition import SpatialCondition
from varlab.types import VarlabError, to_float


class Given:
    """What samples are made from: ``cond`` (a file, or a folder of them) or the val split; and how large they get.

    Of a run without a condition it gives none, so that whoever samples need not ask.
    """

    def __init__(self, config: Config, record: Config, model: Model):
        self._model = model
        h, w = model.tokenizer.image_size
        self.size: tuple[int, int] = (h, w) if config["size"] is None else _size(config["size"])
        self.large = self.size != (h, w)
        self._images: Tensor | None = None
        self._val_conditions: ValConditions | None = None
        if config["cond"] is not None:
            self._images = self._read(Path(config["cond"]))
        elif model.condition is not None and not self.large:
            data = shards(config, record)
            model.condition.check(data.info)
            self._val_conditions = ValConditions(data=data, condition=model.condition)
        elif isinstance(model.condition, SpatialCondition):
            raise VarlabError(
                "size= with a spatial condition needs conditions of that size: give cond=FILE or a folder."
            )

    def _read(self, path: Path) -> Tensor:
        """cond_u8_N3HW."""
        if not isinstance(self._model.condition, SpatialCondition):
            raise VarlabError(f"cond={path} is an image, but this run is not conditioned on images: leave cond out.")
        files = sorted(f for f in path.iterdir() if f.suffix.lower() in IMAGE_ENDINGS) if path.is_dir() else [path]
        if not files or not all(f.is_file() for f in files):
            raise VarlabError(f"cond={path} is no image and no folder of images.")
        return torch.stack([_image(f, self.size) for f in files])

    def labels(self, ids_B: Tensor) -> Tensor | None:
        """label_B of the val images behind these samples; None where there are none."""
        return None if self._val_conditions is None else self._val_conditions.images(ids_B).label_B

    def tokens(self, ids_B: Tensor) -> Tensor | None:
        """cond_BN of these samples, of the trained size; None without a condition."""
        if self._val_conditions is not None:
            return self._val_conditions.tokens(ids_B, self._model.device)[0]
        if self._images is not None:
            return self._model.condition_tokens(to_float(self._images[ids_B % len(self._images)]))
        return None

    def draw(self, label_B: Tensor, *, ids_B: Tensor, draw_ids_B: Tensor | None = None, **settings: Any) -> Tensor:
        """img_B3HW of these samples; settings as ``Model.sample`` has them. draw_ids_B: what their randomness depends on."""
        draw_ids_B = ids_B if draw_ids_B is None else draw_ids_B
        if not self.large:
            return self._model.sample(label_B, ids_B=draw_ids_B, cond_BN=self.tokens(ids_B), **settings)
        images = None if self._images is None else to_float(self._images[ids_B % len(self._images)])
        return self._model.sample_large(label_B, size=self.size, ids_B=draw_ids_B, cond_img_B3HW=images, **settings)

    def shown(self, ids_B: Tensor) -> Tensor | None:
        """img_u8_B3HW, the conditions; None where there are none to see."""
        if self._val_conditions is not None:
            return self._val_conditions.shown(ids_B)
        return None if self._images is None else self._images[ids_B % len(self._images)]


def _size(asked: Any) -> tuple[int, int]:
    if not isinstance(asked, list) or len(asked) != 2 or not all(isinstance(n, int) and n > 0 for n in asked):
        raise VarlabError(f"size={asked} must be height and width in pixels: size=[128,192].")
    return asked[0], asked[1]


def _image(file: Path, size: tuple[int, int]) -> Tensor:
    """The centre of an image file at that (H, W), ``img_u8_3HW``."""
    try:
        image = open_image(file).convert("RGB")
    except BadSampleError as e:
        raise VarlabError(f"cond={file} {e}: give a PNG or JPEG.") from e
    return pixels(cover(image, size, Image.Resampling.BILINEAR))
