"""Commands as child processes, one or several at a time."""

from __future__ import annotations

import contextlib
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import FrameType

from varlab.errors import Stopped, VarlabError, how_it_ended
from varlab.run.provenance import BRIEF
from varlab.start.steps import Step

__all__ = ["run_together"]

_POLL = 0.1  # seconds


def run_together(
    steps: Sequence[Step], logs: Path, *, ended: Callable[[Step, float], None], quiet: bool = False
) -> None:
    """Run these commands at the same time. The first writes to the terminal, the others into files of the folder ``logs``.

    ended: called with each step that succeeded and its seconds. quiet: all write into files. If one fails, the others end, and
    VarlabError is raised with its last lines. A signal is sent on to all, which then save their state.
    """
    logs.mkdir(parents=True, exist_ok=True)
    began, files = (
        time.monotonic(),
        {step: None if i == 0 and not quiet else logs / _log_name(step) for i, step in enumerate(steps)},
    )
    running: dict[Step, subprocess.Popen[bytes]] = {}
    try:
        with _signals(running):
            running.update({step: _start(step, log) for step, log in files.items()})
            while running:
                time.sleep(_POLL)
                for step in [step for step, process in running.items() if process.poll() is not None]:
                    code = running.pop(step).returncode
                    if code:
                        raise VarlabError(_failure(step, code, files[step]))
                    ended(step, time.monotonic() - began)
    finally:
        _end([*running.values()])


def _log_name(step: Step) -> str:
    return f"{step.name.strip('.').replace('/', '_')}.log"


def _start(step: Step, log: Path | None) -> subprocess.Popen[bytes]:
    """Start a command in a session of its own: Ctrl-C at the terminal reaches this process alone, which sends it on once."""
    command = [sys.executable, "-m", "varlab.cli.main", *step.words]
    if log is None:
        return subprocess.Popen([*command, BRIEF], start_new_session=True)
    with log.open("wb") as file:
        return subprocess.Popen(command, stdout=file, stderr=file, start_new_session=True)


@contextlib.contextmanager
def _signals(running: dict[Step, subprocess.Popen[bytes]]) -> Iterator[None]:
    """Send SIGINT and SIGTERM on to the running commands, wait for them, and end with KeyboardInterrupt or Stopped."""

    def forward(number: int, frame: FrameType | None) -> None:
        for process in running.values():
            process.send_signal(number)
        for process in running.values():
            process.wait()  # a second signal kills them: see below
        raise KeyboardInterrupt if number == signal.SIGINT else Stopped(number, "between two updates, all saved")

    before = {number: signal.signal(number, forward) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _end(processes: Sequence[subprocess.Popen[bytes]]) -> None:
    """Ask commands to stop, which saves their state, and wait for them."""
    for process in processes:
        process.terminate()
    for process in processes:
        process.wait()


def _failure(step: Step, code: int, log: Path | None) -> str:
    lines = log.read_text(errors="replace").splitlines() if log is not None else []
    why = f": {lines[-1]} ({log})" if lines else ""
    remedy = "Close other programs or choose a smaller size=" if code == -signal.SIGKILL else "Correct the cause"
    return f"{step.command} {how_it_ended(code)}{why}. {remedy}, and run the same varlab start again."
