"""A real Slurm of two nodes, started once, and sweeps on it."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from tests import small

ROOT = Path(__file__).resolve().parents[2]
HERE = Path(__file__).parent
NEEDED = ("slurmctld", "slurmd", "slurmdbd", "munged", "mariadbd")

TRAINING = (
    *small.GENERATOR,
    "order=random",
    "val.every=256",
    "pictures.every=256",
    "data.workers=1",
    "trainer=ddp",
    "trainer.accelerator=cpu",
    "trainer.devices=2",
)
LAUNCH = ("launch=slurm", "launch.cpus=1", "launch.minutes=10", "launch.poll=1")


class Cluster:
    """Slurm's commands, on the cluster in ``folder``."""

    def __init__(self, folder: Path):
        self.environment = os.environ | {
            "SLURM_DEV": str(folder),
            "SLURM_CONF": str(folder / "etc/slurm.conf"),
            "PYTHONPATH": str(ROOT),
            "OMP_NUM_THREADS": "1",
            "MASTER_ADDR": "127.0.0.1",  # all nodes are this machine, whose names do not resolve
            "GLOO_SOCKET_IFNAME": "lo",
        }

    def control(self, *words: str) -> None:
        """cluster.sh."""
        quiet = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL}
        subprocess.run([str(HERE / "cluster.sh"), *words], env=self.environment, check=True, timeout=120, **quiet)

    def say(self, *words: str) -> str:
        """What a command of Slurm's answers."""
        return subprocess.run(words, env=self.environment, capture_output=True, text=True, timeout=60).stdout

    def start(self, *arguments: str, log: Path, code: Path = ROOT) -> subprocess.Popen[bytes]:
        """``varlab …`` as from a shell. code: the checkout to run from."""
        with log.open("ab") as out:
            command = [sys.executable, "-m", "varlab.cli.main", *arguments]
            environment = self.environment | {"PYTHONPATH": str(code), "PYTHONSAFEPATH": "1"}
            return subprocess.Popen(command, env=environment, stdout=out, stderr=out)

    def jobs(self) -> dict[str, str]:
        """State by number, of all that is in the queue or was until lately."""
        lines = self.say("squeue", "--noheader", "--array", "--states=all", "--format=%A %T").splitlines()
        return dict(line.split() for line in lines)

    def job_of(self, run: Path) -> str:
        """The number of the job that a run belongs to."""
        attempts = run.parent / ".hydra/slurm/attempts"
        found = [file for file in attempts.glob("*/*/start.json") if f'"{run.absolute()}"' in file.read_text()]
        return max(found, key=lambda file: file.stat().st_mtime).parent.parent.name

    def ranks_of(self, job: str) -> list[int]:
        """Processes of a job's ranks."""
        listed = subprocess.run(["pgrep", "-f", "submitit.core._submit"], capture_output=True, text=True).stdout
        pids = [int(pid) for pid in listed.split()]
        return sorted(pid for pid in pids if _belongs(pid, job))


def _belongs(pid: int, job: str) -> bool:
    """Only the ranks themselves: a loader's processes are forked from one."""
    try:
        environment = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
        parent = int(re.search(r"PPid:\s+(\d+)", Path(f"/proc/{pid}/status").read_text())[1])
        name = Path(f"/proc/{parent}/comm").read_text()
    except OSError:
        return False
    return f"SLURM_JOB_ID={job}".encode() in environment and "slurmstepd" in name


def until(moment: Callable[[], bool], patience: float, what: str) -> float:
    """Wait for a moment; returns the seconds that took."""
    start = time.monotonic()
    while not moment():
        assert time.monotonic() < start + patience, f"not within {patience:.0f} s: {what}"
        time.sleep(0.05)
    return time.monotonic() - start


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    missing = [command for command in NEEDED if shutil.which(command) is None]
    if missing:
        pytest.fail(f"these tests need {', '.join(missing)}: make slurm-test installs them")
    folder = Path(os.environ.get("VARLAB_SLURM_FOLDER") or tmp_path_factory.mktemp("slurm"))
    for parent in (folder, *folder.parents[:2]):
        parent.chmod(0o755)  # mariadbd runs as a user of its own
    started = Cluster(folder)
    started.control("start")
    yield started
    started.control("stop")


@pytest.fixture(scope="module")
def place(world_folder: Path) -> Iterator[Path]:
    """The small world as the current folder."""
    with small.inside(world_folder):
        yield world_folder


@pytest.fixture(scope="session")
def whole(world_folder: Path, cluster: Cluster) -> Callable[..., Path]:
    """overrides → the directory of that run, trained here and never stopped."""
    made: dict[Sequence[str], Path] = {}

    def train(*overrides: str) -> Path:
        if overrides not in made:
            run, log = world_folder / "whole" / str(len(made)), world_folder / "whole.log"
            process = cluster.start("train", f"out={run}", *overrides, log=log)
            assert process.wait(1200) == 0, log.read_text()
            made[overrides] = run
        return made[overrides]

    return train
