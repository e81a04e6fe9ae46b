"""All trials: in a session of pytest that has collected the tests once, or else each in one of its own."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import CodeType, FunctionType

import pytest

from tests.mutants import patched
from tests.mutants.mutations import Mutant
from tests.mutants.replaced import Replaced
from tests.mutants.trial import Result, fresh, run_all, warm

_LIBRARIES = ("varlab", "torch", "torchvision", "lightning.pytorch", "torchmetrics", "hydra", "pytest", "hypothesis",
              "scipy.stats", "skimage.metrics", "sklearn.datasets", "PIL.Image", "cv2", "safetensors.torch")  # fmt: skip

Done = Callable[[int, Result], None]


@dataclass(frozen=True)
class Trial:
    """A mutant, the tests that it meets, those of the golden losses, and the seconds of CPU after which it hangs."""

    number: int
    mutant: Mutant
    tests: Sequence[str]
    golden: Sequence[str]
    limit: float


class WarmSession:
    """A plugin of pytest that runs the trials in the place of the tests."""

    def __init__(self, trials: Sequence[Trial], *, processes: int, folder: Path, done: Done):
        self._trials, self._processes, self._folder, self._done = trials, processes, folder, done

    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        items = {item.nodeid: item for item in session.items}

        def work(trial: Trial, patches: list[tuple[FunctionType, CodeType]], folder: Path) -> int:
            patched.apply(patches)
            tests, golden = ([items[name] for name in names if name in items] for names in (trial.tests, trial.golden))
            return warm(session, tests, golden, folder)

        jobs = []
        for trial in self._trials:
            found = patched.patches(trial.mutant)
            jobs.append((partial(work, trial, found), trial.limit))
        run_all(jobs, processes=self._processes, folder=self._folder / "warm",
                done=lambda i, result: self._done(self._trials[i].number, result))  # fmt: skip
        return True


def run_trials(trials: Sequence[Trial], *, processes: int, folder: Path, done: Done) -> None:
    """Modules and classes that change are imported anew; functions that change get new code where they are."""
    for name in _LIBRARIES:
        importlib.import_module(name)
    inside = [trial for trial in trials if patched.is_inside_functions(trial.mutant)]
    others = [trial for trial in trials if trial not in inside]
    if early := Replaced({trial.mutant.path: trial.mutant.source for trial in others}).imported():
        raise SystemExit(f"Mutants of {', '.join(sorted(early))} would not be met: these modules are imported already.")
    jobs = [(partial(fresh, trial.mutant, trial.tests, trial.golden), trial.limit) for trial in others]
    run_all(jobs, processes=processes, folder=folder / "fresh", done=lambda i, result: done(others[i].number, result))
    if inside:
        files = sorted({test.split("::")[0] for trial in inside for test in (*trial.tests, *trial.golden)})
        options = [
            "-s",
            "-o",
            "addopts=--import-mode=importlib -p varlab",
            "-p",
            "no:terminal",
            "-p",
            "no:cacheprovider",
        ]
        session = WarmSession(inside, processes=processes, folder=folder, done=done)
        if (code := pytest.main([*options, *files], plugins=[session])) not in (0, 5):
            raise SystemExit(f"The tests cannot be collected: pytest ended with {int(code)}.")
