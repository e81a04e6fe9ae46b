"""What a command sets in its own process."""

from __future__ import annotations

import mmap
import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT

COMMAND = """
import resource

SIZE = 1 << 26  # more than glibc ever keeps by itself


def run(config, directory):
    b"x" * SIZE
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    b"x" * SIZE
    print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""
GLIBC = platform.libc_ver()


def pages_fetched(folder: Path, environment: dict[str, str]) -> int:
    """Pages that the system clears for a large block of memory when a command allocates it for the second time."""
    (folder / "one_command.py").write_text(COMMAND)
    program = "from varlab.launch.job import execute; execute('one_command', {}, None)"
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC_", "LD_PRE"))}
    paths = {"PYTHONPATH": f"{folder}{os.pathsep}{ROOT}"}
    done = subprocess.run(
        [sys.executable, "-c", program], env=kept | paths | environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return int(done.stdout)


@pytest.mark.skipif(GLIBC[0] != "glibc" or tuple(map(int, GLIBC[1].split("."))) < (2, 35), reason="it is glibc's")
def test_a_command_uses_freed_memory_again_unless_the_user_decides(tmp_path: Path) -> None:
    whole = (1 << 26) // mmap.PAGESIZE
    assert pages_fetched(tmp_path, {}) < whole / 100
    assert pages_fetched(tmp_path, {"MALLOC_ARENA_MAX": "4"}) > whole / 2
