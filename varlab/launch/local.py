"""The ranks of a run on this machine: one process for each device.

Each rank gets the resolved configuration. Lightning would run ``sys.argv`` again in every process, and so would start a
sweep again; it finds that its processes exist already.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import FrameType
from typing import TypeAlias

from varlab.config import Config
from varlab.errors import Stopped, VarlabError, how_it_ended
from varlab.json_file import read_json, write_sealed_json
from varlab.launch.environment import SIGNALS, STARTER, global_rank, number_of
from varlab.launch.exits import STOPPED
from varlab.recipe.preflight.requested_ranks import requested_ranks
from varlab.run.directory import RunDirectory

__all__ = ["run_ranks"]

GRACE = 5.0  # seconds from SIGTERM to SIGKILL
POLL = 0.05
_LAST_LINES = 20
_Process: TypeAlias = "subprocess.Popen[bytes]"


def run_ranks(module: str, config: Config, directory: RunDirectory) -> Config:
    """Start this machine's ranks of ``module.run(config, directory)``, wait for all, and return rank 0's outcome.

    If one rank dies, the others end within seconds. Raises VarlabError with the reason of the first rank that failed.
    """
    folder = directory.path / "ranks"
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.iterdir():
        old.unlink()
    job = folder / f"job{global_rank()}.json"
    write_sealed_json(
        job,
        {
            "module": module,
            "config": config,
            "directory": str(directory.path),
            "resuming": directory.resuming,
            "imports": sys.path,
        },
    )
    environments = _environments(*requested_ranks(config))
    # The ranks notice the end of this process, however it ends, because it closes the pipe.
    read_end, write_end = os.pipe()
    try:
        processes = [_start(job, environment, read_end) for environment in environments]
        os.close(read_end)
        try:
            with _signals_forwarded(processes) as came:
                _wait(processes, folder, came)
        finally:
            _end(processes)
    finally:
        os.close(write_end)
    return directory.record().outcome.values if directory.rank == 0 else {}


def _environments(local: int, nodes: int) -> list[dict[str, str]]:
    """The environment of each rank, from which torch and Lightning learn where the others are."""
    shared = os.environ | {STARTER: str(os.getpid())}
    if nodes > 1 and not (
        os.environ.get("MASTER_ADDR") and number_of("MASTER_PORT") and number_of("NODE_RANK") in range(nodes)
    ):
        raise VarlabError(
            f"trainer.num_nodes={nodes} needs a process started on every node: use launch=slurm, srun or torchrun "
            f"(or set MASTER_ADDR, MASTER_PORT and NODE_RANK, a number below {nodes}, on each)."
        )
    if nodes == 1:
        shared |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(_free_port()), "NODE_RANK": "0"}
    shared |= {"WORLD_SIZE": str(local * nodes), "LOCAL_WORLD_SIZE": str(local)}
    first = int(shared["NODE_RANK"]) * local
    return [shared | {"LOCAL_RANK": str(number), "RANK": str(first + number)} for number in range(local)]


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _start(job: Path, environment: dict[str, str], pipe: int) -> _Process:
    """Start one rank. Local rank 0 writes to the terminal, the others into a file each.

    Each has a session of its own: Ctrl-C at the terminal reaches this process alone, which forwards it once.
    """
    command = [sys.executable, "-m", "varlab.launch.local_rank", str(job), str(pipe)]
    if environment["LOCAL_RANK"] == "0":
        return subprocess.Popen(command, env=environment, pass_fds=(pipe,), start_new_session=True)
    with job.with_name(f"{environment['RANK']}.log").open("wb") as log:
        return subprocess.Popen(
            command, env=environment, pass_fds=(pipe,), stdout=log, stderr=log, start_new_session=True
        )


@contextlib.contextmanager
def _signals_forwarded(processes: list[_Process]) -> Iterator[list[int]]:
    """Send on to the ranks the signals that ask this process to stop: the ranks stop when their state is saved.

    Yields the list of those that came. At a second Ctrl-C it kills them and raises KeyboardInterrupt.
    """
    came: list[int] = []

    def forward(number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and came:
            for process in processes:
                process.kill()
            raise KeyboardInterrupt
        came.append(number)
        for process in processes:
            process.send_signal(number)

    # Python sets signal handlers in the main thread only.
    main_thread = threading.current_thread() is threading.main_thread()
    heard = [n for n in (*SIGNALS, signal.SIGINT) if main_thread and signal.getsignal(n) is not signal.SIG_IGN]
    before = {number: signal.signal(number, forward) for number in heard}
    try:
        yield came
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _wait(processes: list[_Process], folder: Path, came: Sequence[int]) -> None:
    """Return when all ranks succeeded. Raises Stopped or VarlabError soon after one did not.

    came: the signals so far. After Ctrl-C before the training began, KeyboardInterrupt is raised.
    """
    codes: list[int | None] = [None]
    while None in codes and not any(codes):
        time.sleep(POLL)
        codes = [process.poll() for process in processes]
    if any(codes):
        _raise_stopped(processes, folder)
        if signal.SIGINT in came:
            raise KeyboardInterrupt
        # One rank's death ends others: wait until their errors are written, the first one is the cause.
        time.sleep(4 * POLL)
        raise VarlabError(_cause([process.poll() for process in processes], folder))


def _raise_stopped(processes: list[_Process], folder: Path) -> None:
    """Raises Stopped if the ranks saved their state and ended because of a signal; rank 0 is the one that saves."""
    if any(process.poll() == STOPPED for process in processes):
        with contextlib.suppress(subprocess.TimeoutExpired):
            processes[0].wait(GRACE)
    for file in sorted(folder.glob("*.stopped")):
        raise Stopped(**read_json(file))


def _cause(codes: list[int | None], folder: Path) -> str:
    """Why the ranks ended: the error of the first rank that failed; else the signal or exit code, and the last log lines."""
    killed = [local_rank for local_rank, code in enumerate(codes) if code is not None and code < 0]
    errors = sorted(map(read_json, folder.glob("*.error")), key=lambda error: error["time"])
    if not killed and errors:
        return f"rank {errors[0]['rank']} failed: {errors[0]['error']}"
    local_rank = killed[0] if killed else next(i for i, code in enumerate(codes) if code)
    log = folder / f"{local_rank}.log"
    last = log.read_text(errors="replace").splitlines()[-_LAST_LINES:] if log.exists() else []
    its = f"; its last lines: {' | '.join(last)}" if last else ""
    return f"rank {local_rank} {how_it_ended(codes[local_rank] or 0)}{its}"


def _end(processes: list[_Process]) -> None:
    """End every process that is still alive."""
    for process in processes:
        if process.poll() is None:
            process.terminate()
    deadline = time.monotonic() + GRACE
    for process in processes:
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(max(0.0, deadline - time.monotonic()))
        if process.poll() is None:
            process.kill()
            process.wait()
