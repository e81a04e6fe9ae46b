"""A report of very many runs: the work grows with their number, the page hardly, and details are linked."""

from __future__ import annotations

import cProfile
import json
import pstats
import re
from pathlib import Path
from urllib.parse import unquote

import pytest

from varlab.report import write_report

from . import make_runs


def crowd(folder: Path, n: int) -> Path:
    """Trainings of which each has a configuration of its own, and the last one failed."""
    for i in range(n):
        run = make_runs.classifier(folder / f"lr={i}", seed=0)
        record = json.loads((run / "run.json").read_text())
        record["config"]["lr"] = i
        record["outcome"]["state"] = "failed" if i == n - 1 else "finished"
        (run / "run.json").write_text(json.dumps(record))
    return folder


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("many")
    return write_report([crowd(folder / "javascript:runs", 240)], folder / "page", title="t").html


def test_details_of_many_runs_are_linked(page: Path) -> None:
    text = page.read_text()
    links = re.findall(r'<tr class="run"><th scope="row"><a href="([^"]+)">', text)
    assert len(links) == 240 and all(link.startswith("./") for link in links)
    targets = [page.parent / unquote(link) for link in links]
    assert all(target.is_file() for target in targets)
    assert targets[0].parent.name == "lr=239", "what is not finished comes first"
    assert "<pre>" not in text and "linked to its <code>run.json</code>" in text


def test_the_page_of_many_runs_shows_the_best(page: Path) -> None:
    text = page.read_text()
    assert "Of 239 variants, the table shows the 200 best, and figures and pictures the 24 best." in text
    assert text.count('<span class="name">') == 200 and text.count('<div class="scroll crowd">') == 1
    assert text.count('<span class="swatch" style="--c:transparent">') == 200 - 24, "what no figure shows has no colour"
    assert len(re.findall(r"<ul class=\"legend\">.*?</ul>", text, re.DOTALL)[0].split("<li>")) - 1 == 24
    assert len(text) < 600_000


def test_work_grows_with_the_number_of_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # The figures are those of 24 variants in both cases, and take longer than all else.
    monkeypatch.setattr("varlab.report.page.html.charts", lambda kind, variants: [])
    calls = []
    for n in (110, 220):
        profile = cProfile.Profile()
        profile.runcall(write_report, [crowd(tmp_path / str(n), n)], tmp_path, title="t")
        calls.append(pstats.Stats(profile).total_calls)  # type: ignore[attr-defined]
    assert calls[1] < 2.2 * calls[0]
