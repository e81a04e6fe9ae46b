"""Between submission and start: the code may be edited, and the process that submitted may go away."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tests import small
from tests.slurm.conftest import LAUNCH, ROOT, TRAINING, Cluster, until

SHORT = (*TRAINING, "budget.images=640", "trainer.devices=1")

pytestmark = pytest.mark.slurm


def release(cluster: Cluster) -> None:
    """Let held jobs run."""
    jobs = cluster.say("squeue", "--noheader", "--array", "--format=%A").split()
    cluster.say("scontrol", "release", *jobs)


def held(cluster: Cluster) -> bool:
    return "JobHeldUser" in cluster.say("squeue", "--noheader", "--format=%r")


def test_source_edited_after_submission(
    cluster: Cluster, place: Path, whole: Callable[..., Path], tmp_path: Path
) -> None:
    """A queued job runs the code and the configuration that were submitted, and says which."""
    checkout, log = tmp_path / "checkout", Path("edited.log")
    for part in ("varlab", "conf", "hydra_plugins"):
        shutil.copytree(ROOT / part, checkout / part, ignore=shutil.ignore_patterns("__pycache__"))
    words = ("train", "-m", "out=edited", *LAUNCH, "+launch.sbatch.hold=true", *SHORT, "seed=5")
    process = cluster.start(*words, log=log, code=checkout)
    until(lambda: held(cluster) or process.poll() is not None, 60, "the job waits")
    for file in ("cli/commands/train.py", "tasks/trainer.py", "transformer/__init__.py"):
        (checkout / "varlab" / file).write_text("raise SystemExit('edited')\n")
    (checkout / "conf/task/generator.yaml").write_text("kind: edited\n")
    release(cluster)
    assert process.wait(200) == 0, log.read_text()
    (run,) = (path for path in Path("edited").iterdir() if (path / "run.json").exists())
    assert small.weights(run) == small.weights(whole(*SHORT, "seed=5"))
    code = small.record(run)["code"]
    assert Path(code["snapshot"]).parent == Path("edited/.code").absolute()
    assert json.loads((Path(code["snapshot"]) / "code.json").read_text())["version"] == code["version"]


def test_the_submitting_process_goes_away(cluster: Cluster, place: Path, whole: Callable[..., Path]) -> None:
    """The same command again waits for its jobs and submits none twice. A rank on each of two nodes, with spread weights."""
    log = Path("away.log")
    shared = (*(word for word in SHORT if word != "trainer=ddp"), "trainer=fsdp", "trainer.num_nodes=2")
    words = ("train", "-m", "out=away", *LAUNCH, "+launch.sbatch.hold=true", *shared, "seed=6,7")
    first = cluster.start(*words, log=log)
    until(lambda: held(cluster) or first.poll() is not None, 60, "the jobs wait")
    until(lambda: "2 jobs submitted" in log.read_text(), 30, "their numbers are noted")
    first.kill()
    again = cluster.start(*words, log=log)
    until(lambda: "in the queue already" in log.read_text() or again.poll() is not None, 60, "they are found")
    release(cluster)
    assert again.wait(200) == 0, log.read_text()
    assert log.read_text().count("jobs submitted") == 1
    one_node = [word.replace("trainer.num_nodes=2", "trainer.devices=2") for word in shared if "devices" not in word]
    for seed in (6, 7):
        (run,) = Path("away").glob(f"*seed={seed}*")
        assert small.record(run)["attempts"] == 1
        assert small.weights(run) == small.weights(whole(*one_node, f"seed={seed}"))


def test_folders_with_blanks(cluster: Cluster, place: Path, tmp_path: Path) -> None:
    """The current folder, the code, ``out`` and ``--config-dir``; and the shell is one of another job of Slurm's."""
    checkout, own, log = tmp_path / "my code (1)", tmp_path / "it's mine & yours", tmp_path / "log"
    for part in ("varlab", "conf", "hydra_plugins"):
        shutil.copytree(ROOT / part, checkout / part, ignore=shutil.ignore_patterns("__pycache__"))
    (own / "launch").mkdir(parents=True)
    (own / "launch" / "mine.yaml").write_text("defaults: [slurm, _self_]\n")
    left_over = {
        "SLURM_JOB_ID": "1",
        "SLURM_MEM_PER_CPU": "7",
        "SLURM_MEM_PER_NODE": "9",
        "SLURM_CPU_BIND": "no",
        "RANK": "1",
    }
    shell = Cluster(Path(cluster.environment["SLURM_DEV"]))
    shell.environment |= left_over
    words = (
        "train",
        "-m",
        "out='all my runs/here $HOME; #1'",
        "--config-dir",
        str(own),
        "launch=mine",
        *LAUNCH[1:],
        *SHORT,
    )
    process = shell.start(*words, "budget.images=64", "val.skip=true", "seed=8", log=log, code=checkout)
    assert process.wait(200) == 0, log.read_text()
    (run,) = Path("all my runs/here $HOME; #1").glob("*seed=8*")
    assert small.record(run)["outcome"]["state"] == "finished" and small.record(run)["attempts"] == 1
