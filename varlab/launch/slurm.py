"""``launch=slurm``: submit all jobs of a sweep, and wait for all. Requeues belong to ``varlab.launch.slurm_attempt``."""

from __future__ import annotations

import logging
import os
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from hydra.core.singleton import Singleton
from hydra.core.utils import JobReturn, JobStatus
from omegaconf import DictConfig, OmegaConf

from varlab.config import Config
from varlab.errors import VarlabError
from varlab.files import locked
from varlab.launch.code_copy import copy_code
from varlab.launch.environment import changed_variables
from varlab.launch.job import JobResult
from varlab.launch.slurm_attempt import Attempt
from varlab.report import sweep_table
from varlab.run.changes import differences
from varlab.run.directory import RunDirectory
from varlab.run.names import run_path
from varlab.run.record import read_record

if TYPE_CHECKING:
    from submitit import Job, SlurmExecutor

    from hydra_plugins.varlab_slurm import VarlabSlurm

__all__ = ["SlurmSweep"]

logger = logging.getLogger(__name__)

_ENDED = frozenset(
    "BOOT_FAIL CANCELLED COMPLETED DEADLINE FAILED NODE_FAIL OUT_OF_MEMORY PREEMPTED TIMEOUT GONE".split()  # noqa: SIM905
)
"""States after which a job does not run again; a job that is being requeued passes through some of them, too."""

_OF_A_JOB = r"(SLURM|SLURMD|SRUN|SUBMITIT|PMI\d?|PMIX|OMPI)_(?!CONF$)"
"""Names of the variables that Slurm gives to the processes of a job."""

_SUBMISSION = ".submission.lock"
_LOOKS = 2  # looks in a row that must see a job ended


@dataclass(frozen=True)
class _Job:
    """A job of the sweep. number: its place in the sweep. path: of its run."""

    number: int
    overrides: list[str]
    config: DictConfig
    path: Path

    def result(self, error: str | None) -> JobReturn:
        """What Hydra expects of a job that ended without a result of its own. An error is a value, as in ``run_job``."""
        result = JobReturn(overrides=self.overrides, status=JobStatus.COMPLETED)
        result.return_value = JobResult(tuple(self.overrides), str(self.path), error)
        return result


class SlurmSweep:
    """The jobs of one sweep on Slurm. launcher: Hydra's plugin, which is sent to the nodes and runs there."""

    def __init__(self, launcher: VarlabSlurm):
        self._launcher = launcher
        self._settings: Config = launcher.params["settings"]
        self._folder = Path(launcher.params["submitit_folder"]).absolute()
        self._command: str = launcher.task_function.args[0].name  # a partial of run_job

    def run(self, job_overrides: Sequence[Sequence[str]], first: int) -> list[JobReturn]:
        """Submit one job for each list of overrides and wait for all; a lost job returns an error like any other.

        Finished runs, and jobs of another call that are still in the queue, are not submitted again. Raises VarlabError
        if Slurm is missing or refuses the settings.
        """
        jobs = [self._job(list(overrides), first + i) for i, overrides in enumerate(job_overrides)]
        _check_names(self._folder.parent, Path(sys.executable))
        with ExitStack() as locks:
            # The same sweep, started at the same time, waits here, and then finds the jobs of this one in the queue.
            for folder in sorted({job.path.parent for job in jobs}):
                locks.enter_context(locked(folder / _SUBMISSION))
            wanted = [job for job in jobs if not self._is_finished(job)]
            submitted = self._in_queue(wanted)
            if new := [job for job in wanted if job.number not in submitted]:
                submitted |= self._submit(new)
        states = self._wait([job.job_id for job in submitted.values()]) if submitted else {}
        return [
            _result(job, submitted[job.number], states[submitted[job.number].job_id])
            if job.number in submitted
            else job.result(None)
            for job in jobs
        ]

    def _job(self, overrides: list[str], number: int) -> _Job:
        loader = self._launcher.hydra_context.config_loader
        config: DictConfig = loader.load_sweep_config(self._launcher.config, overrides)
        asked = [str(override) for override in config.hydra.overrides.task]
        name = str(config.get("name") or self._command)
        return _Job(
            number, overrides, config, run_path(out=config.get("out"), name=name, overrides=asked, multirun=True)
        )

    def _is_finished(self, job: _Job) -> bool:
        """Whether the same run is finished. Only for trainings: other commands depend on runs, which may have changed."""
        if self._command != "train" or not (job.path / "run.json").exists():
            return False
        record = read_record(job.path)
        keys = [str(key) for key in job.config if key != "hydra"]
        config: Config = OmegaConf.to_container(OmegaConf.masked_copy(job.config, keys), resolve=True)  # type: ignore[assignment]
        return record.outcome.finished and not differences(record.config, config)

    def _in_queue(self, wanted: Sequence[_Job]) -> dict[int, Job[JobReturn]]:
        """The jobs that an earlier call submitted and that have not ended, by number in the sweep."""
        import submitit

        known = {folder: sweep_table.slurm_jobs(folder) for folder in {job.path.parent for job in wanted}}
        ids = {job.number: i for job in wanted if (i := known[job.path.parent].get(job.path.name))}
        states = (_queue(list(ids.values())) if ids else None) or {}
        alive = {number: job_id for number, job_id in ids.items() if states.get(job_id, "GONE") not in _ENDED}
        if alive:
            logger.info("%d jobs are in the queue already: %s", len(alive), ", ".join(alive.values()))
        return {n: submitit.SlurmJob(folder=self._folder, job_id=job_id, tasks=[0]) for n, job_id in alive.items()}

    def _submit(self, new: Sequence[_Job]) -> dict[int, Job[JobReturn]]:
        """Submit jobs and write their numbers into the sweep's table. Returns submitit's jobs by number in the sweep."""
        from submitit.core.utils import FailedJobError, FailedSubmissionError

        executor, state = self._executor(new[0].path.parent), Singleton.get_state()
        try:
            arguments = zip(*((job.config, job.number, state) for job in new), strict=True)
            # In the shell of another job, whose settings the jobs would inherit: srun refuses some of them.
            of_a_job = [name for name in os.environ if "SLURM_JOB_ID" in os.environ and re.match(_OF_A_JOB, name)]
            with changed_variables(of_a_job):
                submitted = list(executor.map_array(self._launcher, *arguments))
        except (FailedJobError, FailedSubmissionError) as error:
            why = " ".join(str(error).split())
            raise VarlabError(
                f"Slurm refuses the jobs ({why}): change launch.*, or leave out launch=slurm to run them here."
            ) from error
        logger.info("%d jobs submitted: %s", len(submitted), ", ".join(job.job_id for job in submitted))
        pairs = list(zip(new, submitted, strict=True))
        for folder in {job.path.parent for job in new}:
            sweep_table.note_slurm_jobs(
                folder, {job.path.name: sent.job_id for job, sent in pairs if job.path.parent == folder}
            )
        return {job.number: sent for job, sent in pairs}

    def _executor(self, runs: Path) -> SlurmExecutor:
        """Submitit's executor with our batch script around the ranks. runs: the folder that gets the copy of the code."""
        import submitit

        settings = self._settings
        try:
            executor = submitit.SlurmExecutor(folder=self._folder, max_num_timeout=settings["max_timeouts"])
        except RuntimeError as error:
            raise VarlabError(
                "launch=slurm needs Slurm's commands, but srun is not on PATH: use a login node."
            ) from error
        options = {
            "job_name": "varlab",
            **{key: settings[key] for key in ("partition", "account", "qos", "constraint", "nodes")},
            "gpus_per_node": settings["gpus"],
            "cpus_per_task": settings["cpus"],
            "mem": None if settings["memory_gb"] is None else f"{settings['memory_gb']}GB",
            "ntasks_per_node": settings["ranks"],
            "array_parallelism": settings["parallel"],
            "time": settings["minutes"],
            "signal_delay_s": settings["warning"],
            "stderr_to_stdout": True,
            # The end of one rank must end all: they would wait for each other.
            "srun_args": ["--kill-on-bad-exit=1"],
            "additional_parameters": {"requeue": True, **settings["sbatch"]},
            "setup": [*settings["setup"], *self._before_ranks(runs)],
            "teardown": [f"{shlex.quote(sys.executable)} -m varlab.launch.slurm_attempt $?"],
        }
        executor.update_parameters(**{key: value for key, value in options.items() if value is not None})
        return executor

    def _before_ranks(self, runs: Path) -> list[str]:
        """Lines of the batch script: run from a copy of the code, and begin the attempt."""
        copy = shlex.quote(str(copy_code(runs.absolute() / ".code")))
        attempts = Path(shlex.quote(str(self._folder.parent / "attempts")))
        limits = {key: self._settings[key] for key in ("max_timeouts", "max_attempts")}
        # Without PYTHONSAFEPATH, Python imports from the current folder first, which may be a checkout.
        path = f"export PYTHONPATH={copy}${{PYTHONPATH:+:$PYTHONPATH}}"
        return ["export PYTHONSAFEPATH=1", path, *Attempt.setup(attempts, **limits)]

    def _wait(self, ids: Sequence[str]) -> dict[str, str]:
        """Wait until every job has ended. Returns the last state of each."""
        ended, last = dict.fromkeys(ids, 0), dict.fromkeys(ids, "UNKNOWN")
        while True:
            if (states := _queue(ids)) is not None:
                for job in ids:
                    state = states.get(job, "GONE")
                    ended[job] = ended[job] + 1 if state in _ENDED else 0
                    last[job] = last[job] if state == "GONE" else state
            if all(looks >= _LOOKS for looks in ended.values()):
                return last
            time.sleep(self._settings["poll"])


def _check_names(*paths: Path) -> None:
    """Raises VarlabError for a path that Slurm or Python would read as a pattern or as several paths."""
    for path in paths:
        if wrong := set("%\\:\n") & set(str(path)):
            raise VarlabError(
                f"Slurm cannot use {path}: it must not contain {' or '.join(map(ascii, sorted(wrong)))}. Take another out=, or "
                "another folder for varlab's environment."
            )


def _queue(ids: Sequence[str]) -> dict[str, str] | None:
    """The state of each job that Slurm still knows; None if Slurm does not answer."""
    arrays = sorted({job.partition("_")[0] for job in ids})
    options = ["--noheader", "--array", "--states=all", "--format=%F_%K %T", f"--jobs={','.join(arrays)}"]
    shown = subprocess.run(["squeue", *options], capture_output=True, text=True, check=False)
    if shown.returncode:
        return {} if "Invalid job id" in shown.stderr else None
    pairs = [line.split() for line in shown.stdout.splitlines() if line.strip()]
    return {job.removesuffix("_N/A"): state for job, state in pairs}


def _result(job: _Job, submitted: Job[JobReturn], state: str) -> JobReturn:
    """What the job's rank 0 returned; else the error in its record; else Slurm's state."""
    task = submitted.task(0)
    if task.paths.result_pickle.exists():
        # submitit's public results() would raise the errors of other ranks.
        outcome, value = task._get_outcome_and_result()
        if outcome == "success":
            returned: JobReturn = value
            return returned
    return job.result(_lost(job.path, f"Slurm job {submitted.job_id} ended as {state}; its log is {task.paths.stdout}"))


def _lost(path: Path, why: str) -> str | None:
    """Why a run without a result ended, which its record then says, too; None if the run is finished."""
    try:
        outcome = read_record(path).outcome
        if outcome.finished:
            return None
        if outcome.state == "failed":
            return str(outcome.error)
        with RunDirectory(path) as directory:
            directory.lock()
            directory.fail(why)
    except VarlabError as error:
        return f"{why} ({error})"
    return why
