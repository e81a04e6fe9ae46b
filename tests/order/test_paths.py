"""The paths over a grid, against VQGAN's own and against numbers made by hand."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.laws.conftest import load
from varlab.order import NextScale, Permutation, Random, Window, paths
from varlab.recipe.objects import make
from varlab.renames import current_targets

VQGAN = json.loads((Path(__file__).parents[1] / "golden" / "vqgan_paths.json").read_text())
SPIRALS = ["vqgan_spiral_in", "vqgan_spiral_out", "corner_spiral_in", "corner_spiral_out"]


def order(config: dict, h: int, w: int) -> list[int]:
    """The cells in the order in which a token is predicted."""
    made = make(config, scales=[[h, w]])
    return made.path_BP(1, torch.device("cpu"), None)[0].tolist()


@pytest.mark.parametrize("name", VQGAN)
def test_the_orders_of_vqgan_are_those_of_its_code(name: str) -> None:
    assert order(load("order", name), 16, 16) == VQGAN[name]


@pytest.mark.parametrize(
    ("name", "cells"),
    [
        ("vqgan_spiral_in", [11, 7, 3, 2, 1, 0, 4, 8, 9, 10, 6, 5]),
        ("corner_spiral_in", [0, 1, 2, 3, 7, 11, 10, 9, 8, 4, 5, 6]),
    ],
)
def test_spirals_by_hand(name: str, cells: list[int]) -> None:
    """0 1 2 3 / 4 5 6 7 / 8 9 10 11."""
    assert getattr(paths, name)(3, 4).tolist() == cells
    assert getattr(paths, name.replace("_in", "_out"))(3, 4).tolist() == cells[::-1]


@given(st.sampled_from(SPIRALS), st.integers(1, 7), st.integers(1, 7))
def test_a_spiral_goes_from_a_cell_to_its_neighbour(name: str, h: int, w: int) -> None:
    path = getattr(paths, name)(h, w)
    assert path.sort().values.tolist() == list(range(h * w))
    row, column = path // w, path % w
    assert bool((row.diff().abs() + column.diff().abs() == 1).all())


@given(st.integers(1, 9), st.integers(1, 9))
def test_curves_sort_cells_by_the_bits_of_row_and_column(h: int, w: int) -> None:
    """Row before column, bit by bit: the z-curve from the highest bit on, subsample from the lowest."""

    def bits(cell: int) -> list[tuple[int, int]]:
        return [(cell // w >> bit & 1, cell % w >> bit & 1) for bit in range(5)]

    assert paths.z_curve(h, w).tolist() == sorted(range(h * w), key=lambda cell: bits(cell)[::-1])
    assert paths.subsample(h, w).tolist() == sorted(range(h * w), key=bits)


def test_what_an_order_says_of_itself() -> None:
    """Random paths differ by sample, and a window computes its slots again."""
    scales = [[2, 2], [4, 4]]
    made = [Random(scales=scales), Permutation(scales=scales, path=paths.raster), NextScale(scales=scales)]
    made.append(Window(scales=scales[1:], window=(2, 2)))
    assert [order.fixed for order in made] == [False, True, True, True]
    assert [order.cached for order in made] == [True, True, True, False]


def test_rows_of_a_grid_by_hand() -> None:
    assert paths.raster(2, 3).tolist() == [0, 1, 2, 3, 4, 5]
    assert paths.alternate(3, 2).tolist() == [0, 1, 3, 2, 4, 5]


@pytest.mark.parametrize(("name", "first"), [("spiral_in", 0), ("spiral_out", 6)])
def test_old_runs_keep_the_spirals_they_were_trained_with(name: str, first: int) -> None:
    """Version d11e80b called them so, and they began, or ended, at the top left corner."""
    stored = load("order", name) | {"path": {"_target_": f"varlab.order.paths.{name}", "_partial_": True}}
    today = current_targets(stored)
    assert today == load("order", f"corner_{name}")
    assert order(today, 3, 4) == order(stored, 3, 4) != order(load("order", name), 3, 4)
    assert order(stored, 3, 4)[0] == first
