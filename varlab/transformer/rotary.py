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


def rotate(x_BhLd: Tensor, rotary_BLd2: Tensor) -> Tensor:
    """Queries or keys, each pair of neighbouring channels turned by its slot's angle. In float32."""
    pairs = x_BhLd.float().unflatten(-1, (-1, 2))
    cos, sin = rotary_BLd2[:, None].unbind(-1)
    a, b = pairs.unbind(-1)
    return torch.stack([a * cos - b * sin, b * cos + a * sin], -1).flatten(-2).to(x_BhLd.dtype)
