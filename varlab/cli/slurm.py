"""``launch=slurm``: submit all jobs of a sweep, wait for all, lose none. Requeues belong to ``varlab.cli.attempt``."""

from __future__ import annotations

import logging
import shlex
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hydra.core.singleton import Singleton
from hydra.core.utils import JobReturn, JobStatus
from omegaconf import DictConfig, OmegaConf

from varlab.cli.attempt import Attempt
from varlab.cli.job import JobResult
from varlab.cli.names import run_path
from varlab.cli.rundir import RunDirectory, differences, read_run
from varlab.errors import VarlabError

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


def launch(launcher: Any, job_overrides: Sequence[Sequence[str]], first: int) -> list[JobReturn]:
    """Submit one job for each list of overrides and wait. What became of a lost one is told like any other's error.

    launcher: Hydra's plugin, which travels to the nodes and runs there. Raises VarlabError where Slurm is not there or
    refuses the settings.
    """
    settings = launcher.params["settings"]
    folder = Path(launcher.params["submitit_folder"]).absolute()
    results: dict[int, JobReturn] = {}
    arguments = {}
    for i, overrides in enumerate(map(list, job_overrides)):
        if _is_finished(launcher, overrides):
            results[i] = _told(launcher, overrides, None)
        else:
            arguments[i] = (overrides, "hydra.sweep.dir", first + i, f"job {first + i}", Singleton.get_state())
    if arguments:
        jobs = _submit(launcher, _executor(folder, settings), list(arguments.values()))
        logger.info("%d jobs submitted: %s", len(jobs), ", ".join(job.job_id for job in jobs))
        states = _wait([job.job_id for job in jobs], settings["poll"])
        for i, job in zip(arguments, jobs, strict=True):
            results[i] = _result(launcher, job, arguments[i][0], states[job.job_id])
    return [results[i] for i in range(len(job_overrides))]


def _executor(folder: Path, settings: Mapping[str, Any]) -> Any:
    """Submitit's, with our batch script around the ranks."""
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
        "setup": [*settings["setup"], *_before(folder, settings)],
        "teardown": [f"{shlex.quote(sys.executable)} -m varlab.cli.attempt $?"],
    }
    executor.update_parameters(**{key: value for key, value in wanted.items() if value is not None})
    return executor


def _before(folder: Path, settings: Mapping[str, Any]) -> list[str]:
    attempts = Path(shlex.quote(str(folder.parent / "attempts")))
    return Attempt.setup(attempts, max_timeouts=settings["max_timeouts"], max_attempts=settings["max_attempts"])


def _submit(launcher: Any, executor: Any, arguments: Sequence[tuple[Any, ...]]) -> list[Any]:
    from submitit.core.utils import FailedJobError, FailedSubmissionError

    try:
        return list(executor.map_array(launcher, *zip(*arguments, strict=True)))
    except (FailedJobError, FailedSubmissionError) as error:
        raise VarlabError(f"Slurm refuses the jobs ({' '.join(str(error).split())}): see launch.*") from error


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


def _result(launcher: Any, job: Any, overrides: list[str], state: str) -> JobReturn:
    """What the job's rank 0 returned; else what its record says; else what Slurm says."""
    if job.task(0).paths.result_pickle.exists():
        outcome, value = job.task(0)._get_outcome_and_result()  # the rank's own words, whatever other ranks did
        if outcome == "success":
            returned: JobReturn = value
            return returned
    why = f"Slurm job {job.job_id} ended as {state}; its log is {job.task(0).paths.stdout}"
    return _told(launcher, overrides, _lost(_path(launcher, _config(launcher, overrides)), why))


def _told(launcher: Any, overrides: list[str], error: str | None) -> JobReturn:
    """As if the job had returned it."""
    path = _path(launcher, _config(launcher, overrides))
    told = JobReturn(overrides=overrides, status=JobStatus.FAILED if error else JobStatus.COMPLETED)
    told.return_value = JobResult(tuple(overrides), str(path), error)
    return told


def _config(launcher: Any, overrides: list[str]) -> DictConfig:
    config: DictConfig = launcher.hydra_context.config_loader.load_sweep_config(launcher.config, overrides)
    return config


def _path(launcher: Any, config: DictConfig) -> Path:
    task = [str(override) for override in config.hydra.overrides.task]
    name = str(config.get("name") or _command(launcher))
    return run_path(out=config.get("out"), name=name, overrides=task, multirun=True)


def _command(launcher: Any) -> str:
    name: str = launcher.task_function.args[0].name  # a partial of run_job
    return name


def _is_finished(launcher: Any, overrides: list[str]) -> bool:
    """Whether the very run is there, so that a job would do nothing. Only trainings: other commands look at runs."""
    config = _config(launcher, overrides)
    path = _path(launcher, config)
    if _command(launcher) != "train" or not (path / "run.json").exists():
        return False
    record = read_run(path)
    asked = [str(key) for key in config if key != "hydra"]
    resolved = OmegaConf.to_container(OmegaConf.masked_copy(config, asked), resolve=True)
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
