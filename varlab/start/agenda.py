"""What is done when: the rounds of a start, with their images and seconds."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from varlab.config import Config
from varlab.start import timetable
from varlab.start.history import History
from varlab.start.machine import Machine
from varlab.start.pace import Pace
from varlab.start.steps import Step, Steps, tokenizer_of

__all__ = ["Agenda", "Phase"]

_LATE_FROM = 12000.0  # images after which the discriminator learns (conf/loss/demo.yaml)


@dataclass(frozen=True)
class Phase:
    """Steps that run at the same time. seconds: that they are planned to take; 0 where that is not known yet."""

    title: str
    steps: tuple[Step, ...]
    seconds: float = 0.0

    @property
    def images(self) -> str:
        """The images of each step that trains."""
        return ", ".join(f"{step.images:,}" for step in self.steps if step.images)


class Agenda:
    """The rounds after the packing. config: ``conf/start.yaml``. history: the paces so far, and what is decided."""

    def __init__(self, config: Config, steps: Steps, machine: Machine, history: History):
        self._config, self._steps, self._machine, self._history = config, steps, machine, history
        self._total = 60.0 * config["minutes"]
        self.orders: list[str] = list(config["orders"])
        self.kinds = list(dict.fromkeys(map(tokenizer_of, self.orders)))

    def trials(self, kind: str) -> list[tuple[Step, ...]]:
        """The trainings to measure, by rounds. kind: network, tokenizer or generator."""
        names = {"network": ["judge", "perceptual"], "tokenizer": self.kinds, "generator": self.orders}[kind]
        make = {"network": self._steps.network, "tokenizer": self._steps.tokenizer, "generator": self._steps.generator}
        return [
            tuple(make[kind](name, 0, at_once=len(together)) for name in together)
            for together in timetable.in_rounds(names, self._machine.lanes)
        ]

    def networks(self) -> list[Phase]:
        """The judge and the perceptual network, whose images are decided now."""
        rounds = timetable.in_rounds(["judge", "perceptual"], self._machine.lanes)
        seconds = self._config["shares"]["judge"] * self._total / len(rounds)
        for role in ("judge", "perceptual"):
            images = timetable.judge_images(
                self._pace(role),
                seconds,
                batch=self._steps.batch("classifier"),
                train_images=self._steps.train_images,
                epochs=self._config["judge"]["epochs"],
            )
            self._history.decide(role, images)
        return [self._training("judge and perceptual network", self._steps.network, "", names) for names in rounds]

    def tokenizers(self) -> list[Phase]:
        """The tokenizers, each for the same time."""
        rounds = timetable.in_rounds(self.kinds, self._machine.lanes)
        seconds = self._config["shares"]["tokenizer"] * self._total / len(rounds)
        for kind in self.kinds:
            name, batch = f"tokenizer/{kind}", self._steps.batch("tokenizer")
            images = timetable.tokenizer_images(self._pace(name), seconds, batch=batch, late_from=_LATE_FROM)
            self._history.decide(name, images)
        return [self._training("tokenizers", self._steps.tokenizer, "tokenizer/", names) for names in rounds]

    def generators(self, *, ahead: float, final: bool) -> list[Phase]:
        """The generators, each with the same FLOPs, in the time that the others leave.

        ahead: seconds of what still comes before them. final: whether this decides their images.
        """
        rounds = timetable.in_rounds(self.orders, self._machine.lanes)
        shares = self._config["shares"]
        left = timetable.time_left(
            self._total,
            spent=self._history.spent + ahead,
            reserved=shares["scores"] * self._total,
            least=shares["generator_least"] * self._total,
        )
        paces = {f"generator/{order}": self._pace(f"generator/{order}") for order in self.orders}
        images = timetable.generator_images(
            paces, left, rounds=len(rounds), batch=self._steps.batch("generator"), faster=self._faster()
        )
        if final:
            for name, number in images.items():
                self._history.decide(name, number)
        estimate = images | self._history.numbers
        return [self._training("generators", self._steps.generator, "generator/", names, estimate) for names in rounds]

    def conclusion(self) -> list[Phase]:
        """Scores, samples and the report."""
        lanes, steps = self._machine.lanes, self._steps
        paces = [self._pace(f"generator/{order}") for order in self.orders]
        rule, rounds = self._config["scores"], timetable.in_rounds(self.orders, lanes)
        seconds = rule["share"] * self._config["shares"]["scores"] * self._total / len(rounds)
        self._history.decide("samples", timetable.sample_count(paces, seconds, least=rule["least"], most=rule["most"]))
        samples, overhead = self._history.numbers["samples"], max(pace.overhead for pace in paces)
        done = []
        for kind, names, drawn in (("tokenizer", self.kinds, 0), ("generator", self.orders, samples)):
            for together in timetable.in_rounds(names, lanes):
                made = [steps.scores(f"{kind}/{name}", drawn, at_once=len(together)) for name in together]
                done.append(Phase(f"scores of the {kind}s", tuple(made), 2 * overhead + self._drawing(paces, drawn)))
        for together in rounds:
            made = [steps.samples(order, steps.grid_images, at_once=len(together)) for order in together]
            done.append(Phase("samples", tuple(made), overhead + self._drawing(paces, steps.grid_images)))
        return [*done, Phase("report", (steps.report(),), overhead / 2)]

    def _training(
        self, title: str, make: Callable[..., Step], prefix: str, names: Sequence[str], numbers: Config | None = None
    ) -> Phase:
        numbers = self._history.numbers if numbers is None else numbers
        steps = tuple(make(name, numbers[f"{prefix}{name}"], at_once=len(names)) for name in names)
        seconds = max(self._pace(step.name).seconds_for(step.images, late_from=_LATE_FROM) for step in steps)
        return Phase(title, steps, seconds)

    def _drawing(self, paces: Sequence[Pace], samples: int) -> float:
        """Seconds of so many samples of the slowest generator."""
        return max(samples * pace.sampling_flops / pace.flops_per_second for pace in paces)

    def _faster(self) -> float:
        """How much faster the tokenizers trained than their trials said: the machine may have been busy then, or now."""
        known = [
            (self._pace(f"tokenizer/{kind}"), self._history.seconds.get(f"tokenizer/{kind}")) for kind in self.kinds
        ]
        images = [self._history.numbers.get(f"tokenizer/{kind}", 0) for kind in self.kinds]
        factors = [
            pace.seconds_for(number, late_from=_LATE_FROM) / seconds
            for (pace, seconds), number in zip(known, images, strict=True)
            if seconds
        ]
        return min(factors, default=1.0)

    def _pace(self, name: str) -> Pace:
        pace = self._history.pace(name)
        assert pace is not None, name
        return pace
