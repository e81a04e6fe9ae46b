"""The conditions that ``varlab sample`` makes images from: files, or those of the val split."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from varlab.config import Config
from varlab.data.folders.picture_files import is_picture, is_system
from varlab.data.image.depth import ASSUMED, read_depths
from varlab.data.image.picture import PixelRules
from varlab.data.image.resize import centre_of_file
from varlab.model import Model
from varlab.recipe.finished_run import FinishedRun
from varlab.score.image_sampler import ValConditions
from varlab.tokenizer.condition import Condition
from varlab.types import VarlabError, to_float

_PICTURES = ("cond_u8_B3HW", "img_u8_B3HW")  # what a picture of cond= may stand for


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
            self._images = read_conditions(config, condition, self.size)
        lacking = set(condition.needs) - {"label_B"} - set(self._fields(torch.arange(1))) if condition else set()
        if condition is None or not lacking:
            return
        if not self.large:
            data = run.data()
            condition.check(data.info)
            self._val_conditions = ValConditions(data=data, condition=condition)
        elif lacking - set(condition.defaults(1)):
            raise VarlabError(
                "size= with a spatial condition needs conditions of that size: give cond=FILE or a folder."
            )

    def _fields(self, ids_B: Tensor) -> dict[str, Tensor]:
        """What ``cond`` gives these samples, over and over; empty without it."""
        condition = self._model.condition
        if self._images is None or condition is None:
            return {}
        return {picture_field(condition): self._images[ids_B % len(self._images)]}

    def labels(self, ids_B: Tensor) -> Tensor | None:
        """Return label_B of the val images that give these samples their conditions; None without them."""
        return None if self._val_conditions is None else self._val_conditions.images(ids_B).label_B

    def tokens(self, ids_B: Tensor, label_B: Tensor) -> Tensor | None:
        """Return cond_BN of these samples, at the trained size."""
        if (condition := self._model.condition) is None:
            return None
        device = self._model.device
        if self._val_conditions is not None:
            batch = replace(self._val_conditions.images(ids_B), label_B=label_B)
            return condition.tokens(batch.to(device))
        fields = self._fields(ids_B) | {"label_B": label_B}
        return condition.encode(**{name: value.to(device) for name, value in fields.items()})

    def sample(self, label_B: Tensor, *, ids_B: Tensor, draw_ids_B: Tensor, seed: int) -> Tensor:
        """Sample img_B3HW of the size that is asked for. draw_ids_B: what the randomness depends on."""
        if not self.large:
            return self._model.sample(label_B, cond_BN=self.tokens(ids_B, label_B), seed=seed, ids_B=draw_ids_B)
        images = self._fields(ids_B).get("cond_u8_B3HW")
        cond_B3HW = None if images is None else to_float(images)
        return self._model.sample_large(label_B, size=self.size, cond_img_B3HW=cond_B3HW, seed=seed, ids_B=draw_ids_B)

    def shown(self, ids_B: Tensor) -> Tensor | None:
        """Return the conditions as images, img_u8_B3HW; None if the run has no condition."""
        if self._val_conditions is not None:
            return self._val_conditions.shown(ids_B)
        return next(iter(self._fields(ids_B).values()), None)


def picture_field(condition: Condition) -> str:
    """The field of a batch that a picture of ``cond`` stands for; empty if the condition is made from no pictures."""
    return next((name for name in _PICTURES if name in condition.needs), "")


def read_conditions(config: Config, condition: Condition | None, size: tuple[int, int]) -> Tensor:
    """img_u8_N3HW of the size (H, W): the image or the folder of images of ``cond``."""
    path = Path(config["cond"])
    if condition is None or not picture_field(condition):
        raise VarlabError(f"cond={path} is an image, but this run is not conditioned on images: leave cond out.")
    rules = PixelRules(config["most_pixels"], read_depths(config["depth"], auto=ASSUMED))
    files = [path]
    if path.is_dir():
        files = sorted(f for f in path.iterdir() if not is_system(f.name) and f.is_file() and is_picture(f))
    if not files or not all(f.is_file() for f in files):
        raise VarlabError(f"cond={path} is neither an image nor a folder of images.")
    bilinear = Image.Resampling.BILINEAR
    return torch.stack([centre_of_file(f, size, bilinear, rules, setting="cond")[0] for f in files])


def picture_condition(config: Config, model: Model, img_u8_3HW: Tensor, label: int | None) -> Tensor | None:
    """cond_1N of a picture outside any shard; None for a run without a condition.

    It is made from the picture itself, its label, an image of ``cond``, or the condition's defaults: what it needs of them.
    """
    if (condition := model.condition) is None:
        return None
    fields = condition.defaults(1) | {"img_u8_B3HW": img_u8_3HW[None]}
    if label is not None:
        fields["label_B"] = torch.tensor([label])
    if config["cond"] is not None:
        fields[picture_field(condition)] = read_conditions(config, condition, model.tokenizer.image_size)[:1]
    return condition.encode(**{name: value.to(model.device) for name, value in fields.items()})


def _size(asked: object) -> tuple[int, int]:
    if not isinstance(asked, list) or len(asked) != 2 or not all(isinstance(n, int) and n > 0 for n in asked):
        raise VarlabError(f"size={asked} must be height and width in pixels: size=[128,192].")
    return asked[0], asked[1]
