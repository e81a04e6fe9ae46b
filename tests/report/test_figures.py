"""Figures and pictures: none is empty, none is too small to see, none makes much of a little."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from matplotlib.figure import Figure
from PIL import Image

from varlab.report import find_runs
from varlab.report.page import style
from varlab.report.page.figures import fid_against_flops
from varlab.report.page.gallery import galleries
from varlab.report.variants import Variant, group_variants

from . import make_runs


def variants_of(folder: Path) -> list[Variant]:
    return group_variants(find_runs([folder]))


def test_a_curve_of_one_point_is_no_figure(tmp_path: Path) -> None:
    run = make_runs.generator(tmp_path / "a", order="raster")
    assert fid_against_flops(variants_of(tmp_path))
    points = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    plain = [{key: value for key, value in point.items() if key != "val/fid"} for point in points]
    (run / "metrics.jsonl").write_text("".join(json.dumps(point) + "\n" for point in plain))
    variants = variants_of(tmp_path)
    assert variants[0].values("fid") and fid_against_flops(variants) == ""


@pytest.mark.parametrize(("values", "least"), [([276.0, 277.0], 0.05 * 277), ([-3.0, -3.0], 0.15), ([1.0, 9.0], 8.0)])
def test_a_small_difference_looks_small(values: list[float], least: float) -> None:
    axis = Figure().add_subplot()
    axis.plot(values)
    style.value_axis(axis, values)
    low, high = axis.get_ylim()
    assert high - low == pytest.approx(least) or high - low > least
    assert low <= min(values) and max(values) <= high


def test_a_mark_at_the_end_of_a_clock_is_not_cut() -> None:
    axis = Figure().add_subplot()
    axis.plot([100.0, 101.0], [1.0, 2.0], "D")
    style.clock_axis(axis, "images")
    assert axis.get_xlim() == pytest.approx((0, 105.04))


@pytest.mark.parametrize("side", [8, 24, 32])
def test_samples_are_large_and_no_picture_fills_a_screen(side: int, tmp_path: Path) -> None:
    for order in ("raster", "next_scale"):
        run = make_runs.generator(tmp_path / order, order=order)
        for name, rows in (("real", 4), ("samples", 4), ("growth", 12)):
            (run / "pictures").mkdir(exist_ok=True)
            Image.new("RGB", (8 * side + 14, rows * side + 6)).save(run / "pictures" / f"{name}.png")
    shown = {
        gallery.title: [picture for _, picture in gallery.items]
        for gallery in galleries(variants_of(tmp_path), 10**7).galleries
    }
    for picture in shown["Samples beside real images"]:
        assert picture.width >= 1.5 * picture.natural
    for pictures in shown.values():
        assert all(picture.width * picture.tall <= 561 * picture.natural for picture in pictures)
