"""Run directories, read into dataclasses. A damaged run is a row in the state ``unreadable``, never an error."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

from varlab.config import Config
from varlab.errors import VarlabError
from varlab.renames import current_targets
from varlab.report.log_points import read_log_points
from varlab.report.score_files import Score, number, read_scores, refusal
from varlab.run.config_keys import Use, counted, flatten
from varlab.run.record import Outcome, RunRecord, read_record
from varlab.run.run_tree import run_folders

__all__ = ["Run", "choose_scores", "find_runs", "read_run", "science"]

_COSTS = ("images", "flops", "tokenizer_flops", "seconds")

_VALIDATION = {"val_nll": "val/nll"} | {key: f"val/{key}" for key in ("accuracy", "psnr", "l1", "loss", "perceptual")}
"""The logged metric that stands in for a missing score. FID and the like depend on their protocol and have none."""


def science(config: Config, use: Use = Use.SCIENCE) -> Config:
    """What a configuration asks for, flat: without keys that do not count and without its seed."""
    seed = config.get("seed")  # it is repeated in some parts
    return {
        key: _without_seed(value) if key.endswith("run") else value
        for key, value in counted(flatten(config), use).items()
        if value != seed or not key.endswith(".seed")
    }


def _without_seed(run: object) -> object:
    """The path of a parent run, whatever its seed: a study may train both for each seed."""
    return re.sub(r"\bseed=\d+", "seed", run) if isinstance(run, str) else run


@dataclass(frozen=True)
class Run:
    """One run directory. metrics: the lines of its metrics.jsonl. score: the one that tables show (``choose_scores``).

    faults: a sentence about each of its files that cannot be read, or was measured before the run went on.
    """

    path: Path
    record: RunRecord
    metrics: list[Config] = field(default_factory=list)
    scores: tuple[Score, ...] = ()
    score: Score | None = None
    faults: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        samples = self.scores[0].protocol.get("samples") if self.is_scored_set else None
        return str(samples["name"]) if isinstance(samples, dict) else self.record.name or self.path.name

    @property
    def config(self) -> Config:
        return self.record.config

    @cached_property
    def science(self) -> Config:
        """What its configuration asks for (``science``)."""
        return science(self.config)

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
    def is_scored_set(self) -> bool:
        """Whether it scored anybody's samples, whose scores it holds itself."""
        return self.record.command == "evaluate" and bool(self.scores)

    @property
    def is_compared(self) -> bool:
        """Whether a report compares it: it trained a model, imported one, or scored anybody's samples."""
        return self.record.command in ("train", "import") or self.is_scored_set

    @property
    def kind(self) -> str:
        """What a training calls itself (generator, tokenizer …); generator for samples; else the command's name."""
        kind = "generator" if self.is_scored_set else self.record.kind or "classifier"
        return kind if self.is_compared else self.record.command

    @property
    def order(self) -> str:
        """Empty for a run that holds no transformer."""
        return self.choice("order") if self.is_compared and self.record.holds == "generator" else ""

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
        return self._last.get(key)

    @cached_property
    def _last(self) -> dict[str, float]:
        last: dict[str, float] = {}
        for line in reversed(self.metrics):
            # Most lines have only keys that a later line has, too.
            for key in () if line.keys() <= last.keys() else line.keys() - last.keys():
                if (value := number(line[key])) is not None:
                    last[key] = value
        return last

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
        levels = {
            int(name.rsplit("/", 1)[1]): x
            for name, x in self._last.items()
            if re.fullmatch(rf"{re.escape(key)}/\d{{1,9}}", name)
        }
        return [levels[level] for level in sorted(levels)]

    def picture(self, name: str) -> Path | None:
        # samples of the sampler that was scored, if there are any
        scored = [f"scored/{self.score.name}"] if name == "samples" and self.score else []
        return next(filter(os.path.lexists, (self.path / f"pictures/{one}.png" for one in (*scored, name))), None)


def find_runs(paths: Sequence[Path]) -> list[Run]:
    """Every run at or below the given paths, each once, in the order given. Raises VarlabError where there is none."""
    runs: dict[Path, Run] = {}
    for path in paths:
        if not os.path.isdir(path):  # noqa: PTH112 (Path.is_dir raises in a folder that may not be entered)
            raise VarlabError(f"There is no directory {path}: give run directories, or folders that contain some.")
        refused: list[OSError] = []
        below = [run for run in map(read_run, run_folders(path, refused.append)) if run.record.command != "report"]
        below += [_unreadable(Path(error.filename), refusal(error)) for error in refused]
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


def read_run(path: Path) -> Run:
    """Read one run directory; with a damaged run.json, the run is in the state ``unreadable``."""
    try:
        record = read_record(path)
    except VarlabError as error:
        return _unreadable(path, str(error))
    record.config, record.build = current_targets(record.config), current_targets(record.build)
    metrics, fault = read_log_points(path / "metrics.jsonl")
    scores, faults = read_scores(path / "scores")
    faults += [fault] if fault else []
    trained = record.outcome.images
    current = [score for score in scores if score.images is None or score.images >= trained]
    faults += [
        f"{path}/scores/{score.name}.json was measured at {score.images} of {trained} images: evaluate the run again."
        for score in scores
        if score not in current
    ]
    return Run(path=path, record=record, metrics=metrics, scores=tuple(current), faults=tuple(faults))


def _unreadable(path: Path, why: str) -> Run:
    return Run(path=path, record=RunRecord(command="unknown", outcome=Outcome("unreadable", why)))


def _option_name(content: object) -> str:
    """A name for a config group's content: its ``name``, else its class in snake case, else nothing."""
    if not isinstance(content, dict):
        return content if isinstance(content, str) else ""
    if isinstance(content.get("name"), str):
        return str(content["name"])
    target = str(content.get("_target_") or "").rsplit(".", 1)[-1]
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", target).lower()
