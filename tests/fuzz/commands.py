"""One command of a day, in a process forked after the imports: with a fault at some moment, an environment and a time limit."""

from __future__ import annotations

import errno
import faulthandler
import fcntl
import importlib
import mmap
import os
import signal
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.disk import VANISHED, Disk

__all__ = ["ENVIRONMENTS", "FAULTS", "Answer", "Fault", "call", "import_commands"]

PATIENCE = 120.0
"""Seconds until a command counts as one that hangs; the longest takes two, where nothing else uses the processor."""

FAULTS = {
    "kill": signal.SIGKILL,
    "term": signal.SIGTERM,
    "interrupt": signal.SIGINT,
    "full": errno.ENOSPC,
    "read-only": errno.EROFS,
    "vanished": VANISHED,
}
_SIGNALS = ("kill", "term", "interrupt")

ENVIRONMENTS: dict[str, dict[str, str | None]] = {
    "plain": {},
    "NODE_RANK": {"NODE_RANK": "1"},
    "empty NODE_RANK": {"NODE_RANK": ""},
    "RANK": {"RANK": "3", "WORLD_SIZE": "4"},
    "MASTER_ADDR": {"MASTER_ADDR": "10.255.255.1", "MASTER_PORT": "29500", "WORLD_SIZE": "2"},
    "interactive step": {"SLURM_JOB_ID": "7", "SLURM_PROCID": "0", "SLURM_NTASKS": "1", "SLURM_STEP_NUM_TASKS": "1"},
    "batch of two tasks": {"SLURM_JOB_ID": "7", "SLURM_NTASKS": "2", "SLURM_JOB_NAME": "bash"},
    "no HOME": {"HOME": None},
    "HOME is nowhere": {"HOME": "/nonexistent"},
    "C": {"LC_ALL": "C", "LANG": "C"},
    "no TERM": {"TERM": None, "COLUMNS": "20"},
    "no locks": {},
}
"""What shells and schedulers leave behind; and a file system without locks."""


@dataclass(frozen=True)
class Fault:
    """What happens to a command at its n-th moment: a change of a name, the opening of a file to write, or an update."""

    kind: str
    moment: int


@dataclass(frozen=True)
class Answer:
    """code: of the exit, negative for a signal, None for a hang. struck: whether the fault came. mib: the most memory."""

    words: tuple[str, ...]
    code: int | None
    said: str
    struck: bool
    mib: int
    seconds: float


class _Moments(Disk):
    """Strikes once by a signal, or as a disk does. flag: becomes 1 then."""

    def __init__(self, folder: Path, fault: Fault, flag: mmap.mmap):
        patch = pytest.MonkeyPatch()
        super().__init__(folder.absolute(), patch)
        self._flag, self._signal = flag, FAULTS[fault.kind] if fault.kind in _SIGNALS else None
        plain = os.pwrite

        def counted(*arguments: Any) -> int:
            self.touch(self.folder / "progress")
            return plain(*arguments)

        patch.setattr(os, "pwrite", counted)
        self.fails(FAULTS[fault.kind], fault.moment)

    def strike(self, path: object) -> None:
        first, self._flag[0] = self._flag[0] == 0, 1
        if self._signal is None:
            if self.fault != VANISHED or self.folder.exists():
                super().strike(path)
        elif first:
            os.kill(os.getpid(), self._signal)


def import_commands() -> None:
    """Import what the commands import, so that their processes need not."""
    import varlab.cli.main

    names = [command.module for command in varlab.cli.main.COMMANDS.values()]
    for name in [*names, "varlab.cli.app", "varlab.launch.job", "lightning", "sklearn.datasets", "cv2"]:
        with suppress(ImportError):  # of another version of varlab
            importlib.import_module(name)


def call(
    words: Sequence[str],
    *,
    folder: Path,
    out: Path | None = None,
    fault: Fault | None = None,
    environment: str = "plain",
) -> Answer:
    """Run ``varlab WORDS`` in a folder. out: the folder in which the fault can strike."""
    log, flag, start = folder / ".said", mmap.mmap(-1, 1), time.monotonic()
    process = os.fork()
    if process == 0:
        _run(words, folder, log, out, fault, environment, flag)
    code, usage = _wait(process, start)
    with suppress(ProcessLookupError):
        os.killpg(process, signal.SIGKILL)
    said = log.read_text(errors="replace")
    log.unlink()
    return Answer(tuple(words), code, said, bool(flag[0]), usage // 1024, time.monotonic() - start)


def _wait(process: int, start: float) -> tuple[int | None, int]:
    """The exit code and the largest resident size in KiB."""
    hung = False
    while True:
        ended, status, usage = os.wait4(process, os.WNOHANG)
        if ended:
            return None if hung else os.waitstatus_to_exitcode(status), usage.ru_maxrss
        if not hung and time.monotonic() > start + PATIENCE:
            hung = True
            os.kill(process, signal.SIGKILL)
        time.sleep(0.005)


def _run(
    words: Sequence[str],
    folder: Path,
    log: Path,
    out: Path | None,
    fault: Fault | None,
    environment: str,
    flag: mmap.mmap,
) -> None:
    code = 70
    try:
        os.setpgid(0, 0)
        os.chdir(folder)
        file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND)
        os.dup2(file, 1)
        os.dup2(file, 2)
        sys.stdout, sys.stderr = os.fdopen(1, "w"), os.fdopen(2, "w")  # a test runner may have replaced them
        faulthandler.dump_traceback_later(PATIENCE - 5, file=2)
        for signal_number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(
                signal_number, signal.default_int_handler if signal_number == signal.SIGINT else signal.SIG_DFL
            )
        _set(environment)
        from varlab.cli.main import main

        if fault is not None and out is not None:
            _Moments(out, fault, flag)
        code = main(list(words))
    except KeyboardInterrupt:
        os.write(2, b"Traceback: KeyboardInterrupt was not caught\n")
        code = 130
    except BaseException:
        import traceback

        os.write(2, traceback.format_exc().encode())
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _set(environment: str) -> None:
    for name, value in ENVIRONMENTS[environment].items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value
    if environment == "no locks":

        def refuse(*arguments: object) -> None:
            raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

        fcntl.lockf = fcntl.flock = refuse
