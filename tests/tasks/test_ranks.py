"""Two processes train as one: equal weights on both, and those of a single process up to rounding."""

from __future__ import annotations

import json
import os
import runpy
import socket
import sys
import tempfile
from pathlib import Path

import pytest
import torch
import two_ranks
from safetensors.torch import load_file
from tiny_tasks import train

from tests.bounds import SAME, float64
from tests.small import fork_server

pytestmark = pytest.mark.numeric

FOLDER, ROOT = Path(__file__).parent, Path(__file__).parents[2]


def start(script: Path, world: int, *arguments: str) -> None:
    """Run a script once per rank, to its end."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(world), "NODE_RANK": "0"}
    with tempfile.TemporaryDirectory() as logs:
        processes = [
            fork_server().Process(
                target=_rank, args=(script, arguments, f"{logs}/{r}", {**shared, "LOCAL_RANK": str(r)})
            )
            for r in range(world)
        ]
        for process in processes:
            process.start()
        try:
            for rank, process in enumerate(processes):
                process.join(600)
                assert process.exitcode == 0, Path(logs, str(rank)).read_text()
        finally:
            for process in processes:
                process.kill()


def _rank(script: Path, arguments: tuple[str, ...], log: str, environment: dict[str, str]) -> None:
    """A script as ``python SCRIPT ARGUMENTS`` runs it; what it writes goes to the log."""
    os.environ.update(environment)
    said = os.open(log, os.O_WRONLY | os.O_CREAT)
    os.dup2(said, 1)
    os.dup2(said, 2)
    sys.argv, sys.path[:0] = [str(script), *arguments], [str(FOLDER), str(ROOT)]
    runpy.run_path(str(script), run_name="__main__")


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("two")
    start(FOLDER / "two_ranks.py", 2, str(folder), "2")
    return folder


@pytest.mark.parametrize("name", two_ranks.NAMES)
def test_two_ranks_equal_one(name: str, two: Path, tmp_path: Path) -> None:
    with float64():  # where a rounding cannot turn an optimizer's step around
        train(two_ranks.task(name), tmp_path, images=32)
    ranks = [json.loads((two / name / f"rank{r}.json").read_text()) for r in range(2)]
    assert ranks[0] == ranks[1] and ranks[0]["world"] == 2
    ones, twos = (load_file(folder / "weights.safetensors") for folder in (tmp_path, two / name))
    for tensor in ones:
        torch.testing.assert_close(ones[tensor], twos[tensor], atol=SAME, rtol=SAME)
    lines = [(folder / "metrics.jsonl").read_text().splitlines() for folder in (tmp_path, two / name)]
    assert len(lines[0]) == len(lines[1])
    for a, b in zip(*(map(json.loads, part) for part in lines), strict=True):
        for key in a.keys() - {"seconds", "train/images_per_second", "train/eta_seconds"}:
            assert b[key] == pytest.approx(a[key], rel=SAME, abs=SAME), key
