"""A run of which processes are killed, and whose nodes are lost, again and again: it goes on, and ends with the same bits."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests import small
from tests.slurm.conftest import LAUNCH, TRAINING, Cluster, until
from varlab.rng import Rng

KILLS = int(os.environ.get("VARLAB_SLURM_KILLS", "10"))
HANG = 60.0  # seconds, of nothing happening
STEP = 32
EVERY = 320
IMAGES = STEP * 400
LONG = (*TRAINING, f"budget.images={IMAGES}", f"checkpoint.every={EVERY}", "log.every=640", "seed=3")

pytestmark = pytest.mark.slurm


@contextlib.contextmanager
def job(cluster: Cluster, name: str, *more: str) -> Iterator[tuple[Path, subprocess.Popen[bytes], Path]]:
    """(run directory, the submitting process, its log) of one job."""
    log = Path(f"{name}.log")
    process = cluster.start("train", "-m", f"out={name}", *LAUNCH, "launch.max_attempts=30", *LONG, *more, log=log)
    try:
        until(lambda: process.poll() is not None or any(Path(name).glob("*/progress")), 2 * HANG, f"{name} begins")
        (run,) = (file.parent for file in Path(name).glob("*/progress"))
        yield run, process, log
    finally:
        process.kill()
        cluster.say("scancel", "--user=root")


def advance(run: Path, process: subprocess.Popen[bytes], images: int, log: Path) -> float:
    """Wait until so many images are passed. The longest time in which none were."""
    longest, mark, seen = 0.0, time.monotonic(), small.progress(run)
    while process.poll() is None and seen < images:
        now = small.progress(run)
        if now != seen:
            longest, mark, seen = max(longest, time.monotonic() - mark), time.monotonic(), now
        assert time.monotonic() - mark < 3 * HANG, f"nothing happens:\n{log.read_text()}"
        time.sleep(0.02)
    return longest


def finished(process: subprocess.Popen[bytes], run: Path, whole: Path, log: Path) -> None:
    assert process.wait(4 * HANG) == 0, log.read_text()
    assert small.weights(run) == small.weights(whole)
    assert small.lines(run) == small.lines(whole)
    assert all(resumed["repeated"] <= EVERY for resumed in small.record(run)["resumes"])


def moments(name: str) -> list[int]:
    """Images after which something is done to the run: anywhere, one after the other."""
    drawn = [int(Rng(7).stream(name, kill).integers(IMAGES // KILLS - EVERY)) for kill in range(KILLS)]
    return [STEP + kill * IMAGES // KILLS + moment for kill, moment in enumerate(drawn)]


@pytest.mark.parametrize("nodes", [2], ids=["two nodes"])
def test_ranks_killed(nodes: int, cluster: Cluster, place: Path, whole: Callable[..., Path]) -> None:
    spread = (f"trainer.num_nodes={nodes}", f"trainer.devices={2 // nodes}")
    waits = []
    with job(cluster, "killed", *spread) as (run, process, log):
        for kill, moment in enumerate(moments("killed")):
            waits.append(advance(run, process, moment, log))
            until(lambda: len(cluster.ranks_of(cluster.job_of(run))) == 2, HANG, f"two ranks: {log.read_text()}")
            ranks = cluster.ranks_of(cluster.job_of(run))
            os.kill(ranks[int(Rng(kill).stream("victim").integers(2))], signal.SIGKILL)
            until(lambda ranks=ranks: not any(map(alive, ranks)), HANG, "all ranks are gone")
        finished(process, run, whole(*LONG, "trainer.devices=2"), log)
    record = small.record(run)
    assert len(record["resumes"]) == KILLS
    print(f"{KILLS} ranks killed; the longest silence was {max(waits):.1f} s")


def test_daemons_killed(cluster: Cluster, place: Path, whole: Callable[..., Path]) -> None:
    """Brought back before Slurm takes the node for lost, or after."""
    waits = []
    with job(cluster, "lost", "trainer.num_nodes=2", "trainer.devices=1") as (run, process, log):
        for kill, moment in enumerate(moments("lost")):
            waits.append(advance(run, process, moment, log))
            node = f"n{1 + int(Rng(kill).stream('node').integers(2))}"
            cluster.control("kill", node)
            time.sleep(5 + 30 * float(Rng(kill).stream("pause").uniform()))
            cluster.control("node", node)
        finished(process, run, whole(*LONG, "trainer.devices=2"), log)
    print(f"{KILLS} daemons killed; {len(small.record(run)['resumes'])} attempts; longest silence {max(waits):.1f} s")


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
