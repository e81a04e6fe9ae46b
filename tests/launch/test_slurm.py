"""``launch=slurm`` with scripts in place of Slurm's commands: the batch script runs where it is submitted."""

from __future__ import annotations

import csv
import os
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.launch.test_sweep import assert_each_job_ran_once, start_twice
from varlab.run.record import read_record

SBATCH = r"""
for given; do :; done
script=$(mktemp "$QUEUE/../script.XXXX") && cp "$given" "$script" # as Slurm does: the file given may be gone at any time
last=$(sed -n 's/^#SBATCH --array=0-\([0-9]*\).*/\1/p' "$script")
export SLURM_JOB_ID=12 SLURM_NTASKS=1 SLURM_JOB_NUM_NODES=1 SLURM_NODEID=0 SLURM_JOB_NODELIST=here
for task in $(seq 0 "${last:-0}"); do
  test -n "$last" && export SLURM_ARRAY_JOB_ID=12 SLURM_ARRAY_TASK_ID=$task SLURM_JOB_ID=$((12 + task))
  name=12_${last:+$task}
  touch "$QUEUE/$name"
  (bash "$script"; rm "$QUEUE/$name") >"$QUEUE/../log$task" 2>&1 &
done
echo "Submitted batch job 12"
"""
SRUN = r"""
while [[ $1 != *python* ]]; do shift; done
SLURM_PROCID=0 SLURM_LOCALID=0 exec "$@"
"""
SQUEUE = r"""
for name in $(ls "$QUEUE"); do echo "${name/%_/_N/A} RUNNING"; done
"""
COMMANDS = {"sbatch": SBATCH, "srun": SRUN, "squeue": SQUEUE, "scontrol": 'echo "JobState=RUNNING Restarts=0"'}
LAUNCH = ("launch=slurm", "launch.poll=0.1", "launch.cpus=1")


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Scripts on PATH that answer as Slurm's commands do."""
    pytest.importorskip("hydra_plugins.hydra_submitit_launcher")
    for name, text in COMMANDS.items():
        file = tmp_path / "bin" / name
        file.parent.mkdir(exist_ok=True)
        file.write_text(f"#!/bin/bash\n{text}")
        file.chmod(0o755)
    (tmp_path / "queue").mkdir()
    monkeypatch.setenv("QUEUE", str(tmp_path / "queue"))
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")


def test_a_sweep_returns_every_result(
    slurm: None, varlab: Callable[..., tuple[int, str, str]], workplace: Path
) -> None:
    code, _, err = varlab("fake", "-m", "action=work,refuse", "out=many", *LAUNCH)
    assert code == 1 and "1 of 2 runs failed" in err and "this cannot be done" in err
    record = read_record(workplace / "many" / "action=work")
    assert record.outcome.finished and record.slurm["attempts"] == 1 and record.slurm_job == "12_0"
    assert Path(record.code["snapshot"]).parent == workplace / "many" / ".code"
    with (workplace / "many" / "sweep.csv").open() as file:
        rows = {row["path"]: row for row in csv.DictReader(file)}
    assert rows["action=work"]["state"] == "finished" and rows["action=refuse"]["slurm_job"] == "12_1"


def test_jobs_that_cannot_begin_are_not_submitted(
    slurm: None, varlab: Callable[..., tuple[int, str, str]], workplace: Path
) -> None:
    (workplace.parent / "bin" / "sbatch").write_text("#!/bin/bash\nexit 1\n")
    code, _, err = varlab("fake", "-m", "action=work,never", "out=many", *LAUNCH)
    assert code == 1 and "1 of 2 runs cannot begin, so none was started" in err and "Slurm refuses" not in err
    assert not list(workplace.iterdir())


def test_the_same_sweep_twice_at_once(slurm: None, workplace: Path) -> None:
    """Its jobs are submitted once: the other sweep finds them in the queue, and waits for them, too."""
    sbatch = workplace.parent / "bin" / "sbatch"
    sbatch.write_text(f'#!/bin/bash\necho submitted >> "$QUEUE/../submissions"\nsleep 1{SBATCH}')
    said = sorted(start_twice(workplace, *LAUNCH), key=lambda text: "in the queue" in text)
    assert "2 jobs submitted: 12_0, 12_1" in said[0] and "2 jobs are in the queue already: 12_0, 12_1" in said[1]
    assert (workplace.parent / "submissions").read_text() == "submitted\n"
    assert_each_job_ran_once()


def test_the_same_failing_sweep_twice_at_once(slurm: None, workplace: Path) -> None:
    """Also the one that waits ends by what became of the jobs, and says why; nothing lies outside of its folder."""
    sbatch = workplace.parent / "bin" / "sbatch"
    sbatch.write_text(f"#!/bin/bash\nsleep 1{SBATCH}")
    said = sorted(
        start_twice(workplace, "action=slow_refuse", *LAUNCH, code=1), key=lambda text: "in the queue" in text
    )
    assert "2 jobs submitted: 12_0, 12_1" in said[0] and "2 jobs are in the queue already: 12_0, 12_1" in said[1]
    for text in said:
        assert "2 of 2 runs failed" in text and text.count("this cannot be done: do something else") == 1
    assert [path.name for path in workplace.iterdir()] == ["both"]


def test_a_lost_job_leaves_its_reason(
    slurm: None, varlab: Callable[..., tuple[int, str, str]], workplace: Path
) -> None:
    (workplace.parent / "bin" / "srun").write_text("#!/bin/bash\nexit 1\n")
    code, _, err = varlab("fake", "-m", "action=work", "out=many", *LAUNCH)
    assert code == 1 and re.search(r"Slurm job 12 ended as \w+; its log is .*12_0_log.out", err)


def test_names_that_a_shell_would_split(
    slurm: None, varlab: Callable[..., tuple[int, str, str]], workplace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The current folder, ``out`` and ``--config-dir``; from the shell of another job, whose settings are not inherited."""
    monkeypatch.setenv("SLURM_JOB_ID", "5")
    monkeypatch.setenv("SLURM_MEM_PER_CPU", "7")
    sbatch = workplace.parent / "bin" / "sbatch"
    sbatch.write_text(f'#!/bin/bash\nenv > "$QUEUE/../environment"\n{SBATCH}')
    place = workplace / "it's $HOME; & #1"
    place.mkdir()
    monkeypatch.chdir(place)
    code, _, err = varlab("fake", "-m", "action=work", "out='my runs (1)'", *LAUNCH)
    assert code == 0, err
    assert read_record(place / "my runs (1)" / "action=work").outcome.finished
    assert not re.search("^SLURM_", (workplace.parent / "environment").read_text(), re.MULTILINE)
    assert os.environ["SLURM_MEM_PER_CPU"] == "7"


def test_names_that_slurm_would_replace(slurm: None, varlab: Callable[..., tuple[int, str, str]]) -> None:
    code, _, err = varlab("fake", "-m", "action=work", "out='50%j'", *LAUNCH)
    assert code == 1 and "must not contain '%'. Take another out=" in err
