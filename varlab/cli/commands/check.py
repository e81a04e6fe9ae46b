"""``varlab check``: whether parts of one's own keep the contracts of ``varlab.testing``."""

from __future__ import annotations

import inspect
import logging
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from torchmetrics import Metric

from varlab import testing
from varlab.config import Config
from varlab.losses.perceptual import PerceptualDistance
from varlab.metrics.extractors import Extractor
from varlab.recipe.objects import make_part, target_of
from varlab.recipe.preflight.fitted_settings import fitted_tokenizer
from varlab.rng import Rng
from varlab.run.directory import RunDirectory
from varlab.tokenizer import Quantizer, VQTokenizer
from varlab.tokenizer.condition import Condition
from varlab.types import VarlabError

__all__ = ["run"]

logger = logging.getLogger(__name__)

SCALES = ([[4, 4]], [[1, 1], [2, 2], [3, 3], [4, 4]])
PARTS = ("tokenizer", "order", "condition", "source", "extractor", "perceptual")
BASES = {
    "quantizer": Quantizer,
    "condition": Condition,
    "extractor": Extractor,
    "perceptual": PerceptualDistance,
    "metric": Metric,
}
METHODS = {"order": "advance", "tokenizer": "accumulate", "source": "entries"}
"""A method by which a class is known to be an order, a tokenizer or a source, whatever it inherits from."""


def run(config: Config, directory: RunDirectory) -> Config:
    """Check each part that is given. Raises VarlabError for the first that breaks its contract."""
    if (here := str(Path.cwd())) not in sys.path:
        sys.path.append(here)  # the author's modules lie in the current folder
    if isinstance(config.get("tokenizer"), dict):
        config = config | {"tokenizer": fitted_tokenizer(config["tokenizer"], config["size"])}
    given = {part: config[part] for part in PARTS if config.get(part) is not None}
    if config["target"] is not None:
        target = {"_target_": config["target"].replace(":", "."), **config["arguments"]}
        given = {_kind(target_of(target), config["target"]): target} | given
    if not given:
        raise VarlabError(
            "Name what to check: varlab check my_module:MyClass, or one of "
            f"{', '.join(f'{part}=' for part in PARTS)} (with --config-dir for your own YAML)."
        )
    for part, asked in given.items():
        if part == "tokenizer" and "order" in given and config["target"] is not None:
            continue  # it is what the order goes over
        _check(part, asked, config)
    return {"checked": sorted(given)}


def _kind(found: Callable[..., Any], target: str) -> str:
    """Which part a class is."""
    for kind, base in BASES.items():
        if isinstance(found, type) and issubclass(found, base):
            return kind
    for kind, method in METHODS.items():
        if hasattr(found, method):
            return kind
    raise VarlabError(
        f"{target} is none of {', '.join([*METHODS, *BASES])}: it has no {', '.join(METHODS.values())}, and is no subclass of "
        f"{', '.join(base.__name__ for base in BASES.values())}."
    )


def _check(part: str, asked: Config, config: Config) -> None:
    """Build a part and check it; an order, over each tokenizer that it fits."""
    name, size = str(asked.get("_target_")), tuple(config["size"])
    if "parents" in inspect.signature(target_of(asked)).parameters:
        raise VarlabError(
            f"{name} loads a trained run, which has no contract of its own: check a class by module:NAME."
        )
    with Rng(config["seed"]).scope("init/check"):
        if part in ("order", "condition"):
            over = _over_tokenizers(part, asked, config)
            logger.info("%s %s keeps its contract over the scales %s", part, name, " and ".join(map(str, over)))
            return
        made = make_part(part, asked)
    checks: dict[str, Callable[[Any], None]] = {
        "tokenizer": testing.check_tokenizer,
        "quantizer": testing.check_quantizer,
        "source": testing.check_source,
        "extractor": partial(testing.check_extractor, size=size),
        "perceptual": partial(testing.check_perceptual, size=size),
        "metric": partial(testing.check_metric, size=size),
    }
    checks[part](made)
    logger.info("%s %s keeps its contract", part, name)


def _over_tokenizers(part: str, asked: Config, config: Config) -> list[tuple[tuple[int, int], ...]]:
    """Check an order or a condition with the tokenizer that is given, or each small one that it fits. Returns their scales."""
    given = config.get("tokenizer")
    tokenizers = [_small(scales) for scales in SCALES] if given is None else [make_part("tokenizer", given)]
    done, refusals = [], []
    for tokenizer in tokenizers:
        live: Config = {"scales": tokenizer.scales, "grid": tokenizer.scales[-1], "tokenizer": tokenizer}
        try:
            made = make_part(
                part, {key: asked[key] for key in asked if key not in ("packing", "tokenizer_run")}, **live
            )
        except VarlabError as refusal:
            refusals.append(str(refusal))
            continue
        if part == "order":
            testing.check_order(made, tokenizer)
        else:
            testing.check_condition(made, size=tokenizer.image_size)
        done.append(tokenizer.scales)
    if not done:
        raise VarlabError(f"{asked.get('_target_')} fits no tokenizer: {refusals[0]}")
    return done


def _small(scales: list[list[int]]) -> VQTokenizer:
    """A tokenizer of a few weights, whose codes differ enough to be heard."""
    return VQTokenizer(
        scales=scales, vocab_size=24, code_dim=6, channels=8, channel_mult=(1, 2), res_blocks=1, groups=4, attention=(),
        mid_attention=False, phi_count=1, code_init=24.0,
    )  # fmt: skip
