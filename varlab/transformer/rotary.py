"""Rotary position embedding in two dimensions (Su et al. 2021; as in LlamaGen, Sun et al. 2024)."""

from __future__ import annotations

import torch
from torch import Tensor


def rotary_table(row_P: Tensor, column_P: Tensor, *, head_dim: int, base: float) -> Tensor:
    """(P, head_dim/2, 2): cosine and sine of each position's angles; the first half turns by row, the second by column."""
    quarter = head_dim // 4
    frequency_d = 1.0 / (base ** (torch.arange(quarter, device=row_P.device).float() * 2 / (head_dim // 2)))
    angle_Pd = torch.cat([torch.outer(place_P.float(), frequency_d) for place_P in (row_P, column_P)], -1)
    return torch.stack([angle_Pd.cos(), angle_Pd.sin()], -1)


def turns(rotary_BLd2: Tensor) -> Tensor:
    """rotary_2B1Ld: for each channel of a head the cosine of its pair's angle, and the sine, negative for the first."""
    cos_B1Ld, sin_B1Ld = rotary_BLd2[:, None].unbind(-1)
    return torch.stack([torch.stack(pair, -1).flatten(-2) for pair in ((cos_B1Ld, cos_B1Ld), (-sin_B1Ld, sin_B1Ld))])


def rotate(x_BhLd: Tensor, rotary_2B1Ld: Tensor) -> Tensor:
    """Queries or keys, each pair of neighbouring channels turned by its slot's angle. In float32."""
    cos_B1Ld, sin_B1Ld = rotary_2B1Ld.unbind(0)
    wide_BhLd = x_BhLd.float()
    swapped_BhLd = wide_BhLd.unflatten(-1, (-1, 2)).flip(-1).flatten(-2)
    return (wide_BhLd * cos_B1Ld + swapped_BhLd * sin_B1Ld).to(x_BhLd.dtype)
