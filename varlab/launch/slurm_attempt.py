"""One attempt of a Slurm job at a run, and the one place that decides whether the job runs again.

Each attempt has a folder ``<job>/<restarts>`` in which its ranks leave notes. After the ranks have ended, the batch script
calls ``python -m varlab.launch.slurm_attempt CODE``. A job that was asked to stop, or whose process was killed, is requeued.
A job that failed gets its error into the record. Slurm itself requeues jobs that are preempted or lose a node.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TypedDict, TypeVar, get_type_hints

from varlab.config import Config
from varlab.errors import VarlabError
from varlab.json_file import read_json, write_sealed_json
from varlab.launch.terminal import say
from varlab.report import sweep_table
from varlab.run.directory import RunDirectory
from varlab.run.provenance import slurm_job

__all__ = ["STOPPED", "Attempt", "main"]

STOPPED = 75  # exit code of a process that was asked to stop (EX_TEMPFAIL: try again later)
OUT_OF_MEMORY = (125, 253)  # srun's exit codes if Slurm killed a process for its memory
START_PATIENCE = 300.0  # seconds that a rank waits for rank 0 to lock the run's directory
_FOLDER, _TIMEOUTS, _ATTEMPTS = "VARLAB_ATTEMPT", "VARLAB_MAX_TIMEOUTS", "VARLAB_MAX_ATTEMPTS"


_Note = TypeVar("_Note")


class Start(TypedDict):
    """Rank 0's note about the run. todo: False if the run is finished already."""

    path: str
    todo: bool
    resuming: bool


class RankError(TypedDict):
    """A rank's note about its error. consequence: the rank failed only because another rank is gone."""

    rank: int
    time: float
    error: str
    consequence: bool


class End(TypedDict):
    """The batch script's note about the attempt. how: ``stopped``, ``time limit``, ``killed`` or ``failed``."""

    how: str
    why: str


class StopNote(TypedDict):
    """Rank 0's note that it was asked to stop."""

    why: str


class Attempt:
    """The notes of one attempt, in its folder."""

    def __init__(self, folder: Path):
        self.folder = folder

    @classmethod
    def current(cls) -> Attempt | None:
        """The attempt that this process belongs to; None without ``launch=slurm``."""
        folder = os.environ.get(_FOLDER)
        return None if folder is None else cls(Path(folder))

    @staticmethod
    def setup(folder: Path, *, max_timeouts: int, max_attempts: int) -> list[str]:
        """The batch script's lines before the ranks start."""
        return [
            f"export {_FOLDER}={folder}/$SLURM_JOB_ID/${{SLURM_RESTART_COUNT:-0}}",
            f"export {_TIMEOUTS}={max_timeouts} {_ATTEMPTS}={max_attempts}",
            f'mkdir -p "${_FOLDER}"',
        ]

    # -- notes of the ranks --------------------------------------------------------------------------------------------

    def note_start(self, path: Path, *, todo: bool, resuming: bool) -> None:
        """Note that rank 0 has locked the run's directory."""
        self._write("start", Start(path=str(path.absolute()), todo=todo, resuming=resuming))

    def wait_for_start(self) -> Start:
        """Rank 0's note, as soon as it exists. VarlabError if rank 0 fails first, or takes too long."""
        deadline = time.monotonic() + START_PATIENCE
        while (start := self._start()) is None:
            if self.errors():
                raise VarlabError("rank 0 could not begin the run: see its error above.")
            if time.monotonic() > deadline:
                raise VarlabError(f"rank 0 did not begin the run within {START_PATIENCE:.0f} s: see the job's log.")
            time.sleep(0.05)
        return start

    def note_error(self, rank: int, error: str, *, consequence: bool) -> None:
        """Note that a rank ends with an error."""
        self._write(f"{rank}.error", RankError(rank=rank, time=time.time(), error=error, consequence=consequence))

    def note_stop(self, why: str) -> None:
        """Note that the attempt ends because it was asked to stop."""
        self._write("stopped", StopNote(why=why))

    def history(self) -> Config:
        """The job, the number of attempts including this one, and how the earlier ones ended; for the run's record."""
        return {"job": self.folder.parent.name, "attempts": int(self.folder.name) + 1, "ended": self._ends()}

    # -- what the batch script reads -----------------------------------------------------------------------------------

    def errors(self) -> list[RankError]:
        """The errors of the ranks, first one first, without those that followed from another rank's end."""
        errors = [_read(file, RankError) for file in self.folder.glob("*.error.json")]
        return sorted((e for e in errors if not e["consequence"]), key=lambda error: error["time"])

    def path(self) -> Path | None:
        """The run's directory; None if rank 0 did not come so far."""
        start = self._start()
        return None if start is None else Path(start["path"])

    def note_end(self, code: int) -> None:
        """Note how the attempt ended. code: of srun."""
        self._write("ended", self._end(code))

    def _end(self, code: int) -> End:
        if errors := self.errors():
            first = errors[0]
            prefix = "" if first["rank"] == 0 else f"rank {first['rank']} failed: "
            return {"how": "failed", "why": f"{prefix}{first['error']}"}
        if code in OUT_OF_MEMORY:
            return {
                "how": "failed",
                "why": "Slurm ended the job because it ran out of memory: use a larger launch.memory_gb.",
            }
        if (self.folder / "stopped.json").exists():
            why = _read(self.folder / "stopped.json", StopNote)["why"]
            return {"how": "time limit" if "SIGUSR2" in why else "stopped", "why": why}
        if code == STOPPED:
            return {"how": "stopped", "why": "stopped before the run began"}
        return {"how": "killed", "why": f"a process of the job was killed (srun ended with {code})"}

    def refusal(self) -> str | None:
        """Why the job must not run again, after ``note_end``; None if it is to be requeued."""
        ends = self._ends()
        how, why = ends[-1]["how"], ends[-1]["why"]
        times = [end["how"] for end in ends].count(how)
        if how == "failed":
            return why
        if how == "time limit" and times > int(os.environ.get(_TIMEOUTS, "0")):
            return f"{why}; {times} attempts ended so, and launch.max_timeouts allows no more"
        if how == "killed" and times >= int(os.environ.get(_ATTEMPTS, "1")):
            return f"{why}; {times} attempts ended so, and launch.max_attempts allows no more"
        return None

    def _start(self) -> Start | None:
        file = self.folder / "start.json"
        return _read(file, Start) if file.exists() else None

    def _ends(self) -> list[End]:
        """How the attempts of this job ended so far, in order."""
        files = sorted(self.folder.parent.glob("*/ended.json"), key=lambda file: int(file.parent.name))
        return [_read(file, End) for file in files]

    def _write(self, name: str, value: Mapping[str, object]) -> None:
        write_sealed_json(self.folder / f"{name}.json", value)


def _read(file: Path, kind: type[_Note]) -> _Note:
    """A note. Raises VarlabError where it is damaged, or no such note."""
    note = read_json(file)
    types = get_type_hints(kind).items()
    if not isinstance(note, dict) or not all(isinstance(note.get(key), wanted) for key, wanted in types):
        raise VarlabError(f"{file} is no note about an attempt of a Slurm job: remove it.")
    return note  # type: ignore[return-value]


def main(code: int) -> int:
    """The batch script's last command. Returns the script's exit code, by which Slurm knows whether the job failed.

    A job about which a note is damaged does not run again; the job's log then names the note.
    """
    attempt = Attempt.current()
    if attempt is not None and code != 0:
        try:
            _end_attempt(attempt, code)
        except VarlabError as error:
            say(f"varlab: {error}", error=True)
    return code


def _end_attempt(attempt: Attempt, code: int) -> None:
    attempt.note_end(code)
    path, job = attempt.path(), str(slurm_job())
    # Otherwise the job was cancelled or preempted, or runs again elsewhere: Slurm has decided already.
    if _is_running(job, os.environ.get("SLURM_RESTART_COUNT", "0")):
        refusal = attempt.refusal()
        if refusal is None:
            subprocess.run(["scontrol", "requeue", job], check=True, timeout=60)
        else:
            say(f"varlab: {refusal}", error=True)
            if path is not None:
                _record_failure(path, refusal)
    if path is not None:
        sweep_table.update_row(path.parent, path.name)


def _record_failure(path: Path, why: str) -> None:
    with RunDirectory(path) as directory:
        if directory.record_path.exists():
            directory.lock()
            if not directory.record().outcome.finished:
                directory.fail(why)


def _is_running(job: str, restarts: str) -> bool:
    """Whether Slurm still sees this very attempt running: after a lost node it may have started another.

    job: with its number in an array (12_5). The last job of an array has the array's own number, which means all of them.
    """
    command = ["scontrol", "--oneliner", "show", "job", job]
    shown = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False).stdout
    return {"JobState=RUNNING", f"Restarts={restarts}"} <= set(re.split(r"\s+", shown))


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1])))
