"""A trained transformer at another resolution: its learned positions and levels, brought to other scales."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

Scales = Sequence[Sequence[int]]
State = dict[str, Tensor]

_POSITIONS, _LEVELS = ("position.weight", "source.weight"), "level.weight"


def level_of(k: int, new: int, old: int) -> int:
    """Which of ``old`` levels the k-th of ``new`` ones takes after: the one as far along from coarse to fine."""
    return round(k * (old - 1) / max(new - 1, 1)) if new > 1 else old - 1


def resized_positions(table_PD: Tensor, old: Scales, new: Scales) -> Tensor:
    """The table of a model of scales ``old`` for scales ``new``: each scale's grid bicubically interpolated from its level's.

    Rows beyond the image's (a condition's) stay as they are.
    """
    lengths = [h * w for h, w in old]
    grids = list(table_PD[: sum(lengths)].float().split(lengths))
    made = []
    for k, (h, w) in enumerate(new):
        j = level_of(k, len(new), len(old))
        grid = grids[j].T.unflatten(1, tuple(old[j]))[None]
        if tuple(old[j]) != (h, w):
            grid = F.interpolate(grid, size=(h, w), mode="bicubic", align_corners=False)
        made.append(grid[0].flatten(1).T)
    return torch.cat([*made, table_PD[sum(lengths) :].float()])


def resized_state(state: Mapping[str, Tensor], old: Scales, new: Scales) -> State:
    """A transformer's state dict for other scales. All but positions and levels stays."""
    if [tuple(scale) for scale in old] == [tuple(scale) for scale in new]:
        return dict(state)
    resized = dict(state)
    for name in _POSITIONS:
        if name in state:
            resized[name] = resized_positions(state[name], old, new)
    if _LEVELS in state:
        rows = [level_of(k, len(new), len(old)) for k in range(len(new))]
        rows += list(range(len(old), len(state[_LEVELS])))  # a condition's own level
        resized[_LEVELS] = state[_LEVELS][rows]
    return resized
