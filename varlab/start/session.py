"""One start, from the folder to the pictures: measure, plan, and run what is not done yet."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterable, Sequence
from pathlib import Path

from varlab.config import Config
from varlab.data.format.index import read_index
from varlab.errors import VarlabError
from varlab.info import DataInfo
from varlab.launch.terminal import say
from varlab.start.agenda import Agenda, Phase
from varlab.start.command_file import write_commands
from varlab.start.history import History
from varlab.start.machine import Machine
from varlab.start.pace import measured_pace
from varlab.start.processes import run_together
from varlab.start.request import FEWEST
from varlab.start.steps import Step, Steps
from varlab.start.summary import opening, plan_table, result

__all__ = ["Session"]

_SETTINGS = ("folder", "size", "minutes", "orders", "flip", "seed")


class Session:
    """Runs the steps of ``varlab start``. config: ``conf/start.yaml``. asked: the command, as it was typed."""

    def __init__(self, config: Config, out: Path, asked: str):
        self._config, self.out, self._asked = config, out, asked
        self._machine = Machine.here(config["machine"])
        settings = {key: config[key] for key in _SETTINGS} | {"machine": self._machine.kind}
        self._history = History.of(out, settings)
        self._phases: list[Phase] = []

    def run(self) -> None:
        """Do every step that is not done, and say what came of it. Raises VarlabError where one fails."""
        say(opening(self._config, self.out, self._machine, resumes=bool(self._history.done)))
        self._do([Phase("pack the pictures", (Steps.pack(self._config, self.out),))])
        steps = Steps(self._config, self.out, self._machine, self._info())
        agenda = Agenda(self._config, steps, self._machine, self._history)
        self._measure(agenda.trials("network"), steps)
        self._do(agenda.networks())
        self._measure(agenda.trials("tokenizer"), steps)
        self._measure(agenda.trials("generator"), steps, kept=False)
        tokenizers = agenda.tokenizers()
        ahead = sum(phase.seconds for phase in tokenizers if not self._is_done(phase))
        plan = [*tokenizers, *agenda.generators(ahead=ahead, final=False), *agenda.conclusion()]
        self._write_commands(plan)
        if not all(map(self._is_done, plan)):
            say(plan_table([*self._phases, *plan], self._is_done, self._history, minutes=self._config["minutes"]))
        self._do(tokenizers, then=plan[len(tokenizers) :])
        self._do([*agenda.generators(ahead=0.0, final=True), *agenda.conclusion()])
        shutil.rmtree(self.out / ".trial", ignore_errors=True)
        say(result(self._config, self.out, self._history, agenda))

    def _info(self) -> DataInfo:
        """The packed images. Raises VarlabError for too few."""
        info = read_index(self.out / "data").info
        if sum(info.counts.values()) < FEWEST or not info.counts.get("val"):
            raise VarlabError(
                f"{self._config['folder']} holds {sum(info.counts.values())} pictures, and {info.counts.get('val', 0)} of them "
                f"are held out for scores: give at least {FEWEST}."
            )
        return info

    def _measure(self, phases: Iterable[Sequence[Step]], steps: Steps, *, kept: bool = True) -> None:
        """Measure trainings that will run at the same time, by their first updates."""
        rule = self._config["trial"]
        for together in phases:
            if all(self._history.pace(step.name) for step in together):
                continue
            trials = [
                steps.trial(step, rule["updates"] * step.batch, log_every=rule["unmeasured"] * step.batch, kept=kept)
                for step in together
            ]
            say(f"measuring {rule['updates']} updates of {' and '.join(step.name for step in together)} …")
            walls = self._run(trials, quiet=True)
            for step, trial in zip(together, trials, strict=True):
                pace = measured_pace(
                    self.out / trial.name,
                    unmeasured=rule["unmeasured"] * step.batch,
                    wall=walls[trial],
                    encodes=not kept,
                )
                self._history.paces[step.name] = pace.to_json()
            self._history.write(self.out)

    def _is_done(self, phase: Phase) -> bool:
        return all(step.command in self._history.done for step in phase.steps)

    def _do(self, phases: Sequence[Phase], then: Sequence[Phase] = ()) -> None:
        """Run the steps that are not done, after they were written to commands.sh. then: what comes later."""
        self._phases += phases
        self._write_commands(then)
        for phase in phases:
            if todo := [step for step in phase.steps if step.command not in self._history.done]:
                say(
                    f"\n== {phase.title} ({self._history.spent / 60:.1f} of {self._config['minutes']:g} minutes have passed)"
                )
                say("\n".join(step.command for step in todo))
                self._run(todo)

    def _run(self, steps: Sequence[Step], *, quiet: bool = False) -> dict[Step, float]:
        """Run commands at the same time; returns the seconds of each."""
        walls: dict[Step, float] = {}

        def ended(step: Step, seconds: float) -> None:
            walls[step] = seconds
            if not quiet:
                self._history.done.append(step.command)
                self._history.seconds[step.name] = seconds

        began = time.monotonic()
        try:
            run_together(steps, self.out / "logs", ended=ended, quiet=quiet)
        finally:
            self._history.spent += time.monotonic() - began
            self._history.write(self.out)
        return walls

    def _write_commands(self, then: Sequence[Phase]) -> None:
        write_commands(self.out / "commands.sh", self._asked, [*self._phases, *then])
