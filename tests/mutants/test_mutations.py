"""The mutants: each is one change that compiles, and what is no science stays as it is."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.mutants.__main__ import chosen, equivalents
from tests.mutants.mutations import ROOT, Mutant, mutants_of, sample, science_files
from tests.mutants.patched import is_inside_functions

SOURCE = b'''"""A text with 3 numbers."""
LIMIT: float = 0.5
def f(x: int = 1, *, flag: bool = False) -> int:
    """Returns 2."""
    if x < 3 and not flag:
        raise ValueError(f"{x + 1} is less than {3}")
    logger.info("%d", x + 1)
    x.mul_(2)
    return -x.mean() * (x if flag else 4) + sum(zip(x, x, strict=True))
'''


def test_the_changes_of_a_small_file() -> None:
    found = {(m.line, m.before, m.after) for m in mutants_of("made.py", SOURCE)}
    assert found == {
        (2, "0.5", "1.0"),
        (3, "1", "2"),
        (3, "False", "True"),
        (5, "x < 3 and not flag", "(x < 3 or not flag)"),
        (5, "x < 3", "(x <= 3)"),
        (5, "3", "4"),
        (5, "not flag", "(flag)"),
        (8, "x.mul_(2)", "pass"),
        (8, "x.mul_(2)", "(x.div_(2))"),
        (8, "2", "3"),
        (9, "-x.mean() * (x if flag else 4) + sum(zip(x, x, strict=True))",
         "(-x.mean() * (x if flag else 4) - sum(zip(x, x, strict=True)))"),
        (9, "-x.mean() * (x if flag else 4)", "(-x.mean() / (x if flag else 4))"),
        (9, "-x.mean()", "(x.mean())"),
        (9, "x.mean()", "(x.sum())"),
        (9, "x if flag else 4", "(x if not flag else 4)"),
        (9, "4", "5"),
        (9, "sum(zip(x, x, strict=True))", "(mean(zip(x, x, strict=True)))"),
    }  # fmt: skip


def test_every_mutant_compiles_and_is_found_again() -> None:
    assert {"varlab/rng.py", "varlab/tasks/gan.py", "varlab/order/paths.py"} < set(science_files())
    drawn = sample(5, 200)
    assert drawn == sample(5, 200) and len({(m.path, m.span, m.after) for m in drawn}) == 200
    for mutant in drawn:
        compile(mutant.source(), mutant.path, "exec")
    known = {mutant.key for path in science_files() for mutant in mutants_of(path)}
    assert equivalents() <= known, "a line of equivalent.txt names no mutant: its line has changed"


def test_only_functions_are_changed_where_they_are() -> None:
    inside = {m.line: is_inside_functions(m) for m in mutants_of("varlab/rng.py")}
    source = (ROOT / "varlab/rng.py").read_text().splitlines()
    lines = {text: number for number, text in enumerate(source, 1)}
    assert not inside[lines["_MIX_1 = 0xBF58476D1CE4E5B9 - (1 << 64)"]]
    assert inside[lines["    return (z >> bits).bitwise_and_((1 << (64 - bits)) - 1)"]]
    assert not inside[next(n for text, n in lines.items() if "def stream(self, name: str" in text)]


def test_tests_are_chosen_by_the_function_they_run() -> None:
    mutant = Mutant("varlab/rng.py", 12, 10, "", "", "", (0, 0))
    tests = {
        "a.py::slow": (50.0, {("varlab/rng.py", 10)}),
        "a.py::quick": (1.0, {("varlab/rng.py", 10)}),
        "a.py::other": (0.1, {("varlab/rng.py", 30)}),
        "b.py::test_golden_losses": (9.0, {("varlab/rng.py", 10)}),
        "c.py::slowest": (70.0, {("varlab/rng.py", 10)}),
    }
    golden = ["b.py::test_golden_losses"]
    assert chosen(mutant, tests, 60.0) == (["a.py::quick", "a.py::slow"], golden)
    assert chosen(mutant, tests, 0.5) == (["a.py::quick"], golden)


def test_tests_of_the_module_and_of_its_room_come_first() -> None:
    mutant = Mutant("varlab/order/paths.py", 12, 10, "", "", "", (0, 0))
    files = ("tests/sample/test_filter.py", "tests/laws/test_order_laws.py", "tests/order/test_paths.py")
    tests = {f"{file}::test": (float(i + 1), {("varlab/order/paths.py", 10)}) for i, file in enumerate(files)}
    assert chosen(mutant, tests, 100.0)[0] == [f"{file}::test" for file in reversed(files)]
    assert chosen(mutant, tests, 3.0)[0] == [f"{file}::test" for file in reversed(files)], (
        "the others in as much time again"
    )
    assert chosen(mutant, tests, 2.5)[0] == [f"{files[1]}::test", f"{files[0]}::test"]


TRIAL = """
import sys
from pathlib import Path
from tests.mutants.mutations import ROOT, Mutant
from tests.mutants.session import Trial, run_trials

source, bits, golden = (ROOT / "varlab/rng.py").read_bytes(), b"2.0**-24", b"_GOLDEN = 0x9E37"
at, top = source.index(bits), source.index(golden)
changes = [
    ("2.0**-25", (at, at + len(bits))),  # inside a function
    ("_GOLDEN = 0x9E38", (top, top + len(golden))),  # of the module
    ("", (0, 0)),
    ("while True: pass\\n", (top, top)),
    ("2.0**-24 if True else 1", (at, at + len(bits))),  # the same number
]
mutants = [Mutant("varlab/rng.py", 1, 0, "", "", after, span) for after, span in changes]
tests = ["tests/test_rng.py::test_draws_are_made_of_these_words"]
trials = [Trial(i, mutant, tests, [], 15.0 if i == 3 else 300.0) for i, mutant in enumerate(mutants)]
run_trials(trials, processes=2, folder=Path(sys.argv[1]), done=lambda i, result: print(i, result.kind, flush=True))
"""


@pytest.mark.slow
def test_a_mutant_meets_its_tests_in_a_process_of_its_own(tmp_path: Path) -> None:
    """A wrong number is noticed, in a function and in a module; no change is not; and an endless loop ends."""
    done = subprocess.run([sys.executable, "-c", TRIAL, str(tmp_path)], cwd=ROOT, capture_output=True, text=True)
    assert sorted(done.stdout.splitlines()) == [
        "0 killed", "1 killed", "2 survived", "3 timeout", "4 survived",
    ], done.stderr  # fmt: skip
