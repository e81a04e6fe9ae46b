"""The table of a sweep: ``sweep.csv`` beside the jobs' run directories, a row for each job.

``sweep.json`` lists the jobs from the beginning of the sweep. Everything else is read from the run directories, so that
the table is right while the sweep runs and after it was killed.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, astuple, dataclass, fields, replace
from pathlib import Path

from varlab.files import digest, locked, process_lock, write_json, write_text
from varlab.report.run_kind import run_kind
from varlab.report.runs import Run, choose_scores, read_run
from varlab.report.text import csv_text
from varlab.run.record import Use, counted

__all__ = [
    "SweepJob",
    "SweepRow",
    "add_jobs",
    "count_states",
    "find_sweeps",
    "note_slurm_jobs",
    "read_rows",
    "slurm_job",
    "update_table",
]

LIST, TABLE, LOCK = "sweep.json", "sweep.csv", ".sweep.lock"
STATES = ("finished", "running", "pending", "stopped", "failed")
_SCORES = ("fid", "rfid", "val_nll", "accuracy", "psnr")  # the first that a run has is shown


@dataclass(frozen=True)
class SweepJob:
    """A job of a sweep. path: the name of its directory in the sweep's folder. slurm_job: empty until it is submitted."""

    overrides: tuple[str, ...]
    path: str
    slurm_job: str = ""


@dataclass(frozen=True)
class SweepRow:
    """A row of sweep.csv. state: finished, running, pending (never started), stopped (no process works on it) or failed.

    attempts: how often the job was started. why: the error of a failed job. score: its name and value.
    """

    job: int
    overrides: str
    config_hash: str = ""
    slurm_job: str = ""
    state: str = "pending"
    attempts: int = 0
    why: str = ""
    score: str = ""
    images: float | None = None
    flops: float | None = None
    seconds: float | None = None
    path: str = ""


def add_jobs(folder: Path, jobs: Iterable[SweepJob]) -> None:
    """List the jobs of a sweep, beside those of earlier sweeps into the same folder."""
    with _changed_jobs(folder) as listed:
        for job in jobs:
            listed[job.path] = replace(job, slurm_job=listed.get(job.path, job).slurm_job)


def note_slurm_jobs(folder: Path, numbers: Mapping[str, str]) -> None:
    """Note the numbers that Slurm gave to jobs, by the names of their directories."""
    with _changed_jobs(folder) as listed:
        for path in listed.keys() & numbers.keys():
            listed[path] = replace(listed[path], slurm_job=numbers[path])


def slurm_job(folder: Path, path: str) -> str:
    """The number that a job was last submitted under; empty where it never was."""
    jobs = _jobs(folder)
    return jobs[path].slurm_job if path in jobs else ""


@contextmanager
def _changed_jobs(folder: Path) -> Iterator[dict[str, SweepJob]]:
    """The listed jobs by directory, written back after the ``with``."""
    with locked(folder / LOCK):
        jobs = _jobs(folder)
        yield jobs
        write_json(folder / LIST, [asdict(job) for job in jobs.values()])
    update_table(folder)


def update_table(folder: Path) -> None:
    """Write sweep.csv from the run directories; do nothing in a folder without a sweep.

    Never call it while this process holds one of the runs: testing a POSIX lock releases the process's own.
    """
    if not (folder / LIST).is_file():
        return
    with locked(folder / LOCK):
        columns = [column.name for column in fields(SweepRow)]
        write_text(folder / TABLE, csv_text(columns, map(astuple, read_rows(folder))))


def read_rows(folder: Path) -> list[SweepRow]:
    """A row for each job, as the run directories are now."""
    jobs = _jobs(folder)
    started = [read_run(folder / path) for path in jobs if (folder / path / "run.json").is_file()]
    runs = {run.path.name: run for run in choose_scores(started)}
    return [_row(number, job, runs.get(job.path)) for number, job in enumerate(jobs.values())]


def find_sweeps(paths: Sequence[Path]) -> list[Path]:
    """The folders of sweeps at or below these paths, and directly above them."""
    below = dict.fromkeys(folder.parent for path in paths for folder in sorted(path.rglob(LIST)))
    return list(below | dict.fromkeys(path.parent for path in paths if (path.parent / LIST).is_file()))


def count_states(rows: Sequence[SweepRow]) -> str:
    """How many jobs are in each state: ``5 finished, 1 failed``."""
    counts = Counter(row.state for row in rows)
    return ", ".join(f"{counts[state]} {state}" for state in STATES if counts[state])


def _jobs(folder: Path) -> dict[str, SweepJob]:
    """The listed jobs by the names of their directories."""
    try:
        raw = json.loads((folder / LIST).read_text(encoding="utf-8"))
        jobs = [SweepJob(tuple(job["overrides"]), job["path"], job.get("slurm_job", "")) for job in raw]
    except (OSError, ValueError, KeyError, TypeError):
        return {}
    return {job.path: job for job in jobs}


def _row(number: int, job: SweepJob, run: Run | None) -> SweepRow:
    row = SweepRow(number, " ".join(job.overrides), slurm_job=job.slurm_job, path=job.path)
    if run is None:
        return row
    return replace(
        row,
        config_hash=digest(counted(run.config, Use.HASH))[:12],
        slurm_job=job.slurm_job or run.record.slurm_job or "",
        state="stopped" if run.state == "running" and not _in_use(run.path) else run.state,
        attempts=run.record.attempts or 1,
        why=run.error,
        score=_score(run),
        images=run.total("images"),
        flops=run.total("flops"),
        seconds=run.total("seconds"),
    )


def _score(run: Run) -> str:
    names = [*_SCORES, *(column.key for column in run_kind([run]).quality)]
    values = ((name, run.value(name)) for name in names)
    return next((f"{name}={value:.4g}" for name, value in values if value is not None), "")


def _in_use(run: Path) -> bool:
    """Whether a process on this machine or cluster works on a run: it holds a POSIX lock on ``.lock``."""
    try:
        with (run / ".lock").open("r+b") as file:
            return not process_lock(file.fileno())
    except OSError as error:
        return not isinstance(error, FileNotFoundError)
