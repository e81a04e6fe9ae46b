"""``varlab edit``: part of a picture painted anew, as a strip of input, mask, results and growth."""

from __future__ import annotations

import logging
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from omegaconf import DictConfig, OmegaConf
from PIL import Image
from torch import Tensor

from varlab.config import Config
from varlab.data.faults import BadSampleError
from varlab.data.image.grid import grid
from varlab.data.image.resize import cover, open_image, pixels
from varlab.files import atomic_write
from varlab.model import Model
from varlab.recipe.finished_run import sampler_of, trained
from varlab.run.directory import RunDirectory
from varlab.sample.images import Growth
from varlab.types import VarlabError, to_float, to_uint8

__all__ = ["run"]

logger = logging.getLogger(__name__)

TASKS = ("inpaint", "outpaint", "class")
_TILE = 192  # pixels of a picture in the strip, at least
_TINT = torch.tensor([255.0, 64.0, 96.0]).view(3, 1, 1)  # what is painted anew


def run(cfg: DictConfig, directory: RunDirectory) -> Config:
    """Write pictures/edit.png, each result as a PNG, and edit.npz (results, input, mask)."""
    config: Config = OmegaConf.to_container(cfg)  # type: ignore[assignment]
    if config["kind"] not in TASKS:
        raise VarlabError(f"task={config['kind']} is unknown: use {', '.join(TASKS)}.")
    model, _ = trained(config)
    sampler = sampler_of(config, model)
    if model.condition is not None:
        raise VarlabError(f"{config['run']} is conditioned on images: it is sampled from, not edited with.")
    size = model.tokenizer.image_size
    img_u8, original = _image(Path(config["image"]), size, Image.Resampling.LANCZOS)
    mask_HW = _mask(config, size, original)
    label = _label(config, model)
    img, results = to_float(img_u8)[None], []
    for ids_B in torch.arange(config["n"]).split(config["batch"]):
        results.append(
            model.edit(
                img.expand(len(ids_B), -1, -1, -1),
                mask_HW,
                None if label is None else [label] * len(ids_B),
                seed=config["seed"],
                force_small=config["force_small"],
                blend=config["blend"],
                ids_B=ids_B,
                **asdict(sampler),
            )
        )
    made = to_uint8(torch.cat(results)).cpu()
    growth = _growth(model, img, mask_HW, label, config, asdict(sampler), frames=len(made) + 2)
    _write(directory, img_u8, mask_HW, made, growth)
    logger.info("%d results: %s", len(made), directory.path / "pictures" / "edit.png")
    return {"n": len(made), "label": label, "painted": round(float(mask_HW.mean()), 4), "sampler": asdict(sampler)}


def _image(
    path: Path, size: tuple[int, int], resample: Image.Resampling, mode: str = "RGB"
) -> tuple[Tensor, tuple[int, int]]:
    """The centre of an image file at that (H, W), img_u8_CHW; and the (H, W) of the file. Nothing transparent is a mask."""
    try:
        image = open_image(path, background="white" if mode == "RGB" else "black").convert(mode)
    except BadSampleError as error:
        raise VarlabError(f"{path} is not a picture that can be read: it {error}.") from error
    original = image.height, image.width
    if original != size:
        logger.info("%s: %d×%d pixels, its centre resized to %d×%d", path, *original, *size)
    return pixels(cover(image, size, resample)), original


def _mask(config: Config, size: tuple[int, int], original: tuple[int, int]) -> Tensor:
    """mask_HW, 1 where to paint, from the mask's file or from the box. VarlabError unless something is to be painted."""
    if (config["mask"] is None) == (config["box"] is None):
        raise VarlabError("Give what to paint: one of mask=FILE (white is painted) and box=[top,left,bottom,right].")
    if config["mask"] is not None:
        mask_1HW, shape = _image(Path(config["mask"]), size, Image.Resampling.NEAREST, mode="L")
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
        raise VarlabError(f"The mask of {config['image']} marks nothing to paint: it must be white somewhere.")
    return mask_HW


def _box(box: Any, size: tuple[int, int]) -> Tensor:
    """inside_HW. Numbers up to 1 are fractions, unless one is larger: then all are pixels."""
    if not isinstance(box, list) or len(box) != 4 or not all(isinstance(x, int | float) and x >= 0 for x in box):
        raise VarlabError(f"box={box} must be four numbers: [top,left,bottom,right].")
    H, W = size
    unit = (1, 1, 1, 1) if max(box) > 1 else (H, W, H, W)
    top, left, bottom, right = (round(x * u) for x, u in zip(box, unit, strict=True))
    if not (top < bottom <= H and left < right <= W):
        raise VarlabError(f"box={box} is no box inside an image of {H}×{W} pixels.")
    inside_HW = torch.zeros(H, W)
    inside_HW[top:bottom, left:right] = 1
    return inside_HW


def _label(config: Config, model: Model) -> int | None:
    """The class by number or name; None for no class."""
    label, classes = config["label"], model.classes
    if label is None:
        if config["kind"] == "class":
            raise VarlabError("task=class paints a class: give label=, a number or a name.")
        return None
    if str(label) in classes and not isinstance(label, int):
        return classes.index(str(label))
    if isinstance(label, int) and 0 <= label < len(classes):
        return label
    raise VarlabError(f"label={label} is none of the {len(classes)} classes of this run ({', '.join(classes[:20])}).")


def _growth(
    model: Model, img: Tensor, mask_HW: Tensor, label: int | None, config: Config, settings: Config, *, frames: int
) -> Tensor:
    """img_u8_N3HW: how the first result grows over the steps."""
    assert model.order is not None
    watch = Growth(order=model.order, tokenizer=model.tokenizer, frames=frames)
    labels = None if label is None else [label]
    forced = {"seed": config["seed"], "force_small": config["force_small"]}
    model.edit(img, mask_HW, labels, growth=watch, **forced, **settings)
    return to_uint8(watch.images())[0].cpu()


def _write(directory: RunDirectory, img_u8: Tensor, mask_HW: Tensor, made: Tensor, growth: Tensor) -> None:
    shade = img_u8.float().mul(0.35) + _TINT * 0.65
    shown = torch.where(mask_HW[None] > 0, shade, img_u8.float()).round().to(torch.uint8)
    columns = len(made) + 2
    white = torch.full((columns - len(growth), *img_u8.shape), 255, dtype=torch.uint8)
    tiles = torch.cat([img_u8[None], shown[None], made, growth, white])
    scale = -(-_TILE // max(img_u8.shape[1:]))
    tiles = F.interpolate(tiles.float(), scale_factor=scale, mode="nearest").to(torch.uint8)
    _png(directory, "edit", grid(tiles, columns=columns))
    for i, image in enumerate(made):
        _png(directory, f"result_{i}", image)
    with atomic_write(directory.path / "edit.npz") as file:
        results = made.permute(0, 2, 3, 1).numpy()
        np.savez_compressed(file, results=results, image=img_u8.permute(1, 2, 0).numpy(), mask=mask_HW.numpy())


def _png(directory: RunDirectory, name: str, img_u8_3HW: Tensor) -> None:
    with atomic_write(directory.path / "pictures" / f"{name}.png") as file:
        Image.fromarray(img_u8_3HW.permute(1, 2, 0).contiguous().numpy()).save(file, format="PNG")
