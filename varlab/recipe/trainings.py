"""The three kinds of training, put together from a configuration: classifier, tokenizer, generator."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from varlab import flops
from varlab.config import Config
from varlab.data import BaseDataModule
from varlab.metrics.extractors import Extractor
from varlab.metrics.tokenizer_scores import score_tokenizer
from varlab.recipe import parents, pictures
from varlab.recipe.assembly import (
    build_order,
    build_tokenizer,
    build_transformer,
    check_image_size,
    example_slots,
    make,
)
from varlab.recipe.inherited import carry, check_tokens, condition_flops, condition_of, tokenizer_of
from varlab.recipe.initial import Initial
from varlab.rng import Rng
from varlab.run.directory import RunDirectory
from varlab.sample import Sampler
from varlab.score.image_sampler import ImageSampler, ValConditions
from varlab.score.scorer import GeneratorScorer
from varlab.tasks import Task
from varlab.tasks.base import without_padding
from varlab.types import DataInfo, VarlabError


@dataclass(kw_only=True)
class Plan:
    """A training, ready to run. build, parents, cost: for run.json. draw, scores: pictures and in-training scores."""

    task: Task
    build: Config
    parents: Config = field(default_factory=dict)
    cost: Config = field(default_factory=dict)
    tokenizer_flops: Callable[[int], int] = lambda images: 0  # spent on the tokenizer, by images trained
    draw: Callable[[], Mapping[str, Tensor]] | None = None
    scores: Callable[[], Mapping[str, float]] | None = None


def _trained_flops(discriminator: nn.Module, image_size: tuple[int, int]) -> int:
    """Forward and backward of what is trained; a frozen part is only walked forward."""
    image, frozen = torch.empty(1, 3, *image_size), 0
    if hasattr(discriminator, "frozen_forward"):
        frozen = flops.forward_flops(discriminator, image, method=lambda module, img: module.frozen_forward(img))
    return flops.TRAINING * (flops.forward_flops(discriminator, image) - frozen) + frozen


def parameters(module: nn.Module) -> int:
    """How many trained numbers a module has."""
    return sum(p.numel() for p in module.parameters())


def classifier(config: Config, data: BaseDataModule, rng: Rng, directory: RunDirectory) -> Plan:
    """The judge, or the perceptual net."""
    build = config["classifier"] | {"num_classes": data.info.num_classes}
    with rng.scope("init/classifier"):
        model = make(build)
    task: Task = make(config["task"])(classifier=model, rng=rng)
    image = torch.empty(1, 3, *data.info.image_size)
    task.train_flops_per_image = flops.TRAINING * flops.forward_flops(model, image)
    return Plan(
        task=task,
        build={"classifier": build, "role": config["role"]},
        cost={"train_flops_per_image": task.train_flops_per_image, "parameters": parameters(model)},
    )


def tokenizer(config: Config, data: BaseDataModule, rng: Rng, directory: RunDirectory) -> Plan:
    """VQGAN-style: reconstruction, perceptual and adversarial losses."""
    info = data.info
    initial = Initial(config["init"], "tokenizer") if config.get("init") else None
    own = config["tokenizer"] if initial is None else initial.tokenizer_config(config.get("tokenizer_scales"))
    model = build_tokenizer(own, rng)
    if initial is not None:
        initial.load_tokenizer(model)
    check_image_size(model, info.image_size, info.path)
    discriminator = None
    if config.get("discriminator") is not None:
        with rng.scope("init/discriminator"):
            discriminator = make(config["discriminator"])
    setting = _settled(config.get("perceptual"), "perceptual", directory)
    perceptual, found = parents.load_perceptual(setting, info=info, near=directory.path)
    found |= {"init": initial.record()} if initial else {}
    _check_unchanged(found, directory)
    task: Any = make(config["task"])(tokenizer=model, discriminator=discriminator, perceptual=perceptual, rng=rng)
    task.train_flops_per_image = flops.TRAINING * flops.autoencoder_flops(model, info.image_size)
    if discriminator is not None:  # its own update sees the images and the reconstructions
        task.disc_flops_per_image = task.gan.passes * _trained_flops(discriminator, info.image_size)
    scores = None
    if config["scores"]["every"] is not None:
        extractor, judge = _judge(config, info, directory)
        found |= judge

        def scores() -> dict[str, float]:
            loader = task.stop_request.between(data.eval_loader("val", *_ranks(task)))
            batches = without_padding(loader, task.device)
            values = score_tokenizer(model, batches, extractor=extractor.to(task.device), perceptual=None)
            return {"rfid": values["rfid"]}

    shown = min(config["pictures"]["count"], info.counts["val"])
    return Plan(
        task=task,
        build={"tokenizer": own, "image_size": list(info.image_size)},
        parents=found,
        cost={
            "train_flops_per_image": task.train_flops_per_image,
            "disc_flops_per_image": task.disc_flops_per_image,
            "encode_flops_per_image": flops.encode_flops(model, info.image_size),
            "decode_flops_per_image": flops.decode_flops(model),
            "parameters": parameters(model),
            "tokens_per_image": sum(h * w for h, w in model.scales),
        },
        draw=lambda: {"reconstructions": pictures.reconstructions(model, data.images("val", torch.arange(shown)))},
        scores=scores,
    )


def generator(config: Config, data: BaseDataModule, rng: Rng, directory: RunDirectory) -> Plan:
    """A transformer over the tokens of a trained tokenizer, whose weights are copied into the run's directory."""
    info = data.info
    initial = Initial(config["init"], "generator") if config.get("init") else None
    architecture = config["transformer"] if initial is None else initial.build["transformer"]
    stand, own_tokenizer = tokenizer_of(config, data, directory)
    check_image_size(own_tokenizer, info.image_size, info.path)
    check_tokens(data, stand, own_tokenizer, conditioned=config.get("condition") is not None)
    order = build_order(config["order"], own_tokenizer)
    condition, cond_build, cond_stand = condition_of(config, data, own_tokenizer, directory)
    model = build_transformer(
        architecture,
        tokenizer=own_tokenizer,
        order=order,
        num_classes=info.num_classes,
        rng=rng,
        cond_vocab=condition.vocab_size if condition else 0,
        cond_tokens=condition.num_tokens if condition else 0,
    )
    if initial is not None:
        initial.load_transformer(model, own_tokenizer.scales)
    task = make(config["task"])(transformer=model, order=order, tokenizer=own_tokenizer, rng=rng, condition=condition)
    slots = example_slots(order, own_tokenizer, condition)
    forward = flops.transformer_flops(model, slots, width=model.width, depth=model.depth)
    task.train_flops_per_image = flops.TRAINING * forward
    encode, cond_encode = flops.encode_flops(own_tokenizer, info.image_size), condition_flops(condition, info)
    once = info.encoded * encode  # for tokens that the data bring
    if info.tokens is not None:
        encode = 0
    sampler: Sampler = make(config["sampler"])
    source = ImageSampler(
        transformer=model,
        order=order,
        tokenizer=own_tokenizer,
        sampler=sampler,
        seed=rng.seed,
        batch=data.eval_batch,
        conditions=ValConditions(data=data, condition=condition) if condition else None,
        check=task.stop_request.check,
    )
    found: Config = {"tokenizer": stand} | ({"condition": cond_stand} if cond_stand else {})
    if initial is not None:
        found |= {"init": initial.record()}
        _check_unchanged({"init": found["init"]}, directory)
    scores = None
    if config["scores"]["every"] is not None:
        extractor, judge = _judge(config, info, directory)
        found |= judge
        scores = GeneratorScorer(
            source=source,
            extractor=extractor,
            data=data,
            n=config["scores"]["count"],
            **config["metrics"],
        )
    carry(stand, directory, "tokenizer")  # once all is known to fit
    if cond_stand is not None:
        carry(cond_stand, directory, "condition")
    return Plan(
        task=task,
        build={
            "tokenizer": stand["config"],
            "order": config["order"],
            "transformer": architecture,
            "sampler": config["sampler"],
            "classes": list(info.classes),
            "image_size": list(info.image_size),
            "condition": cond_build,
        },
        parents=found,
        cost={
            "train_flops_per_image": task.train_flops_per_image,
            "encode_flops_per_image": encode,
            "condition_flops_per_image": cond_encode,
            "sampling_flops_per_image": flops.sampling_flops(model, slots, own_tokenizer, guided=sampler.cfg > 0),
            "parameters": parameters(model),
            "tokens_per_image": order.num_positions,
            "steps_per_image": len(order.steps),
        },
        tokenizer_flops=lambda images: (
            int(stand["flops"]) + int((cond_stand or {}).get("flops", 0)) + once + images * (encode + cond_encode)
        ),
        draw=lambda: pictures.samples(source, data, count=config["pictures"]["count"]),
        scores=scores,
    )


KINDS: Mapping[str, Callable[[Config, BaseDataModule, Rng, RunDirectory], Plan]] = {
    "classifier": classifier,
    "tokenizer": tokenizer,
    "generator": generator,
}


def _ranks(task: Task) -> tuple[int, int]:
    return task.trainer.global_rank, task.trainer.world_size


def _judge(config: Config, info: DataInfo, directory: RunDirectory) -> tuple[Extractor, Config]:
    """The extractor of in-training scores, and its record."""
    setting = _settled(config["extractor"], "judge", directory)
    assert setting is not None
    extractor, found = parents.load_extractor(setting, info=info, near=directory.path)
    _check_unchanged(found, directory)
    return extractor, found


def _settled(setting: Config | None, role: str, directory: RunDirectory) -> Config | None:
    """The setting with the run that was found when this one began: a resume must not find another."""
    stand = directory.read()["parents"].get(role)
    return setting if setting is None or stand is None else setting | {"run": stand["run"]}


def _check_unchanged(found: Config, directory: RunDirectory) -> None:
    """Raises VarlabError where a run that this one stands on has been trained anew since this one began."""
    before = directory.read()["parents"]
    for role, parent in found.items():
        if role in before and before[role]["weights_sha256"] != parent["weights_sha256"]:
            raise VarlabError(
                f"{parent['run']} holds other weights than when {directory.path} began: take another out= to begin anew."
            )
