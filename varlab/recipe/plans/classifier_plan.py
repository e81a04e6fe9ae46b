"""The training of a classifier: a judge of samples, or a perceptual network."""

from __future__ import annotations

import logging
from collections.abc import Mapping

from varlab.config import Config
from varlab.data import BaseDataModule, StreamDataModule
from varlab.flops import FlopCounter
from varlab.metrics.held_out_accuracy import HeldOutAccuracy
from varlab.recipe.objects import make
from varlab.recipe.plan import Plan, parameters
from varlab.rng import Rng
from varlab.run.directory import RunDirectory
from varlab.tasks import Task
from varlab.tasks.target import Labels, Target
from varlab.types import VarlabError

logger = logging.getLogger(__name__)


def plan(config: Config, data: BaseDataModule, rng: Rng, directory: RunDirectory) -> Plan:
    """Plan a classifier: a judge of samples, or a perceptual network."""
    target: Target = make(config["task"]["target"]) if "target" in config["task"] else Labels()
    if isinstance(target, Labels):
        _check_several_classes(data)
    build = config["classifier"] | {"num_classes": target.answers(data.info.num_classes)}
    with rng.scope("init/classifier"):
        model = make(build)
    task: Task = make(config["task"])(classifier=model, rng=rng, target=target)
    count = FlopCounter()
    task.train_flops_per_image = target.views * count.trained(model, target.size(data.info.image_size))
    return Plan(
        task=task,
        build={"classifier": build, "role": config["role"], "predicts": target.predicts},
        cost={"train_flops_per_image": task.train_flops_per_image, "parameters": parameters(model)} | count.note(),
        conclude=lambda values: _held_out(values, target, data),
    )


def _check_several_classes(data: BaseDataModule) -> None:
    """Raise VarlabError if all training images have the same label."""
    info, streamed = data.info, isinstance(data, StreamDataModule)  # whose labels are known only as they come
    if info.num_classes > 1 and (streamed or len(data.labels("train").unique()) > 1):
        return
    raise VarlabError(
        f"All training images of {info.path} are of one class, from which a classifier learns nothing: train the network that "
        "predicts rotation (the same command with task=rotation), or use extractor=inception for scores and "
        "perceptual=lpips for the tokenizer, which need none."
    )


def _held_out(values: Mapping[str, float], target: Target, data: BaseDataModule) -> Config:
    """The outcome's ``held_out``, logged; a warning if nothing was learned. Empty without held-out images."""
    if "val/accuracy" not in values:
        return {}
    label_N = data.labels("val")
    held_out = HeldOutAccuracy(
        predicts=target.predicts,
        baseline=target.baseline,
        accuracy=values["val/accuracy"],
        majority=target.majority(label_N),
        images=len(label_N),
    )
    logger.info("%s", held_out)
    if held_out.warning:
        logger.warning("%s Train it for longer (budget.images), or check the labels.", held_out.warning)
    return {"held_out": held_out.to_json()}
