"""A sweep before it begins: which jobs it stands for, and where their runs will lie."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra._internal.hydra import Hydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.types import RunMode

from varlab.errors import VarlabError
from varlab.report import sweep_table
from varlab.report.sweep_table import SweepJob
from varlab.run.names import run_path

__all__ = ["begin", "refresh"]

logger = logging.getLogger(__name__)

_BASIC = "hydra._internal.core_plugins.basic_sweeper.BasicSweeper"


def begin(hydra: Hydra, command: str, name: str, settings: Sequence[str], overrides: Sequence[str]) -> list[Path]:
    """List a sweep's jobs in each folder that holds some of its runs; return those folders.

    settings: overrides of Hydra itself. A sweeper that chooses jobs as it runs has no list of jobs and no table.
    Raises VarlabError where two jobs would have one directory.
    """
    jobs = _jobs(hydra, name, [*settings, *overrides], overrides)
    folders: dict[Path, list[SweepJob]] = {}
    placed: dict[tuple[str, ...], tuple[str | None, str]] = {}
    for job in jobs:
        deciding = tuple(override for override in job if _may_place(hydra, override))
        if deciding not in placed:
            cfg = hydra.compose_config(name, [*settings, *job], run_mode=RunMode.RUN, with_log_configuration=False)
            placed[deciding] = (cfg.get("out"), str(cfg.get("name") or command))
        out, run = placed[deciding]
        path = run_path(out=out, name=run, overrides=job, multirun=True)
        others = folders.setdefault(path.parent, [])
        if twin := next((other for other in others if other.path == path.name), None):
            raise VarlabError(_shared(path, twin.overrides, job))
        others.append(SweepJob(tuple(job), path.name))
    for folder, of in folders.items():
        sweep_table.add_jobs(folder, of)
    return list(folders)


def _may_place(hydra: Hydra, override: str) -> bool:
    """Whether an override may change the parent directory of a run: it is ``out``, ``name`` or a config group."""
    key = override.partition("=")[0].lstrip("+~").partition("@")[0]
    return key in ("out", "name") or bool(hydra.config_loader.get_group_options(key))


def _shared(path: Path, first: Sequence[str], second: Sequence[str]) -> str:
    apart = [word for word in first if word not in second] + [word for word in second if word not in first]
    if not apart:
        return f"Two jobs of this sweep are the same ({path}): name each value once."
    return (
        f"Two jobs of this sweep would share the directory {path}: {', '.join(apart)} say how a run is done, not what it is, "
        "and have no part in its name. Give each a command of its own, with another out=."
    )


def refresh(folder: Path) -> None:
    """Update the table of a sweep's folder; do nothing in a folder without a sweep."""
    try:
        sweep_table.update_table(folder)
    except OSError as error:  # of a full disk: the run itself has its own word on that
        logger.warning("the table of the sweep in %s could not be written: %s", folder, error)


def _jobs(hydra: Hydra, name: str, everything: Sequence[str], overrides: Sequence[str]) -> list[list[str]]:
    """The overrides of each job, in Hydra's order."""
    cfg = hydra.compose_config(name, list(everything), run_mode=RunMode.MULTIRUN, with_log_configuration=False)
    if cfg.hydra.sweeper["_target_"] != _BASIC:
        return []
    asked = [str(override) for override in cfg.hydra.overrides.task]
    parsed = OverridesParser.create(config_loader=hydra.config_loader).parse_overrides(asked)
    batches = BasicSweeper.split_arguments(parsed, None)
    return [list(map(str, job)) for batch in batches for job in batch]
