"""A sweep before it begins: its jobs, and the directories of their runs."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra._internal.hydra import Hydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Quote, QuotedString
from hydra.types import RunMode
from omegaconf import DictConfig

from varlab.errors import VarlabError
from varlab.report import sweep_table
from varlab.report.sweep_table import SweepJob
from varlab.run.names import run_path

__all__ = ["begin", "compose", "notes_folder", "refresh", "refresh_row"]

logger = logging.getLogger(__name__)

_BASIC = "hydra._internal.core_plugins.basic_sweeper.BasicSweeper"


def compose(hydra: Hydra, name: str, overrides: Sequence[str], mode: RunMode = RunMode.RUN) -> DictConfig:
    """The configuration of ``conf/<name>.yaml`` with overrides; Hydra's own part is in ``hydra``."""
    return hydra.compose_config(name, list(overrides), run_mode=mode, with_log_configuration=False)


def begin(hydra: Hydra, command: str, name: str, settings: Sequence[str], overrides: Sequence[str]) -> list[Path]:
    """List the jobs of a sweep in each folder that holds its runs; returns those folders.

    settings: overrides of Hydra itself. A sweeper that chooses jobs from earlier results has no list of jobs and no table.
    Raises VarlabError if two jobs would have the same directory.
    """
    folders: dict[Path, dict[str, SweepJob]] = {}
    parents: dict[tuple[str, ...], tuple[str | None, str]] = {}
    for job in _jobs(hydra, name, [*settings, *overrides]):
        # Composing takes a while, so jobs that differ in plain values share it.
        deciding = tuple(override for override in job if _may_place(hydra, override))
        if deciding not in parents:
            cfg = compose(hydra, name, [*settings, *job])
            parents[deciding] = (cfg.get("out"), str(cfg.get("name") or command))
        out, run = parents[deciding]
        path = run_path(out=out, name=run, overrides=job, multirun=True)
        others = folders.setdefault(path.parent, {})
        if twin := others.get(path.name):
            raise VarlabError(_same_directory(path, twin.overrides, job))
        others[path.name] = SweepJob(tuple(job), path.name)
    for folder, jobs in folders.items():
        sweep_table.add_jobs(folder, jobs.values())
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


def _may_place(hydra: Hydra, override: str) -> bool:
    """Whether an override may change the parent directory of a run: it is ``out``, ``name`` or a config group."""
    key = override.partition("=")[0].lstrip("+~").partition("@")[0]
    return key in ("out", "name") or bool(hydra.config_loader.get_group_options(key))


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
