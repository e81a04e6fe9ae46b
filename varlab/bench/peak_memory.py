"""The most memory that a piece of work held at once."""

from __future__ import annotations

import resource
import sys
from contextlib import suppress
from pathlib import Path

import torch

__all__ = ["held", "peak", "reset_peak"]


def reset_peak(device: torch.device) -> None:
    """Begin a new peak. Where the system cannot (outside Linux), the peak is that of the whole process."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def peak(device: torch.device) -> int:
    """Bytes: of tensors on a GPU, of the process with its libraries on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def held(device: torch.device) -> int:
    """Bytes that are held now, as ``peak`` counts them."""
    if device.type == "cuda":
        return torch.cuda.memory_allocated(device)
    with suppress(OSError):
        return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
    return peak(device)
