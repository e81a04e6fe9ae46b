"""Positions at another resolution."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from varlab.transformer.interpolation import level_of, resized_positions, resized_state

SCALES = ((1, 1), (2, 3), (4, 6))
grids = st.tuples(st.integers(1, 5), st.integers(1, 5))


def ramp(scales) -> torch.Tensor:
    """Row, column and level of each position, from 0 to 1: what positions mean, whatever the resolution."""
    rows = []
    for k, (h, w) in enumerate(scales):
        row, column = torch.meshgrid((torch.arange(h) + 0.5) / h, (torch.arange(w) + 0.5) / w, indexing="ij")
        rows.append(torch.stack([row.flatten(), column.flatten(), torch.full((h * w,), float(k))], 1))
    return torch.cat(rows)


def test_the_same_scales_change_nothing() -> None:
    state = {"position.weight": torch.randn(31, 4), "level.weight": torch.randn(3, 4), "head.weight": torch.randn(2, 2)}
    again = resized_state(state, SCALES, SCALES)
    assert all(torch.equal(again[name], state[name]) for name in state)


@given(
    old=st.lists(grids, min_size=1, max_size=4), new=st.lists(grids, min_size=1, max_size=4), extra=st.integers(0, 3)
)
def test_shapes_and_the_rows_of_a_condition(old, new, extra) -> None:
    table = torch.randn(sum(h * w for h, w in old) + extra, 3)
    made = resized_positions(table, old, new)
    assert made.shape == (sum(h * w for h, w in new) + extra, 3)
    assert extra == 0 or torch.equal(made[-extra:], table[-extra:])


def test_a_place_stays_where_it_is_in_the_image() -> None:
    """Away from the border, to a sixth of a cell (torch's bicubic kernel is not exact on ramps)."""
    old, new = ((8, 8),), ((16, 16),)
    made, wanted = resized_positions(ramp(old), old, new), ramp(new)
    inner = made.unflatten(0, (16, 16))[4:-4, 4:-4] - wanted.unflatten(0, (16, 16))[4:-4, 4:-4]
    assert inner.abs().max() < 1 / 16 / 6


def test_levels_keep_their_ends() -> None:
    assert [level_of(k, 5, 3) for k in range(5)] == [0, 0, 1, 2, 2]
    assert [level_of(k, 3, 3) for k in range(3)] == [0, 1, 2]
    assert level_of(0, 1, 3) == 2 and level_of(0, 1, 1) == 0 and [level_of(k, 2, 5) for k in range(2)] == [0, 4]
    state = {"level.weight": torch.arange(4.0)[:, None]}
    made = resized_state(state, SCALES, (*SCALES, (8, 12)))["level.weight"].flatten().tolist()
    assert made[0] == 0 and made[3] == 2 and made[-1] == 3  # the last row is a condition's
