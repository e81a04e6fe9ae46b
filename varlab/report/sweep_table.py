"""The table of a sweep: ``sweep.csv`` beside the jobs' run directories, a row for each job.

``sweep.json`` lists the jobs from the beginning of the sweep. Everything else is read from the run directories, so that
the table is right while the sweep runs and after it was killed. A table that is not what was written last is made again.
"""

from __future__ import annotations

import csv
import hashlib
import logging
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, astuple, dataclass, fields, replace
from pathlib import Path

from varlab.errors import VarlabError
from varlab.files import digest, locked, process_lock, read_bytes, write_text
from varlab.json_file import LARGEST, read_json, write_sealed_json
from varlab.report.run_kind import run_kind
from varlab.report.runs import Run, choose_scores, read_run
from varlab.report.text import csv_text
from varlab.run.config_keys import Use, counted
from varlab.run.record import FILE
from varlab.run.run_tree import run_folders

logger = logging.getLogger(__name__)

__all__ = [
    "SweepJob",
    "SweepRow",
    "add_jobs",
    "count_states",
    "find_sweeps",
    "note_slurm_jobs",
    "read_rows",
    "slurm_jobs",
    "update_row",
    "update_table",
]

LIST, TABLE, LOCK = "sweep.json", "sweep.csv", ".sweep.lock"
_DIGEST = ".sweep.csv.sha256"  # of the table, which is no place for it: others read that, too
STATES = ("finished", "running", "pending", "stopped", "failed", "unreadable")
_JOBS = "jobs"  # the entry of the list; earlier files are this list itself
_SCORES = ("fid", "rfid", "val_nll", "accuracy", "psnr")  # the first that a run has is shown


@dataclass(frozen=True)
class SweepJob:
    """A job of a sweep. path: the name of its directory in the sweep's folder. slurm_job: empty until it is submitted."""

    overrides: tuple[str, ...]
    path: str
    slurm_job: str = ""


@dataclass(frozen=True)
class SweepRow:
    """A row of sweep.csv. state: finished, running, pending (never started), stopped (no process works on it), failed, or
    unreadable (its record is damaged).

    attempts: how often the job was started. why: the error of a failed or unreadable job. score: its name and value.
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


_COLUMNS = tuple(column.name for column in fields(SweepRow))


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


def slurm_jobs(folder: Path) -> dict[str, str]:
    """The number that each job was last submitted under, by the names of their directories; empty where it never was."""
    return {path: job.slurm_job for path, job in _jobs(folder).items()}


@contextmanager
def _changed_jobs(folder: Path) -> Iterator[dict[str, SweepJob]]:
    """The listed jobs by directory, written back after the ``with``."""
    with locked(folder / LOCK):
        jobs = _jobs(folder)
        yield jobs
        write_sealed_json(folder / LIST, {_JOBS: [asdict(job) for job in jobs.values()]})
    update_table(folder)


def update_table(folder: Path) -> None:
    """Write sweep.csv from all run directories; do nothing in a folder without a list of jobs that can be read.

    Never call it while this process holds one of the runs: testing a POSIX lock releases the process's own.
    """
    if os.path.isfile(folder / LIST):  # noqa: PTH113  # False, too, where the folder may not be read
        with locked(folder / LOCK):
            _write_all(folder)


def update_row(folder: Path, path: str, *, working: bool = False) -> None:
    """Write one job's row of sweep.csv from its run directory, and copy the others; do nothing for a job of no sweep.

    working: this process holds the run, which is running. A table that is not what was written last is made again.
    """
    if not os.path.isfile(folder / LIST):  # noqa: PTH113  # False, too, where the folder may not be read
        return
    with locked(folder / LOCK):
        if (table := _read_table(folder)) is None:
            _write_all(folder, path if working else None)
            return
        # The directory is the last column, and its name needs no quotes. The bytes of the other rows are not looked at.
        last = f",{path}\n"
        if (end := table.find(last)) < 0:
            return
        start = table.rfind("\n", 0, end) + 1
        names, values = csv.reader([table[: table.find("\n")], table[start:end]])
        old = dict(zip(names, values, strict=False))
        job = SweepJob((old["overrides"],), path, old["slurm_job"])
        run = next(iter(choose_scores(_started([folder / path], {}))), None)
        row = _row(table.count("\n", 0, start) - 1, job, run, working=working)
        changed = table[:start] + _csv([row]).partition("\n")[2] + table[end + len(last) :]
        _write_table(folder, changed, durable=False)


def _write_all(folder: Path, held: str | None = None) -> None:
    """held: the directory of the run that this process holds, which is running; its lock is not tested."""
    if rows := read_rows(folder, held=held):  # none: both the list and the table are damaged
        _write_table(folder, _csv(rows), durable=True)


def _read_table(folder: Path) -> str | None:
    """The table; None if it is not what was written last."""
    try:
        table, written = (read_bytes(folder / name, LARGEST) for name in (TABLE, _DIGEST))
    except (FileNotFoundError, VarlabError):
        return None
    return table.decode() if _sha256(table) == written else None


def _write_table(folder: Path, table: str, *, durable: bool) -> None:
    """A kill between the two files leaves a table that is made again."""
    write_text(folder / TABLE, table, durable=durable)
    write_text(folder / _DIGEST, _sha256(table.encode()).decode(), durable=durable)


def _sha256(table: bytes) -> bytes:
    return hashlib.sha256(table).hexdigest().encode()


def _csv(rows: Iterable[SweepRow]) -> str:
    return csv_text(_COLUMNS, map(astuple, rows))


def read_rows(folder: Path, known: Mapping[Path, Run] | None = None, *, held: str | None = None) -> list[SweepRow]:
    """A row for each job, as the run directories are now. known: runs that were read already. held: the one of this process."""
    jobs = _jobs(folder)
    runs = {run.path.name: run for run in choose_scores(_started([folder / path for path in jobs], known or {}))}
    return [_row(number, job, runs.get(job.path), working=job.path == held) for number, job in enumerate(jobs.values())]


def _started(paths: Iterable[Path], known: Mapping[Path, Run]) -> list[Run]:
    return [known.get(path) or read_run(path) for path in paths if path in known or os.path.lexists(path / FILE)]


def find_sweeps(paths: Sequence[Path]) -> list[Path]:
    """The folders of sweeps at or below these paths, and directly above them."""
    below = [folder for path in paths for folder in run_folders(path, holding=LIST)]
    above = [path.parent for path in paths if os.path.isfile(path.parent / LIST)]  # noqa: PTH113  # False, too, where the folder may not be read
    return list(dict.fromkeys([*sorted(below), *above]))


def count_states(rows: Sequence[SweepRow]) -> str:
    """How many jobs are in each state: ``5 finished, 1 failed``."""
    counts = Counter(row.state for row in rows)
    return ", ".join(f"{counts[state]} {state}" for state in STATES if counts[state])


def _jobs(folder: Path) -> dict[str, SweepJob]:
    """The listed jobs by the names of their directories; with a warning those of the table, where the list is damaged."""
    try:
        listed = read_json(folder / LIST)
        jobs = [SweepJob(**job) for job in (listed[_JOBS] if isinstance(listed, dict) else listed)]
        if all(Path(job.path).name == job.path and isinstance(job.slurm_job, str) for job in jobs):
            return {job.path: replace(job, overrides=tuple(map(str, job.overrides))) for job in jobs}
        logger.warning("%s names jobs outside of its folder, and is passed over", folder / LIST)
    except FileNotFoundError:
        return {}
    except (VarlabError, TypeError, KeyError) as error:
        logger.warning("%s is no list of jobs, and is passed over: %s", folder / LIST, error)
    rows = csv.DictReader((_read_table(folder) or "").splitlines())
    return {row["path"]: SweepJob((row["overrides"],), row["path"], row["slurm_job"]) for row in rows}


def _row(number: int, job: SweepJob, run: Run | None, *, working: bool = False) -> SweepRow:
    row = SweepRow(number, " ".join(" ".join(job.overrides).split()), slurm_job=job.slurm_job, path=job.path)
    if run is None:
        return row
    return replace(
        row,
        config_hash=digest(counted(run.config, Use.HASH))[:12],
        slurm_job=job.slurm_job or run.record.slurm_job or "",
        state="stopped" if run.state == "running" and not working and not _in_use(run.path) else run.state,
        attempts=run.record.attempts or 1,
        why=" ".join(run.error.split()),
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
