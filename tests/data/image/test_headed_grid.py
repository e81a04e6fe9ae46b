"""Grids for people: whole pixels, and a name above each column."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from varlab.data.image.grid import enlarged, headed


@given(st.integers(1, 40), st.integers(1, 2000))
def test_pixels_become_squares(height: int, width: int) -> None:
    picture = torch.arange(3 * height * width).remainder(251).to(torch.uint8).view(3, height, width)
    large = enlarged(picture, height=height)
    factor = large.shape[-1] // width
    assert large.shape == (3, factor * height, factor * width)
    assert torch.equal(large[:, ::factor, ::factor], picture)
    assert factor == 1 or (factor * width <= 1024 and factor * height <= 128)


def test_names_stand_above_their_columns() -> None:
    picture = torch.full((3, 60, 300), 7, dtype=torch.uint8)
    poster = headed(picture, ["cat", "", "a_very_long_name_of_a_class_that_nobody_could_read_here"])
    strip = poster[:, : -picture.shape[1]]
    assert torch.equal(poster[:, -picture.shape[1] :], picture)
    dark = (strip < 128).any(0).any(0).view(3, 100).any(1)
    assert dark.tolist() == [True, False, True]


@given(st.text("aim_W- ", max_size=60), st.integers(8, 200))
def test_a_name_stays_in_its_column(name: str, column: int) -> None:
    strip = headed(torch.zeros(3, 1, 3 * column, dtype=torch.uint8), ["", name, ""])[:, :-1]
    assert (strip[..., :column] == 255).all() and (strip[..., 2 * column :] == 255).all()


def test_words_are_made_smaller_before_they_are_cut() -> None:
    names = ["Activities", "Component"]
    heights = [headed(torch.zeros(3, 1, 2 * column, dtype=torch.uint8), names).shape[1] for column in (100, 62)]
    assert heights[0] > heights[1]  # one line each, of smaller letters
