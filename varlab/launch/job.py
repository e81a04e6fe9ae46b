"""One job: a composed configuration becomes a run in its directory. What a launcher carries elsewhere."""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from varlab.cli.command_table import Command
from varlab.config import Config
from varlab.errors import Stopped, VarlabError
from varlab.launch import exits, local, logs, sweep
from varlab.launch.slurm_attempt import Attempt
from varlab.launch.user_message import sentence, show_traceback
from varlab.run.directory import RunDirectory
from varlab.run.names import run_path

__all__ = ["JobResult", "execute", "run_job"]

logger = logging.getLogger(__name__)

ATTEMPT_PATIENCE = 50.0  # seconds: after a lost node, its processes may hold the directory until Slurm ends them


@dataclass(frozen=True)
class JobResult:
    """What became of one job. Plain data, so that it travels from wherever the job ran."""

    overrides: tuple[str, ...]
    path: str | None
    error: str | None  # one sentence, None where all went well


def run_job(command: Command, cfg: DictConfig) -> JobResult:
    """Run one job. An error is a result, never an exception: a sweep's other jobs go on, on every launcher."""
    logs.configure()
    attempt = Attempt.current()
    if attempt is not None:
        exits.at_any_moment(attempt)
    hydra = HydraConfig.get()
    overrides = tuple(str(override) for override in hydra.overrides.task)
    path: Path | None = None
    try:
        path = run_path(
            out=cfg.get("out"),
            name=str(cfg.get("name") or command.name),
            overrides=overrides,
            multirun=hydra.mode == RunMode.MULTIRUN,
        )
        config: Config = OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True)  # type: ignore[assignment]
        choices = {str(k): v for k, v in hydra.runtime.choices.items() if not str(k).startswith("hydra")}
        _in_directory(command, path, config, list(overrides), choices)
        exits.group()
    except Stopped as stopped:
        if attempt is None:
            raise
        exits.stopped(attempt, str(stopped))
    except Exception as error:
        if attempt is not None and local.inside() is not None:
            exits.failed(attempt, error, _say(error))
        return JobResult(overrides, str(path) if path else None, _say(error))
    finally:
        if path is not None and local.global_rank() == 0:
            sweep.refresh(path.parent)
    return JobResult(overrides, str(path), None)


def _say(error: Exception) -> str:
    """The error in a sentence; one that nobody foresaw is also logged with its traceback."""
    text = sentence(error)
    if text is None or show_traceback():
        logger.error("%s", type(error).__name__, exc_info=error)
    return text or f"unexpected {type(error).__name__}: {' '.join(str(error).split())}"


def _in_directory(command: Command, path: Path, config: Config, overrides: list[str], choices: Config) -> None:
    attempt = Attempt.current()
    with RunDirectory(path, rank=local.global_rank(), patience=ATTEMPT_PATIENCE if attempt else None) as directory:
        if not command.recorded:
            execute(command.module, config, directory)
            return
        record = {
            "command": command.name,
            "config": config,
            "overrides": overrides,
            "name": config.get("name") or command.name,
            "choices": choices,
            "source": _weights_hash(config.get("run")),
        }
        if not _prepare(directory, attempt, record):
            logger.info("%s is finished: nothing to do", path)
            return
        logger.info("%s: %s", "resuming" if directory.resuming else "run", path)
        try:
            if local.to_start(config):
                outcome = local.launch_ranks(command.module, config, directory)
            else:
                outcome = execute(command.module, config, directory)
        except BaseException as error:  # the record tells why the run stands where it does
            asked = isinstance(error, Stopped | KeyboardInterrupt)
            end = directory.stop if asked else directory.fail
            with contextlib.suppress(OSError, VarlabError):  # of a full disk, say: the error itself is to be heard
                end(sentence(error) or f"{type(error).__name__}: {error}".rstrip(": "))
            raise
        directory.finish(outcome)


def _prepare(directory: RunDirectory, attempt: Attempt | None, record: Config) -> bool:
    """Whether there is something to do: rank 0 looks, and tells the ranks that Slurm has started beside it."""
    if attempt is None:
        return directory.prepare(**record)
    if directory.rank != 0:
        begun = attempt.begun()
        directory.resuming = begun["resuming"]
        return bool(begun["todo"])
    todo = directory.prepare(**record)
    if todo:
        directory.update(slurm=attempt.told())
    attempt.begin(directory.path, todo=todo, resuming=directory.resuming)
    return todo


def _weights_hash(run: Any) -> str | None:
    """Of the run that a command looks at: trained anew, it is another one."""
    file = Path(str(run)) / "weights.safetensors"
    if run is None or not file.is_file():
        return None
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def execute(module: str, config: Config, directory: RunDirectory) -> Config:
    """Call a command's ``run`` in this process."""
    run = importlib.import_module(module).run
    outcome: Config = run(OmegaConf.create(config), directory) or {}
    return outcome
