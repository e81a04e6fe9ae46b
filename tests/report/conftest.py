"""One made-up study, and the report about it."""

from __future__ import annotations

from pathlib import Path

import pytest

from varlab.report import write_report
from varlab.report.page.html import ReportFiles

from . import make_runs

TITLE = "Orders <on> digits & more"


@pytest.fixture(scope="session")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_runs.everything(tmp_path_factory.mktemp("study"))


@pytest.fixture(scope="session")
def report(study: Path, tmp_path_factory: pytest.TempPathFactory) -> ReportFiles:
    return write_report([study], tmp_path_factory.mktemp("report") / "new" / "folder", title=TITLE)


@pytest.fixture(scope="session")
def page(report: ReportFiles) -> str:
    return report.html.read_text(encoding="utf-8")
