"""Run directories, read into dataclasses. A damaged run is a row in the state ``unreadable``, never an error."""

from __future__ import annotations

import json
import math
import os
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from varlab.config import Config
from varlab.errors import VarlabError
from varlab.renames import current_targets
from varlab.run.record import Outcome, RunRecord, read_record

__all__ = ["Run", "Score", "choose_scores", "find_runs", "number", "read_run"]

_INSIDE_A_RUN = frozenset({"tb", "scores", "pictures"})  # folders of a run, never searched for further runs
_COSTS = ("images", "flops", "tokenizer_flops", "seconds")
_PER_SAMPLE = {"flops_per_sample": "sampling_flops", "seconds_per_sample": "sampling_seconds"}

_VALIDATION = {"val_nll": "val/nll"} | {key: f"val/{key}" for key in ("accuracy", "psnr", "l1", "loss", "perceptual")}
"""The logged metric that stands in for a missing score. FID and the like depend on their protocol and have none."""


@dataclass(frozen=True)
class Score:
    """One ``scores/<protocol>.json``: numbers, and the protocol that they were measured under."""

    name: str  # the file's stem
    protocol: Config
    values: Config
    cost: Config
    images: int | None  # images the run had seen when it was scored
    modified: float  # seconds since the epoch
    best: Mapping[str, str] = field(default_factory=dict)  # of the user's own metrics: min or max, or empty

    def get(self, key: str) -> float | None:
        """A score, the cost of sampling for it, or that cost per sample."""
        if key in _PER_SAMPLE:
            total = self.get(_PER_SAMPLE[key])
            return total / self.samples if total is not None and self.samples else None
        value = number(self.values.get(key))
        return number(self.cost.get(key)) if value is None else value

    @property
    def samples(self) -> int:
        """How many images were scored; 0 where the protocol does not say."""
        count = self.protocol.get("n")
        return count if isinstance(count, int) else 0


@dataclass(frozen=True)
class Run:
    """One run directory. metrics: the lines of its metrics.jsonl. score: the one that tables show (``choose_scores``)."""

    path: Path
    record: RunRecord
    metrics: list[Config] = field(default_factory=list)
    scores: tuple[Score, ...] = ()
    score: Score | None = None

    @property
    def name(self) -> str:
        return self.record.name or self.path.name

    @property
    def config(self) -> Config:
        return self.record.config

    @property
    def seed(self) -> int | None:
        seed = self.config.get("seed") if self.record.seed is None else self.record.seed
        return seed if isinstance(seed, int) else None

    @property
    def state(self) -> str:
        """``finished``, ``running`` (also after a kill), ``stopped`` (on request), ``failed`` or ``unreadable``."""
        return self.record.outcome.state

    @property
    def finished(self) -> bool:
        return self.state == "finished"

    @property
    def error(self) -> str:
        return self.record.outcome.error or ""

    @property
    def is_training(self) -> bool:
        """Whether it trained a model or imported one: a report compares these."""
        return self.record.command in ("train", "import")

    @property
    def kind(self) -> str:
        """What a training calls itself (generator, tokenizer, classifier …); else the command's name."""
        return (self.record.kind or "classifier") if self.is_training else self.record.command

    @property
    def order(self) -> str:
        """Empty for a run that holds no transformer."""
        return self.choice("order") if self.is_training and self.record.holds == "generator" else ""

    def choice(self, group: str) -> str:
        """The option of a config group: as recorded, else as overridden, else a name for the group's content."""
        recorded = {key.split("@")[0].lstrip("/"): option for key, option in self.record.choices.items()}.get(group)
        overridden = [o.split("=", 1)[1] for o in self.record.overrides if o.lstrip("+").startswith(f"{group}=")]
        content = self.record.build.get(group) or self.config.get(group)
        return str(recorded or next(reversed(overridden), "") or _option_name(content))

    def total(self, key: str) -> float | None:
        """``images``, ``flops``, ``tokenizer_flops`` or ``seconds`` of the outcome, else as last logged."""
        value = number(self.record.outcome.values.get(key))
        return self.last(key) if value is None else value

    def last(self, key: str) -> float | None:
        """The last finite value of a metric; None where it was never logged."""
        values = (number(line.get(key)) for line in reversed(self.metrics))
        return next((value for value in values if value is not None), None)

    def value(self, key: str) -> float | None:
        """A number for a table: what the run spent, else what it scored, else its last validation."""
        if key in _COSTS:
            return self.total(key)
        if key == "majority":
            held_out = self.record.outcome.values.get("held_out")
            return number(held_out.get(key)) if isinstance(held_out, dict) else None
        scored = self.score.get(key) if self.score else None
        if scored is not None:
            return scored
        if key == "accuracy" and self.record.holds == "generator":
            return None  # its val/accuracy is of tokens, not of samples' classes
        return self.last(_VALIDATION.get(key, key))

    def series(self, key: str, clock: str) -> tuple[list[float], list[float]]:
        """The finite points of a metric over ``images``, ``flops`` or ``seconds``, in the order of logging."""
        pairs = ((number(line.get(clock)), number(line.get(key))) for line in self.metrics)
        points = [(x, y) for x, y in pairs if x is not None and y is not None]
        return [x for x, _ in points], [y for _, y in points]

    def per_scale(self, key: str) -> list[float]:
        """The last values of ``<key>/0, <key>/1, …`` (codebook usage, loss per level), coarse to fine."""
        logged = {name for line in self.metrics for name in line if re.fullmatch(rf"{re.escape(key)}/\d+", name)}
        levels = sorted(logged, key=lambda name: int(name.rsplit("/", 1)[1]))
        return [value for value in map(self.last, levels) if value is not None]

    def picture(self, name: str) -> Path | None:
        path = self.path / "pictures" / f"{name}.png"
        return path if path.is_file() else None


def find_runs(paths: Sequence[Path]) -> list[Run]:
    """Every run at or below the given paths, each once, in the order given. Raises VarlabError where there is none."""
    runs: dict[Path, Run] = {}
    for path in paths:
        if not path.is_dir():
            raise VarlabError(f"There is no directory {path}: give run directories, or folders that contain some.")
        below = [run for run in map(read_run, _run_directories(path)) if run.record.command != "report"]
        if not below:
            raise VarlabError(f"There is no run (a folder with a run.json) at or below {path}: give another folder.")
        for run in below:
            runs.setdefault(run.path.resolve(), run)
    if not runs:
        raise VarlabError("No run was given: name one or more run directories, as in 'varlab report runs/a runs/b'.")
    return choose_scores(runs.values())


def choose_scores(runs: Iterable[Run]) -> list[Run]:
    """The runs with the score that tables show: of the protocol most runs of that kind share, else the newest."""
    runs = list(runs)
    shared = Counter((run.kind, score.name) for run in runs for score in run.scores)
    return [replace(run, score=_main_score(run, shared)) for run in runs]


def _main_score(run: Run, shared: Counter[tuple[str, str]]) -> Score | None:
    return max(run.scores, key=lambda score: (shared[run.kind, score.name], score.modified), default=None)


def _run_directories(root: Path) -> Iterable[Path]:
    for folder, children, files in os.walk(root):
        kept = (name for name in children if not name.startswith(".") and name not in _INSIDE_A_RUN)
        children[:] = sorted(kept, key=_by_number)
        if "run.json" in files:
            yield Path(folder)


def _by_number(name: str) -> list[str | float]:
    """A sorting key by which ``size=32`` comes before ``size=128``."""
    return [float(part) if i % 2 else part for i, part in enumerate(re.split(r"([0-9]+(?:\.[0-9]+)?)", name))]


def read_run(path: Path) -> Run:
    """Read one run directory; with a damaged run.json, the run is in the state ``unreadable``."""
    try:
        record = read_record(path)
        record = replace(record, config=current_targets(record.config), build=current_targets(record.build))
    except VarlabError as error:
        record = RunRecord(command="unknown", outcome=Outcome("unreadable", str(error)))
    scores = filter(None, map(_read_score, sorted((path / "scores").glob("*.json"))))
    return Run(path=path, record=record, metrics=_read_metrics(path / "metrics.jsonl"), scores=tuple(scores))


def _read_metrics(path: Path) -> list[Config]:
    """The lines of a metrics file, without an incomplete last line that a killed run may have left."""
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines() if path.is_file() else []
    return [line for line in map(_parse_object, lines) if line]


def _read_score(path: Path) -> Score | None:
    try:
        content = _parse_object(path.read_text(encoding="utf-8", errors="replace"))
    except OSError:
        return None
    if not content:
        return None
    protocol, values, cost = (
        part if isinstance(part := content.get(key), dict) else {} for key in ("protocol", "scores", "cost")
    )
    images = content.get("images")
    best = content["best"] if isinstance(content.get("best"), dict) else {}
    seen = images if isinstance(images, int) else None
    return Score(path.stem, protocol, values, cost, seen, path.stat().st_mtime, best)


def _parse_object(text: str) -> Config:
    """A JSON object; empty where the text is none."""
    try:
        content = json.loads(text)
    except ValueError:
        return {}
    return content if isinstance(content, dict) else {}


def number(value: object) -> float | None:
    """The value if it is a finite number, else None."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return value


def _option_name(content: object) -> str:
    """A name for a config group's content: its ``name``, else its class in snake case, else nothing."""
    if not isinstance(content, dict):
        return content if isinstance(content, str) else ""
    if isinstance(content.get("name"), str):
        return str(content["name"])
    target = str(content.get("_target_") or "").rsplit(".", 1)[-1]
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", target).lower()
