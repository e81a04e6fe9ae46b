"""The training of a classifier: a judge of samples, or a perceptual network."""

from __future__ import annotations

import logging
from collections.abc import Mapping

from varlab.config import Config
from varlab.data import BaseDataModule, StreamDataModule
from varlab.metrics.held_out_accuracy import HeldOutAccuracy
from varlab.recipe.flops import FlopCounter
from varlab.recipe.objects import make
from varlab.recipe.plan import Plan, parameters
from varlab.recipe.preflight.data_facts import require_several_classes
from varlab.rng import Rng
from varlab.run.directory import RunDirectory
from varlab.tasks import Task
from varlab.tasks.target import Labels, Target

logger = logging.getLogger(__name__)


def plan(config: Config, data: BaseDataModule, rng: Rng, directory: RunDirectory) -> Plan:
    """Plan a classifier: a judge of samples, or a perceptual network."""
    target: Target = make(config["task"]["target"]) if "target" in config["task"] else Labels()
    if isinstance(target, Labels):
        require_several_classes(data.info, _distinct_labels(data))
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


def _distinct_labels(data: BaseDataModule) -> int:
    """How many labels the training images have, as far as is known: those of a stream are known only as they come."""
    classes = data.info.num_classes
    return classes if classes < 2 or isinstance(data, StreamDataModule) else len(data.labels("train").unique())


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
