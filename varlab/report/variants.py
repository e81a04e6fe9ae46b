"""Variants: runs of the same experiment under several seeds; and what differs between experiments."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from varlab.config import Config
from varlab.files import digest
from varlab.report.run_kind import KINDS, RunKind, run_kind
from varlab.report.runs import Run, science
from varlab.run.config_keys import ABSENT, Use, compare, compare_flat, counted, flatten, uncounted

__all__ = ["Variant", "describe_differences", "group_variants", "kinds_of", "science"]


_Value = Callable[[Run, str], float | None]


@dataclass(frozen=True)
class Variant:
    """Runs that differ in their seed only, shown as one row, one colour and one mean ± spread."""

    label: str
    kind: str
    runs: tuple[Run, ...]  # by seed
    colour: int = 0  # index into the page's palette

    @property
    def finished(self) -> bool:
        return all(run.finished for run in self.runs)

    @property
    def first(self) -> Run:
        """The run whose pictures and configuration represent the variant."""
        return self.runs[0]

    def values(self, key: str) -> list[float]:
        """A number of each seed that has it (``Run.value``). A seed that was trained twice counts once: it is no repetition."""
        return list(self._by(key, Run.value).values())

    def by_seed(self, key: str, value: _Value = Run.value) -> dict[int, float]:
        """The same numbers by seed. value: how a number is read from a run."""
        return {seed if isinstance(seed, int) else 0: x for seed, x in self._by(key, value).items()}

    def _by(self, key: str, value: _Value) -> dict[int | Path, float]:
        """The number of the first run of each seed that has one; runs without a seed, by their directory."""
        found: dict[int | Path, float] = {}
        for run in self.runs:
            if (x := value(run, key)) is not None:
                found.setdefault(run.path if run.seed is None else run.seed, x)
        return found

    @property
    def seeds(self) -> list[int]:
        """The seeds of its runs, each once."""
        return list(dict.fromkeys(run.seed for run in self.runs if run.seed is not None))


def group_variants(runs: Sequence[Run]) -> list[Variant]:
    """Trainings by configuration without seed: generators and anybody's samples, tokenizers, classifiers, other kinds.

    An unfinished run is a variant of its own, because it must not enter a mean.
    """
    groups: dict[str, list[Run]] = {}
    for run in sorted((run for run in runs if run.is_compared), key=_reading_order):
        groups.setdefault(_identity(run), []).append(run)
    labels = _labels(list(groups.values()))
    return [
        Variant(label=label, kind=group[0].kind, runs=tuple(group), colour=colour)
        for colour, (label, group) in enumerate(zip(labels, groups.values(), strict=True))
    ]


def kinds_of(variants: Sequence[Variant]) -> list[tuple[RunKind, list[Variant]]]:
    """The variants of each kind, and how it is shown, in the order of the variants."""
    by_name: dict[str, list[Variant]] = {}
    for variant in variants:
        by_name.setdefault(variant.kind, []).append(variant)
    return [(run_kind([run for variant in of for run in variant.runs]), of) for of in by_name.values()]


def _reading_order(run: Run) -> tuple[int, str, bool, float]:
    place = list(KINDS).index(run.kind) if run.kind in KINDS else len(KINDS)
    return place, run.kind, not run.finished, -1 if run.seed is None else run.seed


def _identity(run: Run) -> str:
    if not run.finished:
        return str(run.path.resolve())
    parts = [run.kind, run.science, run.choice("order"), run.choice("tokenizer")]
    return json.dumps(parts, sort_keys=True, default=str)


# -- labels --------------------------------------------------------------------------------------------------------------


def _labels(groups: Sequence[Sequence[Run]]) -> list[str]:
    """A short name for each variant; where two would share one, their difference is added. Finished runs choose first."""
    namesakes: dict[str, list[Run]] = {}
    for group in groups:
        namesakes.setdefault(_base_label(group[0]), []).append(group[0])
    labels: dict[int, str] = {}
    for base, runs in namesakes.items():
        finished = [run for run in runs if run.finished]
        for rivals in (runs, finished) if len(finished) < len(runs) else (runs,):
            named = zip(rivals, _distinctions(rivals), strict=True)
            labels |= {id(run): f"{base} · {own}" if len(rivals) > 1 else base for run, own in named}
    chosen = [(labels[id(group[0])], group[0]) for group in groups]
    counts, sure = Counter(label for label, _ in chosen), Counter(label for label, run in chosen if run.finished)
    return [
        label if counts[label] == 1 or (run.finished and sure[label] == 1) else f"{label} · {run.path.as_posix()}"
        for label, run in chosen
    ]


_ROLES = {"judge": "judge", "perceptual": "perceptual network"}
_PREDICTED = {"labels": "classes", "rotation": "rotations"}


def _base_label(run: Run) -> str:
    own, role = run.order, _ROLES.get(str(run.record.build.get("role")))
    if role:
        predicted = str(run.record.build.get("predicts", "labels"))
        own = f"{role} of {_PREDICTED.get(predicted, predicted)}"
    if run.record.holds == "tokenizer" and (own := run.choice("tokenizer")) and "tokenizer" not in own:
        own = f"{own} tokenizer"
    return own or run.name.rsplit("/", 1)[-1]


def _distinctions(rivals: Sequence[Run]) -> list[str]:
    """What sets each run apart from others of its base label: at most two settings, the seed, or what was asked for."""
    rows = compare_flat(*(rival.science for rival in rivals))
    if 1 <= len(rows) <= 2:
        return [_short({key: row[own] for key, row in rows.items()}) for own in range(len(rivals))]
    if not rows and len({rival.seed for rival in rivals}) == len(rivals):
        return [f"seed {rival.seed}" for rival in rivals]
    asked = compare(*(science(_asked(rival)) for rival in rivals))
    settings = [{key: row[own] for key, row in asked.items() if row[own] != ABSENT} for own in range(len(rivals))]
    return [_short(own) if 1 <= len(own) <= 3 else run.path.name for own, run in zip(settings, rivals, strict=True)]


def _asked(run: Run) -> Config:
    """What was asked for: overrides of single keys, and options of config groups."""
    overrides = dict(override.lstrip("+").split("=", 1) for override in run.record.overrides if "=" in override)
    skipped = uncounted(Use.LABEL)
    return {key: value for key, value in (overrides | run.record.choices).items() if key not in skipped}


def _short(values: Mapping[str, object]) -> str:
    """Settings by the last word of their keys, each once; a parent run by the last part of its path."""
    named = (
        str(value).rsplit("/", 1)[-1].removeprefix("seed+")
        if key.endswith("run")
        else f"{key.rsplit('.', 1)[-1]} {float(f'{value:.6g}') if isinstance(value, float) else value}"
        for key, value in values.items()
    )
    return ", ".join(dict.fromkeys(named))


# -- two runs ------------------------------------------------------------------------------------------------------------

_COMPARED = ("command", "seed", "config", "auto", "code", "versions", "hardware", "data", "parents", "budget")


def describe_differences(a: Run, b: Run) -> list[str]:
    """A line ``key: value in a → value in b`` for each difference in the configuration, code, versions, hardware, images,
    parents or budget. Uncommitted changes of the code are compared by their hash."""
    return [f"{key}: {first} → {second}" for key, (first, second) in compare(_recorded(a), _recorded(b)).items()]


def _recorded(run: Run) -> Config:
    record = run.record.to_json()
    parts = {key: record[key] for key in _COMPARED}
    parts["config"] = counted(run.config, Use.SCIENCE)
    parts["data"] = {key: value for key, value in (run.record.data or {}).items() if key != "path"}
    if diff := run.record.code.get("diff"):
        parts["code"] = run.record.code | {"diff": digest(diff)[:12]}
    return {key: _shortened(value) for key, value in flatten(parts).items() if value != {}}


def _shortened(value: object) -> object:
    return f"{value[:12]}…" if isinstance(value, str) and len(value) == 64 else value
