"""``varlab sample``: images from a trained generator, as a grid, a strip of their growth, and one array for any evaluator."""

from __future__ import annotations

import logging
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from omegaconf import DictConfig, OmegaConf
from PIL import Image
from torch import Tensor

from varlab.config import Config
from varlab.data.image.grid import grid
from varlab.files import atomic_write
from varlab.model import Model
from varlab.recipe import parents
from varlab.recipe.finished_run import sampler_of, shards, trained
from varlab.recipe.pictures import columns_for
from varlab.recipe.sampling_conditions import Given
from varlab.run.directory import RunDirectory
from varlab.sample import Sampler
from varlab.sample.images import Growth
from varlab.score.image_sampler import Rejection, balanced_labels
from varlab.types import VarlabError, to_uint8

__all__ = ["run"]

logger = logging.getLogger(__name__)


def run(cfg: DictConfig, directory: RunDirectory) -> Config:
    """Write samples.png, growth.png and samples.npz (arr_0 uint8 NHWC, arr_1 labels: what the ADM evaluator reads)."""
    config: Config = OmegaConf.to_container(cfg)  # type: ignore[assignment]
    model, record = trained(config)
    sampler = sampler_of(config, model)
    assert model.transformer is not None
    given = Given(config, record, model)
    rejection = _rejection(config, record, model)
    label_N = _labels(config, model.transformer.num_classes, given)
    images, labels = [], []
    for ids_B in torch.arange(config["n"]).split(config["batch"]):
        label_B = label_N[ids_B]

        def draw(draw_ids_B: Tensor, ids_B: Tensor = ids_B, label_B: Tensor = label_B) -> Tensor:
            settings = {"seed": config["seed"], "ids_B": ids_B, "draw_ids_B": draw_ids_B} | asdict(sampler)
            return to_uint8(given.draw(label_B, **settings))

        made = draw(ids_B) if rejection is None else rejection(draw, ids_B, label_B.to(model.device))
        images.append(made.cpu())
        labels.append(label_N[ids_B])
    img_u8, label = torch.cat(images), torch.cat(labels)
    shown = img_u8[: config["shown"]]
    columns = min(columns_for(model.transformer.num_classes), len(shown))
    _png(directory, "samples", grid(shown, columns=columns))
    if (conditions := given.shown(torch.arange(len(shown)))) is not None:
        _png(directory, "conditions", grid(conditions, columns=columns))
    if not given.large:
        _png(directory, "growth", _growth(model, sampler, label[: config["grown"]], config["seed"], given))
    with atomic_write(directory.path / "samples.npz") as file:
        np.savez_compressed(file, arr_0=img_u8.permute(0, 2, 3, 1).numpy(), arr_1=label.numpy())
    logger.info("%d samples: %s", len(img_u8), directory.path)
    return {"n": len(img_u8), "sampler": asdict(sampler)}


def _rejection(config: Config, record: Config, model: Model) -> Rejection | None:
    """By the judge of the shards that the run was trained on."""
    if config["reject"] is None:
        return None
    assert model.transformer is not None
    info = shards(config, record).info
    judge, _ = parents.load_extractor(config["extractor"], info=info, near=Path(config["run"]))
    num_classes = model.transformer.num_classes
    return Rejection(judge=judge.to(model.device), rate=config["reject"], num_classes=num_classes)


def _labels(config: Config, num_classes: int, given: Given) -> Tensor:
    """Label of each sample: balanced over the classes (or those of the conditions' images), or the ones asked for, in turn.
    num_classes is "no class".
    """
    ids_N = torch.arange(config["n"])
    if config["labels"] is None:
        own = given.labels(ids_N)
        return balanced_labels(ids_N, num_classes) if own is None else own
    asked = torch.as_tensor(config["labels"], dtype=torch.int64).reshape(-1)
    if len(asked) == 0:
        raise VarlabError("labels=[] asks for no class at all: give labels=[0,3], or leave it out for all classes.")
    return asked[ids_N % len(asked)]


def _growth(model: Model, sampler: Sampler, label_N: Tensor, seed: int, given: Given) -> Tensor:
    """img_u8_3HW: a row a sample, a column a step."""
    assert model.order is not None
    watch = Growth(order=model.order, tokenizer=model.tokenizer, frames=8)
    cond_BN = given.tokens(torch.arange(len(label_N)))
    model.sample_maps(label_N, seed=seed, growth=watch, cond_BN=cond_BN, **asdict(sampler))
    frames = to_uint8(watch.images())
    return grid(frames.flatten(0, 1).cpu(), columns=frames.shape[1])


def _png(directory: RunDirectory, name: str, img_u8_3HW: Tensor) -> None:
    with atomic_write(directory.path / "pictures" / f"{name}.png") as file:
        Image.fromarray(img_u8_3HW.permute(1, 2, 0).contiguous().numpy()).save(file, format="PNG")
