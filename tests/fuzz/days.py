"""Random days: a world, and what its owner does with it, drawn by a state machine of hypothesis."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import hypothesis.strategies as st
from hypothesis import HealthCheck, Phase, seed, settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule, run_state_machine_as_test

from tests.fuzz.archives import PARQUET_ODDITIES, SHARD_ODDITIES
from tests.fuzz.commands import ENVIRONMENTS, FAULTS, Fault
from tests.fuzz.pictures import KINDS
from tests.fuzz.worlds import CLASS_NAMES, FOLDER_ODDITIES, LAYOUTS, PLACES, WorldPlan

__all__ = ["CHANGES", "Day", "Step", "draw_day"]

CHANGES: Mapping[str, tuple[str, ...]] = {
    "nothing": (),
    "workers": ("data.workers=1",),
    "intervals": ("log.every=8", "val.every=8", "pictures.every=8"),
    "checkpoints": ("checkpoint.every=16",),
    "micro-batches": ("trainer.micro_batch=4",),
    "moved data": (),
}
"""What changes when a run resumes. Only micro-batches may change its numbers, by rounding."""

TASKS = ("classifier", "tokenizer", "generator")
_STEPS = 5  # of a day, beside its first
_RULES = 10  # that are tried for them
_DRAWN = 2  # days, of which the first is the simplest one each time


@dataclass(frozen=True)
class Step:
    """One thing that the owner does: one command or, after a fault, several. settings: as the action reads them."""

    action: str
    settings: Mapping[str, object] = field(default_factory=dict)
    fault: Fault | None = None
    environment: str = "plain"

    def __str__(self) -> str:
        parts = [f"{key}={value}" for key, value in self.settings.items()]
        parts += [f"{self.fault.kind} at {self.fault.moment}"] if self.fault else []
        parts += [f"({self.environment})"] if self.environment != "plain" else []
        return " ".join([self.action, *parts])


@dataclass(frozen=True)
class Day:
    """A case."""

    world: WorldPlan
    steps: tuple[Step, ...]


@st.composite
def world_plans(draw: st.DrawFn) -> WorldPlan:
    kind = draw(st.sampled_from(("folder", "folder", "folder", "shards", "shards", "parquet")))
    oddities = {"folder": tuple(FOLDER_ODDITIES), "shards": tuple(SHARD_ODDITIES), "parquet": PARQUET_ODDITIES}[kind]
    classes = CLASS_NAMES[:2] if kind == "parquet" else CLASS_NAMES
    return WorldPlan(
        kind=kind,
        place=draw(st.sampled_from(PLACES)),
        classes=draw(st.sampled_from(classes)),
        layout=draw(st.sampled_from(tuple(LAYOUTS))) if kind == "folder" else "classes",
        count=draw(st.sampled_from((6, 9, 6, 1))) if kind == "folder" else 6,
        picture_kinds=tuple(draw(st.lists(st.sampled_from(tuple(KINDS)), min_size=1, max_size=2, unique=True))),
        oddities=tuple(draw(st.lists(st.sampled_from(oddities), max_size=2, unique=True))),
    )


_MOMENTS = st.integers(0, 24)
_ENVIRONMENTS = st.one_of(*[st.just("plain")] * 3, st.sampled_from(tuple(ENVIRONMENTS)))


def faults(kinds: tuple[str, ...] = tuple(FAULTS)) -> st.SearchStrategy[Fault | None]:
    """A fault in half of the cases."""
    return st.none() | st.builds(Fault, st.sampled_from(kinds), _MOMENTS)


class _Owner(RuleBasedStateMachine):
    """Notes what the owner does; nothing is run while a day is drawn."""

    days: list[Day]

    def __init__(self) -> None:
        super().__init__()
        self.steps: list[Step] = []

    @initialize(
        world=world_plans(), size=st.sampled_from((16, 16, None, 64)), workers=st.sampled_from((0, 0, 2)),
        fault=st.none() | faults(), environment=_ENVIRONMENTS,
    )  # fmt: skip
    def begin(self, world: WorldPlan, size: int | None, workers: int, fault: Fault | None, environment: str) -> None:
        self.world = world
        self.steps.append(Step("pack", {"size": size, "workers": workers}, fault, environment))

    def _add(self, step: Step) -> None:
        """Nobody does twice what has one outcome."""
        is_new = step.action in ("train", "sample", "edit") or step.action not in {one.action for one in self.steps}
        if len(self.steps) <= _STEPS and is_new:
            self.steps.append(step)

    def _has_run(self) -> bool:
        return any(step.action == "train" for step in self.steps)

    @rule(
        task=st.sampled_from(TASKS), change=st.sampled_from(tuple(CHANGES)), fault=faults(), environment=_ENVIRONMENTS
    )
    def train(self, task: str, change: str, fault: Fault | None, environment: str) -> None:
        self._add(Step("train", {"task": task, "change": change}, fault, environment))

    @precondition(_has_run)
    @rule(how=st.sampled_from(("again", "extend", "branch")))
    def go_on(self, how: str) -> None:
        self._add(Step(how))

    @rule(action=st.sampled_from(("sample", "edit")), fault=st.none() | faults(), environment=_ENVIRONMENTS)
    def draw_images(self, action: str, fault: Fault | None, environment: str) -> None:
        self._add(Step(action, {}, fault, environment))

    @rule(action=st.sampled_from(("encode", "evaluate")), fault=st.none() | faults(), environment=_ENVIRONMENTS)
    def use(self, action: str, fault: Fault | None, environment: str) -> None:
        self._add(Step(action, {}, fault, environment))

    @rule(action=st.sampled_from(("check", "report", "pack again", "index elsewhere")), environment=_ENVIRONMENTS)
    def look(self, action: str, environment: str) -> None:
        self._add(Step(action, {}, None, environment))

    def teardown(self) -> None:
        if self.steps:
            self.days.append(Day(self.world, tuple(self.steps)))


def draw_day(number: int, first_seed: int) -> Day:
    """The day of a number: the same for the same seed, whatever other days are drawn."""
    days: list[Day] = []

    class Owner(_Owner):
        pass

    Owner.days = days
    once = settings(
        max_examples=_DRAWN, stateful_step_count=_RULES, database=None, phases=[Phase.generate], deadline=None,
        derandomize=False, suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    run_state_machine_as_test(seed(f"{first_seed}/{number}")(Owner), settings=once)
    return days[-1]
