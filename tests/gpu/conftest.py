"""What tests of a GPU share: the device, float32 that is float32, and one table of all that they measured.

``VARLAB_GPU_CHECK_DEVICE=cpu`` runs them on the CPU, to see that they run.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator

os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read by cuBLAS once: without it its sums may differ

import pytest
import torch

DEVICE = os.environ.get("VARLAB_GPU_CHECK_DEVICE", "cuda")
_ROWS = pytest.StashKey[list[tuple[str, ...]]]()
_HEAD = ("what", "CPU", DEVICE.upper() if DEVICE != "cuda" else "GPU", "farthest", "bound", "seconds")
Row = Callable[..., None]


@pytest.fixture(scope="session", autouse=True)
def float32() -> Iterator[None]:
    """Skip without the device; products in float32 do not use TF32."""
    if DEVICE == "cuda" and not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    convolutions = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False  # of matrix products it is off by default
    yield
    torch.backends.cudnn.allow_tf32 = convolutions


@pytest.fixture
def row(pytestconfig: pytest.Config) -> Row:
    """``row(what, cpu, gpu, farthest, bound)`` adds to the table; the seconds are those since the last row of the test."""
    rows, began = pytestconfig.stash.setdefault(_ROWS, []), [time.perf_counter()]

    def add(what: str, cpu: object = "", gpu: object = "", farthest: object = "", bound: object = "") -> None:
        now = time.perf_counter()
        cells = [f"{cell:.4g}" if isinstance(cell, float) else str(cell) for cell in (cpu, gpu, farthest, bound)]
        rows.append((what, *cells, f"{now - began[0]:.1f}"))
        began[0] = now

    return add


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Print the table."""
    rows = [_HEAD, *config.stash.get(_ROWS, [])]
    if len(rows) == 1:
        return
    name = torch.cuda.get_device_name() if DEVICE == "cuda" else DEVICE
    terminalreporter.section(f"figures of {name}, torch {torch.__version__}")
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for cells in rows:
        terminalreporter.write_line("  ".join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True)))
