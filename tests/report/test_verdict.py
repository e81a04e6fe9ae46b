"""The sentences of a report: they claim what the files support."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from varlab.report import find_runs
from varlab.report.page import verdict
from varlab.report.runs import Run
from varlab.report.variants import Variant, group_variants

from . import make_runs


def load(folder: Path) -> tuple[list[Run], list[Variant]]:
    runs = find_runs([folder])
    return runs, group_variants(runs)


def edit(run: Path, **outcome: object) -> None:
    record = json.loads((run / "run.json").read_text())
    record["outcome"] |= outcome
    (run / "run.json").write_text(json.dumps(record))


@pytest.mark.parametrize(
    ("flops", "images", "expected"),
    [
        (1.019, 60_000, "at equal training FLOPs and images"),
        (1.019, 50_000, "at equal training FLOPs"),
        (1.021, 60_000, "at equal images (training FLOPs differ up to 1.02×)"),
        (2.0, 50_000, "at unequal cost (training FLOPs differ up to 2.00×)"),
    ],
)
def test_equal_cost_follows_from_the_runs(tmp_path: Path, flops: float, images: int, expected: str) -> None:
    make_runs.generator(tmp_path / "a", order="raster")
    edit(make_runs.generator(tmp_path / "b", order="next_scale"), flops=1.5e12 * flops, images=images)
    _, variants = load(tmp_path)
    assert verdict.cost_match(variants) == expected
    assert verdict.headline(variants) == f"raster and next_scale: 2 orders, {expected}."


def test_unfinished_runs_do_not_spoil_the_match(study: Path) -> None:
    _, variants = load(study)
    assert "at equal training FLOPs and images" in verdict.headline(variants)


@pytest.mark.parametrize(("gap", "word"), [(0.5, "within"), (5.0, "larger than")])
def test_a_difference_is_compared_with_the_spread_over_seeds(tmp_path: Path, gap: float, word: str) -> None:
    for seed in (0, 1):
        make_runs.generator(tmp_path / f"a{seed}", order="raster", seed=seed, fid=10.0 + seed)
        make_runs.generator(tmp_path / f"b{seed}", order="random", seed=seed, fid=10.0 + gap + seed)
    _, variants = load(tmp_path)
    assert verdict.verdict(variants).startswith("raster has the lowest FID")
    assert f"{word} the spread over seeds" in verdict.verdict(variants)


def test_one_seed_each_has_no_error_bar(tmp_path: Path) -> None:
    make_runs.generator(tmp_path / "a", order="raster", fid=10)
    make_runs.generator(tmp_path / "b", order="random", fid=12)
    _, variants = load(tmp_path)
    assert "no error bar" in verdict.verdict(variants)


def test_scores_under_different_protocols_are_not_ranked(tmp_path: Path) -> None:
    make_runs.generator(tmp_path / "a", order="raster", n=1000)
    make_runs.generator(tmp_path / "b", order="random", n=2000)
    runs, variants = load(tmp_path)
    assert verdict.verdict(variants) == ""
    assert any("different protocols" in note for note in verdict.cautions(runs, variants))


def test_a_samplers_guidance_is_part_of_the_result_not_of_the_measure(tmp_path: Path) -> None:
    make_runs.generator(tmp_path / "a", order="raster", cfg=1.0)
    make_runs.generator(tmp_path / "b", order="random", cfg=2.0)
    _, variants = load(tmp_path)
    assert verdict.comparable(variants)
    assert verdict.verdict(variants)


def test_cautions_name_what_limits_the_comparison(study: Path, tmp_path: Path) -> None:
    notes = " ".join(verdict.cautions(*load(study)))
    assert "order=random+seed=1 (running)" in notes and "order=random+seed=2 (failed)" in notes
    assert "1,797 samples" in notes and "FID-50k" in notes
    assert "different versions" not in notes and "different machines" not in notes
    run = make_runs.generator(tmp_path / "a", order="raster")
    edit(run, images=50_000)
    assert any("fewer or more images" in note for note in verdict.cautions(*load(tmp_path)))
    other = make_runs.generator(tmp_path / "b", order="raster", seed=1)
    record = json.loads((other / "run.json").read_text())
    (other / "run.json").write_text(json.dumps(record | {"code": {"commit": "f00"}, "hardware": {"cpu": "other"}}))
    notes = " ".join(verdict.cautions(*load(tmp_path)))
    assert "different versions of the code" in notes and "different machines" in notes
