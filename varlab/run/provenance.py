"""The provenance of a run: code, versions, hardware. Asks git and the operating system; never imports torch."""

from __future__ import annotations

import contextlib
import importlib.metadata
import os
import platform
import shlex
import subprocess
import sys
from pathlib import Path

import varlab
from varlab.config import Config
from varlab.files import sha256
from varlab.json_file import read_json

__all__ = ["BRIEF", "code", "command_line", "cores", "hardware", "slurm_job", "versions"]

BRIEF = "--brief"  # leaves lines out of what a command says, and is no part of what it does
CODE = "code.json"  # in a copy of the code: where the copy came from
DIFF_LIMIT = 1_000_000  # characters of uncommitted changes kept in run.json
_PACKAGES = (
    "torch",
    "lightning",
    "torchmetrics",
    "torch-fidelity",
    "torchvision",
    "hydra-core",
    "omegaconf",
    "webdataset",
    "numpy",
    "scipy",
    "scikit-learn",
    "scikit-image",
    "pillow",
    "safetensors",
)


def slurm_job() -> str | None:
    """The Slurm job of this process in squeue's notation (``12_3`` in an array); None outside Slurm."""
    array, number = os.environ.get("SLURM_ARRAY_JOB_ID"), os.environ.get("SLURM_ARRAY_TASK_ID")
    return f"{array}_{number}" if array and number else os.environ.get("SLURM_JOB_ID")


def code(package: Path | None = None) -> Config:
    """The version, commit, uncommitted diff and untracked files (name → hash) of the code that runs.

    commit and diff are None outside a git checkout of varlab. In the copy that a sweep runs from: those of the code that
    was copied, and ``snapshot``, the copy's folder.
    """
    package = package or Path(varlab.__file__).parent
    if (package.parent / CODE).is_file():
        copied: Config = read_json(package.parent / CODE)
        return copied | {"snapshot": str(package.parent)}
    record: Config = {"version": varlab.__version__, "commit": None, "diff": None, "untracked": {}}
    root = package.parent
    if not _git(root, "ls-files", "--", package.name):
        # varlab is installed, or lies in another project's repository
        return record
    diff = _git(root, "diff", "HEAD") or ""
    if len(diff) > DIFF_LIMIT:
        diff = f"{diff[:DIFF_LIMIT]}\n… cut after {DIFF_LIMIT} characters\n"
    untracked = (_git(root, "ls-files", "--others", "--exclude-standard") or "").splitlines()
    record["commit"] = (_git(root, "rev-parse", "HEAD") or "").strip() or None
    record["diff"] = diff
    files = {name: root / name for name in untracked if name.endswith((".py", ".yaml"))}
    record["untracked"] = {name: sha256(file)[:12] for name, file in files.items() if file.is_file()}
    return record


def _git(root: Path, *arguments: str) -> str | None:
    """The output of a git command; None if it fails (no git, no repository, no commit)."""
    try:
        done = subprocess.run(["git", "-C", str(root), *arguments], capture_output=True, timeout=30, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.decode(errors="replace")


def versions() -> dict[str, str]:
    """The versions of Python and of the installed packages on which results can depend."""
    result = {"python": platform.python_version()}
    for package in _PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            result[package] = importlib.metadata.version(package)
    return result


def hardware() -> Config:
    """Processor, cores, memory; also threads and GPUs if torch is imported already."""
    record: Config = {
        "host": platform.node(),
        "system": platform.platform(),
        "cpu": _cpu_model(),
        "cores": cores(),
        "memory_gib": _memory_gib(),
    }
    torch = sys.modules.get("torch")
    if torch is not None:
        record["threads"] = torch.get_num_threads()
        record["gpus"] = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return record


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _cpu_model() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text(errors="replace").splitlines() if info.exists() else []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or platform.machine())


def _memory_gib() -> float | None:
    try:
        return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1)
    except (ValueError, OSError, AttributeError):
        return None


def command_line() -> str:
    """This process's command, quoted for a shell, without ``--brief``."""
    return shlex.join([Path(sys.argv[0]).name, *(word for word in sys.argv[1:] if word != BRIEF)])
