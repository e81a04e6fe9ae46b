"""One attempt of a Slurm job at a run, and the one place that decides whether there is another.

Every attempt has a folder that all its ranks and its batch script see; its name ends in the job's number and in how
often Slurm has restarted it. Ranks leave notes there. When they have ended, the batch script, which outlives them all,
calls ``python -m varlab.launch.slurm_attempt CODE``: a job that saved its state because it was asked to, or of which a process
was killed, goes back into the queue; one that failed gets the sentence into its record. Preemption and lost nodes are
Slurm's own to requeue.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from varlab.config import Config
from varlab.errors import VarlabError
from varlab.files import write_json
from varlab.report import sweep_table
from varlab.run.directory import RunDirectory
from varlab.run.provenance import slurm_job

__all__ = ["STOPPED", "Attempt", "main"]

STOPPED = 75  # exit code of a process that was asked to stop (EX_TEMPFAIL: try again later)
OUT_OF_MEMORY = (125, 253)  # srun's exit codes where Slurm killed for memory: the same would happen again
BEGIN_PATIENCE = 300.0  # seconds that a rank waits for rank 0 to take the run's directory
_FOLDER, _TIMEOUTS, _ATTEMPTS = "VARLAB_ATTEMPT", "VARLAB_MAX_TIMEOUTS", "VARLAB_MAX_ATTEMPTS"


class Attempt:
    """The notes of one attempt. folder: as above."""

    def __init__(self, folder: Path):
        self.folder = folder

    @classmethod
    def current(cls) -> Attempt | None:
        """The attempt that this process belongs to; None outside of ``launch=slurm``."""
        folder = os.environ.get(_FOLDER)
        return None if folder is None else cls(Path(folder))

    @staticmethod
    def setup(folder: Path, *, max_timeouts: int, max_attempts: int) -> list[str]:
        """The batch script's lines before the ranks start."""
        return [
            f"export {_FOLDER}={folder}/$SLURM_JOB_ID/${{SLURM_RESTART_COUNT:-0}}",
            f"export {_TIMEOUTS}={max_timeouts} {_ATTEMPTS}={max_attempts}",
            f"mkdir -p ${_FOLDER}",
        ]

    # -- what ranks note -----------------------------------------------------------------------------------------------

    def begin(self, path: Path, *, todo: bool, resuming: bool) -> None:
        """Rank 0 has taken the run's directory."""
        self._note("begun", {"path": str(path.absolute()), "todo": todo, "resuming": resuming})

    def told(self) -> Config:
        """For the run's record: the job, and the attempts so far, this one among them."""
        earlier = [
            json.loads(file.read_text()) for file in sorted(self.folder.parent.glob("*/ended.json"), key=_number)
        ]
        return {"job": self.folder.parent.name, "attempts": int(self.folder.name) + 1, "ended": earlier}

    def begun(self) -> Config:
        """What rank 0 said at the beginning, as soon as it has. VarlabError where it failed, or says nothing."""
        deadline = time.monotonic() + BEGIN_PATIENCE
        while not (self.folder / "begun.json").exists():
            if self.errors():
                raise VarlabError("rank 0 could not begin")
            if time.monotonic() > deadline:
                raise VarlabError(f"rank 0 did not begin within {BEGIN_PATIENCE:.0f} s")
            time.sleep(0.05)
        return self._read("begun")

    def fail(self, rank: int, error: str, *, consequence: bool) -> None:
        """A rank ends with an error. consequence: only because another rank is gone."""
        self._note(f"{rank}.error", {"rank": rank, "time": time.time(), "error": error, "consequence": consequence})

    def stop(self, why: str) -> None:
        """The attempt ends because it was asked to."""
        self._note("stopped", {"why": why})

    # -- what the batch script reads -----------------------------------------------------------------------------------

    def errors(self) -> list[Config]:
        """The ranks' own errors, the first one first; not those that followed from another rank's end."""
        errors = [json.loads(file.read_text()) for file in self.folder.glob("*.error.json")]
        return sorted((e for e in errors if not e["consequence"]), key=lambda error: error["time"])

    def path(self) -> Path | None:
        """The run's directory; None where no rank came so far."""
        return Path(self._read("begun")["path"]) if (self.folder / "begun.json").exists() else None

    def end(self, code: int) -> None:
        """Note how it ended (``stopped``, ``time limit``, ``killed`` or ``failed``) and why."""
        self._note("ended", self._verdict(code))

    def _verdict(self, code: int) -> dict[str, str]:
        if errors := self.errors():
            return {"how": "failed", "why": _sentence(errors[0])}
        if code in OUT_OF_MEMORY:
            return {"how": "failed", "why": "Slurm ended it for want of memory: ask for more with launch.memory_gb."}
        if (self.folder / "stopped.json").exists():
            why = str(self._read("stopped")["why"])
            return {"how": "time limit" if "SIGUSR2" in why else "stopped", "why": why}
        if code == STOPPED:
            return {"how": "stopped", "why": "asked to stop before it had begun"}
        return {"how": "killed", "why": f"a process of the job was killed (srun ended with {code})"}

    def another(self) -> str | None:
        """None if the job is to be tried again; else why not, in a sentence."""
        ended = self._read("ended")
        if ended["how"] == "failed":
            return str(ended["why"])
        hows = [json.loads(file.read_text())["how"] for file in self.folder.parent.glob("*/ended.json")]
        stops, kills = hows.count("time limit"), hows.count("killed")
        if ended["how"] == "time limit" and stops > int(os.environ.get(_TIMEOUTS, "0")):
            return f"{ended['why']}; so ended {stops} attempts: launch.max_timeouts allows no more"
        if ended["how"] == "killed" and kills >= int(os.environ.get(_ATTEMPTS, "1")):
            return f"{ended['why']}; so ended {kills} attempts: launch.max_attempts allows no more"
        return None

    def _note(self, name: str, value: Mapping[str, Any]) -> None:
        write_json(self.folder / f"{name}.json", value)

    def _read(self, name: str) -> Config:
        value: Config = json.loads((self.folder / f"{name}.json").read_text())
        return value


def _number(ended: Path) -> int:
    return int(ended.parent.name)


def _sentence(error: Mapping[str, Any]) -> str:
    return str(error["error"]) if error["rank"] == 0 else f"rank {error['rank']} failed: {error['error']}"


def main(code: int) -> int:
    """The batch script's last act. Returns its exit code, by which Slurm tells whether the job failed."""
    attempt = Attempt.current()
    if attempt is None or code == 0:
        return code
    attempt.end(code)
    path = attempt.path()
    job, restarts = str(slurm_job()), os.environ.get("SLURM_RESTART_COUNT", "0")
    if _ours(job, restarts):  # else cancelled, preempted, or begun anew elsewhere: Slurm's own affair
        refusal = attempt.another()
        if refusal is None:
            subprocess.run(["scontrol", "requeue", job], check=True, timeout=60)
        else:
            print(f"varlab: {refusal}", file=sys.stderr)
            if path is not None:
                _record(path, refusal)
    if path is not None:
        sweep_table.update_table(path.parent)
    return code


def _record(path: Path, refusal: str) -> None:
    if (path / "run.json").exists():
        with RunDirectory(path) as directory:
            directory.lock()
            if directory.read()["outcome"]["state"] != "finished":
                directory.fail(refusal)


def _ours(job: str, restarts: str) -> bool:
    """Whether Slurm still sees this very attempt running: after a lost node it may have begun another.

    job: with its number in an array (12_5). The last job of an array has the array's own number, which means all of them.
    """
    shown = subprocess.run(
        ["scontrol", "--oneliner", "show", "job", job],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    ).stdout
    running = re.search(r"\bJobState=RUNNING\b", shown) is not None
    return running and re.search(rf"\bRestarts={restarts}\b", shown) is not None


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1])))
