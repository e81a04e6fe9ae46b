"""The three kinds of training, put together from a configuration: classifier, tokenizer, generator.

Each makes a task (``varlab/tasks/<kind>_task.py``), whose ``update`` computes the loss of a batch.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping

import torch
from torch import nn

from varlab import flops
from varlab.config import Config
from varlab.data import BaseDataModule, StreamDataModule, TokenDataModule
from varlab.data.folders.class_names import permuted
from varlab.metrics.held_out_accuracy import HeldOutAccuracy
from varlab.metrics.tokenizer_scores import score_tokenizer
from varlab.model import Model
from varlab.recipe import training_pictures
from varlab.recipe.assembly import (
    Build,
    assemble,
    build_condition,
    build_tokenizer,
    check_image_size,
    example_slots,
    image_sampler,
)
from varlab.recipe.init_weights import InitWeights
from varlab.recipe.objects import make
from varlab.recipe.parents import Parents
from varlab.recipe.plan import Plan, Scores
from varlab.rng import Rng
from varlab.run.directory import RunDirectory
from varlab.run.record import Parent
from varlab.score.image_sampler import ImageSampler
from varlab.score.scorer import GeneratorScorer
from varlab.tasks import GeneratorTask, Task, TokenizerTask
from varlab.tasks.base import without_padding
from varlab.tasks.target import Labels, Target
from varlab.tokenizer import VQTokenizer
from varlab.tokenizer.condition import Condition, SpatialCondition
from varlab.types import DataInfo, VarlabError

logger = logging.getLogger(__name__)


def parameters(module: nn.Module) -> int:
    """Count a module's trained numbers."""
    return sum(p.numel() for p in module.parameters())


# -- classifier --------------------------------------------------------------------------------------------------------


def classifier(config: Config, data: BaseDataModule, rng: Rng, directory: RunDirectory) -> Plan:
    """Plan a classifier: a judge of samples, or a perceptual network."""
    target: Target = make(config["task"]["target"]) if "target" in config["task"] else Labels()
    if isinstance(target, Labels):
        _check_several_classes(data)
    build = config["classifier"] | {"num_classes": target.answers(data.info.num_classes)}
    with rng.scope("init/classifier"):
        model = make(build)
    task: Task = make(config["task"])(classifier=model, rng=rng, target=target)
    task.train_flops_per_image = target.views * flops.trained_flops(model, target.size(data.info.image_size))
    return Plan(
        task=task,
        build={"classifier": build, "role": config["role"], "predicts": target.predicts},
        cost={"train_flops_per_image": task.train_flops_per_image, "parameters": parameters(model)},
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


# -- tokenizer ---------------------------------------------------------------------------------------------------------


def tokenizer(config: Config, data: BaseDataModule, rng: Rng, directory: RunDirectory) -> Plan:
    """Plan a tokenizer as in VQGAN: reconstruction, perceptual and adversarial losses."""
    info = data.info
    parents = Parents.of(directory, info)
    init = InitWeights(config["init"], "tokenizer") if config.get("init") else None
    architecture = config["tokenizer"] if init is None else init.tokenizer(config.get("tokenizer_scales"))
    model = build_tokenizer(architecture, rng)
    if init is not None:
        init.load_tokenizer(model)
    check_image_size(model, info.image_size, info.path)
    discriminator = None
    if config.get("discriminator") is not None:
        with rng.scope("init/discriminator"):
            discriminator = make(config["discriminator"])
    perceptual = parents.perceptual(config.get("perceptual"))
    if init is not None:
        parents.use("init", init.parent)
    task: TokenizerTask = make(config["task"])(
        tokenizer=model, discriminator=discriminator, perceptual=perceptual, rng=rng
    )
    task.train_flops_per_image = flops.trained_flops(model, info.image_size)
    if discriminator is not None:
        task.disc_flops_per_image = task.gan.passes * flops.trained_flops(discriminator, info.image_size)
    split = training_pictures.shown_split(data)
    shown = min(config["pictures"]["count"], info.counts[split])
    return Plan(
        task=task,
        build=Build(tokenizer=architecture, image_size=list(info.image_size)).to_json(),
        cost={
            "train_flops_per_image": task.train_flops_per_image,
            "disc_flops_per_image": task.disc_flops_per_image,
            "encode_flops_per_image": flops.encode_flops(model, info.image_size),
            "decode_flops_per_image": flops.decode_flops(model),
            "parameters": parameters(model),
            "tokens_per_image": sum(h * w for h, w in model.scales),
        },
        draw=lambda: {
            "reconstructions": training_pictures.reconstructions(model, data.images(split, torch.arange(shown)))
        },
        scores=_tokenizer_scores(config, data, task, model, parents),
        parents=parents.used,
    )


def _tokenizer_scores(
    config: Config, data: BaseDataModule, task: TokenizerTask, model: VQTokenizer, parents: Parents
) -> Scores | None:
    """rFID during training, if it is asked for."""
    if config["scores"]["every"] is None:
        return None
    extractor = parents.extractor(config["extractor"])

    def scores() -> dict[str, float]:
        loader = data.eval_loader("val", task.trainer.global_rank, task.trainer.world_size)
        batches = without_padding(task.stop_request.between(loader), task.device)
        values = score_tokenizer(model, batches, extractor=extractor.to(task.device), perceptual=None)
        return {"rfid": values["rfid"]}

    return scores


# -- generator ---------------------------------------------------------------------------------------------------------


def generator(config: Config, data: BaseDataModule, rng: Rng, directory: RunDirectory) -> Plan:
    """Plan a transformer over the tokens of a trained tokenizer, whose weights are copied into the run's directory."""
    parents = Parents.of(directory, data.info)
    if data.info.num_classes == 1:
        logger.info("%s has one class: the generator is unconditional, without label_drop and guidance", data.info.path)
    build, model = _generator_model(config, data, rng, parents)
    transformer, order = model.generator()
    task: GeneratorTask = make(config["task"])(
        transformer=transformer, order=order, tokenizer=model.tokenizer, rng=rng, condition=model.condition
    )
    cost = _generator_cost(model, data.info)
    task.train_flops_per_image = cost["train_flops_per_image"]
    source = image_sampler(model, data, seed=rng.seed, batch=data.eval_batch, check=task.stop_request.check)
    scores = _generator_scores(config, data, source, parents)
    if directory.rank == 0:  # nothing below refuses the run
        parents.copy_tokenizers()
    return Plan(
        task=task,
        build=build.to_json(),
        parents=parents.used,
        cost=cost,
        tokenizer_flops=_tokenizer_flops(model.tokenizer, data.info, parents, cost),
        draw=lambda: training_pictures.samples(source, data, count=config["pictures"]["count"]),
        scores=scores,
    )


def _generator_model(config: Config, data: BaseDataModule, rng: Rng, parents: Parents) -> tuple[Build, Model]:
    info = data.info
    init = InitWeights(config["init"], "generator") if config.get("init") else None
    setting = config["tokenizer_run"]
    if setting == "auto" and init is not None:
        setting = config["init"]
    elif setting == "auto" and isinstance(data, TokenDataModule):
        setting = data.tokens.origin["tokenizer_run"]
    tokenizer = parents.tokenizer(setting, order=config["order"], scales=config.get("tokenizer_scales"))
    check_image_size(tokenizer, info.image_size, info.path)
    _check_tokens(config, data, parents.used["tokenizer"], tokenizer)
    condition, condition_build = _condition(config, info, tokenizer, parents)
    build = Build(
        tokenizer=parents.used["tokenizer"].config,
        order=config["order"],
        transformer=config["transformer"] if init is None else init.build.transformer,
        sampler=config["sampler"],
        classes=list(info.classes),
        image_size=list(info.image_size),
        condition=condition_build,
    )
    model = assemble(build, rng, tokenizer=tokenizer, condition=condition)
    if init is not None:
        init.load_transformer(model.generator()[0], tokenizer.scales)
        parents.use("init", init.parent)
        if permuted(init.build.classes or (), info.classes):
            logger.warning("init=%s knows the classes in another order: their labels are learned again", config["init"])
    return build, model


def _condition(
    config: Config, info: DataInfo, tokenizer: VQTokenizer, parents: Parents
) -> tuple[Condition | None, Config | None]:
    """The condition, and its part of the build."""
    build: Config | None = config.get("condition")
    if build is None:
        return None, None
    if "kind" not in build:
        raise VarlabError("This condition is for packing: train with condition=spatial on shards packed with it.")
    if build["kind"] != "spatial":
        condition = build_condition(build, tokenizer=tokenizer)
        assert condition is not None
        condition.check(info)
        return condition, build
    conditions = parents.condition_tokenizer(build["tokenizer_run"])
    spatial = SpatialCondition(tokenizer=conditions)
    spatial.check(info)
    check_image_size(conditions, info.image_size, info.path)
    return spatial, {"kind": "spatial", "tokenizer": parents.used["condition"].config}


def _check_tokens(config: Config, data: BaseDataModule, parent: Parent, tokenizer: VQTokenizer) -> None:
    """Raise VarlabError if the data are tokens of another tokenizer, or lack the conditions that are asked for."""
    if not isinstance(data, TokenDataModule):
        return
    origin = data.tokens.origin
    if origin["tokenizer_sha256"] != parent.weights_sha256:
        raise VarlabError(
            f"{data.path} holds tokens of the tokenizer {origin['tokenizer_run']}, not of {parent.run} with its present "
            "weights: encode the images with it, or set tokenizer_run to the one that made the tokens."
        )
    if [list(scale) for scale in tokenizer.scales] != origin["scales"]:
        raise VarlabError(f"{data.path} holds token maps of {origin['scales']}, not of {list(tokenizer.scales)}.")
    if config.get("condition") is not None:
        raise VarlabError(f"{data.path} holds no conditions: train with a condition from images (data=shards).")


def _generator_cost(model: Model, info: DataInfo) -> dict[str, int]:
    transformer, order = model.generator()
    assert model.sampler is not None
    slots = example_slots(order, model.tokenizer, model.condition)
    condition = model.condition.tokenizer if isinstance(model.condition, SpatialCondition) else None
    return {
        "train_flops_per_image": flops.TRAINING * flops.transformer_flops(transformer, slots),
        "encode_flops_per_image": flops.encode_flops(model.tokenizer, info.image_size) if info.tokens is None else 0,
        "condition_flops_per_image": flops.encode_flops(condition, info.image_size) if condition else 0,
        "sampling_flops_per_image": flops.sampling_flops(
            transformer, slots, model.tokenizer, guided=model.sampler.guides(transformer.num_classes)
        ),
        "parameters": parameters(transformer),
        "tokens_per_image": order.num_positions,
        "steps_per_image": len(order.steps),
    }


def _tokenizer_flops(
    tokenizer: VQTokenizer, info: DataInfo, parents: Parents, cost: Mapping[str, int]
) -> Callable[[int], int]:
    """FLOPs by trained images: the tokenizers' training, stored tokens once, and what each image is encoded with."""
    trained = sum(parents.used[role].flops for role in ("tokenizer", "condition") if role in parents.used)
    once = info.encoded * flops.encode_flops(tokenizer, info.image_size)
    each = cost["encode_flops_per_image"] + cost["condition_flops_per_image"]
    return lambda images: trained + once + images * each


def _generator_scores(config: Config, data: BaseDataModule, source: ImageSampler, parents: Parents) -> Scores | None:
    """FID and the like during training, if they are asked for."""
    if config["scores"]["every"] is None:
        return None
    return GeneratorScorer(
        source=source,
        extractor=parents.extractor(config["extractor"]),
        data=data,
        n=config["scores"]["count"],
        **config["metrics"],
    )


KINDS: Mapping[str, Callable[[Config, BaseDataModule, Rng, RunDirectory], Plan]] = {
    "classifier": classifier,
    "tokenizer": tokenizer,
    "generator": generator,
}
