"""The sentences of a report: they claim what the files support."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from varlab.report import find_runs
from varlab.report.page import verdict
from varlab.report.readme_table import study_table
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


@pytest.mark.parametrize(("gap", "word"), [(0.2, "does not stand out"), (5.0, "stands out")])
def test_a_difference_stands_out_by_its_paired_test(tmp_path: Path, gap: float, word: str) -> None:
    for seed, luck in enumerate((0.0, 0.3, -0.2)):
        make_runs.generator(tmp_path / f"a{seed}", order="raster", seed=seed, fid=10.0 + 3 * seed)
        make_runs.generator(tmp_path / f"b{seed}", order="random", seed=seed, fid=10.0 + gap + luck + 3 * seed)
    _, variants = load(tmp_path)
    sentence = verdict.verdict(variants)
    assert (
        sentence.startswith("raster has the lowest FID") and f"a difference that {word} (paired over seeds" in sentence
    )
    assert "a single test" in sentence


def test_the_family_of_a_page_is_every_pair_of_variants(tmp_path: Path) -> None:
    for seed in (0, 1, 2):
        for order, fid in (("raster", 10.0), ("random", 11.0), ("next_scale", 14.0)):
            make_runs.generator(tmp_path / f"{order}{seed}", order=order, seed=seed, fid=fid + 0.01 * seed**2)
    _, variants = load(tmp_path)
    assert "corrected by Holm for all 3 pairs" in verdict.verdict(variants)


def test_tokenizers_of_one_training_each_are_said(tmp_path: Path) -> None:
    """Two kinds of tokenizers, one file each; with a tokenizer a seed the interval is of both, and nothing is said."""
    for seed in (0, 1):
        for order in ("raster", "next_scale"):
            make_runs.generator(tmp_path / f"{order}{seed}", order=order, seed=seed)
    runs, variants = load(tmp_path)
    assert any("All seeds of next_scale and raster use one tokenizer" in n for n in verdict.cautions(runs, variants))
    assert "use one tokenizer: a difference" in study_table(runs)
    for run in tmp_path.iterdir():
        record = json.loads((run / "run.json").read_text())
        record["parents"]["tokenizer"]["weights_sha256"] += str(record["seed"])
        (run / "run.json").write_text(json.dumps(record))
    runs, variants = load(tmp_path)
    assert not any("one tokenizer" in note for note in verdict.cautions(runs, variants))
    assert "use one tokenizer" not in study_table(runs) and len(variants) == 2


def test_generators_that_share_one_tokenizer_compare_orders_alone(tmp_path: Path) -> None:
    for seed in (0, 1):
        for order in ("raster", "random"):
            make_runs.generator(tmp_path / f"{order}{seed}", order=order, seed=seed)
    assert not verdict.one_tokenizer(load(tmp_path)[1])


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


def test_val_images_of_train_are_one_sentence_without_names_of_files(tmp_path: Path) -> None:
    for name in ("a", "b"):
        run = make_runs.generator(tmp_path / name, order="raster", seed=len(name))
        record = json.loads((run / "run.json").read_text())
        record["data"] = {
            **record["data"],
            "leakage": "12 of 152 val images are train images, too (0007-cat, 9-dog, …)",
        }
        (run / "run.json").write_text(json.dumps(record))
    notes = [note for note in verdict.cautions(*load(tmp_path)) if "train images, too" in note]
    assert notes == ["12 of 152 val images are train images, too, so that scores on val are too good."]


def test_a_judge_is_named_by_its_role_and_what_it_predicts(tmp_path: Path) -> None:
    for name, built in (("a", {"role": "judge", "predicts": "rotation"}), ("b", {"role": "perceptual"})):
        run = make_runs.classifier(tmp_path / name)
        record = json.loads((run / "run.json").read_text())
        record["build"] = record.get("build", {}) | built
        record["config"]["role"] = built["role"]
        (run / "run.json").write_text(json.dumps(record))
    _, variants = load(tmp_path)
    assert {variant.label for variant in variants} == {"judge of rotations", "perceptual network of classes"}


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
