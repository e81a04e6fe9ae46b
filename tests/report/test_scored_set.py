"""Anybody's samples, scored by ``varlab evaluate samples=…``, are a row of the report beside the runs."""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path
from typing import Any

import pytest

from varlab.report import find_runs, write_report
from varlab.report.page.verdict import cautions, comparable, headline, verdict
from varlab.report.stats.space_differences import spaces_of
from varlab.report.variants import group_variants

from . import make_runs

SPACE = "wide-bb"


def scored_set(path: Path, *, fid: float, spaces: bool = False, **protocol: Any) -> Path:
    """The directory of an evaluation of theirs.npz: its scores under the protocol of ``make_runs.score``, and pictures."""
    record = {"command": "evaluate", "name": "evaluate", "config": {"seed": 0, "samples": "theirs.npz", "batch": 7}}
    make_runs.write_run(path, record | {"seed": 0, "outcome": {"state": "finished"}}, [])
    make_runs.score(path, fid=fid)
    [file] = (path / "scores").iterdir()
    content = json.loads(file.read_text()) | {"kind": "samples", "cost": {}}
    content["protocol"] |= {
        "samples": {"name": "theirs.npz", "hash": "ab", "made_with": {}},
        "sampler": None,
    } | protocol
    del content["images"], content["scores"]["val_nll"]
    if spaces:
        add_space(content, fid)
    file.write_text(json.dumps(content))
    for name in (f"scored/{file.stem}", f"neighbours/{file.stem}", "real"):
        make_runs.grid(8, 4, noise=0, seed=len(name), path=path / "pictures" / f"{name}.png")
    return path


def add_space(content: dict[str, Any], fid: float) -> None:
    content["protocol"]["spaces"] = {"classifier-3f2a77": "3f2a77", SPACE: "bb"}
    content["scores"] |= {f"{SPACE}/fid": 2 * fid, f"{SPACE}/fid_error": 0.1, "fid_error": 0.1}


def test_samples_of_others_are_a_row_with_pictures(tmp_path: Path) -> None:
    make_runs.generator(tmp_path / "raster", order="raster", fid=9.0, pictures=True)
    scored_set(tmp_path / "theirs", fid=5.5)
    runs = find_runs([tmp_path])
    variants = group_variants(runs)
    assert [variant.label for variant in variants] == ["raster", "theirs.npz"] and comparable(variants)
    assert headline(variants) == "One generator: raster. Scored samples of others: theirs.npz."
    assert verdict(variants).startswith("theirs.npz has the lowest FID: 5.50 against 9.00 for raster")
    assert not any("versions of the code" in note or "machines" in note for note in cautions(runs, variants))
    files = write_report([tmp_path], tmp_path / "page", title="t")
    page = files.html.read_text()
    assert files.best is not None and files.best.order == "raster"  # what "varlab sample" can draw from
    table = re.findall(r'<span class="name">(.*?)</span>', page)
    assert list(dict.fromkeys(table)) == ["theirs.npz", "raster"]
    assert page.count("Nearest training images: theirs.npz") == 1
    assert page.count("Samples beside real images: theirs.npz") == 1
    assert "<code>batch</code>" not in page  # settings of an evaluation are not compared with those of a training
    rows = list(csv.DictReader(files.csv.read_text().splitlines()))
    assert [(row["name"], row["fid"], row["images"]) for row in rows if row["run"].endswith("theirs")] == [
        ("theirs.npz", "5.5", "")
    ]


def test_samples_against_another_reference_are_not_ranked(tmp_path: Path) -> None:
    make_runs.generator(tmp_path / "raster", order="raster", fid=9.0)
    scored_set(tmp_path / "theirs", fid=5.5, reference={"name": "VIRTUAL.npz", "hash": "cd", "n": 10_000})
    runs = find_runs([tmp_path])
    variants = group_variants(runs)
    assert not comparable(variants) and verdict(variants) == ""
    assert any("different protocols: they cannot be ranked" in note for note in cautions(runs, variants))


def test_spaces_of_samples_and_of_runs_are_in_one_table(tmp_path: Path) -> None:
    make_runs.generator(tmp_path / "raster", order="raster", fid=9.0)
    [file] = (tmp_path / "raster" / "scores").iterdir()
    content = json.loads(file.read_text())
    add_space(content, 9.0)
    file.write_text(json.dumps(content))
    scored_set(tmp_path / "theirs", fid=5.5, spaces=True)
    assert spaces_of(group_variants(find_runs([tmp_path]))) == {"classifier-3f2a77": "fid", SPACE: f"{SPACE}/fid"}
    page = write_report([tmp_path], tmp_path / "page", title="t").html.read_text()
    assert f"FID of theirs.npz, compared with raster: lower in classifier-3f2a77 and {SPACE}." in page


@pytest.mark.parametrize("spaces", [False, True])
def test_samples_alone_are_a_report(spaces: bool, tmp_path: Path) -> None:
    scored_set(tmp_path / "theirs", fid=5.5, spaces=spaces)
    files = write_report([tmp_path], tmp_path / "page", title="t")
    assert "Scored samples of others: theirs.npz." in files.html.read_text() and files.best is None


def test_an_evaluation_of_a_run_is_no_row(tmp_path: Path) -> None:
    make_runs.generator(tmp_path / "raster", order="raster")
    record = {"command": "evaluate", "name": "evaluate", "config": {"run": "raster"}, "outcome": {"state": "finished"}}
    make_runs.write_run(tmp_path / "evaluation", record, [])
    assert [variant.label for variant in group_variants(find_runs([tmp_path]))] == ["raster"]
