"""The desk of an owner: the commands that are run in a day, how each ended, and what must work."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from tests.fuzz.archives import make_parquet, make_shards
from tests.fuzz.commands import Answer, Fault, call
from tests.fuzz.days import Day
from tests.fuzz.judges import broken_files, drafts, judge_answer
from tests.fuzz.worlds import World, make_folder

__all__ = ["WORKS", "Desk", "quoted"]

WORKS: dict[str, bool] = {
    "paths as they are typed": True,
    "names of classes as labels": True,
    "left-over environments": True,
    "a resumed run with other settings": True,
    "a longer budget": True,
    "a branch of a run": True,
    "a stop saves": True,
    "an index elsewhere": True,
    "a refused command leaves no directory": True,
}
"""What must work; where it is False, one sentence is a right answer, too."""


def quoted(text: str) -> str:
    """A value in Hydra's quotes."""
    return "'" + text.replace("'", "\\'") + "'"


class Desk:
    """Runs the commands of a day in a folder. found: what was wrong. done: how often which action came to which end."""

    def __init__(self, day: Day, folder: Path, *, base_mib: int, strict: bool):
        self._day, self._folder, self._base, self._strict = day, folder, base_mib, strict
        self.found: list[str] = []
        self.done: Counter[tuple[str, str]] = Counter()
        self.commands: list[str] = []
        self._step = day.steps[0]
        self._end = "right"
        self._data: Path | None = None
        make = {"folder": make_folder, "shards": make_shards, "parquet": make_parquet}[day.world.kind]
        self._world: World = make(day.world, folder / day.world.place)

    def _note(self, found: Sequence[str]) -> None:
        self.found += [f"{self._step}: {text}" for text in found]

    def _works(self, what: str) -> bool:
        return self._strict or WORKS[what]

    def _call(self, words: Sequence[str], out: str, *, fault: Fault | None = None, plain: bool = False) -> Answer:
        """Run a command and judge how it ended. plain: without the environment of the step."""
        environment = "plain" if plain else self._step.environment
        answer = call(words, folder=self._folder, out=self._folder / out, fault=fault, environment=environment)
        said = "" if fault is None else f"  # {fault.kind} at moment {fault.moment}" + " (struck)" * answer.struck
        self.commands.append(
            f"[{environment}] varlab {' '.join(map(repr, words))}{said} → {answer.code} {answer.seconds:.1f} s "
            f"{answer.said.strip()[-300:]!r}"
        )
        self._note(list(judge_answer(answer, self._base)))
        self._end = "right" if answer.code == 0 else "a sentence"
        if (self._folder / out).is_dir():
            self._note(list(broken_files(self._folder / out)))
            if answer.code == 0 and (left := drafts(self._folder / out)):
                self._note([f"drafts: {left} are left"])
        return answer

    def _call_there(self, words: Sequence[str], out: str) -> Answer:
        """Run a command in the environment of the step; and without it, where a refusal is allowed."""
        answer = self._call(words, out)
        if answer.code == 1 and self._step.environment != "plain" and not self._works("left-over environments"):
            answer = self._call(words, out, plain=True)
        return answer

    def _do(self, words: Sequence[str], out: str, *, can_refuse: bool = False) -> Answer:
        """Run a command with the step's fault, and then again without it, until it is done."""
        fault, answer = self._step.fault, None
        if fault is not None and not (
            self._day.world.kind == "shards" and out == self._day.world.place and fault.kind == "vanished"
        ):
            answer = self._call(words, out, fault=fault)
            if answer.code not in (0, None) and not answer.struck and not can_refuse:
                answer = None  # judged below
        if answer is None or answer.struck:
            answer = self._call_there(words, out)
        if answer.code not in (0, None) and not can_refuse:
            self._note([f"refused: {answer.said.strip()[-400:]}"])
        return answer
