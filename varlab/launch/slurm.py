"""``launch=slurm``: submit all jobs of a sweep, wait for all, lose none. Requeues belong to ``varlab.launch.slurm_attempt``."""

from __future__ import annotations

import logging
import shlex
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra.core.singleton import Singleton
from hydra.core.utils import JobReturn, JobStatus
from omegaconf import DictConfig, OmegaConf

from varlab.errors import VarlabError
from varlab.launch.code_copy import snapshot
from varlab.launch.job import JobResult
from varlab.launch.slurm_attempt import Attempt
from varlab.report import sweep_table
from varlab.run.directory import RunDirectory, differences, read_run
from varlab.run.names import run_path

__all__ = ["launch"]

logger = logging.getLogger(__name__)

# States after which nothing more comes; a job that is to be requeued passes some of them too, but not for long.
_OVER = frozenset(
    [
        "BOOT_FAIL",
        "CANCELLED",
        "COMPLETED",
        "DEADLINE",
        "FAILED",
        "NODE_FAIL",
        "OUT_OF_MEMORY",
        "PREEMPTED",
        "TIMEOUT",
        "GONE",
    ]
)
_SETTLED = 2  # looks in a row that find a job over


@dataclass(frozen=True)
class _Asked:
    """A job of the sweep: its place in it, what it is, and where its run lies."""

    number: int
    overrides: list[str]
    config: DictConfig
    path: Path


def launch(launcher: Any, job_overrides: Sequence[Sequence[str]], first: int) -> list[JobReturn]:
    """Submit one job for each list of overrides and wait. What became of a lost one is told like any other's error.

    What is finished, or still in the queue from an earlier call of the same sweep, is not submitted again.
    launcher: Hydra's plugin, which travels to the nodes and runs there. Raises VarlabError where Slurm is not there or
    refuses the settings.
    """
    settings = launcher.params["settings"]
    folder = Path(launcher.params["submitit_folder"]).absolute()
    asked = [_asked(launcher, list(overrides), first + i) for i, overrides in enumerate(job_overrides)]
    wanted = [job for job in asked if not _is_finished(launcher, job)]
    jobs = _in_queue(folder, wanted) if wanted else {}
    if new := [job for job in wanted if job.number not in jobs]:
        jobs |= _submit(launcher, _executor(folder, settings, new[0].path.parent), new)
    states = _wait([job.job_id for job in jobs.values()], settings["poll"]) if jobs else {}
    return [
        _result(job, jobs[job.number], states[jobs[job.number].job_id]) if job.number in jobs else _told(job, None)
        for job in asked
    ]


def _asked(launcher: Any, overrides: list[str], number: int) -> _Asked:
    config: DictConfig = launcher.hydra_context.config_loader.load_sweep_config(launcher.config, overrides)
    task = [str(override) for override in config.hydra.overrides.task]
    name = str(config.get("name") or _command(launcher))
    path = run_path(out=config.get("out"), name=name, overrides=task, multirun=True)
    return _Asked(number, overrides, config, path)


def _in_queue(folder: Path, wanted: Sequence[_Asked]) -> dict[int, Any]:
    """The jobs that were submitted before and are not over yet, by number in the sweep."""
    import submitit

    known = {job.number: sweep_table.slurm_job(job.path.parent, job.path.name) for job in wanted}
    ids = {number: job_id for number, job_id in known.items() if job_id}
    states = _queue(list(ids.values())) if ids else {}
    alive = {n: job_id for n, job_id in ids.items() if (states or {}).get(job_id, "GONE") not in _OVER}
    if alive:
        logger.info("%d jobs are in the queue already: %s", len(alive), ", ".join(alive.values()))
    return {n: submitit.SlurmJob(folder=folder, job_id=job_id, tasks=[0]) for n, job_id in alive.items()}


def _executor(folder: Path, settings: Mapping[str, Any], sweep: Path) -> Any:
    """Submitit's, with our batch script around the ranks. sweep: the folder of the runs, where the code's copy goes."""
    import submitit

    try:
        executor = submitit.SlurmExecutor(folder=folder, max_num_timeout=settings["max_timeouts"])
    except RuntimeError as error:
        raise VarlabError("launch=slurm needs Slurm's commands on this machine; there is no srun.") from error
    wanted = {
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
        # one rank's end is all ranks' end; they wait for each other otherwise
        "srun_args": ["--kill-on-bad-exit=1"],
        "additional_parameters": {"requeue": True, **settings["sbatch"]},
        "setup": [*settings["setup"], *_code(sweep), *_before(folder, settings)],
        "teardown": [f"{shlex.quote(sys.executable)} -m varlab.launch.slurm_attempt $?"],
    }
    executor.update_parameters(**{key: value for key, value in wanted.items() if value is not None})
    return executor


def _code(sweep: Path) -> list[str]:
    """The job runs from a copy: what is edited while it is in the queue does not reach it."""
    copy = shlex.quote(str(snapshot(sweep.absolute() / ".code")))
    # safe: without it Python would look into the current folder first, which may be a checkout
    return ["export PYTHONSAFEPATH=1", f"export PYTHONPATH={copy}${{PYTHONPATH:+:$PYTHONPATH}}"]


def _before(folder: Path, settings: Mapping[str, Any]) -> list[str]:
    attempts = Path(shlex.quote(str(folder.parent / "attempts")))
    return Attempt.setup(attempts, max_timeouts=settings["max_timeouts"], max_attempts=settings["max_attempts"])


def _submit(launcher: Any, executor: Any, wanted: Sequence[_Asked]) -> dict[int, Any]:
    """Submitit's jobs by number in the sweep; written to the sweep's table at once."""
    from submitit.core.utils import FailedJobError, FailedSubmissionError

    state = Singleton.get_state()
    try:
        jobs = list(
            executor.map_array(launcher, *zip(*((job.config, job.number, state) for job in wanted), strict=True))
        )
    except (FailedJobError, FailedSubmissionError) as error:
        raise VarlabError(f"Slurm refuses the jobs ({' '.join(str(error).split())}): see launch.*") from error
    logger.info("%d jobs submitted: %s", len(jobs), ", ".join(job.job_id for job in jobs))
    for folder in {job.path.parent for job in wanted}:
        numbers = {a.path.name: job.job_id for a, job in zip(wanted, jobs, strict=True) if a.path.parent == folder}
        sweep_table.note_slurm_jobs(folder, numbers)
    return {asked.number: job for asked, job in zip(wanted, jobs, strict=True)}


def _wait(ids: Sequence[str], poll: float) -> dict[str, str]:
    """Until every job is over for good; its last state by id."""
    over: dict[str, int] = dict.fromkeys(ids, 0)
    last: dict[str, str] = dict.fromkeys(ids, "UNKNOWN")
    while True:
        states = _queue(ids)
        for job in ids if states is not None else ():
            state = (states or {}).get(job, "GONE")
            over[job] = over[job] + 1 if state in _OVER else 0
            last[job] = last[job] if state == "GONE" else state
        if all(count >= _SETTLED for count in over.values()):
            return last
        time.sleep(poll)


def _queue(ids: Sequence[str]) -> dict[str, str] | None:
    """State by job, of those that Slurm still knows; None where it does not answer."""
    masters = sorted({job.partition("_")[0] for job in ids})
    form = ["--noheader", "--array", "--states=all", "--format=%F_%K %T", f"--jobs={','.join(masters)}"]
    asked = subprocess.run(["squeue", *form], capture_output=True, text=True, check=False)
    if asked.returncode:
        return {} if "Invalid job id" in asked.stderr else None
    pairs = [line.split() for line in asked.stdout.splitlines() if line.strip()]
    return {job.removesuffix("_N/A"): state for job, state in pairs}


def _result(asked: _Asked, job: Any, state: str) -> JobReturn:
    """What the job's rank 0 returned; else what its record says; else what Slurm says."""
    if job.task(0).paths.result_pickle.exists():
        outcome, value = job.task(0)._get_outcome_and_result()  # the rank's own words, whatever other ranks did
        if outcome == "success":
            returned: JobReturn = value
            return returned
    why = f"Slurm job {job.job_id} ended as {state}; its log is {job.task(0).paths.stdout}"
    return _told(asked, _lost(asked.path, why))


def _told(asked: _Asked, error: str | None) -> JobReturn:
    """As if the job had returned it."""
    told = JobReturn(overrides=asked.overrides, status=JobStatus.COMPLETED)  # an error is a result, as in run_job
    told.return_value = JobResult(tuple(asked.overrides), str(asked.path), error)
    return told


def _command(launcher: Any) -> str:
    name: str = launcher.task_function.args[0].name  # a partial of run_job
    return name


def _is_finished(launcher: Any, asked: _Asked) -> bool:
    """Whether the very run is there, so that a job would do nothing. Only trainings: other commands look at runs."""
    if _command(launcher) != "train" or not (asked.path / "run.json").exists():
        return False
    record = read_run(asked.path)
    keys = [str(key) for key in asked.config if key != "hydra"]
    resolved = OmegaConf.to_container(OmegaConf.masked_copy(asked.config, keys), resolve=True)
    return record["outcome"]["state"] == "finished" and not differences(record["config"], resolved)  # type: ignore[arg-type]


def _lost(path: Path, why: str) -> str | None:
    """Why a run without a result is over, written into its record too; None if it is finished after all."""
    try:
        outcome = read_run(path)["outcome"]
        if outcome["state"] == "finished":
            return None
        if outcome["state"] == "failed":
            return str(outcome["error"])
        with RunDirectory(path) as directory:
            directory.lock()
            directory.fail(why)
    except VarlabError as error:
        return f"{why} ({error})"
    return why
