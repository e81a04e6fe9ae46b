"""The environment of this process: its rank, its signals, and how many processes a configuration asks for."""

from __future__ import annotations

import ctypes
import getpass
import multiprocessing
import os
import signal
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from multiprocessing import resource_tracker
from types import MappingProxyType
from typing import NamedTuple

from varlab.config import Config
from varlab.errors import VarlabError
from varlab.recipe.preflight.requested_ranks import requested_ranks
from varlab.run.provenance import cores

__all__ = [
    "SIGNALS",
    "STARTER",
    "changed_variables",
    "clean_environment",
    "global_rank",
    "import_from",
    "keep_freed_memory",
    "local_rank",
    "needs_ranks",
    "number_of",
    "rank_device",
    "start_workers_apart",
    "started_ranks",
    "worker_count",
]

SIGNALS = (signal.SIGTERM, signal.SIGUSR2)
"""What Slurm sends at preemption, scancel and time limits."""


STARTER = "VARLAB_STARTER"
"""The variable with the process number of the starter of a rank: a rank's own children inherit it, but have another parent."""

_MMAP_THRESHOLD, _TRIM_THRESHOLD = -3, -1  # of mallopt, in glibc's malloc.h
_KEPT = 2**30  # bytes; more than any activation of the published models on a CPU

_OF_RANKS = {
    *(f"{of}{what}" for of in ("", "LOCAL_", "GROUP_", "ROLE_") for what in ("RANK", "WORLD_SIZE")),
    *("NODE_RANK", "TORCHELASTIC_RUN_ID", "JSM_NAMESPACE_RANK"),
    *(
        f"SLURM_{what}"
        for what in ("PROCID", "LOCALID", "NODEID", "NTASKS", "NPROCS", "NTASKS_PER_NODE", "STEP_NUM_TASKS")
    ),
}
"""Variables by which launchers number the processes that they start; Lightning obeys each of them."""


def keep_freed_memory() -> None:
    """Let this process use the memory of freed tensors again, up to 1 GiB each. At exit, all goes back to the system.

    glibc would return a large tensor's pages to the system, which clears them for the next tensor. Nothing changes under
    another C library, under a glibc older than 2.35, and where the user set malloc's variables or another malloc.
    """
    chosen = any(name.startswith(("MALLOC_", "GLIBC_TUNABLES", "LD_PRELOAD")) for name in os.environ)
    if sys.platform == "linux" and not chosen:
        mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
        if mallopt is not None and mallopt(_MMAP_THRESHOLD, _KEPT):
            mallopt(_TRIM_THRESHOLD, _KEPT)


def start_workers_apart() -> None:
    """Start this process's later workers from a server without threads, where a fork beside threads may hang.

    Before CPython 3.11.10 a forked child waits for a lock that another thread, such as gloo's, held at the fork
    (https://github.com/python/cpython/issues/112275). Call it before the first worker of a rank starts.
    """
    if sys.version_info < (3, 11, 10):
        multiprocessing.set_start_method("forkserver", force=True)
        multiprocessing.set_forkserver_preload(["varlab.launch.local_rank", "varlab.data.shard_module", "cv2"])
        resource_tracker.ensure_running()  # later, it would let signals through to the server (see hide_signals)


class _Place(NamedTuple):
    """The place of a process among those that a launcher started together."""

    rank: int
    local_rank: int
    ranks: int
    is_slurm: bool


def _place() -> _Place | None:
    """The place of this process; None if no launcher started it, whatever variables are in its environment."""
    is_slurm = os.environ.get(STARTER) != str(os.getppid()) and not os.environ.get("TORCHELASTIC_RUN_ID")
    if not is_slurm:
        numbers = number_of("RANK"), number_of("LOCAL_RANK"), number_of("WORLD_SIZE")
    elif "SLURM_PROCID" not in os.environ or _is_in_shell():
        return None
    else:
        # Only srun's tasks have the last of these; the batch script itself does not.
        numbers = number_of("SLURM_PROCID"), number_of("SLURM_LOCALID") or 0, number_of("SLURM_STEP_NUM_TASKS")
    rank, local, ranks = numbers
    if rank is None or local is None or ranks is None or rank >= ranks or (is_slurm and ranks == 1):
        return None
    return _Place(rank, local, ranks, is_slurm)


def number_of(variable: str) -> int | None:
    """The number that a variable of the environment holds; None if it has no such value."""
    value = os.environ.get(variable, "")
    return int(value) if value.isascii() and value.isdecimal() else None


def _is_in_shell() -> bool:
    """Whether this process was started in the shell of an interactive step (``srun --pty bash``): only there is a terminal."""
    if os.environ.get("SLURM_TASK_PID") == str(os.getpid()):
        return False
    try:
        os.close(os.open("/dev/tty", os.O_RDONLY | os.O_NOCTTY))
    except OSError:
        return False
    return True


def started_ranks() -> int | None:
    """How many ranks torchrun, srun or varlab started together with this process; None for a process of its own."""
    place = _place()
    return place and place.ranks


def global_rank() -> int:
    """This process's rank: 0 in a process of its own. Only rank 0 writes."""
    place = _place()
    return place.rank if place else number_of("NODE_RANK") or 0


def local_rank() -> int | None:
    """This process's number among the ranks of its machine; None for a process of its own."""
    place = _place()
    return place and place.local_rank


def rank_device(asked: str) -> str:
    """The device that ``device=`` names; where it is ``auto``, the rank's own GPU if there are enough."""
    rank = local_rank()
    if asked != "auto" or rank is None:
        return asked
    import torch

    return f"cuda:{rank}" if torch.cuda.device_count() > rank else asked


@contextmanager
def clean_environment(*, nodes: int) -> Iterator[None]:
    """Hide the rank variables that did not come from this process's launcher: Lightning would obey them.

    nodes: machines of the job; for more than one a person may give the machine's number in NODE_RANK. A user without a
    name or a home, as in a container, gets both: torch asks for them.
    """
    place = _place()
    kept = {name for name in _OF_RANKS if place is not None and name.startswith("SLURM_") == place.is_slurm}
    if nodes > 1:
        kept.add("NODE_RANK")
    useless = {"MASTER_PORT"} if number_of("MASTER_PORT") is None else set()
    with changed_variables((_OF_RANKS - kept) | useless, _user()):
        yield


@contextmanager
def changed_variables(hidden: Iterable[str], new: Mapping[str, str] = MappingProxyType({})) -> Iterator[None]:
    """Hide variables of this process's environment, and set new ones, for the length of a ``with``."""
    before = {name: os.environ.pop(name) for name in hidden if name in os.environ}
    os.environ.update(new)
    try:
        yield
    finally:
        for name in new:
            os.environ.pop(name, None)
        os.environ.update(before)


def _user() -> dict[str, str]:
    """The variables that the user lacks: a name, and a home, which then is a folder that does not exist."""
    new = {} if os.path.isabs(os.path.expanduser("~")) else {"HOME": "/nonexistent"}  # noqa: PTH111, PTH117
    try:
        getpass.getuser()
    except (KeyError, OSError):
        new["LOGNAME"] = f"uid{os.getuid()}"
    return new


def needs_ranks(config: Config) -> bool:
    """Whether this process has to start ranks. Raises VarlabError if the ranks already started are not as many as asked for."""
    local, nodes = requested_ranks(config)
    started = started_ranks()
    if started is not None and started > 1 and started != local * nodes:
        raise VarlabError(
            f"{started} processes were started, but trainer.num_nodes={nodes} and trainer.devices={local} ask for "
            f"{nodes * local}: start as many as these two ask for (if nothing else was started, unset SLURM_STEP_NUM_TASKS and "
            "TORCHELASTIC_RUN_ID)."
        )
    return started is None and local * nodes > 1


def worker_count(setting: object, *, jobs: int) -> int:
    """Worker processes for a number of jobs: ``auto`` is one a core, and 0 (work in this process) where one would do."""
    if setting == "auto":
        return 0 if jobs < 2 or cores() < 2 else min(jobs, cores())
    if not isinstance(setting, int) or setting < 0:
        raise VarlabError(f"workers={setting} must be auto or a whole number (0 works in this process).")
    return setting


def import_from(folders: Sequence[str]) -> None:
    """Let this process import from these folders, too, after those that it knows."""
    sys.path += [folder for folder in folders if folder not in sys.path]
