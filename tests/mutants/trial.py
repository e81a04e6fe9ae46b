"""One mutant: the tests that cover it, in a process that imports it in the place of the module."""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import importlib.util
import math
import os
import resource
import shutil
import signal
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.mutants.mutations import ROOT, Mutant

KINDS = ("killed", "golden", "survived", "timeout", "uncovered")
"""How a mutant ends: killed by a test, by the golden losses alone, by none, by its time; or no test runs it at all."""

_WAITING = 6  # a mutant that waits instead of computing ends after this many times its seconds
_NO_FAILURE, _FAILURE, _UNREADABLE = 0, 1, 2  # exit codes of pytest


@dataclass(frozen=True)
class Result:
    kind: str
    seconds: float
    by: str = ""  # the test


class _Loader(importlib.machinery.SourceFileLoader):
    """Reads the mutant's bytes, and neither reads nor writes compiled files."""

    def __init__(self, name: str, path: str, source: bytes):
        super().__init__(name, path)
        self._source = source

    def get_code(self, fullname: str) -> object:  # type: ignore[override]
        return compile(self._source, self.path, "exec", dont_inherit=True)


class _Finder(importlib.abc.MetaPathFinder):
    """Also a plugin of pytest, whose own finder takes the modules of ``-p varlab`` unless this one stands before it."""

    def __init__(self, mutant: Mutant):
        self._name = mutant.path.removesuffix(".py").replace("/", ".")
        self._loader = _Loader(self._name, str(ROOT / mutant.path), mutant.source())

    def find_spec(self, fullname: str, path: object, target: object = None) -> importlib.machinery.ModuleSpec | None:
        if fullname != self._name:
            return None
        return importlib.util.spec_from_file_location(fullname, self._loader.path, loader=self._loader)

    def pytest_sessionstart(self) -> None:
        sys.meta_path[:] = [self, *(finder for finder in sys.meta_path if finder is not self)]


class _Failure:
    """A plugin of pytest that notes the first test that fails; the summary of the terminal would measure the package."""

    def __init__(self, file: Path):
        self._file = file

    def _note(self, report: pytest.TestReport | pytest.CollectReport) -> None:
        if report.failed and not self._file.exists():
            self._file.write_text(report.nodeid)

    pytest_runtest_logreport = pytest_collectreport = _note


def run_all(
    jobs: Sequence[tuple[Mutant, Sequence[str], Sequence[str], float]],
    *,
    processes: int,
    folder: Path,
    done: Callable[[int, Result], None],
) -> None:
    """Each job is a mutant, its tests, the golden ones among them, and the seconds of CPU after which it hangs."""
    waiting, working = list(enumerate(jobs))[::-1], dict[int, tuple[int, float]]()
    while waiting or working:
        while waiting and len(working) < processes:
            number, (mutant, tests, golden, limit) = waiting.pop()
            if not tests and not golden:
                done(number, Result("uncovered", 0.0))
                continue
            working[_start(mutant, tests, golden, limit, folder / str(number))] = (number, time.monotonic())
        time.sleep(0.05)
        for pid, (number, begun) in list(working.items()):
            seconds = time.monotonic() - begun
            ended, status = os.waitpid(pid, os.WNOHANG)
            if not ended and seconds > _WAITING * jobs[number][3]:
                os.killpg(pid, signal.SIGKILL)
                os.waitpid(pid, 0)
            elif not ended:
                continue
            del working[pid]
            done(number, _result(folder / str(number), seconds, status if ended else None))


def _start(mutant: Mutant, tests: Sequence[str], golden: Sequence[str], limit: float, folder: Path) -> int:
    """Fork, so that torch is imported once for all. Returns the process."""
    folder.mkdir(parents=True)
    if pid := os.fork():
        return pid
    try:
        os.setsid()
        resource.setrlimit(resource.RLIMIT_CPU, (math.ceil(limit), math.ceil(limit) + 5))
        log = os.open(folder / "log", os.O_WRONLY | os.O_CREAT)
        os.dup2(log, 1)
        os.dup2(log, 2)
        finder = _Finder(mutant)
        code = _pytest(tests, finder, folder) if tests else _NO_FAILURE
        if code == _NO_FAILURE and golden:
            code = 10 + _pytest(golden, finder, folder)
        os._exit(code)
    finally:
        os._exit(99)


def _pytest(tests: Sequence[str], finder: _Finder, folder: Path) -> int:
    options = ["-x", "-q", "--tb=line", "--no-summary", "-p", "no:cacheprovider", f"--basetemp={folder / 'tmp'}"]
    return int(pytest.main([*options, *tests], plugins=[finder, _Failure(folder / "by")]))


def _result(folder: Path, seconds: float, status: int | None) -> Result:
    log = (folder / "log").read_text(errors="replace") if (folder / "log").exists() else ""
    shutil.rmtree(folder / "tmp", ignore_errors=True)
    code = None if status is None else os.waitstatus_to_exitcode(status)
    if code is None or code == -signal.SIGXCPU:
        return Result("timeout", seconds)
    by = (folder / "by").read_text() if (folder / "by").exists() else ""
    if code in (_NO_FAILURE, 10):
        return Result("survived", seconds)
    if code in (_FAILURE, _UNREADABLE) or code < 0:
        return Result("killed", seconds, by)
    if code in (10 + _FAILURE, 10 + _UNREADABLE):
        return Result("golden", seconds, by)
    raise RuntimeError(f"pytest ended with {code}: see {folder / 'log'}.\n{log[-2000:]}")
