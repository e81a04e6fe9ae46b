"""One mutant: the tests that cover it, in a process of its own."""

from __future__ import annotations

import math
import os
import resource
import shutil
import signal
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path

import pytest

from tests.mutants.mutations import Mutant
from tests.mutants.replaced import Replaced

KINDS = ("killed", "golden", "survived", "timeout", "uncovered")
"""How a mutant ends: killed by a test, by the golden losses alone, by none, by its time; or no test runs it at all."""

_WAITING = 20  # a mutant that waits instead of computing ends after this many times its seconds
_NO_FAILURE, _FAILURE, _INTERRUPTED, _NOT_FOUND = (
    0,
    1,
    2,
    4,
)  # exit codes of pytest; the last two: modules cannot be read
_BY_GOLDEN = 10

Work = Callable[[Path], int]
"""(folder for its files) → exit code."""


@dataclass(frozen=True)
class Result:
    kind: str
    seconds: float  # of the processor
    by: str = ""  # the test


class Failure:
    """A plugin of pytest that notes the first test that fails."""

    def __init__(self, folder: Path):
        self._file = folder / "by"

    @property
    def noted(self) -> bool:
        return self._file.exists()

    def _note(self, report: pytest.TestReport | pytest.CollectReport) -> None:
        if report.failed and not self.noted:
            self._file.write_text(report.nodeid)
            print(report.nodeid, report.longreprtext, sep="\n", flush=True)

    pytest_runtest_logreport = pytest_collectreport = _note


def run_all(
    jobs: Sequence[tuple[Work, float]], *, processes: int, folder: Path, done: Callable[[int, Result], None]
) -> None:
    """Each job is its work and the seconds of CPU after which it hangs."""
    waiting, working = list(enumerate(jobs))[::-1], dict[int, tuple[int, float]]()
    while waiting or working:
        while waiting and len(working) < processes:
            number, (work, limit) = waiting.pop()
            working[_start(work, limit, folder / str(number))] = (number, time.monotonic())
        time.sleep(0.02)
        for pid, (number, begun) in list(working.items()):
            ended, status, used = os.wait4(pid, os.WNOHANG)
            if not ended and time.monotonic() - begun > _WAITING * jobs[number][1]:
                os.killpg(pid, signal.SIGKILL)
                _, _, used = os.wait4(pid, 0)
            elif not ended:
                continue
            del working[pid]
            seconds = used.ru_utime + used.ru_stime
            done(number, _result(folder / str(number), seconds, status if ended else None))


def _start(work: Work, limit: float, folder: Path) -> int:
    """Fork, so that torch is imported once for all. Returns the process."""
    folder.mkdir(parents=True)
    if pid := os.fork():
        return pid
    try:
        os.setsid()
        resource.setrlimit(resource.RLIMIT_CPU, (math.ceil(limit), math.ceil(limit) + 5))
        folder.mkdir(parents=True, exist_ok=True)
        log = os.open(folder / "log", os.O_WRONLY | os.O_CREAT)
        os.dup2(log, 1)
        os.dup2(log, 2)
        os._exit(work(folder))
    finally:
        os._exit(99)


def fresh(mutant: Mutant, tests: Sequence[str], golden: Sequence[str], folder: Path) -> int:
    """A pytest of its own, which imports the mutant in the place of the module."""
    replaced = Replaced({mutant.path: mutant.source})
    options = ["-x", "-o", "addopts=--import-mode=importlib -p varlab", "-p", "no:terminal", "-p", "no:cacheprovider"]
    code = _NO_FAILURE
    for names, offset in ((tests, 0), (golden, _BY_GOLDEN)):
        if names and code == _NO_FAILURE:
            basetemp = f"--basetemp={folder / f'tmp{offset}'}"
            code = int(pytest.main([*options, basetemp, *names], plugins=[replaced, Failure(folder)]))
            code += offset if code else 0
    return code


def warm(session: pytest.Session, tests: Sequence[pytest.Item], golden: Sequence[pytest.Item], folder: Path) -> int:
    """Some tests of a session that has collected all, until one fails."""
    factory = session.config._tmp_path_factory  # type: ignore[attr-defined]
    factory._basetemp, factory._given_basetemp = None, folder / "tmp0"
    failure = Failure(folder)
    session.config.pluginmanager.register(failure)
    for items, offset in ((tests, 0), (golden, _BY_GOLDEN)):
        for item, after in zip_longest(items, items[1:]):
            session.config.hook.pytest_runtest_protocol(item=item, nextitem=after)
            if failure.noted:
                return offset + _FAILURE
    return _NO_FAILURE


def _result(folder: Path, seconds: float, status: int | None) -> Result:
    by = (folder / "by").read_text() if (folder / "by").exists() else ""
    for tmp in folder.glob("tmp*"):
        shutil.rmtree(tmp, ignore_errors=True)
    code = None if status is None else os.waitstatus_to_exitcode(status)
    if code is None or code == -signal.SIGXCPU:
        return Result("timeout", seconds)
    if code == _NO_FAILURE:
        return Result("survived", seconds)
    if code in (_FAILURE, _INTERRUPTED) or (code == _NOT_FOUND and by) or code < 0:
        return Result("killed", seconds, by)
    if code in (_BY_GOLDEN + _FAILURE, _BY_GOLDEN + _INTERRUPTED):
        return Result("golden", seconds, by)
    return Result(
        "survived", seconds, f"pytest ended with {code}: see {folder / 'log'}"
    )  # not a death, whatever it was
