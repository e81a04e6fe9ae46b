"""One job: a composed configuration becomes a run in its directory. Launchers carry this function to where it runs."""

from __future__ import annotations

import contextlib
import importlib
import logging
import math
import re
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from varlab.cli.command_table import Command
from varlab.config import Config
from varlab.errors import Stopped, VarlabError
from varlab.files import sha256
from varlab.launch import sweep, terminal
from varlab.launch.environment import (
    clean_environment,
    global_rank,
    import_from,
    keep_freed_memory,
    needs_ranks,
    start_workers_apart,
    started_ranks,
)
from varlab.launch.exits import exit_at_signals, exit_failed, exit_stopped, leave_process_group
from varlab.launch.local import run_ranks
from varlab.launch.slurm_attempt import Attempt
from varlab.launch.user_message import report, user_message
from varlab.recipe.course.branch import branch
from varlab.recipe.course.extension import extend
from varlab.run.changes import with_old_defaults
from varlab.run.directory import RunDirectory
from varlab.run.names import run_path
from varlab.run.neighbour import neighbour_hint
from varlab.run.record import FILE, RunRecord
from varlab.run.trust import targets_of

__all__ = ["JobResult", "execute", "refusal", "run_job"]

logger = logging.getLogger(__name__)

ATTEMPT_PATIENCE = 50.0
"""Seconds to wait for the directory's lock under Slurm: processes on a lost node may hold it until Slurm ends them."""


@dataclass(frozen=True)
class JobResult:
    """How one job ended. Plain data, which any launcher can send between processes. error: a message, None on success."""

    overrides: tuple[str, ...]
    path: str | None
    error: str | None


def run_job(
    command: Command, cfg: DictConfig, *, imports: Sequence[str] = (), trusted: Collection[str] = ()
) -> JobResult:
    """Run one job. An error is returned and not raised, so that the other jobs of a sweep continue under any launcher.

    imports: the folders from which the starting process imports, a user's ``--config-dir`` among them. trusted: the
    ``_target_``s named there.
    """
    import_from(imports)
    terminal.configure()
    with clean_environment(nodes=_nodes(cfg)):
        return _run_job(command, cfg, trusted)


def _nodes(cfg: DictConfig) -> int:
    """The machines that ``trainer.num_nodes`` asks for; 1 where it is no such number, which is refused later."""
    nodes = OmegaConf.select(cfg, "trainer.num_nodes", throw_on_resolution_failure=False)
    return nodes if isinstance(nodes, int) else 1


def _run_job(command: Command, cfg: DictConfig, trusted: Collection[str]) -> JobResult:
    attempt = Attempt.current()
    if attempt is not None:
        exit_at_signals(attempt)
    hydra = HydraConfig.get()
    overrides = tuple(str(override) for override in hydra.overrides.task)
    path: Path | None = None
    error: str | None = None
    try:
        path = run_path(
            out=cfg.get("out"),
            name=str(cfg.get("name") or command.name),
            overrides=overrides,
            multirun=hydra.mode == RunMode.MULTIRUN,
        )
        config = _configuration(command, cfg, path)
        _refuse_displaced(command, config, overrides)
        chosen: Config = OmegaConf.to_container(hydra.runtime.choices)  # type: ignore[assignment]
        choices = {name: option for name, option in chosen.items() if not name.startswith("hydra")}
        # A job of a sweep waits until another process has done the same job.
        patience = ATTEMPT_PATIENCE if attempt else math.inf if hydra.mode == RunMode.MULTIRUN else None
        watched = hydra.mode == RunMode.MULTIRUN or started_ranks() is not None or attempt is not None
        with (
            RunDirectory(path, rank=global_rank(), patience=patience) as directory,
            _nothing_left(directory, keep=watched),
        ):
            hint = patience is None and cfg.get("out") is None
            _run_in_directory(command, directory, config, list(overrides), choices, trusted, hint=hint)
        leave_process_group()
    except Stopped as stopped:
        if attempt is None:
            raise
        exit_stopped(attempt, str(stopped))
    except Exception as raised:
        error = report(raised)
        if attempt is not None and started_ranks() is not None:
            exit_failed(attempt, raised, error)
    finally:
        if path is not None and global_rank() == 0:
            sweep.refresh_row(path)
    return JobResult(overrides, str(path) if path else None, error)


def _refuse_displaced(command: Command, config: Config, overrides: Sequence[str]) -> None:
    """Raise VarlabError for a word that would have no effect beside another one."""
    for key, others in command.displaces.items():
        lost = [word for word in overrides if re.split("[=.@]", word.lstrip("+~"), maxsplit=1)[0] in others]
        if lost and config.get(key) is not None:
            raise VarlabError(
                f"{lost[0]} has no effect beside {key}={config[key]}, which brings its own: leave out {lost[0]}."
            )


def refusal(command: Command, cfg: DictConfig, path: Path) -> str | None:
    """Why a job of a sweep cannot begin, as far as that is known before it does; None if it can, or has begun before."""
    if (path / FILE).exists():
        return None
    try:
        # what this logs, the job logs
        with terminal.quiet():
            _check(command, _configuration(command, cfg, path), RunDirectory(path))
    except Exception as error:
        return report(error)
    return None


def _configuration(command: Command, cfg: DictConfig, path: Path) -> Config:
    """The resolved configuration of a job, with the settings that follow from the data."""
    _require_positional(command, cfg)
    config = _resolve(cfg, path)
    if command.complete:
        config = _named(command.complete)(config)
    return config


def _require_positional(command: Command, cfg: DictConfig) -> None:
    """Raise VarlabError, with the form that people type, where a command lacks the path that it is about."""
    if command.positional and OmegaConf.is_missing(cfg, command.positional):
        raise VarlabError(f"{command.positional} has no value: name one, as in `{command.example}`.")


def _resolve(cfg: DictConfig, path: Path) -> Config:
    """The configuration with all references resolved: those to ``out`` mean the run's directory, whoever named it."""
    asked = cfg.get("out")
    if "out" in cfg:
        cfg = cfg.copy()
        cfg.out = str(path)
    config: Config = OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True)  # type: ignore[assignment]
    return config | ({"out": asked} if "out" in config else {})


def _run_in_directory(
    command: Command,
    directory: RunDirectory,
    config: Config,
    overrides: list[str],
    choices: Config,
    trusted: Collection[str],
    *,
    hint: bool,
) -> None:
    """hint: whether to name a run elsewhere that this command could continue."""
    attempt, path = Attempt.current(), directory.path
    if not command.recorded or config.get("dry"):
        _check(command, config, directory)
        execute(command.module, _trusting(config, trusted), directory)
        return
    asked = RunRecord(
        command=command.name,
        name=str(config.get("name") or command.name),
        overrides=overrides,
        choices=choices,
        config=config,
        seed=config.get("seed"),
        source=_weights_hash(config.get("run")) or _file_hash(config.get("samples")),
    )
    if directory.record_path.exists():
        config = asked.config = with_old_defaults(asked, directory.record())
    if hint and directory.rank == 0 and not path.exists() and (line := neighbour_hint(path, asked)):
        logger.info("%s", line)
    if not _prepare(directory, attempt, asked):
        logger.info("%s is finished: nothing to do", path)
        return
    try:
        _check(command, config, directory)
        run = run_ranks if needs_ranks(config) else execute
        logger.info("%s: %s", "resuming" if directory.resuming else "run", path)
        if directory.rank == 0:
            sweep.refresh_row(path, working=True)
        outcome = run(command.module, _trusting(config, trusted), directory)
    except BaseException as error:
        end = directory.stop if isinstance(error, Stopped | KeyboardInterrupt) else directory.fail
        # If the record cannot be written either (a full disk), the first error is the one to report.
        with contextlib.suppress(OSError, VarlabError):
            end(user_message(error))
        raise
    directory.finish(outcome)


def _check(command: Command, config: Config, directory: RunDirectory) -> None:
    """Refuse what can be known to fail before the command's module, and with it torch, is imported."""
    if command.check:
        _named(command.check)(config, directory)


def _named(path: str) -> Callable[..., Any]:
    """The function of this name, imported now."""
    module, _, name = path.rpartition(".")
    function: Callable[..., Any] = getattr(importlib.import_module(module), name)
    return function


@contextlib.contextmanager
def _nothing_left(directory: RunDirectory, *, keep: bool) -> Iterator[None]:
    """Remove what a refused job made. keep: False where others read why it failed: the table of a sweep, a batch script."""
    try:
        yield
    except VarlabError:
        if not keep:
            directory.discard()
        raise


def _trusting(config: Config, trusted: Collection[str]) -> Config:
    """The configuration with the names that the user's own configuration trusts, for a command that asks for them."""
    if config.get("trust", True) is True:
        return config
    return config | {"trust": sorted({*trusted, *targets_of(config), *(config["trust"] or ())})}


def _prepare(directory: RunDirectory, attempt: Attempt | None, asked: RunRecord) -> bool:
    """Begin the run; False if it is finished. Under Slurm rank 0 does this, and the other ranks read its note."""
    if attempt is not None and directory.rank != 0:
        start = attempt.wait_for_start()
        directory.resuming = start["resuming"]
        return start["todo"]
    todo = directory.prepare(asked, extend, branch)
    if attempt is not None:
        if todo:
            directory.update(slurm=attempt.history())
        attempt.note_start(directory.path, todo=todo, resuming=directory.resuming)
    return todo


def _weights_hash(run: object) -> str | None:
    """The hash of the weights of the run that a command reads; None without such a run."""
    file = Path(str(run)) / "weights.safetensors"
    return sha256(file) if run is not None and file.is_file() else None


def _file_hash(file: object) -> str | None:
    """The hash of the file of samples that a command reads; None without one."""
    return sha256(Path(str(file))) if file is not None and Path(str(file)).is_file() else None


def execute(module: str, config: Config, directory: RunDirectory) -> Config:
    """Call a command's ``run`` in this process."""
    keep_freed_memory()
    if (started_ranks() or 1) > 1:
        start_workers_apart()
    outcome: Config = importlib.import_module(module).run(config, directory) or {}
    return outcome
