"""The keys of configurations: how two are compared, and the one table of keys that do not count."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from enum import Flag, auto
from functools import cache

from varlab.config import Config

ABSENT = "—"
"""Stands in a comparison for the value of a key that a configuration lacks."""


def flatten(config: Mapping[str, object]) -> Config:
    """Nested configuration → ``{"a.b.c": value}``; lists and empty mappings stay whole."""
    flat: Config = {}
    _flatten_into(flat, config, "")
    return flat


def _flatten_into(flat: Config, config: Mapping[str, object], prefix: str) -> None:
    for key, value in config.items():
        if value and not isinstance(value, (str, int, float, list)) and isinstance(value, Mapping):
            _flatten_into(flat, value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value


def compare(*configs: Mapping[str, object]) -> dict[str, tuple[object, ...]]:
    """Each flat key whose values differ, with its value in every configuration; ABSENT where one lacks it.

    Values are compared as JSON: 1, 1.0 and true differ, a tuple equals a list.
    """
    return compare_flat(*map(flatten, configs))


def compare_flat(*flat: Mapping[str, object]) -> dict[str, tuple[object, ...]]:
    """``compare`` of configurations that are flat already."""
    rows = {
        key: tuple([one.get(key, ABSENT) for one in flat]) for key in dict.fromkeys(key for one in flat for key in one)
    }
    return {key: row for key, row in rows.items() if _differ(row)}


def _differ(values: Sequence[object]) -> bool:
    """Whether not all values are the same JSON. Most are, and look the same in Python, too, which is found faster."""
    return len(set(map(repr, values))) > 1 and len(set(map(_canonical, values))) > 1


def _canonical(value: object) -> str:
    return json.dumps(value, sort_keys=True, default=str)


class Use(Flag):
    """What the keys of a configuration are used for."""

    IDENTITY = auto()  # whether two configurations make the same run, to the last bit
    ROUNDING = auto()  # whether they make the same run up to rounding
    PLACE = auto()  # whether they make the same run where the places that they name hold the same
    LENGTH = auto()  # whether they make the same run up to the length of the shorter one
    CHECKPOINT = auto()  # the hash in a checkpoint, of the top-level keys that a run began with
    DIRECTORY = auto()  # the name of a run's directory
    HASH = auto()  # config_hash in sweep.csv
    SCIENCE = auto()  # what a report compares
    LABEL = auto()  # what a report calls a run, by what was asked
    SCALING = auto()  # what the runs of a scaling study have in common


_EVERYWHERE = Use.IDENTITY | Use.CHECKPOINT | Use.DIRECTORY | Use.HASH | Use.SCIENCE | Use.LABEL | Use.SCALING
_HOW = Use.IDENTITY | Use.SCIENCE
_UNCOUNTED: Mapping[str, Use] = {
    "out": Use.IDENTITY | Use.CHECKPOINT | Use.DIRECTORY | Use.HASH | Use.SCIENCE,
    "name": Use.IDENTITY | Use.CHECKPOINT | Use.DIRECTORY | Use.HASH | Use.SCIENCE,
    "launch": Use.IDENTITY | Use.CHECKPOINT | Use.DIRECTORY | Use.HASH | Use.SCIENCE,
    "report": Use.IDENTITY | Use.CHECKPOINT | Use.HASH | Use.SCIENCE | Use.SCALING,
    "shrink": Use.IDENTITY | Use.CHECKPOINT | Use.HASH | Use.SCALING,
    "trainer": Use.DIRECTORY | Use.HASH | Use.LABEL | Use.SCALING,
    "hydra": Use.DIRECTORY,
    "experiment": Use.DIRECTORY | Use.LABEL,
    "task": Use.LABEL,
    "data": Use.LABEL,
    "seed": Use.SCIENCE,
    "budget": Use.LENGTH | Use.SCALING,
    "task.schedule": Use.LENGTH,
    "task.revival.until": Use.LENGTH,
    # what only watches a training
    "logger": _EVERYWHERE,
    "trust": _EVERYWHERE,
    "dry": _EVERYWHERE | Use.DIRECTORY,
    "profiler": _EVERYWHERE,
    "checkpoint.keep": _EVERYWHERE,
    "checkpoint.best": _EVERYWHERE,
    "from": _EVERYWHERE,  # a branch has the bits of a run that trained from its beginning
    "callbacks.training_log": _EVERYWHERE,
    "callbacks.validation": _EVERYWHERE,
    "callbacks.progress_bar": _EVERYWHERE,
    "callbacks.scores": _EVERYWHERE,
    "callbacks.pictures": _EVERYWHERE,
    "trainer._target_": Use.IDENTITY | Use.CHECKPOINT | Use.SCIENCE,
    "trainer.limit_val_batches": Use.IDENTITY,
    "trainer.detect_anomaly": _HOW,
    "trainer.enable_model_summary": _HOW,
    "trainer.recompute": _HOW,
    "task.recompute": _HOW,
    "log": Use.IDENTITY,
    "val.every": Use.IDENTITY,
    "val.skip": Use.IDENTITY,
    "pictures": Use.IDENTITY,
    "scores": Use.IDENTITY,
    "checkpoint": _HOW,
    "tensorboard": Use.IDENTITY | Use.SCALING,
    # how the same samples are read
    "encode_once": _EVERYWHERE,
    "workers": Use.IDENTITY,
    "data.timeout": _EVERYWHERE,
    "data.workers": _HOW,
    "data.eval_batch": _HOW,
    "data.cache_bytes": _HOW,
    "data.max_bad": _HOW,
    "data.remote_cache": _HOW,
    "data.remote_bytes": _HOW,
    "data.shards": _HOW,
    # where they and other runs lie
    "data.path": Use.PLACE,
    "data.tokens": Use.PLACE,
    "tokenizer_run": Use.PLACE,
    "condition.tokenizer_run": Use.PLACE,
    "perceptual.run": Use.PLACE,
    "extractor.run": Use.PLACE,
    "init": Use.PLACE,
    # in which order numbers are added
    "task.micro_batch": Use.ROUNDING,
    "trainer.micro_batch": Use.ROUNDING,
    "task.compile": Use.ROUNDING,
    "trainer.compile": Use.ROUNDING,
    "trainer.devices": Use.ROUNDING,
    "trainer.num_nodes": Use.ROUNDING,
    "trainer.accelerator": Use.ROUNDING,
    "trainer.threads": Use.ROUNDING,
    "trainer.deterministic": Use.ROUNDING,
    "trainer.benchmark": Use.ROUNDING,
    # VAR's rule ties these to each other
    "transformer.width": Use.SCALING,
    "transformer.depth": Use.SCALING,
    "transformer.heads": Use.SCALING,
    "transformer.drop_path": Use.SCALING,
}
"""Each key that does not count, with all keys below it, and the uses in which it does not."""


def uncounted(use: Use) -> tuple[str, ...]:
    """The keys that do not count in any of the given uses."""
    return tuple(key for key, uses in _UNCOUNTED.items() if uses & use)


def counts(key: str, use: Use) -> bool:
    """Whether a key, flat or of the top level, counts in all the given uses."""
    return _counting(use)[key]


class _Counting(dict[str, bool]):
    """Whether a key counts in all of some uses: decided once for each key, since many runs have the same ones."""

    def __init__(self, use: Use) -> None:
        super().__init__()
        self._prefixes = tuple(f"{name}." for name in uncounted(use))

    def __missing__(self, key: str) -> bool:
        return self.setdefault(key, not f"{key}.".startswith(self._prefixes))


_counting = cache(_Counting)


def counted(config: Mapping[str, object], use: Use) -> Config:
    """A configuration, flat or nested, without the keys that do not count."""
    counting = _counting(use)
    return {key: value for key, value in config.items() if counting[key]}
