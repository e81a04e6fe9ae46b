"""In which feature spaces models differ: a table with intervals, sentences, and the agreement of ranks."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from varlab.report import find_runs, write_report
from varlab.report.readme_table import study_table
from varlab.report.stats.space_differences import sentences, space_differences, spaces_of
from varlab.report.variants import group_variants

from . import make_runs

SPACES = ("classifier-3f2a77", "classifier-aa", "wide-bb")


def model(root: Path, order: str, fids: tuple[float, float, float], error: float = 0.1, seed: int = 0) -> Path:
    """A run that is scored in three spaces."""
    path = make_runs.generator(root / f"order={order}+seed={seed}", order=order, seed=seed)
    [file] = (path / "scores").iterdir()
    content = json.loads(file.read_text())
    content["protocol"]["spaces"] = {name: name for name in SPACES[1:]}
    for prefix, fid in zip(("", *(f"{name}/" for name in SPACES[1:])), fids, strict=True):
        content["scores"] |= {f"{prefix}fid": fid, f"{prefix}fid_error": error, f"{prefix}fid_ratio": fid / 2}
    content["scores"]["fdr"] = sum(fids) / 6
    file.write_text(json.dumps(content))
    return path


def test_a_difference_is_beyond_the_error_of_the_samples_or_not(tmp_path: Path) -> None:
    for order, fids in (("next_scale", (2.0, 3.0, 4.0)), ("raster", (1.0, 3.1, 6.0))):
        model(tmp_path, order, fids)
    variants = group_variants(find_runs([tmp_path]))
    spaces = spaces_of(variants)
    assert spaces == {SPACES[0]: "fid", SPACES[1]: f"{SPACES[1]}/fid", SPACES[2]: f"{SPACES[2]}/fid"}
    found = space_differences(variants, spaces)
    first = found["raster", SPACES[0]]
    assert first.mean == pytest.approx(-1) and first.low < -1.2 and -0.8 < first.high < 0
    # Student's t of 18 degrees of freedom: both errors are jackknifes over ten parts
    assert first.high - first.mean == pytest.approx(2.101 * 0.1 * 2**0.5, rel=1e-3)
    assert [one.stands_out for one in found.values()] == [True, False, True]
    [said] = sentences(variants, spaces, found)
    assert said == (
        f"FID of raster, compared with next_scale: lower in {SPACES[0]}; higher in {SPACES[2]}; "
        f"no difference found in {SPACES[1]}."
    )
    page = write_report([tmp_path], tmp_path / "page", title="t").html.read_text()
    assert "FID in each feature space" in page and said in page and page.count(f"<code>{SPACES[2]}</code>") == 1


def test_seeds_are_paired(tmp_path: Path) -> None:
    """Runs of one seed move together: each difference is 0.5, whatever the seed and the error of the samples."""
    for seed in (0, 1, 2):
        model(tmp_path, "next_scale", (2.0 + seed, 3.0, 4.0), error=5.0, seed=seed)
        model(tmp_path, "raster", (2.5 + seed + 0.01 * seed, 3.0, 4.0), error=5.0, seed=seed)
    variants = group_variants(find_runs([tmp_path]))
    found = space_differences(variants, spaces_of(variants))["raster", SPACES[0]]
    assert found.stands_out and found.mean == pytest.approx(0.51) and 0.4 < found.low < found.high < 0.6


def test_a_space_that_ranks_otherwise_is_named(tmp_path: Path) -> None:
    for order, fids in (("next_scale", (2.0, 3.0, 4.0)), ("raster", (1.0, 5.0, 6.0)), ("random", (7.0, 8.0, 9.0))):
        model(tmp_path, order, fids)
    table = study_table(find_runs([tmp_path]))
    assert "| FDr |" in table and f"| FID in {SPACES[2]} |" in table and "FID in classifier-3f2a77" not in table
    assert "over 3 rows: 0.333 in classifier-3f2a77, 1.00 in classifier-aa and 1.00 in wide-bb." in table
    assert "Of 3 pairs, FID orders these otherwise: next_scale and raster (1 of 3 spaces)." in table


def test_one_space_has_no_table(tmp_path: Path) -> None:
    make_runs.generator(tmp_path / "a", order="raster")
    make_runs.generator(tmp_path / "b", order="next_scale")
    assert spaces_of(group_variants(find_runs([tmp_path]))) == {}
    assert "FID in each" not in write_report([tmp_path], tmp_path / "page", title="t").html.read_text()
