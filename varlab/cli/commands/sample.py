"""``varlab sample``: images from a trained generator, as a grid, a strip of growing images, and an array for evaluators."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from varlab.config import Config
from varlab.data.image.grid import grid, write_png
from varlab.files import atomic_write
from varlab.recipe.finished_run import FinishedRun
from varlab.recipe.parents import Parents
from varlab.recipe.plans.training_pictures import columns_for
from varlab.recipe.sampling_conditions import SamplingConditions
from varlab.run.directory import RunDirectory
from varlab.run.trust import Trust
from varlab.sample.class_labels import ClassLabels
from varlab.score.image_sampler import Rejection, balanced_labels
from varlab.types import VarlabError, to_uint8

__all__ = ["run"]

logger = logging.getLogger(__name__)


def run(config: Config, directory: RunDirectory) -> Config:
    """Write samples.png, growth.png and samples.npz (arr_0 uint8 NHWC, arr_1 labels: what the ADM evaluator reads)."""
    run = FinishedRun(config)
    sampler, (transformer, _) = run.sampler(), run.model.generator()
    conditions = SamplingConditions(config, run)
    label_N = _labels(config, run.model.classes, conditions)
    img_u8 = torch.cat(list(_images(config, run, conditions, label_N)))
    shown_N = torch.arange(min(config["shown"], len(img_u8)))
    columns = min(columns_for(transformer.num_classes), len(shown_N))
    pictures = directory.path / "pictures"
    write_png(pictures / "samples.png", grid(img_u8[shown_N], columns=columns))
    if (given := conditions.shown(shown_N)) is not None:
        write_png(pictures / "conditions.png", grid(given, columns=columns))
    if not conditions.large:
        grown_N = torch.arange(min(config["grown"], len(label_N)))
        frames = run.model.growth(
            label_N[grown_N], seed=config["seed"], cond_BN=conditions.tokens(grown_N, label_N[grown_N])
        )
        write_png(pictures / "growth.png", grid(to_uint8(frames).flatten(0, 1).cpu(), columns=frames.shape[1]))
    with atomic_write(directory.path / "samples.npz") as file:
        np.savez_compressed(file, arr_0=img_u8.permute(0, 2, 3, 1).numpy(), arr_1=label_N.numpy())
    logger.info("%d samples: %s", len(img_u8), directory.path)
    return {"n": len(img_u8), "sampler": sampler.settings()}


def _images(config: Config, run: FinishedRun, conditions: SamplingConditions, label_N: Tensor) -> Iterator[Tensor]:
    """img_u8_B3HW of all samples, in batches on the CPU; the best candidate of each with ``reject=``."""
    rejection = _rejection(config, run)
    for ids_B in torch.arange(config["n"]).split(config["batch"]):
        label_B = label_N[ids_B]

        def draw(draw_ids_B: Tensor, ids_B: Tensor = ids_B, label_B: Tensor = label_B) -> Tensor:
            return to_uint8(conditions.sample(label_B, ids_B=ids_B, draw_ids_B=draw_ids_B, seed=config["seed"]))

        yield (draw(ids_B) if rejection is None else rejection(draw, ids_B, label_B.to(run.model.device))).cpu()


def _rejection(config: Config, run: FinishedRun) -> Rejection | None:
    """Reject by the judge of the run's shards."""
    if config["reject"] is None:
        return None
    judge = Parents(info=run.data().info, near=run.path, trust=Trust.of(config.get("trust"))).extractor(
        config["extractor"]
    )
    transformer, _ = run.model.generator()
    return Rejection(judge=judge.to(run.model.device), rate=config["reject"], num_classes=transformer.num_classes)


def _labels(config: Config, classes: Sequence[str], conditions: SamplingConditions) -> Tensor:
    """label_N: the classes asked for in turn; by default those of the conditions' images, or all classes in turn.

    The number of classes stands for "no class".
    """
    ids_N = torch.arange(config["n"])
    if config["labels"] is None:
        own = conditions.labels(ids_N)
        return balanced_labels(ids_N, len(classes)) if own is None else own
    asked = torch.tensor(ClassLabels(classes).indices(config["labels"]))
    if len(asked) == 0:
        raise VarlabError("labels=[] names no class: give labels=[0,3], or leave it out for all classes.")
    return asked[ids_N % len(asked)]
