"""``make numerics``: the numeric tests under every instruction set of this processor, thread count and version of torch.

python tests/numerics.py PYTHON… [-- ARGUMENTS OF PYTEST]: one row a configuration, as many at once as there are cores for
their threads; exit code 1 if a test failed in one.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

THREADS = ("1", "2")
# name: flag of the processor that it needs; what ATen, oneDNN, MKL and NumPy's OpenBLAS are held to
INSTRUCTIONS: dict[str, tuple[str, tuple[str, str, str, str]]] = {
    "SSE4.1": ("sse4_1", ("default", "SSE41", "COMPATIBLE", "Nehalem")),
    "AVX": ("avx", ("default", "AVX", "AVX", "Sandybridge")),
    "AVX2": ("avx2", ("avx2", "AVX2", "AVX2", "Haswell")),
    "AVX512": ("avx512bw", ("avx512", "AVX512_CORE", "AVX512", "SkylakeX")),
    "AVX512-BF16": ("avx512_bf16", ("avx512", "AVX512_CORE_BF16", "AVX512_E1", "Cooperlake")),
    "AMX": ("amx_tile", ("avx512", "AVX512_CORE_AMX", "AVX512_E4", "SapphireRapids")),
}
VARIABLES = ("ATEN_CPU_CAPABILITY", "ONEDNN_MAX_CPU_ISA", "MKL_CBWR", "OPENBLAS_CORETYPE")


def instructions() -> Iterator[tuple[str, dict[str, str]]]:
    """(name, environment): what the libraries choose themselves, then each set that this processor has."""
    yield "own choice", {}
    flags = set(re.findall(r"\w+", Path("/proc/cpuinfo").read_text()))
    for name, (flag, values) in INSTRUCTIONS.items():
        if flag in flags:
            yield name, dict(zip(VARIABLES, values, strict=True))


def run(python: str, environment: dict[str, str], arguments: list[str]) -> tuple[int, int, bool]:
    """Tests that passed and failed, and whether all is well."""
    command = [python, "-m", "pytest", "-q", "-m", "numeric and not slow", *arguments]
    clean = {key: value for key, value in os.environ.items() if key not in VARIABLES}
    done = subprocess.run(command, env=clean | environment, capture_output=True, text=True)
    last = done.stdout.strip().splitlines()[-1:] or [done.stderr[-500:]]
    passed, failed, errors = (
        sum(map(int, re.findall(rf"(\d+) {word}", last[0]))) for word in ("passed", "failed", "error")
    )
    for line in done.stdout.splitlines():
        if line.startswith(("FAILED", "ERROR")):
            print(line, file=sys.stderr)
    return passed, failed + errors, done.returncode == 0 and passed > 0


def row(python: str, name: str, environment: dict[str, str], threads: str, arguments: list[str]) -> bool:
    """Run one configuration and print its row; returns whether all is well."""
    version = "import torch; print(torch.__version__)"
    torch = subprocess.run([python, "-c", version], capture_output=True, text=True, check=True).stdout.strip()
    counted = {"OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads, "OMP_WAIT_POLICY": "PASSIVE"}
    start = time.monotonic()
    passed, failed, fine = run(python, environment | counted, arguments)
    seconds = time.monotonic() - start
    print(f"{torch:16} {name:13} {threads:>7} {passed:>7} {failed:>7} {seconds:>8.0f}", flush=True)
    return fine


def main(arguments: list[str]) -> int:
    """Run and print the table."""
    pythons, _, rest = (" ".join(arguments)).partition(" -- ")
    cores, well = len(os.sched_getaffinity(0)), True
    print(f"{'torch':16} {'instructions':13} {'threads':>7} {'passed':>7} {'failed':>7} {'seconds':>8}", flush=True)
    for threads in THREADS:
        with ThreadPoolExecutor(max(1, cores // int(threads))) as pool:
            rows = [
                pool.submit(row, python, name, environment, threads, rest.split())
                for python in pythons.split()
                for name, environment in instructions()
            ]
        well &= all(one.result() for one in rows)
    return 0 if well else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
