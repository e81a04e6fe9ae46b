"""What differs between runs, and which runs are the same experiment under other seeds."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from varlab.config import Config
from varlab.report.read import Run
from varlab.run import record
from varlab.run.record import ABSENT, Use, counted, flatten, uncounted

__all__ = ["Variant", "compare", "differences", "group_variants", "science"]


@dataclass(frozen=True)
class Variant:
    """Runs that differ in their seed only, shown as one line, one colour and one mean ± spread."""

    label: str
    kind: str
    runs: tuple[Run, ...]
    colour: int = 0  # index into the page's palette

    @property
    def finished(self) -> bool:
        return all(run.finished for run in self.runs)

    @property
    def face(self) -> Run:
        """The run whose pictures stand for the variant: the first, by seed."""
        return self.runs[0]


def differences(configs: Mapping[str, Mapping[str, Any]]) -> dict[str, Config]:
    """``{key: {label: value}}`` for every key whose value is not the same in all configurations.

    Keys that aren't science (seed, out, launch, name) are left out. A key that one configuration lacks counts as different.
    """
    rows = record.compare(*map(science, configs.values()))
    return {key: dict(zip(configs, row, strict=True)) for key, row in rows.items()}


def compare(a: Run, b: Run) -> dict[str, tuple[Any, Any]]:
    """What differs between two runs' configurations: ``{key: (value in a, value in b)}``."""
    rows = differences({"a": a.config, "b": b.config})
    return {key: (row["a"], row["b"]) for key, row in rows.items()}


def group_variants(runs: Sequence[Run]) -> list[Variant]:
    """Trainings grouped by configuration without seed: generators first, then tokenizers, then classifiers.

    Only finished runs are grouped: an unfinished one must not enter a mean, and stands alone.
    """
    groups: dict[str, list[Run]] = {}
    for run in sorted(runs, key=_reading_order):
        if run.kind in _KINDS:
            groups.setdefault(_identity(run), []).append(run)
    labels = _labels(list(groups.values()))
    return [
        Variant(label=label, kind=group[0].kind, runs=tuple(group), colour=colour)
        for colour, (label, group) in enumerate(zip(labels, groups.values(), strict=True))
    ]


_KINDS = ("generator", "tokenizer", "classifier")


def _reading_order(run: Run) -> tuple[int, bool, float]:
    rank = _KINDS.index(run.kind) if run.kind in _KINDS else len(_KINDS)
    return rank, not run.finished, -1 if run.seed is None else run.seed


def _identity(run: Run) -> str:
    if not run.finished:
        return str(run.path.resolve())
    return _canonical([run.kind, science(run.config), run.choice("order"), run.choice("tokenizer")])


def science(config: Mapping[str, Any], use: Use = Use.SCIENCE) -> Config:
    """What a configuration asks for, flat: the keys that count in a use (or two), without the seed."""
    seed = config.get("seed")  # some parts are given it
    return {
        key: _any_seed(value) if key.endswith("run") else value
        for key, value in counted(flatten(config), use).items()
        if not (key.endswith(".seed") and value == seed)
    }


def _any_seed(run: Any) -> Any:
    """The path of another run that this one builds on: a study may train both anew for each seed."""
    return re.sub(r"\bseed=\d+", "seed", run) if isinstance(run, str) else run


def _canonical(value: Any) -> str:
    return json.dumps(value, sort_keys=True, default=str)


def _labels(groups: Sequence[Sequence[Run]]) -> list[str]:
    """A short name a variant; where two would share one, what tells them apart is added. Finished runs choose first."""
    labels = []
    for run in (group[0] for group in groups):
        base = _base_label(run)
        namesakes = [other[0] for other in groups if _base_label(other[0]) == base]
        rivals = [other for other in namesakes if other.finished or not run.finished]
        labels.append(base if rivals == [run] else f"{base} · {_what_sets_apart(run, rivals)}")
    twice = Counter(labels)
    return [
        f"{label} · {group[0].path.as_posix()}" if twice[label] > 1 else label
        for label, group in zip(labels, groups, strict=True)
    ]


def _base_label(run: Run) -> str:
    own = {"generator": run.order, "tokenizer": run.choice("tokenizer")}.get(run.kind, "")
    if run.kind == "tokenizer" and own and "tokenizer" not in own:
        own = f"{own} tokenizer"
    return own or run.name.rsplit("/", 1)[-1]


def _what_sets_apart(run: Run, rivals: Sequence[Run]) -> str:
    rows = differences({str(index): rival.config for index, rival in enumerate(rivals)})
    mine = next(str(index) for index, rival in enumerate(rivals) if rival is run)
    if 1 <= len(rows) <= 2:
        return _told({key: row[mine] for key, row in rows.items()})
    if not rows and len({rival.seed for rival in rivals}) == len(rivals):
        return f"seed {run.seed}"
    asked = differences({str(index): _asked(rival) for index, rival in enumerate(rivals)})
    own = {key: row[mine] for key, row in asked.items() if row[mine] != ABSENT}
    return _told(own) if 1 <= len(own) <= 3 else run.path.name


def _asked(run: Run) -> Config:
    """What was asked for: the options taken, and single keys."""
    named = dict(override.lstrip("+").split("=", 1) for override in run.overrides if "=" in override)
    return {key: value for key, value in {**named, **run.part("choices")}.items() if key not in uncounted(Use.LABEL)}


def _told(values: Mapping[str, Any]) -> str:
    """Keys by their last word; of a path what is particular to it."""
    return ", ".join(
        str(value).rsplit("/", 1)[-1].removeprefix("seed+")
        if key.endswith("run")
        else f"{key.rsplit('.', 1)[-1]} {value}"
        for key, value in values.items()
    )
