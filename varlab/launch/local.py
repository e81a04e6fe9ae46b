"""Several processes for one run, started on the resolved configuration.

A training on more than one device is one process a device. They are started here (or by Slurm's tasks, or by torchrun,
where those did), and each is handed the configuration as it was resolved: re-running ``sys.argv``, as Lightning does
when left alone, would start the sweep again in every process. Lightning sees that its processes exist already.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import FrameType
from typing import Any, TypeAlias

from varlab.config import Config
from varlab.errors import Stopped, VarlabError
from varlab.files import write_json
from varlab.launch.slurm_attempt import STOPPED
from varlab.run.directory import RunDirectory

__all__ = ["global_rank", "inside", "launch_ranks", "local_rank", "to_start", "world"]

SIGNALS = (signal.SIGTERM, signal.SIGUSR2)  # preemption, scancel and time limits, as Slurm says them
GRACE = 5.0  # seconds between asking a process to end and ending it
POLL = 0.05
_LAST_LINES = 20
_Process: TypeAlias = "subprocess.Popen[bytes]"
_SLURM_TASK = ("SLURM_NTASKS", "SLURM_PROCID", "SLURM_LOCALID", "SLURM_NODEID", "SLURM_NTASKS_PER_NODE")


def world(config: Mapping[str, Any]) -> tuple[int, int]:
    """(processes on this machine, machines) that ``config["trainer"]`` asks for; one and one without a trainer.

    ``devices`` is a number, a list of device numbers, or ``auto`` (or -1): all GPUs there are, else one process.
    """
    trainer = config.get("trainer") or {}
    devices, nodes = trainer.get("devices", 1), int(trainer.get("num_nodes") or 1)
    if isinstance(devices, list | tuple):
        return len(devices), nodes
    if str(devices) in ("auto", "-1"):
        return _gpus() if str(trainer.get("accelerator")) in ("gpu", "cuda", "auto") else 1, nodes
    try:
        return int(devices), nodes
    except (TypeError, ValueError):
        raise VarlabError(f"trainer.devices={devices} is neither a number, a list of numbers nor 'auto'") from None


def _gpus() -> int:
    import torch

    return max(1, torch.cuda.device_count())


def inside() -> int | None:
    """How many ranks this process is one of, where somebody has started them; None where nobody has."""
    if os.environ.get("LOCAL_RANK") is not None and os.environ.get("WORLD_SIZE") is not None:
        return int(os.environ["WORLD_SIZE"])
    tasks = int(os.environ.get("SLURM_STEP_NUM_TASKS", "1"))  # a batch script itself has none: only srun's tasks do
    return tasks if tasks > 1 and "SLURM_PROCID" in os.environ else None


def global_rank() -> int:
    """This process's rank: 0 unless somebody has started several. Only rank 0 writes."""
    if inside() is None:
        return int(os.environ.get("NODE_RANK", "0"))
    return int(os.environ.get("RANK") or os.environ.get("SLURM_PROCID") or os.environ["LOCAL_RANK"])


def local_rank() -> int | None:
    """This process's number among the ranks of its machine; None where nobody has started several."""
    if inside() is None:
        return None
    return int(os.environ.get("LOCAL_RANK") or os.environ.get("SLURM_LOCALID") or 0)


def to_start(config: Mapping[str, Any]) -> bool:
    """Whether this process has to start the ranks. Raises VarlabError where others started a different number."""
    local, nodes = world(config)
    started = inside()
    if started is not None and started > 1 and started != local * nodes:
        asked = f"trainer.num_nodes={nodes} and trainer.devices={local}"
        raise VarlabError(f"{started} processes were started, but {asked} ask for {nodes * local}")
    return started is None and local * nodes > 1


def launch_ranks(module: str, config: Mapping[str, Any], directory: RunDirectory) -> Config:
    """Start this machine's ranks of ``module.run(config, directory)``, wait for all, and return rank 0's outcome.

    When one dies the others are ended within seconds. Raises VarlabError with what the first to die said last.
    """
    local, nodes = world(config)
    folder = directory.path / "ranks"
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.iterdir():
        old.unlink()
    job = folder / f"job{global_rank()}.json"
    todo = {"module": module, "config": config, "directory": str(directory.path), "resuming": directory.resuming}
    write_json(job, todo)
    environment = _environment(local, nodes)
    read_end, write_end = os.pipe()  # its closing tells the ranks that this process is gone, however it went
    try:
        processes = [_start(job, rank, environment, folder, read_end) for rank in range(local)]
        os.close(read_end)
        try:
            with _passing_on(processes):
                _wait(processes, folder)
        finally:
            _end(processes)
    finally:
        os.close(write_end)
    return directory.record().outcome.values if directory.rank == 0 else {}


def _environment(local: int, nodes: int) -> dict[str, str]:
    """What torch and Lightning read to find each other."""
    environment = {key: value for key, value in os.environ.items() if key not in _SLURM_TASK}
    if nodes > 1 and not all(key in environment for key in ("MASTER_ADDR", "MASTER_PORT", "NODE_RANK")):
        raise VarlabError(
            f"trainer.num_nodes={nodes} needs a process started on every node: launch=slurm, srun or torchrun "
            "(or set MASTER_ADDR, MASTER_PORT and NODE_RANK on each)"
        )
    if nodes == 1:
        environment |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(_free_port()), "NODE_RANK": "0"}
    return environment | {"WORLD_SIZE": str(local * nodes), "LOCAL_WORLD_SIZE": str(local)}


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _start(job: Path, local_rank: int, environment: dict[str, str], folder: Path, alive: int) -> _Process:
    """One rank. Local rank 0 speaks to the terminal; the others to a file."""
    local_world = int(environment["LOCAL_WORLD_SIZE"])
    rank = int(environment["NODE_RANK"]) * local_world + local_rank
    environment = environment | {"LOCAL_RANK": str(local_rank), "RANK": str(rank)}
    command = [sys.executable, "-m", "varlab.launch.local_rank", str(job), str(alive)]
    if local_rank == 0:
        return subprocess.Popen(command, env=environment, pass_fds=(alive,))
    with (folder / f"{rank}.log").open("wb") as log:
        return subprocess.Popen(command, env=environment, pass_fds=(alive,), stdout=log, stderr=log)


@contextlib.contextmanager
def _passing_on(processes: list[_Process]) -> Iterator[None]:
    """What asks this process to stop asks the ranks: they know when they can."""

    def tell(number: int, frame: FrameType | None) -> None:
        for process in processes:
            process.send_signal(number)

    before = {number: signal.signal(number, tell) for number in SIGNALS} if _is_main_thread() else {}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _is_main_thread() -> bool:
    return threading.current_thread() is threading.main_thread()


def _wait(processes: list[_Process], folder: Path) -> None:
    """Return when all have ended well. Raises VarlabError soon after one has not."""
    while True:
        codes = [process.poll() for process in processes]
        if any(codes):
            _raise_stopped(processes, folder)
            time.sleep(4 * POLL)  # a rank's death brings others down: let the errors arrive, the first one is the cause
            raise VarlabError(_cause([process.poll() for process in processes], folder))
        if all(code == 0 for code in codes):
            return
        time.sleep(POLL)


def _raise_stopped(processes: list[_Process], folder: Path) -> None:
    """Raises Stopped where the ranks have saved their state and ended because of a signal; rank 0 is the one that saves."""
    if any(process.poll() == STOPPED for process in processes):
        with contextlib.suppress(subprocess.TimeoutExpired):
            processes[0].wait(GRACE)
    for file in sorted(folder.glob("*.stopped")):
        raise Stopped(**json.loads(file.read_text()))


def _cause(codes: list[int | None], folder: Path) -> str:
    """Why the ranks ended: the sentence of the one that failed first; else the signal, and what it said last."""
    killed = [local_rank for local_rank, code in enumerate(codes) if code is not None and code < 0]
    errors = sorted((json.loads(file.read_text()) for file in folder.glob("*.error")), key=lambda error: error["time"])
    if not killed and errors:
        return f"rank {errors[0]['rank']} failed: {errors[0]['error']}"
    local_rank = killed[0] if killed else next(i for i, code in enumerate(codes) if code)
    code = codes[local_rank] or 0
    how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
    log = folder / f"{local_rank}.log"
    last = log.read_text(errors="replace").splitlines()[-_LAST_LINES:] if log.exists() else []
    return f"rank {local_rank} {how}" + (f"; its last lines: {' | '.join(last)}" if last else "")


def _end(processes: list[_Process]) -> None:
    """Leave no process behind."""
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
