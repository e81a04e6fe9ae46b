"""The ledger of a sweep: what was asked, what became of each job. ``sweep.csv`` beside the jobs' run directories.

The list of jobs is written as the sweep begins; everything else is read from the run directories, so that whoever looks,
while it runs or after it died, sees how things stand.
"""

from __future__ import annotations

import csv
import fcntl
import io
import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from varlab.files import digest, locked, write_json, write_text
from varlab.report.read import Run, read_run
from varlab.report.tables import main_score, value
from varlab.run.record import Use, counted

__all__ = [
    "COLUMNS",
    "LIST",
    "TABLE",
    "Entry",
    "Job",
    "begin",
    "entries",
    "find_ledgers",
    "refresh",
    "slurm_job",
    "submitted",
    "summary",
]

LIST, TABLE, LOCK = "sweep.json", "sweep.csv", ".sweep.lock"
STATES = ("finished", "running", "pending", "stopped", "failed")
_SCORES = ("fid", "rfid", "val_nll", "accuracy", "psnr")  # the first that a run has is shown


@dataclass(frozen=True)
class Job:
    """One job of a sweep: its overrides, its directory's name in the sweep's folder, its number in Slurm once it has one."""

    overrides: tuple[str, ...]
    path: str
    slurm_job: str = ""


@dataclass(frozen=True)
class Entry:
    """A line of the ledger. state: finished, running, pending (not begun), stopped (began, and no process holds it now) or
    failed. attempts: how often it was begun. score: its name and value; the cost in images, FLOPs and seconds."""

    job: int
    overrides: str
    config_hash: str
    slurm_job: str
    state: str
    attempts: int
    why: str
    score: str
    images: float | None
    flops: float | None
    seconds: float | None
    path: str


COLUMNS = tuple(Entry.__dataclass_fields__)


def begin(folder: Path, jobs: Sequence[Job]) -> None:
    """Note the jobs of a sweep, beside those of earlier sweeps into the same folder."""
    folder.mkdir(parents=True, exist_ok=True)
    with locked(folder / LOCK):
        known = {job.path: job for job in _jobs(folder)}
        known |= {
            job.path: replace(job, slurm_job=known[job.path].slurm_job) if job.path in known else job for job in jobs
        }
        _write_list(folder, known.values())
    refresh(folder)


def submitted(folder: Path, numbers: Mapping[str, str]) -> None:
    """Note the numbers that Slurm gave to jobs, by the names of their directories."""
    with locked(folder / LOCK):
        jobs = [replace(job, slurm_job=numbers.get(job.path, job.slurm_job)) for job in _jobs(folder)]
        _write_list(folder, jobs)
    refresh(folder)


def slurm_job(folder: Path, path: str) -> str:
    """The number that a job was last submitted under; empty where it never was."""
    return next((job.slurm_job for job in _jobs(folder) if job.path == path), "")


def refresh(folder: Path) -> None:
    """Write the table as things stand; nothing where no sweep began in that folder.

    Not while this process holds one of the runs: to look at a POSIX lock is to lose one's own.
    """
    if not (folder / LIST).is_file():
        return
    with locked(folder / LOCK):
        text = io.StringIO()
        writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(asdict(entry) for entry in entries(folder))
        write_text(folder / TABLE, text.getvalue())


def entries(folder: Path) -> list[Entry]:
    """A line for each job."""
    jobs = _jobs(folder)
    runs = {job.path: read_run(folder / job.path) for job in jobs if (folder / job.path / "run.json").is_file()}
    return [_entry(number, job, runs.get(job.path), list(runs.values()), folder) for number, job in enumerate(jobs)]


def find_ledgers(paths: Sequence[Path]) -> list[Path]:
    """The folders at or below these (and right above them) in which a sweep began."""
    found = dict.fromkeys(folder.parent for path in paths for folder in sorted(path.rglob(LIST)))
    return list(found | dict.fromkeys(path.parent for path in paths if (path.parent / LIST).is_file()))


def summary(found: Sequence[Entry]) -> str:
    """How many jobs are in which state."""
    counts = Counter(entry.state for entry in found)
    return ", ".join(f"{counts[state]} {state}" for state in STATES if counts[state])


def _jobs(folder: Path) -> list[Job]:
    try:
        raw = json.loads((folder / LIST).read_text(encoding="utf-8"))
        return [Job(tuple(job["overrides"]), job["path"], job.get("slurm_job", "")) for job in raw]
    except (OSError, ValueError, KeyError, TypeError):
        return []


def _entry(number: int, job: Job, run: Run | None, runs: Sequence[Run], folder: Path) -> Entry:
    if run is None:
        return Entry(
            number, " ".join(job.overrides), "", job.slurm_job, "pending", 0, "", "", None, None, None, job.path
        )
    state = run.state
    if state == "running" and not _held(folder / job.path):
        state = "stopped"
    return Entry(
        job=number,
        overrides=" ".join(job.overrides),
        config_hash=digest(counted(run.config, Use.HASH))[:12],
        slurm_job=job.slurm_job or str(run.record.get("slurm_job") or ""),
        state=state,
        attempts=int(run.record.get("attempts") or 1),
        why=run.error,
        score=_score(run, runs),
        images=run.total("images"),
        flops=run.total("flops"),
        seconds=run.total("seconds"),
        path=job.path,
    )


def _score(run: Run, runs: Sequence[Run]) -> str:
    score = main_score(run, runs)
    found = ((name, value(run, score, name)) for name in _SCORES)
    return next((f"{name}={number:.4g}" for name, number in found if number is not None), "")


def _held(run: Path) -> bool:
    """Whether a process of this machine or cluster is at work on a run: it holds a POSIX lock on ``.lock``."""
    try:
        with (run / ".lock").open("r+b") as file:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            fcntl.lockf(file, fcntl.LOCK_UN)
    except FileNotFoundError:
        return False
    except OSError:
        return True
    return False


def _write_list(folder: Path, jobs: Iterable[Job]) -> None:
    write_json(folder / LIST, [asdict(job) for job in jobs])
