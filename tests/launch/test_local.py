"""Several processes for one run: they find each other, and none outlives the rest."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.conftest import ROOT
from varlab.errors import VarlabError
from varlab.json_file import read_json, write_sealed_json
from varlab.launch import environment, local_rank
from varlab.recipe.preflight.requested_ranks import requested_ranks
from varlab.run.record import Outcome, read_record

TWO = ("trainer.devices=2", "out=here")


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return Path(f"/proc/{pid}/stat").read_text().split()[2] != "Z"


def test_two_ranks_reduce(varlab, workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    left_over = {
        "RANK": "1",
        "WORLD_SIZE": "4",
        "MASTER_PORT": "",
        "NODE_RANK": "1",
        "GROUP_RANK": "x",
        "SLURM_NTASKS": "3",
    }
    for name, value in left_over.items():
        monkeypatch.setenv(name, value)
    code, _, err = varlab("fake", *TWO, "action=all_reduce")
    assert code == 0, err
    record = read_record(workplace / "here")
    assert record.outcome == Outcome("finished", values={"total": 3.0, "world": 2})
    assert record.auto["runs"] == 1, "only rank 0 writes"


def test_a_rank_that_refuses_ends_all_with_its_sentence(varlab, workplace: Path) -> None:
    start = time.monotonic()
    code, _, err = varlab("fake", *TWO, "action=rank_1_refuses")
    assert code == 1 and "rank 1 failed: rank one has had enough" in err
    assert time.monotonic() - start < 20
    assert read_record(workplace / "here").outcome.state == "failed"


def test_a_rank_that_dies_ends_all_with_its_last_words(varlab) -> None:
    start = time.monotonic()
    code, _, err = varlab("fake", *TWO, "action=rank_1_dies")
    assert code == 1 and "rank 1 was killed by SIGKILL" in err and "last words" in err
    assert time.monotonic() - start < 20


def test_killing_the_starter_leaves_no_rank(workplace: Path) -> None:
    arguments = ["fake", *TWO, "action=wait", "--config-dir", str(workplace.parent / "conf")]
    code = f"from tests.fake import COMMANDS; from varlab.cli.main import main; main({arguments!r}, COMMANDS)"
    starter = subprocess.Popen([sys.executable, "-c", code], env=os.environ | {"PYTHONPATH": str(ROOT)})
    files = [workplace / "here" / f"pid{rank}" for rank in (0, 1)]
    until(lambda: all(file.exists() and file.read_text() for file in files))
    starter.send_signal(signal.SIGKILL)
    starter.wait()
    pids = [int(file.read_text()) for file in files]
    until(lambda: not any(map(alive, pids)))


def until(condition) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.05)


@pytest.mark.parametrize(
    ("trainer", "asked"),
    [
        (None, (1, 1)),
        ({"devices": 3}, (3, 1)),
        ({"devices": [0, 2], "num_nodes": 2}, (2, 2)),
        ({"devices": "auto", "accelerator": "cpu"}, (1, 1)),
    ],
)
def test_how_many_are_asked_for(trainer: dict | None, asked: tuple[int, int]) -> None:
    assert requested_ranks({"trainer": trainer}) == asked


def test_ranks_that_others_started_are_used(monkeypatch: pytest.MonkeyPatch) -> None:
    config = {"trainer": {"devices": 2, "num_nodes": 2}}
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "4")
    monkeypatch.setenv("SLURM_PROCID", "3")
    monkeypatch.setenv("SLURM_TASK_PID", str(os.getpid()))
    assert environment.started_ranks() == 4 and environment.global_rank() == 3 and not environment.needs_ranks(config)
    with pytest.raises(VarlabError, match="4 processes were started"):
        environment.needs_ranks({"trainer": {"devices": 2}})


def test_a_batch_script_is_no_rank(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_NTASKS", "2")
    monkeypatch.setenv("SLURM_PROCID", "0")
    assert environment.started_ranks() is None and environment.global_rank() == 0
    assert environment.needs_ranks({"trainer": {"devices": 2}})


def test_a_damaged_job_of_a_rank_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    job = tmp_path / "job0.json"
    write_sealed_json(job, {"module": "tests.fake", "directory": str(tmp_path), "imports": [], "config": {"seed": 1}})
    job.write_text(job.read_text().replace('"seed": 1', '"seed": 3'))
    for name, value in (("_end_with_starter", lambda pipe: None), ("exit_now", sys.exit), ("global_rank", lambda: 0)):
        monkeypatch.setattr(local_rank, name, value)
    with pytest.raises(SystemExit):
        local_rank.main(str(job), "0")
    assert f"{job} is damaged, or was edited" in read_json(tmp_path / "0.error")["error"]
