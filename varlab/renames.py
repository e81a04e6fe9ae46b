"""What a ``_target_``, or a ``kind``, of an old run or of a user's YAML is called today."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

from varlab.config import Config

__all__ = ["current_name", "current_targets", "resolve_targets"]

logger = logging.getLogger(__name__)

# The old name of a module, class or function → its name today. If you move it again, change the value and keep the key.
MOVED = {
    "varlab.data.augment": "varlab.data.image.augment",
    "varlab.data.conditions": "varlab.data.pack.conditions",
    "varlab.data.conditions.Images": "varlab.data.pack.conditions.PairedImages",
    "varlab.data.crop": "varlab.data.image.crop",
    "varlab.data.datamodule": "varlab.data.shard_module",
    "varlab.data.folder": "varlab.data.pack.sources.folder",
    "varlab.data.folder.Folder": "varlab.data.pack.sources.folder.ImageFolder",
    "varlab.data.parquet": "varlab.data.pack.sources.parquet",
    "varlab.data.photos": "varlab.data.pack.sources.photos",
    "varlab.data.pipeline": "varlab.data.stream_module",
    "varlab.data.sources": "varlab.data.pack.sources.base",
    "varlab.data.sources.Digits": "varlab.data.pack.sources.digits.Digits",
    "varlab.data.stream.Augment": "varlab.data.image.augment.Augment",
    "varlab.data.tars": "varlab.data.pack.sources.tars",
    "varlab.data.tokenmodule": "varlab.data.token_module",
    "varlab.losses.augment": "varlab.losses.diff_augment",
    "varlab.order.paths.spiral_in": "varlab.order.paths.corner_spiral_in",
    "varlab.order.paths.spiral_out": "varlab.order.paths.corner_spiral_out",
    "varlab.sample.Known": "varlab.sample.KnownTokens",
    "varlab.sample.edit": "varlab.sample.known_tokens",
    "varlab.sample.edit.Known": "varlab.sample.known_tokens.KnownTokens",
    "varlab.tasks.classifier": "varlab.tasks.classifier_task",
    "varlab.tasks.code_use": "varlab.tasks.update.code_use",
    "varlab.tasks.codebook": "varlab.tasks.update.code_use",
    "varlab.tasks.generator": "varlab.tasks.generator_task",
    "varlab.tasks.schedule": "varlab.tasks.update.schedule",
    "varlab.tasks.tokenizer": "varlab.tasks.tokenizer_task",
}

# A part of a configuration and its ``kind`` (version d11e80b and earlier) → what stands there today.
KINDS: Mapping[tuple[str, str], Config] = {
    ("condition", "coordinates"): {
        "_target_": "varlab.tokenizer.condition.CoordinateCondition",
        "packing": {"_target_": "varlab.data.pack.conditions.CropBoxes"},
    },
    ("condition", "spatial"): {"_target_": "varlab.tokenizer.condition.SpatialCondition"},
    ("extractor", "classifier"): {"_target_": "varlab.recipe.networks.judge"},
    ("extractor", "inception"): {"_target_": "varlab.metrics.extractors.InceptionExtractor"},
    ("perceptual", "classifier"): {"_target_": "varlab.recipe.networks.classifier_distance"},
    ("perceptual", "lpips"): {"_target_": "varlab.losses.perceptual.LPIPS"},
}

_PLAIN = (str, int, float)  # what no name can be in; bool is an int

_PLANNERS = ("classifier", "generator", "tokenizer")


def current_name(name: str) -> str:
    """The dotted name under which an object can be imported today."""
    parts = name.split(".")
    for length in range(len(parts), 0, -1):
        if (now := MOVED.get(".".join(parts[:length]))) is not None:
            return ".".join([now, *parts[length:]])
    return name


def current_targets(config: Mapping[str, object]) -> Config:
    """A copy of a configuration in which each ``_target_``, at any depth, is a current name, and no part has a ``kind``."""
    return _planned(_renamed(config, current_name))


def _planned(config: Config) -> Config:
    """With the planner that a training of version d11e80b and earlier had by its kind."""
    if "task" not in config or "planner" in config or config.get("kind") not in _PLANNERS:
        return config
    return config | {"planner": {"_target_": f"varlab.recipe.plans.{config['kind']}_plan.plan", "_partial_": True}}


def resolve_targets(config: Mapping[str, object]) -> Config:
    """``current_targets`` of a configuration that is about to be built: logs each moved name once."""
    return _renamed(config, _logged_name)


@cache
def _logged_name(name: str) -> str:
    now = current_name(name)
    if now != name:
        logger.info("_target_ %s has moved: it is %s now", name, now)
    return now


def _renamed(value: Any, rename: Callable[[str], str], part: str = "") -> Any:
    if value is None or isinstance(value, _PLAIN):
        return value
    if isinstance(value, list):
        return [item if isinstance(item, _PLAIN) else _renamed(item, rename) for item in value]
    if not isinstance(value, Mapping):
        return value
    if "kind" in value and (target := KINDS.get((part, str(value["kind"])))) is not None:
        value = {**target, **{key: item for key, item in value.items() if key != "kind"}}
    renamed = {key: item if isinstance(item, _PLAIN) else _renamed(item, rename, key) for key, item in value.items()}
    if isinstance(target := value.get("_target_"), str):
        renamed["_target_"] = rename(target)
    return renamed
