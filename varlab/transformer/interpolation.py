"""Interpolate the learned positions and levels of a trained transformer to other scales."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

Scales = Sequence[Sequence[int]]
State = dict[str, Tensor]

_POSITIONS, _LEVELS = ("position.weight", "source.weight"), "level.weight"


def level_of(k: int, new: int, old: int) -> int:
    """The old level that the k-th of ``new`` levels starts from: the one at the same relative depth."""
    return round(k * (old - 1) / max(new - 1, 1)) if new > 1 else old - 1


def resized_positions(table_PD: Tensor, old: Scales, new: Scales) -> Tensor:
    """Interpolate a position table from scales ``old`` to ``new``, bicubically, each scale from its level.

    Rows beyond the image's (those of a condition) do not change.
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
    """A transformer's state dict for other scales; only positions and levels change."""
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
