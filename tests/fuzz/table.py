"""Many days in two processes, and what they came to."""

from __future__ import annotations

import multiprocessing
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path

from tests.fuzz.commands import call, import_commands
from tests.fuzz.days import Day, draw_day
from tests.fuzz.owner import Owner

__all__ = ["play", "run_cases", "run_one"]

_SHOWN, _LENGTH = 8, 600  # faults of a case, letters of a fault
_COMMAND = "make fuzz FUZZ='seed={seed} case={number}'"


@dataclass(frozen=True)
class Result:
    """What a day came to. done: how often an action came to an end. commands: what was run, in words."""

    day: Day
    found: tuple[str, ...]
    done: Counter[tuple[str, str]]
    commands: tuple[str, ...]
    seconds: float


@cache
def _base_mib() -> int:
    """The memory of a command that does nothing."""
    import_commands()
    with tempfile.TemporaryDirectory() as folder:
        return call(["--version"], folder=Path(folder)).mib


def play(day: Day, *, strict: bool = False) -> Result:
    """Play a day in a folder of its own."""
    start, base = time.monotonic(), _base_mib()
    with tempfile.TemporaryDirectory(prefix="fuzz-", ignore_cleanup_errors=True) as folder:
        owner = Owner(day, Path(folder).resolve() / "day", base_mib=base, strict=strict)
        owner.play()
    return Result(day, tuple(owner.found), owner.done, tuple(owner.commands), time.monotonic() - start)


def run_one(number: int, seed: int, *, strict: bool) -> int:
    """Play one day, and again without each step that its faults do not need."""
    result = play(draw_day(number, seed), strict=strict)
    print(result.day.world, *map(str, result.day.steps), sep="\n  ")
    print(*result.commands, *result.found, sep="\n")
    if result.found:
        print("\nThe fewest steps with a fault:", *map(str, _shortest(result, strict).day.steps), sep="\n  ")
    return int(bool(result.found))


def _shortest(result: Result, strict: bool) -> Result:
    """Leave out every step without which the day still has a fault of the same kind."""
    kinds = _kinds(result)
    for step in result.day.steps[:0:-1]:
        day = replace(result.day, steps=tuple(one for one in result.day.steps if one is not step))
        if kinds & _kinds(shorter := play(day, strict=strict)):
            result = shorter
    return result


def _kinds(result: Result) -> set[str]:
    return {text.partition(": ")[2].partition(":")[0] for text in result.found}


def _case(number: int, *, seed: int, strict: bool) -> Result:
    return play(draw_day(number, seed), strict=strict)


def run_cases(cases: Sequence[int], seed: int, *, processes: int, strict: bool) -> int:
    """Play all days and print what was found. Returns the exit code."""
    start = time.monotonic()
    _base_mib()
    context = multiprocessing.get_context("fork")
    results = []
    with ProcessPoolExecutor(processes, mp_context=context) as pool:
        for number, result in zip(cases, pool.map(partial(_case, seed=seed, strict=strict), cases), strict=True):
            results.append(result)
            if result.found:
                _print_faults(result, _COMMAND.format(seed=seed, number=number))
    _print_table("world", Counter((r.day.world.kind, "fault" if r.found else "right") for r in results))
    _print_table("action", sum((result.done for result in results), Counter()))
    failed = sum(bool(result.found) for result in results)
    commands = sum(len(result.commands) for result in results)
    seconds = time.monotonic() - start
    print(f"\n{len(results)} cases, {commands} commands in {seconds:.0f} s, seed {seed}: {failed} cases with faults")
    return int(bool(failed))


def _print_faults(result: Result, command: str) -> None:
    world = result.day.world
    print(f"\n{command}\n  {world.kind} {world.place!r} {world.classes} {world.layout}, {world.count} of each")
    print(f"  {world.picture_kinds} {world.oddities}")
    print(*(f"  {text[:_LENGTH]}" for text in result.found[:_SHOWN]), sep="\n", flush=True)


def _print_table(head: str, counts: Counter[tuple[str, str]]) -> None:
    ends = ("right", "a sentence", "fault")
    print(f"\n{head:20}" + "".join(f"{end:>12}" for end in ends))
    for name in sorted({name for name, _ in counts}):
        print(f"{name:20}" + "".join(f"{counts[name, end]:>12}" for end in ends))
