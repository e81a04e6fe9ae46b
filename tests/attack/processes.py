"""Cases in several processes: one that hangs in foreign code, or dies, costs its case and no more."""

from __future__ import annotations

import itertools
import logging
import multiprocessing
import os
import tempfile
import time
import traceback
from collections.abc import Sequence
from contextlib import suppress
from multiprocessing.connection import Connection, wait
from multiprocessing.context import ForkProcess
from pathlib import Path

from tests.attack.trial import WAITING, Format, Result, Trial

__all__ = ["run_all"]

_SLACK = 60  # seconds beside the time of a case: to make its honest files, and to clean up
_CHUNK = 20  # cases that a process takes at once

Case = tuple[Format, int]
Results = dict[tuple[str, int], Result]


class _Worker:
    """A process that runs chunks of cases. todo: those that it has not answered."""

    def __init__(self, seed: int, folder: Path):
        context = multiprocessing.get_context("fork")
        self.connection, other = context.Pipe()
        self._process: ForkProcess = context.Process(target=_work, args=(other, seed, folder), daemon=True)
        self._process.start()
        other.close()
        self.todo: list[Case] = []
        self.lingers = False
        self._since = time.monotonic()

    def give(self, chunk: list[Case]) -> None:
        """Let it run these."""
        self.todo, self._since = chunk, time.monotonic()
        self.lingers |= any(form.lingers for form, _ in chunk)
        self.connection.send([(form.name, number) for form, number in chunk])

    def take(self) -> Result | None:
        """The next answer; None if the process has died."""
        try:
            result: Result = self.connection.recv()
        except (EOFError, ConnectionError):
            return None
        self._since = time.monotonic()
        return result

    @property
    def hangs(self) -> bool:
        return bool(self.todo) and time.monotonic() - self._since > WAITING * self.todo[0][0].seconds + _SLACK

    def end(self) -> int | None:
        """Kill the process; returns how it ended before, None if it was running."""
        self._process.join(0.1)
        code = self._process.exitcode
        self._process.kill()
        self._process.join()
        self.connection.close()
        return code


def run_all(cases: Sequence[Case], *, seed: int, processes: int) -> Results:
    """The result of each case, by format and number."""
    results: Results = {}
    with tempfile.TemporaryDirectory(prefix="attack-", ignore_cleanup_errors=True) as folder:
        chunks = _chunks(cases)
        workers = [_Worker(seed, Path(folder)) for _ in range(processes)]
        while chunks or any(worker.todo for worker in workers):
            for i, worker in enumerate(workers):
                if chunks and not worker.todo:
                    workers[i] = _rested(worker, seed, Path(folder))
                    workers[i].give(chunks.pop(0))
            ready = wait([worker.connection for worker in workers if worker.todo], timeout=1.0)
            for i, worker in enumerate(workers):
                if worker.connection in ready or worker.hangs:
                    workers[i] = _advanced(worker, results, seed, Path(folder))
        for worker in workers:
            worker.end()
    return results


def _chunks(cases: Sequence[Case]) -> list[list[Case]]:
    """Some cases of one format each."""
    formats = [list(of) for _, of in itertools.groupby(cases, key=lambda case: case[0].name)]
    return [of[at : at + _CHUNK] for of in formats for at in range(0, len(of), _CHUNK)]


def _rested(worker: _Worker, seed: int, folder: Path) -> _Worker:
    """The worker, or another one if its last case may go on in threads."""
    if not worker.lingers:
        return worker
    worker.end()
    return _Worker(seed, folder)


def _advanced(worker: _Worker, results: Results, seed: int, folder: Path) -> _Worker:
    """Note the next answer of a worker; another worker goes on in the place of one that died or hangs."""
    result = None if worker.hangs else worker.take()
    form, number = worker.todo.pop(0)
    if result is not None:
        results[form.name, number] = result
        return worker
    code = worker.end()
    hung = code is None
    results[form.name, number] = Result("hang" if hung else "traceback", "" if hung else f"the process died: {code}")
    other = _Worker(seed, folder)
    if worker.todo:
        other.give(worker.todo)
    return other


def _work(connection: Connection, seed: int, folder: Path) -> None:
    """Run chunks of cases until nobody asks for more."""
    from tests.attack.formats import FORMATS

    logging.getLogger("varlab").propagate = False
    _silence()
    forms, trials = {form.name: form for form in FORMATS}, dict[str, Trial]()
    with suppress(EOFError):
        while True:
            for name, number in connection.recv():
                connection.send(_result(trials, forms[name], number, seed, folder))


def _result(trials: dict[str, Trial], form: Format, number: int, seed: int, folder: Path) -> Result:
    """Run one case. trials: keeps the one whose honest files were made last."""
    try:
        if form.name not in trials:
            trials.clear()
            trials[form.name] = Trial(form, Path(tempfile.mkdtemp(dir=folder)))
        return trials[form.name].run(number, seed)
    except Exception:  # of the honest files, which must be read right
        return Result("traceback", traceback.format_exc())


def _silence() -> None:
    """C libraries print warnings about damaged files."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
