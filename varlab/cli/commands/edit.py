"""``varlab edit``: repaint part of a picture; a strip shows input, mask, results and growth."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from varlab.config import Config
from varlab.data.image.grid import grid, write_png
from varlab.data.image.resize import centre_of_file
from varlab.files import atomic_write
from varlab.model import Model
from varlab.recipe.finished_run import FinishedRun
from varlab.recipe.preflight.model_checks import picture_rules
from varlab.recipe.sampling_conditions import picture_condition
from varlab.run.directory import RunDirectory
from varlab.sample.class_labels import ClassLabels
from varlab.sample.images import Growth
from varlab.types import VarlabError, to_float, to_uint8

__all__ = ["run"]

logger = logging.getLogger(__name__)

_TILE = 192  # pixels of a picture in the strip, at least
_TINT = torch.tensor([255.0, 64.0, 96.0]).view(3, 1, 1)  # marks what is repainted


def run(config: Config, directory: RunDirectory) -> Config:
    """Write pictures/edit.png, each result as a PNG, and edit.npz (results, input, mask)."""
    run = FinishedRun(config)
    model, sampler = run.model, run.sampler()
    size = model.tokenizer.image_size
    img_u8, original = _image(config, "image", size, Image.Resampling.LANCZOS)
    mask_HW = _mask(config, size, original)
    label = _label(config, model)
    img_1 = to_float(img_u8)[None]
    cond_1N = picture_condition(config, model, img_u8, label)

    def edit(ids_B: Tensor, growth: Growth | None = None) -> Tensor:
        img_B = img_1.expand(len(ids_B), -1, -1, -1)
        labels = None if label is None else [label] * len(ids_B)
        cond_BN = None if cond_1N is None else cond_1N.expand(len(ids_B), -1)
        options: Config = {name: config[name] for name in ("seed", "force_small", "blend")}
        edited = model.edit(img_B, mask_HW, labels, ids_B=ids_B, cond_BN=cond_BN, growth=growth, **options)
        return to_uint8(edited).cpu()

    made = torch.cat([edit(ids_B) for ids_B in torch.arange(config["n"]).split(config["batch"])])
    growth = Growth(order=model.generator()[1], tokenizer=model.tokenizer, frames=len(made) + 2)
    edit(torch.arange(1), growth)
    _write(directory.path, img_u8, mask_HW, made, to_uint8(growth.images())[0].cpu())
    logger.info("%d results: %s", len(made), directory.path / "pictures" / "edit.png")
    return {"n": len(made), "label": label, "painted": round(float(mask_HW.mean()), 4), "sampler": sampler.settings()}


def _image(
    config: Config, name: str, size: tuple[int, int], resample: Image.Resampling, mode: str = "RGB"
) -> tuple[Tensor, tuple[int, int]]:
    """The centre of an image file at that (H, W), img_u8_CHW; and the (H, W) of the file. Nothing transparent is a mask."""
    rules = picture_rules(config, background=255 if mode == "RGB" else 0)
    img_u8, original = centre_of_file(Path(config[name]), size, resample, rules, setting=name, mode=mode)
    if original != size:
        logger.info("%s: %d×%d pixels, its centre resized to %d×%d", config[name], *original, *size)
    return img_u8, original


def _mask(config: Config, size: tuple[int, int], original: tuple[int, int]) -> Tensor:
    """mask_HW, 1 where to paint, from the mask's file or from the box. VarlabError if it is empty."""
    if config["mask"] is not None:
        mask_1HW, shape = _image(config, "mask", size, Image.Resampling.NEAREST, mode="L")
        if shape != original:
            raise VarlabError(
                f"{config['mask']} is {shape[0]}×{shape[1]} pixels and {config['image']} {original[0]}×{original[1]}: "
                "they must be of one size."
            )
        mask_HW = (mask_1HW[0] > 127).float()
    else:
        inside = _box(config["box"], size)
        mask_HW = 1 - inside if config["kind"] == "outpaint" else inside
    if not bool(mask_HW.any()):
        raise VarlabError(f"The mask of {config['image']} is empty: paint a part of it white.")
    return mask_HW


def _box(box: object, size: tuple[int, int]) -> Tensor:
    """inside_HW. Numbers up to 1 are fractions, unless one is larger: then all are pixels."""
    if not isinstance(box, list) or len(box) != 4 or not all(isinstance(x, int | float) and x >= 0 for x in box):
        raise VarlabError(f"box={box} must be four numbers: [top,left,bottom,right].")
    H, W = size
    unit = (1, 1, 1, 1) if max(box) > 1 else (H, W, H, W)
    top, left, bottom, right = (round(x * u) for x, u in zip(box, unit, strict=True))
    if not (top < bottom <= H and left < right <= W):
        raise VarlabError(f"box={box} does not lie inside an image of {H}×{W} pixels: give [top,left,bottom,right].")
    inside_HW = torch.zeros(H, W)
    inside_HW[top:bottom, left:right] = 1
    return inside_HW


def _label(config: Config, model: Model) -> int | None:
    """The class by number or name; None for no class."""
    if config["label"] is None:
        if config["kind"] == "class":
            raise VarlabError("task=class paints a class: give its number or name with label=.")
        return None
    indices = ClassLabels(model.classes, key="label").indices(config["label"])
    if len(indices) != 1:
        raise VarlabError(f"label= takes one class, not {len(indices)}: give label={(*indices, 0)[0]}.")
    return indices[0]


def _write(folder: Path, img_u8: Tensor, mask_HW: Tensor, made: Tensor, growth: Tensor) -> None:
    """Write the strip, the results and the array. made: img_u8_N3HW. growth: the first result's frames."""
    shade = img_u8.float().mul(0.35) + _TINT * 0.65
    shown = torch.where(mask_HW[None] > 0, shade, img_u8.float()).round().to(torch.uint8)
    columns = len(made) + 2
    white = torch.full((columns - len(growth), *img_u8.shape), 255, dtype=torch.uint8)
    tiles = torch.cat([img_u8[None], shown[None], made, growth, white])
    scale = -(-_TILE // max(img_u8.shape[1:]))
    tiles = F.interpolate(tiles.float(), scale_factor=scale, mode="nearest").to(torch.uint8)
    write_png(folder / "pictures" / "edit.png", grid(tiles, columns=columns))
    for i, image in enumerate(made):
        write_png(folder / "pictures" / f"result_{i}.png", image)
    with atomic_write(folder / "edit.npz") as file:
        results = made.permute(0, 2, 3, 1).numpy()
        np.savez_compressed(file, results=results, image=img_u8.permute(1, 2, 0).numpy(), mask=mask_HW.numpy())
