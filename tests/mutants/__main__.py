"""``make mutants``: small wrong changes of the science rooms, each of which a test must notice.

``python -m tests.mutants [seed=0] [count=300] [processes=2] [out=runs/mutants] [file=PART] [tests=PART,…]
[seconds=30] [golden=true]``

Two runs of the tests: the first, without changes, notes which functions each test runs. Then each mutant meets the tests that
run its function, those of its module and of its room first, the golden losses last. What both found is kept in ``out``: a
stopped run continues, and after a change of tests only those files, and the mutants that met them, run again.
Mutants of which ``equivalent.txt`` says that they compute the same are left out. It prints the counts, the survivors and the
seconds.

Neither mutmut nor cosmic-ray fits: they start every mutant anew, and torch takes longer to import than most of these tests.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from tests.mutants.mutations import ROOT, Mutant, mutants_of, sample, science_files
from tests.mutants.records import Map, Records
from tests.mutants.session import Trial, run_trials
from tests.mutants.trial import KINDS, Result

LAWS = (
    "order",
    "tokenizer",
    "sampling",
    "editing",
    "condition",
    "training",
    "defaults",
)  # the others start processes, or compose
TESTS = ("order", "transformer", "tokenizer", "losses", "sample", "metrics", "tasks", "parity", "testing",
         *(f"laws/test_{name}.py" if name == "defaults" else f"laws/test_{name}_laws.py" for name in LAWS),
         "recipe/test_published.py", "recipe/test_flops.py", "test_rng.py", "test_processor.py", "test_model.py")  # fmt: skip
GOLDEN = "::test_golden_losses"
_NO_TESTS = 5  # an exit code of pytest


def main(words: list[str]) -> int:
    """The exit code: 1 if a mutant survived."""
    asked = {
        "seed": "0",
        "count": "300",
        "processes": "2",
        "out": "runs/mutants",
        "file": "",
        "tests": "",
        "seconds": "30",
        "golden": "true",
    }
    asked |= dict(word.split("=", 1) for word in words)
    out, start = Path(asked["out"]), time.monotonic()
    out.mkdir(parents=True, exist_ok=True)
    folders = [name for name in TESTS if not asked["tests"] or name in asked["tests"].split(",")]
    records = Records(out)
    tests = coverage(records, folders, processes=int(asked["processes"]))
    mutants = sample(int(asked["seed"]), int(asked["count"]))
    if asked["file"]:
        mutants = [mutant for path in science_files() if asked["file"] in path for mutant in mutants_of(path)]
    same = equivalents()
    tried = [mutant for mutant in mutants if mutant.key not in same]
    folder = out / f"seed{asked['seed']}"
    shutil.rmtree(folder, ignore_errors=True)
    plans = [chosen(mutant, tests, float(asked["seconds"])) for mutant in tried]
    if asked["golden"] == "false":
        plans = [(chosen, []) for chosen, _ in plans]
    results = {i: known for i, plan in enumerate(plans) if (known := records.result(tried[i], *plan)) is not None}
    print(f"{len(results)} of {len(tried)} are known from earlier runs", flush=True)

    def done(number: int, result: Result) -> None:
        results[number] = result
        mutant = tried[number]
        records.add(mutant, *plans[number], result)
        where = f"{mutant.path}:{mutant.line}: {mutant.before} → {mutant.after}"
        print(f"{len(results)}/{len(tried)} {result.kind} {result.seconds:.0f} s {where} {result.by}", flush=True)

    for i in set(range(len(tried))) - set(results):
        if not any(plans[i]):
            done(i, Result("uncovered", 0.0))
    todo = [Trial(i, tried[i], *plans[i], _limit(plans[i], tests)) for i in range(len(tried)) if i not in results]
    run_trials(todo, processes=int(asked["processes"]), folder=folder, done=done)
    print_summary([(mutant, results[i]) for i, mutant in enumerate(tried)], len(mutants) - len(tried))
    spent = sum(result.seconds for result in results.values())
    print(f"{time.monotonic() - start:.0f} seconds now, {spent:.0f} in the mutants' tests, seed {asked['seed']}")
    return int(any(result.kind in ("golden", "survived", "uncovered") for result in results.values()))


def coverage(records: Records, folders: Sequence[str], *, processes: int) -> Map:
    """Which functions each test runs; only the files of tests that changed are run again."""
    places = [ROOT / "tests" / name for name in folders]
    files = [file for place in places for file in ([place] if place.is_file() else sorted(place.rglob("test_*.py")))]
    names = [file.relative_to(ROOT).as_posix() for file in files]
    if missing := [name for name in names if name not in records.maps]:
        for part in records.parts():
            part.unlink()
        command = [sys.executable, "-m", "pytest", "-q", "-n", str(processes), "-p", "tests.mutants.coverage_map"]
        command += ["-m", "not slow and not slurm and not gpu and not compiles", *missing]
        environment = os.environ | {"MUTANTS_MAP": str(records.part), "PYTHONPATH": str(ROOT)}
        if subprocess.run(command, cwd=ROOT, env=environment).returncode not in (0, _NO_TESTS):
            raise SystemExit("The tests fail without a mutant: see above.")
        records.keep(missing)
    return {test: entry for name in names for test, entry in records.maps[name].items()}


def _limit(plan: tuple[list[str], list[str]], tests: Map) -> float:
    """The seconds of CPU after which a mutant hangs."""
    return 30 + 4 * sum(tests[test][0] for part in plan for test in part)


def chosen(mutant: Mutant, tests: Map, most: float) -> tuple[list[str], list[str]]:
    """The tests that run the mutant's function (or its file, where it is in none), and the golden ones among them.

    most: seconds of the nearest tests, and again of the fastest others.
    """

    def runs(places: set[tuple[str, int]]) -> bool:
        if mutant.function:
            return (mutant.path, mutant.function) in places
        return any(path == mutant.path for path, _ in places)

    covering = [test for test, (_, places) in tests.items() if runs(places)]
    golden = sorted(test for test in covering if GOLDEN in test)
    rest = sorted(set(covering) - set(golden), key=lambda test: (tests[test][0], test))
    near = sorted(rest, key=lambda test: _distance(test, mutant))
    chosen = _within(most, near, tests) or near[:1]
    chosen += _within(most, [test for test in rest if test not in chosen], tests)
    return _by_file(chosen, mutant, tests), golden


def _within(most: float, names: Sequence[str], tests: Map) -> list[str]:
    """These tests in turn, without those for which there is no time."""
    chosen, spent = [], 0.0
    for name in names:
        if spent + tests[name][0] <= most:
            chosen.append(name)
            spent += tests[name][0]
    return chosen


def _distance(test: str, mutant: Mutant) -> int:
    """0: of the file that is named after the mutant's module; 1: of the same room, or its laws; 2: elsewhere."""
    file, module = Path(test.split("::")[0]), Path(mutant.path)
    if file.stem == f"test_{module.stem}":
        return 0
    room = module.relative_to("varlab").parts[0]
    return 1 if room in file.parts or file.stem == f"test_{room}_laws" else 2


def _by_file(chosen: list[str], mutant: Mutant, tests: Map) -> list[str]:
    """The tests of a file together, so that its fixtures are made once; the nearest files first, and the fastest of these."""
    total: Counter[str] = Counter()
    for test in chosen:
        total[test.split("::")[0]] += tests[test][0]

    def place(test: str) -> tuple[int, float, str, float]:
        file = test.split("::")[0]
        return _distance(test, mutant), total[file], file, tests[test][0]

    return sorted(chosen, key=place)


def equivalents() -> set[str]:
    """The keys of mutants that compute the same: lines of equivalent.txt that begin in its first column."""
    lines = (Path(__file__).parent / "equivalent.txt").read_text().splitlines()
    return {line for line in lines if line and not line.startswith(("#", " "))}


def print_summary(ended: list[tuple[Mutant, Result]], equivalent: int) -> None:
    rooms: dict[str, Counter[str]] = {}
    for mutant, result in ended:
        rooms.setdefault(mutant.path.split("/")[1].removesuffix(".py"), Counter())[result.kind] += 1
    print("\n" + f"{'':14}" + "".join(f"{kind:>11}" for kind in KINDS))
    for room, counts in sorted(rooms.items()):
        print(f"{room:14}" + "".join(f"{counts[kind]:>11}" for kind in KINDS))
    total = sum(rooms.values(), Counter())
    print(f"{'all':14}" + "".join(f"{total[kind]:>11}" for kind in KINDS))
    killed = total["killed"] + total["timeout"]
    for mutant, result in ended:
        if result.kind in ("golden", "survived", "uncovered"):
            print(f"{result.kind}: {mutant.path}:{mutant.line}  {mutant.code}\n    {mutant.before} → {mutant.after}")
    print(f"\nsampled {len(ended) + equivalent}, equivalent {equivalent}, killed {killed} of {len(ended)} "
          f"({killed / max(len(ended), 1):.1%}), by the golden losses only {total['golden']}, "
          f"survivors {total['survived'] + total['uncovered']}")  # fmt: skip


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
