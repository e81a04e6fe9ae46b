"""Put a model together from plain configuration. Sizes that follow from an object are taken from it, never from YAML."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor

from varlab.config import Config
from varlab.data import BaseDataModule
from varlab.model import Model
from varlab.order import BaseOrder
from varlab.recipe.objects import make, make_part
from varlab.recipe.preflight.size_fit import require_fitting_size
from varlab.rng import Rng
from varlab.sample import Sampler
from varlab.sample.replay import called
from varlab.score.image_sampler import ImageSampler, Rejection, ValConditions
from varlab.tokenizer import VQTokenizer
from varlab.tokenizer.condition import Condition
from varlab.transformer import Transformer
from varlab.types import Order, Slots, Tokenizer, VarlabError


@dataclass(frozen=True, kw_only=True)
class Build:
    """The parts of a tokenizer's or a generator's model, each as its configuration: ``build`` in run.json.

    transformer: None for a tokenizer, which has neither order, sampler, classes nor condition. imported: which foreign
    checkpoint the weights come from, None for a training's.
    """

    tokenizer: Config
    order: Config | None = None
    transformer: Config | None = None
    sampler: Config | None = None
    classes: list[str] | None = None
    image_size: list[int]
    condition: Config | None = None
    imported: Config | None = None

    @classmethod
    def from_json(cls, build: Mapping[str, Any]) -> Build:
        """Read ``build`` of a run.json that has a tokenizer in it."""
        names = {field.name for field in fields(cls)}
        return cls(**{name: value for name, value in build.items() if name in names})

    def to_json(self) -> Config:
        """Return what run.json stores: a tokenizer alone stores none of the generator's parts."""
        names = ["tokenizer", "image_size"] if self.transformer is None else [f.name for f in fields(self)]
        stored = {name: getattr(self, name) for name in names if name != "imported"}
        return stored if self.imported is None else stored | {"imported": self.imported}


def assemble(
    build: Build,
    rng: Rng,
    *,
    tokenizer: VQTokenizer | None = None,
    condition_tokenizer: VQTokenizer | None = None,
    device: str | None = None,
) -> Model:
    """Put a build's parts together; their weights are initial ones, drawn from the seed.

    tokenizer, condition_tokenizer: trained ones to use in place of new ones. device: of the transformer; ``meta`` gives it
    shapes alone.
    """
    tokenizer = tokenizer or build_tokenizer(build.tokenizer, rng)
    if build.transformer is None:
        return Model(tokenizer=tokenizer)
    assert build.order is not None and build.sampler is not None and build.classes is not None
    order = build_order(build.order, tokenizer)
    condition = None
    if build.condition is not None:
        condition = build_condition(build.condition, tokenizer=tokenizer, own=condition_tokenizer)
    transformer = build_transformer(
        build.transformer,
        tokenizer=tokenizer,
        order=order,
        num_classes=len(build.classes),
        rng=rng,
        cond_vocab=condition.vocab_size if condition else 0,
        cond_tokens=condition.num_tokens if condition else 0,
        device=device,
    )
    return Model(
        tokenizer=tokenizer,
        order=order,
        transformer=transformer,
        sampler=make(build.sampler),
        classes=tuple(build.classes),
        condition=condition,
    )


def image_sampler(
    model: Model,
    data: BaseDataModule | None,
    *,
    seed: int,
    batch: int,
    sampler: Sampler | None = None,
    label_N: Tensor | None = None,
    rejection: Rejection | None = None,
    check: Callable[[], None] = lambda: None,
    compile: bool = False,
    replay: Callable[..., Tensor] = called,
) -> ImageSampler:
    """Return the sampler of a generator's images. data: its val split gives conditions. The others: see ``ImageSampler``."""
    transformer, order = model.generator()
    sampler = sampler or model.sampler
    assert sampler is not None
    return ImageSampler(
        transformer=transformer,
        order=order,
        tokenizer=model.tokenizer,
        sampler=sampler,
        seed=seed,
        batch=batch,
        conditions=ValConditions(data=data, condition=model.condition)
        if data is not None and model.condition
        else None,
        label_N=label_N,
        rejection=rejection,
        check=check,
        compile=compile,
        replay=replay,
    )


def build_tokenizer(config: Config, rng: Rng) -> VQTokenizer:
    """Build the tokenizer of ``conf/tokenizer``, initialised from the seed."""
    with rng.scope("init/tokenizer"):
        return make(config)


def check_image_size(
    tokenizer: VQTokenizer, image_size: tuple[int, int], where: str, key: str = "tokenizer.scales"
) -> None:
    """Raise VarlabError unless the tokenizer is made for images of this size. where, key: see ``require_fitting_size``."""
    require_fitting_size(tokenizer.scales, tokenizer.downsample, image_size=image_size, where=where, key=key)


def build_condition(config: Config, *, tokenizer: Tokenizer, own: VQTokenizer | None = None) -> Condition:
    """Build the condition of ``conf/condition`` for this tokenizer's images.

    Its target gets what it names as parameters: ``grid``, the (h, w) of the image's last scale, and ``tokenizer``, the
    condition's own. own: that one, trained; else it is made from the key ``tokenizer``.
    """
    rest = {key: value for key, value in config.items() if key not in ("packing", "tokenizer")}
    if own is None and "tokenizer" in config:
        own = build_tokenizer(config["tokenizer"], Rng(0))
    live = {"grid": tokenizer.scales[-1]} | ({} if own is None else {"tokenizer": own})
    made = make_part("condition", rest, **live)
    if not isinstance(made, Condition):
        raise VarlabError("This condition is for packing: train with condition=spatial on shards packed with it.")
    return made


def build_order(config: Config, tokenizer: Tokenizer) -> BaseOrder:
    """Build the order of ``conf/order`` over this tokenizer's scales; VarlabError if the two don't fit."""
    return make(config, scales=tokenizer.scales)


def build_transformer(
    config: Config,
    *,
    tokenizer: Tokenizer,
    order: BaseOrder,
    num_classes: int,
    rng: Rng,
    cond_vocab: int = 0,
    cond_tokens: int = 0,
    device: str | None = None,
) -> Transformer:
    """Build the transformer of ``conf/transformer``, for this tokenizer, order, number of classes and condition tokens.

    device: where it is made; None: the present default.
    """
    with rng.scope("init/transformer"), torch.device(device) if device else nullcontext():
        transformer = make(
            config,
            vocab_size=tokenizer.vocab_size,
            code_dim=tokenizer.code_dim,
            num_classes=num_classes,
            positions_P3=order.positions_P3,
            source_positions=not order.fixed,
            cond_vocab=cond_vocab,
            cond_tokens=cond_tokens,
        )
    check_inputs(transformer, order, tokenizer)
    return transformer


def check_inputs(transformer: Transformer, order: BaseOrder, tokenizer: Tokenizer) -> None:
    """Raise VarlabError unless the transformer has what the order's slots need."""
    if not order.fixed and transformer.position is None:
        raise VarlabError(
            f"transformer.embed.position=false hides where {type(order).__name__} goes next, which differs from sample to "
            "sample: use transformer.embed.position=true."
        )
    slots = example_slots(order, tokenizer)
    if transformer.token_inputs and bool(((slots.src_BL >= 0) & (slots.tok_BL < 0)).any()):
        raise VarlabError(
            f"transformer.token_inputs=true wants token ids as inputs, but {type(order).__name__} knows images, not tokens, "
            "before a step: use transformer.token_inputs=false."
        )


@torch.no_grad()
def example_slots(order: Order, tokenizer: Tokenizer, condition: Condition | None = None) -> Slots:
    """Return the slots of one sample of zeros, its condition's first, on the CPU: for counting and for checks."""
    device = tokenizer.blank(1).device
    maps = [torch.zeros(1, length, dtype=torch.int64, device=device) for length in order.lengths]
    slots, _ = order.pack(maps, tokenizer, Rng(0).stream("order", torch.zeros(1, dtype=torch.int64)))
    if condition is not None:
        cond_BN = torch.zeros(1, condition.num_tokens, dtype=torch.int64, device=device)
        slots = order.conditioned(slots, cond_BN, 0)
    return slots.to("cpu")
