"""The report room: finished run directories in, one self-contained page and one table out. Reads files only.

Importing this room is cheap; matplotlib and jinja2 are imported when a report is written.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from varlab.report.apart import told_apart
from varlab.report.compare import compare, differences
from varlab.report.read import Run, Score, find_runs, read_run

if TYPE_CHECKING:
    from varlab.report.page.html import ReportResult

__all__ = [
    "Run",
    "Score",
    "compare",
    "differences",
    "find_runs",
    "read_run",
    "told_apart",
    "write_report",
    "write_study",
]


def write_report(runs: Sequence[Path], out: Path, *, title: str) -> ReportResult:
    """Write ``out/report.html`` and ``out/results.csv`` from run directories, or folders that hold some; ``out/scaling.csv``
    where finished generators of at least four sizes are alike in all but size, budget and seed.

    Raises VarlabError where a given path does not exist or holds no run.
    """
    from varlab.report.ledger import find_ledgers
    from varlab.report.page.html import write

    paths = [Path(run) for run in runs]
    return write(find_runs(paths), Path(out), title=title, ledgers=find_ledgers(paths))


def write_study(runs: Sequence[Path], readme: Path, *, section: str, against: str = "first") -> None:
    """Write the study's table into its README, between the marks of a section; each row is compared with the ``first``
    one, the ``previous`` one, or the one of that label.

    Raises VarlabError where there is no finished training, or no such marks.
    """
    from varlab.report.readme_table import study_table, write_section

    write_section(readme, section, study_table(find_runs([Path(run) for run in runs]), against=against))
