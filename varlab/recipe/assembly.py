"""From plain configuration to live objects. Sizes that follow from an object are taken from it, never repeated in YAML."""

from __future__ import annotations

from typing import Any

import torch
from hydra.errors import InstantiationException
from hydra.utils import instantiate

from varlab.config import Config
from varlab.moved import resolve_targets
from varlab.order import BaseOrder
from varlab.rng import Rng
from varlab.tokenizer import VQTokenizer
from varlab.tokenizer.condition import Condition, CoordinateCondition, SpatialCondition
from varlab.transformer import Transformer
from varlab.types import Slots, Tokenizer, VarlabError


def make(config: Config, **live: Any) -> Any:
    """The object a config's ``_target_`` names, with values from live objects. A sentence of its constructor stays one."""
    config = resolve_targets(config)
    try:
        if config.get("_partial_"):
            return instantiate(config, **live, _convert_="all")
        return instantiate(config, _partial_=True, _convert_="all")(**live)  # live objects are no business of Hydra's
    except VarlabError:
        raise
    except (TypeError, ValueError, KeyError) as error:
        reason = " ".join(str(error).split()).rstrip(".")
        raise VarlabError(f"{config.get('_target_')} could not be made from its configuration: {reason}.") from error
    except InstantiationException as error:
        if isinstance(error.__cause__, VarlabError):
            raise error.__cause__ from None
        reason = " ".join(str(error.__cause__ or error).split()).rstrip(".")
        raise VarlabError(f"{config.get('_target_')} could not be made from its configuration: {reason}.") from error


def build_tokenizer(config: Config, rng: Rng) -> VQTokenizer:
    """The tokenizer of ``conf/tokenizer``, initialised from the seed."""
    with rng.scope("init/tokenizer"):
        return make(config)


def check_image_size(tokenizer: VQTokenizer, image_size: tuple[int, int], where: str) -> None:
    """Raises VarlabError unless the tokenizer's scales stand for images of this size."""
    if tokenizer.image_size != tuple(image_size):
        h, w = tokenizer.image_size
        raise VarlabError(
            f"The tokenizer's last scale {tokenizer.scales[-1]} times {tokenizer.downsample} is {h}×{w} pixels, but {where} "
            f"holds {image_size[0]}×{image_size[1]}: change tokenizer.scales or tokenizer.channel_mult."
        )


def build_condition(config: Config | None, *, tokenizer: Tokenizer) -> Condition | None:
    """The condition of ``conf/condition`` beside this tokenizer's images; a spatial one names its own tokenizer."""
    if config is None:
        return None
    if config["kind"] == "spatial":
        return SpatialCondition(tokenizer=build_tokenizer(config["tokenizer"], Rng(0)))
    if config["kind"] == "coordinates":
        values = {key: value for key, value in config.items() if key != "kind"}
        return CoordinateCondition(grid=tokenizer.scales[-1], **values)
    raise VarlabError(f"A condition of kind {config['kind']!r} is unknown: use spatial or coordinates.")


def build_order(config: Config, tokenizer: Tokenizer) -> BaseOrder:
    """The order of ``conf/order`` over this tokenizer's scales; VarlabError where the two don't fit."""
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
) -> Transformer:
    """The transformer of ``conf/transformer``, for this tokenizer, this order and this many classes and condition tokens."""
    with rng.scope("init/transformer"):
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
    if not order.fixed and transformer.position is None:
        raise VarlabError(
            f"transformer.embed.position=false cannot tell where {type(order).__name__} goes next, which is another place for "
            "every sample: use embed.position=true."
        )
    slots = example_slots(order, tokenizer)
    if transformer.token_inputs and bool(((slots.src_BL >= 0) & (slots.tok_BL < 0)).any()):
        raise VarlabError(
            f"transformer.token_inputs=true wants token ids as inputs, but {type(order).__name__} knows images, not tokens, "
            "before a step: use token_inputs=false."
        )
    return transformer


@torch.no_grad()
def example_slots(order: BaseOrder, tokenizer: Tokenizer, condition: Condition | None = None) -> Slots:
    """The slots of one sample (all tokens 0), its condition's first, for counting and checking; on the CPU."""
    device = tokenizer.blank(1).device
    maps = [torch.zeros(1, length, dtype=torch.int64, device=device) for length in order.lengths]
    slots, _ = order.pack(maps, tokenizer, Rng(0).stream("order", torch.zeros(1, dtype=torch.int64)))
    if condition is not None:
        cond_BN = torch.zeros(1, condition.num_tokens, dtype=torch.int64, device=device)
        slots = order.conditioned(slots, cond_BN, 0)
    return slots.to("cpu")
