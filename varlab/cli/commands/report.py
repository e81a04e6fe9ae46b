"""``varlab report``: one page and one table about any set of runs."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING

from varlab.cli.conclusion import describe_scores, say_next
from varlab.config import Config, shell_word
from varlab.report import Run, describe_differences, read_run, write_report, write_study
from varlab.run.directory import RunDirectory

if TYPE_CHECKING:
    from varlab.report.page.html import ReportFiles

__all__ = ["run"]

logger = logging.getLogger(__name__)


def run(config: Config, directory: RunDirectory) -> Config:
    """Write report.html, results.csv and scaling.csv into the directory, which may itself hold the runs they are about."""
    paths = [Path(path) for path in config["runs"]]
    if len(paths) == 2 and all((path / "run.json").is_file() for path in paths):
        _log_differences(*map(read_run, paths))
    result = write_report(paths, directory.path, title=config["title"])
    _conclude(result)
    if config["readme"] is not None:
        write_study(paths, Path(config["readme"]), section=config["section"], against=config["against"])
        logger.info("table: %s, section %s", config["readme"], config["section"])
    scaling = {"scaling": str(result.scaling)} if result.scaling else {}
    return {"html": str(result.html), "csv": str(result.csv), **scaling}


def _conclude(result: ReportFiles) -> None:
    """Say which generator ranks first, what its scores mean, and where the page is."""
    best, following = result.best, []
    if best is not None:
        following = [f"varlab sample {shell_word(str(best.path))}"]
        if best.score is None:
            following.insert(0, f"varlab evaluate {shell_word(str(best.path))}")
        elif said := describe_scores(best.score.values, judge=best.score.protocol.get("judge") or {}):
            logger.info("%s: %s", best.path, said)
    say_next(result.html, *following)


def _log_differences(a: Run, b: Run) -> None:
    lines = describe_differences(a, b)
    logger.info("%s → %s: %s", a.path, b.path, f"{len(lines)} differences" if lines else "no difference")
    for line in lines:
        logger.info("  %s", line)
