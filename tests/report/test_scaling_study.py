"""Scaling studies: which runs form one, the laws they follow, their chapter of the page, and scaling.csv."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest

from varlab.report import find_runs, write_report
from varlab.report.stats.scaling_study import find_studies, fit_laws

from . import make_runs
from .test_page import parse

DEPTHS = (2, 3, 4, 5, 6)
B = {"loss": -0.20, "loss/last": -0.23, "error": -0.010, "error/last": -0.016}


def train(root: Path, depth: int, *, images: int = 4000, seed: int = 0, levels: int = 3, **changed: object) -> Path:
    """A generator's directory whose last validation lies on a law of its 4608·depth³ parameters, moved by its seed."""
    parameters = 4608 * depth**3
    end = {key: (1e-9 * parameters) ** b * 0.98 for key, b in B.items()}
    metrics = []
    for seen in range(500, images + 1, 500):
        late = 1 + 0.4 * (1 - seen / images) ** 2 + 0.001 * (seed - 0.5)
        loss, last = end["loss"] * late, end["loss/last"] * late
        line = {"images": seen, "flops": 6.0 * parameters * seen, "seconds": seen / 100}
        line |= {"val/loss": loss, "val/accuracy": 1 - end["error"] * (late + 4) / 6}
        if levels > 1:
            line |= {"val/loss/last": last, "val/accuracy/last": 1 - end["error/last"] * (late + 4) / 6}
        line |= {f"val/loss/{k}": loss for k in range(levels)}
        metrics += [line, {"images": seen, "flops": line["flops"], "val/accuracy": 0.99}]  # the judge's, of samples
    config = {"transformer": {"depth": depth}, "budget": {"images": images}, "data": {"batch": 64}, **changed}
    outcome = {"state": "finished", "images": images, "flops": 6.0 * parameters * images}
    record = make_runs.record(name="g", seed=seed, config=config, overrides=["order=next_scale"], outcome=outcome,
                              cost={"parameters": parameters, "block_parameters": parameters // 2},
                              build={"transformer": {"depth": depth}})  # fmt: skip
    return make_runs.write_run(root / f"d{depth}+{images}+{seed}", record, metrics)


@pytest.fixture(scope="module")
def sizes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five sizes × two budgets × two seeds."""
    root = tmp_path_factory.mktemp("sizes")
    for depth in DEPTHS:
        for images in (2000, 4000):
            for seed in (0, 1):
                train(root, depth, images=images, seed=seed)
    return root


def test_runs_that_differ_in_size_budget_and_seed_are_one_study(sizes: Path) -> None:
    (study,) = find_studies(find_runs([sizes]))
    assert study.label == "next_scale" and len(study.runs) == 20
    assert study.sizes == tuple(4608 * depth**3 for depth in DEPTHS)


def test_the_laws_of_the_runs_are_recovered(sizes: Path) -> None:
    laws = {(law.measure.key, law.against): law for law in fit_laws(find_studies(find_runs([sizes]))[0])}
    assert set(laws) == {(key, against) for key in B for against in "NPC"}
    for key, b in B.items():
        assert laws[key, "N"].fit.b == pytest.approx(b, rel=0.01) and laws[key, "P"].paper is None
        assert laws[key, "P"].fit.a * 2 == pytest.approx(laws[key, "N"].fit.a, rel=1e-6), "N is half of all parameters"
    assert laws["loss", "N"].fit.correlation == pytest.approx(-1) and laws["loss", "N"].paper == -0.20


def test_the_longest_trainings_of_each_size_enter_and_seeds_are_averaged(sizes: Path) -> None:
    (study,) = find_studies(find_runs([sizes]))
    law = fit_laws(study)[0]
    assert law.seen is not None and len(law.seen[0]) == 10 and len(law.fit.x) == 5
    expected = [(1e-9 * size) ** -0.20 * 0.98 * np.sqrt(0.9995 * 1.0005) for size in study.sizes]
    assert law.fit.y == pytest.approx(expected, rel=1e-9)
    assert len(study.curves(law.measure)) == 10


def test_runs_that_did_not_note_their_blocks_have_a_law_over_all_parameters(tmp_path: Path) -> None:
    for depth in DEPTHS:
        record = json.loads((run := train(tmp_path, depth, images=500) / "run.json").read_text())
        del record["cost"]["block_parameters"]
        run.write_text(json.dumps(record))
    (study,) = find_studies(find_runs([tmp_path]))
    assert {law.against for law in fit_laws(study)} == {"P"}


def test_a_floor_is_seen_on_the_page(tmp_path: Path) -> None:
    """Of a loss of 1 + (a·N)^b, whose line would be wrong."""
    for depth in (*DEPTHS, 7):
        run = train(tmp_path / "runs", depth, images=500)
        line = {"images": 500, "flops": 1e9 * depth**3, "val/loss": 1 + (1e-4 * 4608 * depth**3) ** -0.3}
        (run / "metrics.jsonl").write_text(json.dumps(line) + "\n")
    page = write_report([tmp_path / "runs"], tmp_path / "page", title="t").html.read_text()
    assert "bends: no line" in page
    loss = next(row for row in csv.DictReader((tmp_path / "page" / "scaling.csv").open()) if row["against"] == "P")
    assert float(loss["floor"]) == pytest.approx(1, abs=1e-4) and float(loss["floor_b"]) == pytest.approx(
        -0.3, abs=1e-3
    )
    assert float(loss["floor_a"]) == pytest.approx(1e-4, rel=1e-2)


def test_a_judges_accuracy_is_no_error_rate_of_tokens(sizes: Path) -> None:
    (study,) = find_studies(find_runs([sizes]))
    error = next(measure for measure in study.measures if measure.key == "error")
    assert min(study.longest(error)[1]) > 0.5


def test_three_sizes_are_no_study_nor_are_runs_that_differ_in_more(tmp_path: Path) -> None:
    for depth in DEPTHS[:3]:
        train(tmp_path, depth)
    train(tmp_path, 6, data={"batch": 32})
    train(tmp_path, 5, transformer={"depth": 5, "block": {"qk_norm": False}})
    assert find_studies(find_runs([tmp_path])) == []
    result = write_report([tmp_path], tmp_path / "report", title="t")
    assert result.scaling is None and "Scaling of" not in result.html.read_text()
    assert not (tmp_path / "report" / "scaling.csv").exists()


def test_one_level_has_no_last_one_and_one_log_point_no_frontier(tmp_path: Path) -> None:
    for depth in DEPTHS:
        train(tmp_path, depth, images=500, levels=1)
    (study,) = find_studies(find_runs([tmp_path]))
    assert [measure.key for measure in study.measures] == ["loss", "error"]
    assert {law.measure.key for law in fit_laws(study)} == {"loss", "error"}


def test_the_page_has_the_chapter_and_the_table_its_numbers(sizes: Path, tmp_path: Path) -> None:
    result = write_report([sizes], tmp_path, title="t")
    page = result.html.read_text()
    assert parse(page).open == [] and "<h2>Scaling of next_scale</h2>" in page
    for title in ("the blocks' parameters", "all parameters", "compute"):
        assert page.count(f"Against {title}</h3>".replace("'", "&#39;")) == 1
    assert "5 sizes from 36.9 k to 995 k parameters, 20 runs." in page and "−0.200" in page
    rows = list(csv.DictReader((tmp_path / "scaling.csv").open()))
    assert len(rows) == 12 and {row["study"] for row in rows} == {"next_scale"}
    loss = next(row for row in rows if (row["measure"], row["against"]) == ("loss", "N"))
    assert float(loss["b"]) == pytest.approx(-0.20, rel=0.01) and float(loss["paper_b"]) == -0.20
    assert float(loss["b_low"]) <= float(loss["b"]) <= float(loss["b_high"]) and loss["points"] == "5"


def test_a_study_says_what_its_branches_saved(tmp_path: Path) -> None:
    """A quarter of all FLOPs; nothing where the trunks are elsewhere, whose cost counts once."""
    for depth in DEPTHS:
        trunk, branch = train(tmp_path / "a", depth, images=4000), train(tmp_path / "b", depth, images=2000)
        record = json.loads((branch / "run.json").read_text())
        flops = int(record["outcome"]["flops"] * 0.75)
        record["parents"]["from"] = {"run": str(trunk), "file": "kept-1500.ckpt", "images": 1500, "flops": flops}
        (branch / "run.json").write_text(json.dumps(record))
    (together,) = find_studies(find_runs([tmp_path / "a", tmp_path / "b"]))
    assert "FLOPs were spent, 25.0% less than" in together.saving
    assert "25.0% less" in write_report([tmp_path / "a", tmp_path / "b"], tmp_path / "page", title="t").html.read_text()
    (alone,) = find_studies(find_runs([tmp_path / "b"]))
    assert alone.saving == "" and alone.flops[0] == alone.flops[1]


@pytest.mark.slow
def test_the_same_runs_give_the_same_table(sizes: Path, tmp_path: Path) -> None:
    first, second = (write_report([sizes], tmp_path / name, title="t") for name in "ab")
    assert first.scaling and second.scaling and first.scaling.read_bytes() == second.scaling.read_bytes()
    assert first.html.read_bytes() == second.html.read_bytes()
