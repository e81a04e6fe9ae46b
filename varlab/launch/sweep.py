"""A sweep before it begins: its jobs, and the directories of their runs."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra._internal.hydra import Hydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Quote, QuotedString
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from varlab.errors import VarlabError
from varlab.report import sweep_table
from varlab.report.sweep_table import SweepJob
from varlab.run.names import run_path

__all__ = ["PlannedJob", "begin", "compose", "notes_folder", "plan", "refresh", "refresh_row"]

logger = logging.getLogger(__name__)

_BASIC = "hydra._internal.core_plugins.basic_sweeper.BasicSweeper"


def compose(hydra: Hydra, name: str, overrides: Sequence[str], mode: RunMode = RunMode.RUN) -> DictConfig:
    """The configuration of ``conf/<name>.yaml`` with overrides; Hydra's own part is in ``hydra``."""
    return hydra.compose_config(name, list(overrides), run_mode=mode, with_log_configuration=False)


@dataclass(frozen=True)
class PlannedJob:
    """A job of a sweep that has not begun. overrides: all of its own. path: of its run. config: without Hydra's part."""

    overrides: tuple[str, ...]
    path: Path
    config: DictConfig


def plan(hydra: Hydra, command: str, name: str, settings: Sequence[str], overrides: Sequence[str]) -> list[PlannedJob]:
    """Compose the jobs of a sweep; none for a sweeper that chooses jobs from earlier results.

    settings: overrides of Hydra itself. Raises VarlabError if two jobs would have the same directory.
    """
    jobs: dict[Path, PlannedJob] = {}
    for words in _jobs(hydra, name, [*settings, *overrides]):
        cfg = compose(hydra, name, [*settings, *words])
        config = OmegaConf.masked_copy(cfg, [str(key) for key in cfg if key != "hydra"])
        run = str(cfg.get("name") or command)
        path = run_path(out=cfg.get("out"), name=run, overrides=words, multirun=True)
        if twin := jobs.get(path):
            raise VarlabError(_same_directory(path, twin.overrides, words))
        jobs[path] = PlannedJob(tuple(words), path, config)
    return list(jobs.values())


def begin(jobs: Sequence[PlannedJob]) -> list[Path]:
    """List the jobs in each folder that holds their runs; returns those folders."""
    folders: dict[Path, list[SweepJob]] = {}
    for job in jobs:
        folders.setdefault(job.path.parent, []).append(SweepJob(job.overrides, job.path.name))
    for folder, listed in folders.items():
        sweep_table.add_jobs(folder, listed)
    return list(folders)


def notes_folder(hydra: Hydra, command: str, name: str, overrides: Sequence[str], folders: Sequence[Path]) -> str:
    """The override by which Hydra and Slurm write their notes beside the runs, into ``.hydra`` there.

    folders: those that hold the sweep's runs, as ``begin`` returned them.
    """
    if folders:
        folder = folders[0]
    else:
        cfg = compose(hydra, name, overrides, RunMode.MULTIRUN)
        folder = run_path(out=cfg.get("out"), name=str(cfg.get("name") or command), overrides=(), multirun=True).parent
    return f"hydra.sweep.dir={QuotedString(str(folder / '.hydra'), Quote.single).with_quotes()}"


def _same_directory(path: Path, first: Sequence[str], second: Sequence[str]) -> str:
    differing = [word for word in first if word not in second] + [word for word in second if word not in first]
    if not differing:
        return f"Two jobs of this sweep are the same ({path}): name each value once."
    return (
        f"Two jobs of this sweep would share the directory {path}, because {', '.join(differing)} say how a run is done "
        "and are not part of its name. Run a command for each, with another out=."
    )


def refresh(folder: Path) -> None:
    """Update the whole table of a sweep's folder; do nothing in a folder without a sweep."""
    with _unwritten(folder):
        sweep_table.update_table(folder)


def refresh_row(run: Path, *, working: bool = False) -> None:
    """Update the row of one run of a sweep; do nothing for another run. working: this process holds the run."""
    with _unwritten(run.parent):
        sweep_table.update_row(run.parent, run.name, working=working)


@contextmanager
def _unwritten(folder: Path) -> Iterator[None]:
    """Warn if a table cannot be written: the disk is full, for example, which the run reports itself."""
    try:
        yield
    except (OSError, VarlabError) as error:
        logger.warning("the table of the sweep in %s could not be written: %s", folder, error)


def _jobs(hydra: Hydra, name: str, overrides: Sequence[str]) -> list[list[str]]:
    """The overrides of each job, in Hydra's order."""
    cfg = compose(hydra, name, overrides, RunMode.MULTIRUN)
    if cfg.hydra.sweeper["_target_"] != _BASIC:
        return []
    parser = OverridesParser.create(config_loader=hydra.config_loader)
    parsed = parser.parse_overrides([str(override) for override in cfg.hydra.overrides.task])
    return [list(map(str, job)) for batch in BasicSweeper.split_arguments(parsed, None) for job in batch]
