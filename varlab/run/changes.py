"""What changes between a run and the command that resumes it, and which changes the run allows."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeAlias

from varlab.config import Config
from varlab.errors import VarlabError
from varlab.renames import current_targets
from varlab.run.config_keys import ABSENT, Use, compare, counts
from varlab.run.places import holds_same
from varlab.run.record import RunRecord

__all__ = [
    "Changes",
    "Rows",
    "check_resumable",
    "compare_runs",
    "described",
    "differences",
    "differing_rows",
    "refuse_other_length",
    "with_old_defaults",
]

Rows: TypeAlias = Mapping[str, tuple[object, object]]
"""The value of each key before and after; ABSENT where it is missing."""
Extend: TypeAlias = Callable[[Path, RunRecord, RunRecord], None]
"""Called with a run's directory, its record and what was asked, if the lengths differ; raises VarlabError to refuse."""

OLD_DEFAULTS: Mapping[tuple[str, str], Config] = {
    ("data", "folder"): {"data.augment.flip": True, "data.augment.crop": 1.125, "data.batch": 256},
}
"""(group, choice of conf/) → the value of each key before its default changed."""

_MOST_NAMED = 6  # differing keys listed in an error
_LONGEST_SHOWN = 200  # characters of a value


@dataclass(frozen=True)
class Changes:
    """The keys that differ between two configurations, by what they mean for the weights.

    free: nothing. rounded: another order of additions. moved: nothing, if both places hold the same (``holds_same``).
    length: a longer or shorter training. different: another run.
    """

    free: Rows = field(default_factory=dict)
    rounded: Rows = field(default_factory=dict)
    moved: Rows = field(default_factory=dict)
    length: Rows = field(default_factory=dict)
    different: Rows = field(default_factory=dict)

    @property
    def all(self) -> Config:
        """The changed keys of all kinds."""
        return {**self.free, **self.rounded, **self.moved, **self.length, **self.different}

    def to_json(self) -> Config:
        """The changes as ``resumes`` in run.json notes them; empty where there are none."""
        changed = {key: [None if value is ABSENT else value for value in row] for key, row in self.all.items()}
        rounded = {"equal": "up to rounding"} if self.rounded else {}
        return {"changed": changed} | rounded if changed else {}

    def __str__(self) -> str:
        return ", ".join(described(self.all)) + ("; equal up to rounding" if self.rounded else "")


def compare_runs(before: Mapping[str, object], after: Mapping[str, object]) -> Changes:
    """The changes between two configurations of ``varlab train``.

    A key that is null counts as one that is absent: an earlier version did not have it.
    """
    kinds: dict[str, dict[str, tuple[object, object]]] = {}
    for key, (old, new) in compare(current_targets(before), current_targets(after)).items():
        if any(value is not None and value is not ABSENT for value in (old, new)):
            kinds.setdefault(_kind(key), {})[key] = (old, new)
    kinds.pop("", None)
    return Changes(**{kind: dict(sorted(rows.items())) for kind, rows in kinds.items()})


def _kind(key: str) -> str:
    """The field of ``Changes`` that a key belongs to; none for a key that says nothing about a run."""
    if not counts(key, Use.IDENTITY):
        return "free" if counts(key, Use.CHECKPOINT) else ""
    kinds = {"rounded": Use.ROUNDING, "moved": Use.PLACE, "length": Use.LENGTH}
    return next((kind for kind, use in kinds.items() if not counts(key, use)), "different")


def differences(before: Mapping[str, object], after: Mapping[str, object]) -> list[str]:
    """What may make two configurations different runs, or runs of different bits: each key as ``key: before → after``."""
    changes = compare_runs(before, after)
    return described({**changes.rounded, **changes.moved, **changes.length, **changes.different})


def described(rows: Rows) -> list[str]:
    """Each key as ``key: before → after``."""
    return [f"{key}: {' → '.join(map(_shown, row))}" for key, row in sorted(rows.items())]


def _shown(value: object) -> str:
    text = "(absent)" if value is ABSENT else json.dumps(value)
    return text if len(text) <= _LONGEST_SHOWN else f"{text[:_LONGEST_SHOWN]}…"


def refuse_other_length(path: Path, recorded: RunRecord, asked: RunRecord) -> None:
    """Raise VarlabError: a training has the length that it began with."""
    rows = described(compare_runs(recorded.config, asked.config).length)
    raise VarlabError(
        f"{path} holds a run of another length ({', '.join(rows)}): use the earlier length to resume it, or another out=."
    )


def differing_rows(recorded: RunRecord, changes: Changes) -> Rows:
    """The changes that make another run of a recorded training; else those of places that hold something else."""
    if changes.different:
        return changes.different
    return {key: row for key, row in changes.moved.items() if holds_same(recorded, key, row[1]) is False}


def check_resumable(path: Path, recorded: RunRecord, asked: RunRecord, extend: Extend = refuse_other_length) -> Changes:
    """The changes with which a command may resume the run in a directory.

    Raises VarlabError if it is another run. Only a training may resume with other keys than those without any influence.
    """
    if recorded.command != asked.command:
        raise VarlabError(f"{path} holds a run of 'varlab {recorded.command}': use another out=.")
    changes = compare_runs(recorded.config, asked.config)
    different = differing_rows(recorded, changes)
    if asked.command != "train":
        different = {**changes.different, **changes.rounded, **changes.moved, **changes.length}
    if different:
        rows = described(different)
        more = f" and {len(rows) - _MOST_NAMED} more" if len(rows) > _MOST_NAMED else ""
        raise VarlabError(
            f"{path} holds a run of another configuration: {', '.join(rows[:_MOST_NAMED])}{more}. Use another out=, or the "
            "earlier configuration to resume that run."
        )
    if changes.length:
        extend(path, recorded, asked)
    return changes


def with_old_defaults(asked: RunRecord, recorded: RunRecord) -> Config:
    """The asked configuration, with the earlier defaults that the recorded run has and the command does not name.

    So the same command resumes a run that began before a default changed.
    """
    config = copy.deepcopy(asked.config)
    for (group, choice), defaults in OLD_DEFAULTS.items():
        if asked.choices.get(group) == recorded.choices.get(group) == choice:
            for key, value in defaults.items():
                named = any(word.lstrip("+").startswith(f"{key}=") for word in asked.overrides)
                if not named and _place(recorded.config, key).get(key.rpartition(".")[2]) == value:
                    _place(config, key)[key.rpartition(".")[2]] = value
    return config


def _place(config: Config, key: str) -> Config:
    """The part of a configuration that holds a dotted key."""
    for name in key.split(".")[:-1]:
        config = config.get(name) or {}
    return config
