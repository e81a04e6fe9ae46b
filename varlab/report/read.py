"""Run directories, read into plain dataclasses. Nothing here fails on a run that is unfinished, failed or damaged:
such a run is a row with its state, never a gap."""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from varlab.config import Config
from varlab.errors import VarlabError
from varlab.moved import current_targets

__all__ = ["Run", "Score", "find_runs", "number", "read_run"]

_INSIDE_A_RUN = frozenset({"tb", "scores", "pictures"})  # a run's own folders: never searched for further runs


@dataclass(frozen=True)
class Score:
    """One ``scores/<protocol>.json``: numbers, and the protocol without which they are noise."""

    name: str  # the file's stem
    protocol: Config
    values: Config
    cost: Config
    images: int | None  # images the run had seen when it was scored
    modified: float  # seconds since the epoch: which file is newest

    def get(self, key: str) -> float | None:
        value = number(self.values.get(key))
        return number(self.cost.get(key)) if value is None else value


@dataclass(frozen=True)
class Run:
    """One run directory. ``record`` is its run.json, ``metrics`` the lines of its metrics.jsonl."""

    path: Path
    record: Config
    metrics: list[Config] = field(default_factory=list)
    scores: tuple[Score, ...] = ()

    @property
    def name(self) -> str:
        return str(self.record.get("name") or self.path.name)

    @property
    def command(self) -> str:
        return str(self.record.get("command") or "unknown")

    def part(self, key: str) -> Config:
        """A section of run.json (``config``, ``code``, ``parents``, …), empty where there is none."""
        return _mapping(self.record.get(key))

    @property
    def config(self) -> Config:
        return self.part("config")

    @property
    def overrides(self) -> list[str]:
        return [str(item) for item in self.record.get("overrides") or []]

    @property
    def seed(self) -> int | None:
        value = self.record.get("seed", self.config.get("seed"))
        return value if isinstance(value, int) else None

    @property
    def state(self) -> str:
        """``finished``, ``running`` (which a killed run still says of itself), ``stopped`` (it was asked to), ``failed`` or
        ``unreadable``."""
        return str(self.outcome.get("state") or "running")

    @property
    def finished(self) -> bool:
        return self.state == "finished"

    @property
    def outcome(self) -> Config:
        return self.part("outcome")

    @property
    def error(self) -> str:
        return str(self.outcome.get("error") or "")

    @cached_property
    def kind(self) -> str:
        """``generator``, ``tokenizer`` or ``classifier`` for a training or an import; else the command's name."""
        if self.command not in ("train", "import"):
            return self.command
        task = self.choice("task")
        if task in ("generator", "tokenizer", "classifier"):
            return task
        build = {**self.config, **self.part("build")}
        return next((kind for part, kind in _KIND_BY_PART if build.get(part)), "classifier")

    @property
    def order(self) -> str:
        return self.choice("order") if self.kind == "generator" else ""

    def choice(self, group: str) -> str:
        """The option taken from a config group: as recorded, as overridden, or as the group's own content tells."""
        recorded = {key.split("@")[0].lstrip("/"): option for key, option in self.part("choices").items()}.get(group)
        overridden = [item.split("=", 1)[1] for item in self.overrides if item.lstrip("+").startswith(f"{group}=")]
        content = self.part("build").get(group) or self.config.get(group)
        return str(recorded or next(reversed(overridden), "") or _title_of(content))

    def total(self, key: str) -> float | None:
        """``images``, ``flops``, ``tokenizer_flops`` or ``seconds`` spent: the outcome's, else the last logged."""
        value = number(self.outcome.get(key))
        return self.last(key) if value is None else value

    def last(self, key: str) -> float | None:
        """The last finite value of a metric, None where it was never logged."""
        values = (number(line.get(key)) for line in reversed(self.metrics))
        return next((value for value in values if value is not None), None)

    def series(self, key: str, clock: str) -> tuple[list[float], list[float]]:
        """A metric against ``images``, ``flops`` or ``seconds``: the finite points, in the order they were logged."""
        pairs = ((number(line.get(clock)), number(line.get(key))) for line in self.metrics)
        points = [(x, y) for x, y in pairs if x is not None and y is not None]
        return [x for x, _ in points], [y for _, y in points]

    def per_scale(self, key: str) -> list[float]:
        """The last values of ``<key>/0, <key>/1, …`` (codebook usage, loss per level), coarse to fine."""
        found = {name for line in self.metrics for name in line if re.fullmatch(rf"{re.escape(key)}/\d+", name)}
        levels = sorted(found, key=lambda name: int(name.rsplit("/", 1)[1]))
        return [value for value in (self.last(name) for name in levels) if value is not None]

    def picture(self, name: str) -> Path | None:
        path = self.path / "pictures" / f"{name}.png"
        return path if path.is_file() else None


_KIND_BY_PART = (("transformer", "generator"), ("tokenizer", "tokenizer"), ("classifier", "classifier"))


def find_runs(paths: Sequence[Path]) -> list[Run]:
    """Every run at or below the given paths, each once, in the order given. Raises VarlabError where there is none."""
    found: dict[Path, Run] = {}
    for path in paths:
        if not path.is_dir():
            raise VarlabError(f"No run directory at {path}: give run directories, or folders that hold some.")
        runs = [run for run in map(read_run, _run_directories(path)) if run.command != "report"]
        if not runs:
            raise VarlabError(f"No run (a folder with a run.json) at or below {path}: give a folder that varlab wrote.")
        found.update({run.path.resolve(): run for run in runs if run.path.resolve() not in found})
    if not found:
        raise VarlabError("No run was given: name one or more run directories, as in 'varlab report runs/a runs/b'.")
    return list(found.values())


def _run_directories(root: Path) -> Iterable[Path]:
    for folder, children, files in os.walk(root):
        kept = (name for name in children if not name.startswith(".") and name not in _INSIDE_A_RUN)
        children[:] = sorted(kept, key=_by_number)
        if "run.json" in files:
            yield Path(folder)


def _by_number(name: str) -> list[str | float]:
    """A key for sorting: what differs in a number is in the order of numbers, 32 before 128."""
    return [float(part) if i % 2 else part for i, part in enumerate(re.split(r"([0-9]+(?:\.[0-9]+)?)", name))]


def read_run(path: Path) -> Run:
    """Read one run directory; a run.json that can't be read gives a run in the state ``unreadable``."""
    try:
        record = json.loads((path / "run.json").read_text(encoding="utf-8"))
        if not isinstance(record, dict):
            raise ValueError("not a JSON object")
    except (OSError, ValueError) as error:
        record = {"outcome": {"state": "unreadable", "error": f"run.json can't be read: {error}"}}
    scores = [score for file in sorted((path / "scores").glob("*.json")) if (score := _read_score(file))]
    return Run(
        path=path, record=current_targets(record), metrics=_read_metrics(path / "metrics.jsonl"), scores=tuple(scores)
    )


def _read_metrics(path: Path) -> list[Config]:
    """The lines of a metrics file. A killed run may have left half a line behind: it is passed over."""
    lines = []
    for text in path.read_text(encoding="utf-8", errors="replace").splitlines() if path.is_file() else []:
        try:
            line = json.loads(text)
        except ValueError:
            continue
        if isinstance(line, dict):
            lines.append(line)
    return lines


def _read_score(path: Path) -> Score | None:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    if not isinstance(content, dict):
        return None
    parts = {key: _mapping(content.get(key)) for key in ("protocol", "scores", "cost")}
    images = content.get("images")
    return Score(
        name=path.stem,
        protocol=parts["protocol"],
        values=parts["scores"],
        cost=parts["cost"],
        images=images if isinstance(images, int) else None,
        modified=path.stat().st_mtime,
    )


def number(value: Any) -> float | None:
    """The value if it is a finite number, else None."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return value


def _mapping(value: Any) -> Config:
    return value if isinstance(value, dict) else {}


def _title_of(content: Any) -> str:
    """A name for a config group's content: its ``name``, else its class in snake case, else nothing."""
    if isinstance(content, str):
        return content
    content = _mapping(content)
    if isinstance(content.get("name"), str):
        return content["name"]
    target = str(content.get("_target_") or "").rsplit(".", 1)[-1]
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", target).lower()
