"""``varlab report``: one page and one table about any set of runs."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from varlab.cli.rundir import RunDirectory
from varlab.report import write_report

__all__ = ["run"]

logger = logging.getLogger(__name__)


def run(cfg: DictConfig, directory: RunDirectory) -> dict[str, Any]:
    """Write report.html, results.csv and scaling.csv into the directory, which may itself hold the runs they are about."""
    result = write_report([Path(path) for path in cfg.runs], directory.path, title=cfg.title)
    logger.info("report: %s", result.html)
    scaling = {"scaling": str(result.scaling)} if result.scaling else {}
    return {"html": str(result.html), "csv": str(result.csv), **scaling}
