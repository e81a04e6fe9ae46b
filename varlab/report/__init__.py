"""Reports on finished run directories: one self-contained page and tables. Reads files only.

Importing this package is cheap; matplotlib and jinja2 are imported when a report is written.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from varlab.report.runs import Run, find_runs, read_run
from varlab.report.score_files import Score
from varlab.report.variants import describe_differences

if TYPE_CHECKING:
    from varlab.report.page.html import ReportFiles

__all__ = ["Run", "Score", "describe_differences", "find_runs", "read_run", "write_report", "write_study"]


def write_report(runs: Sequence[Path], out: Path, *, title: str) -> ReportFiles:
    """Write ``out/report.html`` and ``out/results.csv`` about run directories, or folders that contain some.

    ``out/scaling.csv`` is written where finished generators of at least four sizes differ in size, budget and seed only.

    Raises VarlabError where a given path does not exist or holds no run.
    """
    from varlab.report.page.html import write
    from varlab.report.sweep_table import find_sweeps

    paths = [Path(run) for run in runs]
    with _uncollected():
        return write(find_runs(paths), Path(out), title=title, sweeps=find_sweeps(paths))


@contextmanager
def _uncollected() -> Iterator[None]:
    """Without the garbage collector: of thousands of runs it would look through all records again and again."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def write_study(runs: Sequence[Path], readme: Path, *, section: str, against: str = "first") -> None:
    """Write the study's table into its README, between the marks of a section.

    against: the row that each row is compared with: ``first``, ``previous``, or a row's label.

    Raises VarlabError where there is no finished training, or no such marks.
    """
    from varlab.report.readme_table import study_table, write_section

    write_section(readme, section, study_table(find_runs([Path(run) for run in runs]), against=against))
