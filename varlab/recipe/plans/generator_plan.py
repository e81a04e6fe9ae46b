"""The training of a generator: a transformer over the tokens of a trained tokenizer."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping
from functools import partial
from itertools import accumulate

from varlab.config import Config
from varlab.data import BaseDataModule, TokenDataModule
from varlab.data.folders.class_names import permuted
from varlab.model import Model
from varlab.recipe.assembly import Build, assemble, check_image_size, example_slots, image_sampler
from varlab.recipe.budget import budget_images
from varlab.recipe.flops import TRAINING, FlopCounter
from varlab.recipe.init_weights import InitWeights
from varlab.recipe.objects import make, metric_settings
from varlab.recipe.parents import Parents
from varlab.recipe.plan import Plan, Scores, parameters
from varlab.recipe.plans import training_pictures
from varlab.recipe.preflight.requested_ranks import world_size
from varlab.recipe.token_shards.token_cache import TokenCache, token_cache
from varlab.recipe.trainer.memory import has_room
from varlab.recipe.trainer.settings import dev_batches
from varlab.rng import Rng
from varlab.run.directory import RunDirectory
from varlab.run.record import Parent
from varlab.run.trust import Trust
from varlab.score.image_sampler import ImageSampler
from varlab.score.scorer import GeneratorScorer
from varlab.tasks import GeneratorTask
from varlab.tokenizer import VQTokenizer
from varlab.types import DataInfo, VarlabError

logger = logging.getLogger(__name__)


def plan(config: Config, data: BaseDataModule, rng: Rng, directory: RunDirectory) -> Plan:
    """Plan a transformer over the tokens of a trained tokenizer, whose weights are copied into the run's directory."""
    parents = Parents.of(directory, data.info, Trust.of(config.get("trust")))
    if data.info.num_classes == 1:
        logger.info("%s has one class: the generator is unconditional, without label_drop and guidance", data.info.path)
    build, model = _generator_model(config, data, rng, parents)
    transformer, order = model.generator()
    task: GeneratorTask = make(config["task"])(
        transformer=transformer, order=order, tokenizer=model.tokenizer, rng=rng, condition=model.condition
    )
    count = FlopCounter()
    cost = generator_cost(model, data.info, count)
    task.train_flops_per_image = cost["train_flops_per_image"]
    if task.stages is not None:
        task.stage_flops = stage_flops(model, count)
    cache = _token_cache(config, data, task, model, parents.used["tokenizer"], directory)
    cost["encoded_images"] = data.info.encoded if cache is None else cache.images
    if cache is not None:
        cost["encode_flops_per_image"] = 0
    source = image_sampler(model, data, seed=rng.seed, batch=data.eval_batch, check=task.stop_request.check)
    scores = _generator_scores(config, data, source, parents)
    if directory.rank == 0:  # nothing below refuses the run
        parents.copy_tokenizers()
    return Plan(
        task=task,
        build=build.to_json(),
        parents=parents.used,
        cost=cost | count.note(),
        tokenizer_flops=_tokenizer_flops(model.tokenizer, data.info, parents, cost),
        draw=lambda: training_pictures.samples(source, data, count=config["pictures"]["count"]),
        scores=scores,
        cache=cache,
        conclude=lambda values: _say_likelihood(values, model.tokenizer.vocab_size),
    )


def _say_likelihood(values: Mapping[str, float], codes: int) -> Config:
    """Log the loss of held-out images beside that of a guess."""
    if "val/loss" in values:
        loss, guess = values["val/loss"], math.log(codes)
        logger.info("held-out loss %.2f nats a token (a guess among all %d codes: %.2f)", loss, codes, guess)
    return {}


def _token_cache(
    config: Config, data: BaseDataModule, task: GeneratorTask, model: Model, tokenizer: Parent, run: RunDirectory
) -> TokenCache | None:
    """The tokens that the training encodes once; None where it does not."""
    trainer = config["trainer"]
    images = budget_images(config["budget"], task, data.batch, updates=dev_batches(trainer))
    share = data.batch // world_size(trainer)
    batch = min(share, task.micro_batch or share)
    return token_cache(config, data, model, tokenizer, run, images=images, batch=batch)


def _generator_model(config: Config, data: BaseDataModule, rng: Rng, parents: Parents) -> tuple[Build, Model]:
    info = data.info
    init = InitWeights(config["init"], "generator", parents.trust) if config.get("init") else None
    setting = config["tokenizer_run"]
    if setting == "auto" and init is not None:
        setting = config["init"]
    elif setting == "auto" and isinstance(data, TokenDataModule):
        setting = data.tokens.origin["tokenizer_run"]
    tokenizer = parents.tokenizer(setting, order=config["order"], scales=config.get("tokenizer_scales"))
    check_image_size(tokenizer, info.image_size, info.path, "tokenizer_scales")
    _check_tokens(data, parents.used["tokenizer"], tokenizer)
    condition, condition_tokenizer = _condition(config, info, parents)
    build = Build(
        tokenizer=parents.used["tokenizer"].config,
        order=config["order"],
        transformer=config["transformer"] if init is None else init.build.transformer,
        sampler=config["sampler"],
        classes=list(info.classes),
        image_size=list(info.image_size),
        condition=condition,
    )
    make_model = partial(assemble, build, rng, tokenizer=tokenizer, condition_tokenizer=condition_tokenizer)
    shapes = make_model(device="meta") if config.get("dry") else None
    model = shapes if shapes and not has_room(shapes.generator()[0], config["trainer"]) else make_model()
    if model.condition is not None:
        model.condition.check(info)
    if init is not None:
        init.load_transformer(model.generator()[0], tokenizer.scales)
        parents.use("init", init.parent)
        if permuted(init.build.classes or (), info.classes):
            logger.warning("init=%s knows the classes in another order: their labels are learned again", config["init"])
    return build, model


def _condition(config: Config, info: DataInfo, parents: Parents) -> tuple[Config | None, VQTokenizer | None]:
    """The condition's part of the build, and its own tokenizer if the key ``tokenizer_run`` asks for one."""
    asked: Config | None = config.get("condition")
    if asked is None:
        return None, None
    build = {key: value for key, value in asked.items() if key not in ("packing", "tokenizer_run")}
    if "tokenizer_run" not in asked:
        return build, None
    tokenizer = parents.condition_tokenizer(asked["tokenizer_run"])
    check_image_size(tokenizer, info.image_size, info.path, "")
    return build | {"tokenizer": parents.used["condition"].config}, tokenizer


def _check_tokens(data: BaseDataModule, parent: Parent, tokenizer: VQTokenizer) -> None:
    """Raise VarlabError if the data are tokens of another tokenizer."""
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


def generator_cost(model: Model, info: DataInfo, count: FlopCounter) -> dict[str, int]:
    """FLOPs of an image in training, encoding and sampling; parameters, tokens and steps."""
    transformer, order = model.generator()
    assert model.sampler is not None
    slots = example_slots(order, model.tokenizer, model.condition)
    parts = [] if model.condition is None else model.condition.children()
    own = [part for part in parts if isinstance(part, VQTokenizer)]
    forward = count.transformer(transformer, slots)
    return {
        "train_flops_per_image": TRAINING * forward,
        "encode_flops_per_image": count.encode(model.tokenizer, info.image_size) if info.tokens is None else 0,
        "condition_flops_per_image": sum(count.encode(tokenizer, info.image_size) for tokenizer in own),
        "sampling_flops_per_image": count.sampling(
            forward, model.tokenizer, guided=model.sampler.guides(transformer.num_classes)
        ),
        "parameters": parameters(transformer),
        "block_parameters": parameters(transformer.blocks),
        "tokens_per_image": order.num_positions,
        "steps_per_image": len(order.steps),
    }


def stage_flops(model: Model, count: FlopCounter) -> list[int]:
    """FLOPs of an image in training, up to each scale."""
    transformer, order = model.generator()
    slots = example_slots(order, model.tokenizer, model.condition)
    ends = accumulate(order.lengths, initial=len(slots) - order.num_positions)
    return [TRAINING * count.transformer(transformer, slots.first(end)) for end in list(ends)[1:]]


def _tokenizer_flops(
    tokenizer: VQTokenizer, info: DataInfo, parents: Parents, cost: Mapping[str, int]
) -> Callable[[int], int]:
    """FLOPs by trained images: the tokenizers' training, stored tokens once, and what each image is encoded with."""
    trained = sum(parents.used[role].flops for role in ("tokenizer", "condition") if role in parents.used)
    encoded = cost["encoded_images"]
    once = encoded * FlopCounter().encode(tokenizer, info.image_size) if encoded else 0
    each = cost["encode_flops_per_image"] + cost["condition_flops_per_image"]
    return lambda images: trained + once + images * each


def _generator_scores(config: Config, data: BaseDataModule, source: ImageSampler, parents: Parents) -> Scores | None:
    """FID and the like during training, if they are asked for."""
    if config["scores"]["every"] is None:
        return None
    scorer = GeneratorScorer(
        source=source,
        extractor=parents.extractor(config["extractor"]),
        data=data,
        n=config["scores"]["count"],
        **metric_settings(config["metrics"]),
    )
    # validation logs the accuracy of tokens
    return lambda: {"judged_accuracy" if name == "accuracy" else name: value for name, value in scorer().items()}
