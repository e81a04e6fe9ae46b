"""A sweep of six jobs, each of two ranks on each of two nodes, to which everything happens that happens on a cluster."""

from __future__ import annotations

import csv
import re
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests import small
from tests.slurm.conftest import LAUNCH, TRAINING, Cluster, until

SEEDS = range(6)
# Seeds; whatever runs when a higher partition wants the nodes is preempted. An array's last job has the array's own number.
FAILS, CANCELLED, ON_TIME = 1, 2, 5
IMAGES = 9600
SWEEP = (*TRAINING, f"budget.images={IMAGES}", "checkpoint.every=1000000", "log.every=640")
EVERYWHERE = ("trainer.num_nodes=2", "out=sweep", "seed=" + ",".join(map(str, SEEDS)))
PATIENCE = 2000.0  # ends a test that hangs; the slower the processor and the fuller the machine, the longer it takes

pytestmark = pytest.mark.slurm


def run_of(seed: int) -> Path | None:
    return next((run for run in Path("sweep").glob(f"*seed={seed}+*") if (run / "run.json").exists()), None)


def reached(seed: int, images: int) -> bool:
    run = run_of(seed)
    return run is not None and small.progress(run) >= images


def states() -> dict[int, str]:
    return {seed: small.record(run)["outcome"]["state"] for seed in SEEDS if (run := run_of(seed)) is not None}


def spoil(seed: int) -> Path:
    """A run's directory is in the way of its own checkpoint. Returns what is to be removed."""
    name = next(Path("plan").glob(f"*seed={seed}+*")).name
    obstacle = Path("sweep") / name / "last.ckpt"
    obstacle.parent.mkdir(parents=True)
    obstacle.write_bytes(b"no checkpoint")
    return obstacle


def plan(cluster: Cluster) -> None:
    """The names of the directories, from the same sweep under another launcher; its runs fail at once."""
    log = Path("plan.log")
    words = (
        "train",
        "-m",
        *SWEEP,
        *EVERYWHERE,
        "out=plan",
        "data.batch=32",
        "trainer.devices=1",
        "trainer.num_nodes=1",
    )
    process = cluster.start(*words, "trainer.accelerator=none", log=log)
    assert process.wait(PATIENCE) == 1, log.read_text()


def preempt(cluster: Cluster) -> list[int]:
    """A job of a higher partition takes both nodes. Returns the seeds that it puts back into the queue."""
    running = [seed for seed in SEEDS if reached(seed, 32) and states()[seed] == "running"]
    words = ("sbatch", "--partition=high", "--nodes=2", "--ntasks-per-node=4", "--output=/dev/null", "--wrap=sleep 2")
    cluster.say(*words)
    return running


def test_everything_at_once(cluster: Cluster, place: Path, whole: Callable[..., Path]) -> None:
    plan(cluster)
    assert len(list(Path("plan").glob("*/run.json"))) == len(SEEDS)
    obstacle, log = spoil(FAILS), Path("sweep.log")
    process = cluster.start("train", "-m", *LAUNCH, *SWEEP, *EVERYWHERE, log=log)
    preempted = _disturb(cluster, process, log)
    assert process.wait(PATIENCE) == 1, log.read_text()
    said = log.read_text()
    assert f"2 of {len(SEEDS)} runs failed" in said and "last.ckpt" in said and "CANCELLED" in said
    ended = states()
    assert {seed for seed, state in ended.items() if state == "failed"} == {FAILS, CANCELLED}, ended
    check_table({seed: "failed" if seed in (FAILS, CANCELLED) else "finished" for seed in SEEDS}, preempted)
    for seed in set(SEEDS) - {FAILS, CANCELLED}:
        check(seed, whole, at_least={ON_TIME: 2}.get(seed, 1 if seed in preempted else 0))
    done = {seed: (run_of(seed) / "run.json").stat().st_mtime_ns for seed in set(SEEDS) - {FAILS, CANCELLED}}

    obstacle.unlink()
    again = cluster.start("train", "-m", *LAUNCH, *SWEEP, *EVERYWHERE, log=log)
    assert again.wait(PATIENCE) == 0, log.read_text()
    assert "2 jobs submitted" in log.read_text()
    assert set(states().values()) == {"finished"}
    check_table(dict.fromkeys(SEEDS, "finished"), preempted)
    assert done == {seed: (run_of(seed) / "run.json").stat().st_mtime_ns for seed in done}
    for seed in (FAILS, CANCELLED):
        check(seed, whole, at_least=0)


def sweep_rows() -> dict[int, dict[str, str]]:
    """The sweep's lines by seed."""
    with Path("sweep/sweep.csv").open() as file:
        return {int(re.search(r"seed=(\d)", line["overrides"])[1]): line for line in csv.DictReader(file)}


def check_table(wanted: dict[int, str], preempted: list[int]) -> None:
    """A line a job: how it ended and why, its number in Slurm, how often it was begun, what it cost."""
    lines = sweep_rows()
    assert {seed: line["state"] for seed, line in lines.items()} == wanted
    assert all(line["slurm_job"] and line["config_hash"] for line in lines.values())
    for line in lines.values():
        if line["state"] == "finished":
            assert (line["why"], line["images"]) == ("", str(IMAGES)) and line["score"].startswith("val_nll="), line
    if wanted[FAILS] == "failed":
        assert "last.ckpt" in lines[FAILS]["why"] and "CANCELLED" in lines[CANCELLED]["why"]
    assert int(lines[ON_TIME]["attempts"]) >= 3 and all(int(lines[seed]["attempts"]) >= 2 for seed in preempted)


def check(seed: int, whole: Callable[..., Path], *, at_least: int) -> None:
    """The bits of a run that was never stopped, no image trained twice, and so many stops on the way."""
    run = run_of(seed)
    assert run is not None
    reference = whole(*SWEEP, "trainer.devices=4", f"seed={seed}")
    assert small.weights(run) == small.weights(reference), seed
    assert small.lines(run) == small.lines(reference), seed
    resumes = small.record(run)["resumes"]
    assert len(resumes) >= at_least and all(resumed["repeated"] == 0 for resumed in resumes), (seed, resumes)


def _disturb(cluster: Cluster, process: subprocess.Popen[bytes], log: Path) -> list[int]:
    """Cancel one, ask one twice as its time limit does, preempt what runs once."""
    cancelled, asked, preempted = False, 0, None
    deadline = time.monotonic() + PATIENCE
    while process.poll() is None and not (cancelled and asked == 2 and preempted):
        assert time.monotonic() < deadline, log.read_text()
        if not cancelled and reached(CANCELLED, 320) and states()[CANCELLED] == "running":
            cluster.say("scancel", sweep_rows()[CANCELLED]["slurm_job"])
            cancelled = True
        due = asked < 2 and reached(ON_TIME, 1280 + 3200 * asked) and states()[ON_TIME] == "running"
        if due and len(small.record(run_of(ON_TIME))["resumes"]) == asked:
            cluster.say("scancel", "--signal=USR2", sweep_rows()[ON_TIME]["slurm_job"])
            asked += 1
        if not preempted and any(reached(seed, 640) and states()[seed] == "running" for seed in (0, 3, 4)):
            preempted = preempt(cluster)
        time.sleep(0.1)
    assert cancelled and asked == 2 and preempted, log.read_text()
    return [seed for seed in preempted if seed != CANCELLED]


def test_a_real_time_limit_twice(cluster: Cluster, place: Path, whole: Callable[..., Path]) -> None:
    """One minute is the least that Slurm knows; it warns early, and the run goes on behind the queue."""
    log, limits = Path("limit.log"), ("launch.minutes=1", "launch.warning=20")
    endless = tuple(word for word in SWEEP if not word.startswith("budget."))
    long = (*endless, "budget.images=1000000", "seed=9", "trainer.devices=1")
    process = cluster.start("train", "-m", "out=limit", *LAUNCH, *limits, *long, log=log)
    try:
        until(lambda: any(_resumes(run) >= 2 for run in Path("limit").glob("*")), PATIENCE, "two time limits")
    finally:
        process.terminate()
        cluster.say("scancel", "--user=root")
    (run,) = (file.parent for file in Path("limit").glob("*/run.json"))
    assert [resumed["repeated"] for resumed in small.record(run)["resumes"]] == [0, 0]


def _resumes(run: Path) -> int:
    try:
        return len(small.record(run)["resumes"])
    except (OSError, ValueError):
        return 0
