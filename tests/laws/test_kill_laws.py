"""Law 8, at length: twenty random kill -9, in one process and two, with and without loader workers, in and between epochs."""

from __future__ import annotations

import functools
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests import small
from varlab.cli.main import main
from varlab.rng import Rng

ROOT = Path(__file__).resolve().parents[2]
EPOCH, BATCH, EVERY = 1438, 32, 160
IMAGES = 3008  # two epochs and a bit
TRAINING = (
    *small.GENERATOR,
    "order=next_scale",
    f"budget.images={IMAGES}",
    f"checkpoint.every={EVERY}",
    "log.every=320",
    "val.every=1000",
    "data.cache_bytes=0",  # every image is read each time
    "data.augment.flip=true",
    "data.augment.noise=2.0",
    "pictures.every=null",
)
SETTINGS = [(1, 0), (1, 2), (2, 0), (2, 2)]  # ranks, workers
KILLS = 5  # of each setting: one at the end of the first epoch, one at the end of the second, the others anywhere


def command(run: Path, ranks: int, workers: int) -> list[str]:
    spread = ("trainer=ddp", f"trainer.devices={ranks}") if ranks > 1 else ()
    return ["train", f"out={run}", *TRAINING, *spread, f"data.workers={workers}"]


def moment(ranks: int, workers: int, kill: int) -> int:
    """Images after which the kill comes."""
    if kill < 2:
        return (kill + 1) * EPOCH // BATCH * BATCH
    return int(Rng(100 * ranks + 10 * workers).stream("kill", kill).integers(IMAGES - BATCH))


def start(arguments: list[str], log: Path) -> subprocess.Popen[bytes]:
    """As from a shell."""
    with log.open("a") as said:
        environment = os.environ | {"PYTHONPATH": str(ROOT)}
        return subprocess.Popen([sys.executable, "-m", "varlab.cli.main", *arguments], stderr=said, env=environment)


def below(pid: int) -> list[int]:
    """All processes that a process has started, and those that they have."""
    found = []
    for task in Path(f"/proc/{pid}/task").glob("*"):
        for child in map(int, (task / "children").read_text().split()):
            found += [child, *below(child)]
    return found


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.fixture(scope="module")
def whole(world_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], Path]:
    """ranks → a run of so many that was never stopped."""

    @functools.cache
    def run(ranks: int) -> Path:
        out = tmp_path_factory.mktemp("whole") / str(ranks)
        with small.inside(world_folder):
            assert main(command(out, ranks, 0)) == 0
        return out

    return run


@pytest.mark.slow
@pytest.mark.parametrize("kill", range(KILLS))
@pytest.mark.parametrize(("ranks", "workers"), SETTINGS)
def test_a_random_kill_changes_nothing(
    ranks: int, workers: int, kill: int, whole: Callable[[int], Path], lab: Path, tmp_path: Path
) -> None:
    run, log, when = tmp_path / "run", tmp_path / "log", moment(ranks, workers, kill)
    first = start(command(run, ranks, workers), log)
    while small.progress(run) < when:
        assert first.poll() is None, log.read_text()
        time.sleep(0.001)
    time.sleep(0.02 * float(Rng(kill).stream("jitter", ranks * 10 + workers).uniform()))
    family = [first.pid, *below(first.pid)]
    victim = (
        family[int(Rng(kill).stream("victim", ranks * 10 + workers).integers(len(family)))] if kill > 2 else first.pid
    )
    os.kill(victim, signal.SIGKILL)
    first.wait(60)
    patience = time.monotonic() + 60
    while any(map(alive, family)):
        assert time.monotonic() < patience, "a process outlived the kill"
        time.sleep(0.1)
    done = small.progress(run)
    assert start(command(run, ranks, workers), log).wait(600) == 0, log.read_text()
    reference = whole(ranks)
    assert small.weights(run) == small.weights(reference)
    assert small.lines(run) == small.lines(reference)
    for resumed in small.record(run)["resumes"]:
        assert resumed["repeated"] <= EVERY and resumed["from"] + resumed["repeated"] <= done + BATCH
