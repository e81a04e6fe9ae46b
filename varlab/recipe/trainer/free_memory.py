"""The memory that a training can still have: of its device, of the machine, within the limit of a container or a job."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import torch

from varlab.config import Config

_MEMINFO, _CGROUP, _CGROUPS = Path("/proc/meminfo"), Path("/proc/self/cgroup"), Path("/sys/fs/cgroup")


def free_bytes(trainer: Config) -> int:
    """The memory that is free now on the device of a training. trainer: ``conf/trainer``."""
    if trainer["accelerator"] != "cpu" and torch.cuda.is_available():
        return torch.cuda.mem_get_info()[0]
    return host_free_bytes()


def host_free_bytes() -> int:
    """The main memory that this process can still have; where the system does not say, all that the machine has."""
    try:
        free = _number(_MEMINFO, "MemAvailable:") * 1024
    except OSError:  # not Linux
        free = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return max(min([free, *_left_in_limits()]), 0)


def _left_in_limits() -> Iterator[int]:
    """What is left in the control group of this process and in those around it (cgroup v2), where they have a limit."""
    try:
        lines = _CGROUP.read_text().splitlines()
    except OSError:
        return
    own = next((line.removeprefix("0::").strip("/") for line in lines if line.startswith("0::")), "")
    for place in (Path(own), *Path(own).parents):
        try:
            limit, used = ((_CGROUPS / place / name).read_text().strip() for name in ("memory.max", "memory.current"))
            if limit != "max":  # cached files give way
                yield int(limit) - int(used) + _number(_CGROUPS / place / "memory.stat", "inactive_file")
        except (OSError, ValueError):
            continue


def _number(file: Path, name: str) -> int:
    """The number after a name at the beginning of a line; 0 if there is none."""
    rows = (line.split() for line in file.read_text().splitlines())
    return next((int(row[1]) for row in rows if row and row[0] == name), 0)
