"""``run.json``, the record of a run, with its one reader."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

from varlab.config import Config
from varlab.errors import VarlabError
from varlab.json_file import read_json, write_sealed_json

FILE = "run.json"
_MOST_NAMED = 5  # runs in an error
_DEEPEST = 3  # folders below the one that was named
_LATER = ("build", "slurm", "checkpoint_hash")
Part = TypeVar("Part", "RunRecord", "Parent")


@dataclass(frozen=True)
class Parent:
    """A run that another run was made from.

    weights_sha256: of the weights that were used. file, config, flops, images: of a tokenizer whose weights the run
    carries in its own directory: where they came from, how to build it, and what its training cost. held_out: of a judge or
    a perceptual network, what it predicts and how well (``HeldOutAccuracy``).
    """

    run: str = ""
    weights_sha256: str = ""
    file: str = ""
    config: Config = field(default_factory=dict)
    flops: int = 0
    images: int = 0
    held_out: Config = field(default_factory=dict)
    extra: Config = field(default_factory=dict)

    def to_json(self) -> Config:
        """The parent as ``run.json`` holds it."""
        hashed = {"weights_sha256": self.weights_sha256} if self.weights_sha256 else {}
        carried = {"config": self.config, "flops": self.flops, "images": self.images} if self.file else {}
        held_out = {"held_out": self.held_out} if self.held_out else {}
        return {"run": self.run} | ({"file": self.file} if self.file else {}) | hashed | carried | held_out | self.extra


@dataclass
class Outcome:
    """How far a run came. state: ``unreadable`` only in a report, for a damaged record. values: what its command returned,
    such as images, flops, seconds or scores."""

    state: Literal["running", "finished", "stopped", "failed", "unreadable"] = "running"
    error: str | None = None
    values: Config = field(default_factory=dict)

    @property
    def finished(self) -> bool:
        return self.state == "finished"

    @property
    def images(self) -> int:
        """Images trained on; 0 for a run that trained nothing."""
        return int(self._number("images"))

    @property
    def flops(self) -> int:
        return int(self._number("flops"))

    @property
    def seconds(self) -> float:
        return self._number("seconds")

    def _number(self, key: str) -> float:
        value = self.values.get(key)
        return value if isinstance(value, int | float) and math.isfinite(value) else 0

    def to_json(self) -> Config:
        """The outcome as ``run.json`` holds it."""
        return {"state": self.state, "error": self.error} | self.values


@dataclass(kw_only=True)
class RunRecord:
    """What a run was asked, what it was made with, and how far it came.

    config: the resolved configuration. choices: the option of each config group. source: the hash of the weights that a
    command such as evaluate reads. auto: settings that were resolved when the run began. build: how ``varlab.load``
    builds the model. slurm: the job and its earlier attempts. checkpoint_hash: names the run in its checkpoints; it stays when
    settings without influence on the weights change. extra: keys that this version does not know.
    """

    command: str = ""
    name: str | None = None
    overrides: list[str] = field(default_factory=list)
    choices: Config = field(default_factory=dict)
    command_line: str = ""
    config: Config = field(default_factory=dict)
    code: Config = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
    hardware: Config = field(default_factory=dict)
    seed: int | None = None
    data: Config | None = None
    parents: dict[str, Parent] = field(default_factory=dict)
    auto: Config = field(default_factory=dict)
    budget: Config = field(default_factory=dict)
    cost: Config = field(default_factory=dict)
    resumes: list[Config] = field(default_factory=list)
    outcome: Outcome = field(default_factory=Outcome)
    source: str | None = None
    attempts: int = 0
    slurm_job: str | None = None
    build: Config = field(default_factory=dict)
    slurm: Config = field(default_factory=dict)
    checkpoint_hash: str = ""
    extra: Config = field(default_factory=dict)

    @property
    def kind(self) -> str:
        """The kind of a training, as its ``conf/task`` calls it; of another command's run, what it holds."""
        return str((self.command == "train" and self.config.get("kind")) or self.holds)

    @property
    def holds(self) -> str:
        """generator, tokenizer or classifier by the parts of its model; empty where it holds none."""
        kinds = {"transformer": "generator", "tokenizer": "tokenizer", "classifier": "classifier"}
        return next((kind for part, kind in kinds.items() if part in self.build), "")

    def to_json(self) -> Config:
        """The record as ``run.json`` holds it; some parts only once they are known."""
        values = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "extra"}
        values["parents"] = {role: parent.to_json() for role, parent in self.parents.items()}
        values["outcome"] = self.outcome.to_json()
        return {key: value for key, value in values.items() if value or key not in _LATER} | self.extra


def parse_record(values: object) -> RunRecord:
    """The record that a JSON value describes, each field of its type. VarlabError with the reason where it describes none."""
    outcome = values.get("outcome") if isinstance(values, dict) else None
    if not isinstance(outcome, dict) or "state" not in outcome:
        raise VarlabError("outcome.state is missing")
    own = {key: value for key, value in outcome.items() if key not in ("state", "error")}
    record = _parse(RunRecord, values, "")
    for key in ("state", "error"):
        _check(f"outcome.{key}", outcome.get(key), _TYPES[Outcome][key])
    record.outcome = Outcome(outcome["state"], outcome.get("error"), own)
    record.parents = {role: _parse(Parent, parent, f"parents.{role}.") for role, parent in record.parents.items()}
    return record


def _parse(part: type[Part], values: object, where: str) -> Part:
    """A dataclass from JSON: null is the default, unknown keys go into ``extra``; the type of each value is checked."""
    if not isinstance(values, dict):
        raise VarlabError(f"{where.removesuffix('.') or 'it'} is not a JSON object")
    types = _TYPES[part]
    known = {key: value for key, value in values.items() if key in types and value is not None}
    if isinstance(name := known.get("name"), int | float):  # as a user typed it
        known["name"] = str(name)
    for key, value in known.items():
        _check(where + key, value, types[key])
    return part(**known, extra={key: value for key, value in values.items() if key not in types})


def _field_types(part: type) -> dict[str, Any]:
    """The type of each field, without ``extra``; dataclasses inside are JSON objects, which are parsed later."""
    hints = get_type_hints(part, localns={"Parent": Any, "Outcome": dict})
    return {key: kind for key, kind in hints.items() if key != "extra"}


_TYPES: Mapping[type, dict[str, Any]] = {part: _field_types(part) for part in (RunRecord, Parent, Outcome)}


def _check(name: str, value: object, kind: Any) -> None:
    if not _fits(value, kind):
        wanted = f"one of {', '.join(get_args(kind))}" if get_origin(kind) is Literal else f"a {_type_name(kind)}"
        raise VarlabError(f"{name} is not {wanted}")


def _type_name(kind: Any) -> str:
    return str(kind if get_args(kind) else kind.__name__).replace("typing.", "")


def _fits(value: object, kind: Any) -> bool:
    """Whether a JSON value has a type such as ``int``, ``str | None``, ``list[str]`` or ``Literal["a"]``."""
    origin, inner = get_origin(kind), get_args(kind)
    if origin is Literal:
        return value in inner
    if origin in (list, dict):
        items = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
        return isinstance(value, origin) and (inner[-1] is Any or all(_fits(item, inner[-1]) for item in items))
    if inner:
        return any(_fits(value, one) for one in inner)
    return isinstance(value, kind) and (kind is bool or not isinstance(value, bool))


def read_record(run: Path) -> RunRecord:
    """The record of a run directory. Raises VarlabError with the reason where there is none, or a damaged one."""
    file = Path(run) / FILE
    try:
        values = read_json(file)
    except FileNotFoundError:
        raise VarlabError(f"{run} is not a run directory: it has no {FILE}.{_runs_in(Path(run))}") from None
    try:
        return parse_record(values)
    except VarlabError as error:
        raise VarlabError(f"{file} is not the record of a run: {error}.") from None


def _runs_in(folder: Path) -> str:
    """The end of a message: which runs a folder holds that is none itself, those nearest to it; or where runs come from."""
    depths = ("/".join(["*"] * depth) for depth in range(1, _DEEPEST + 1))
    found = (sorted(str(file.parent) for file in folder.glob(f"{depth}/{FILE}")) for depth in depths)
    runs = next(filter(None, found), [])
    if not runs:
        return " Name the directory of a run, which `varlab train` or `varlab import` makes."
    more = ", …" if len(runs) > _MOST_NAMED else ""
    return f" Name one of its runs: {', '.join(runs[:_MOST_NAMED])}{more}."


def read_finished(run: Path) -> RunRecord:
    """The record of a finished run. Raises VarlabError where the run is not finished."""
    record = read_record(run)
    if not record.outcome.finished:
        raise VarlabError(f"{run} is {record.outcome.state}, not finished: run its command again to finish it.")
    return record


def write_record(run: Path, record: RunRecord) -> None:
    """Write ``run.json`` atomically, sealed, into a folder that is there: no record comes back without its run."""
    write_sealed_json(run / FILE, record.to_json(), make_folder=False)
