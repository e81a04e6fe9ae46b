"""Editing by forced tokens (VAR, Tian et al. 2024, sec. 5.3): what is known replaces what was drawn, at every step."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from varlab.types import Maps, Order

_SMALL = 3  # scales up to this side say what is in the picture as a whole


def kept_maps(mask_BHW: Tensor, scales: Sequence[tuple[int, int]], *, force_small: bool) -> Maps:
    """keep_Bl (bool) of each scale: where 1 - mask, bilinearly resized to the scale, exceeds 0.5.

    mask_BHW: 1 where the picture is to be painted anew. force_small: scales of side ≤ 3 are kept whatever the mask, as in
    published editing code.
    """
    keep_B1HW = 1 - mask_BHW.float()[:, None]
    maps = []
    for h, w in scales:
        keep = F.interpolate(keep_B1HW, size=(h, w), mode="bilinear", align_corners=False) > 0.5
        if force_small and max(h, w) <= _SMALL:
            keep = keep.new_ones(keep.shape)
        maps.append(keep.flatten(1))
    return maps


class Known:
    """Tokens that the sampler must not draw: those of ``maps`` where ``keep`` says so, wherever the order visits them."""

    def __init__(self, *, order: Order, maps: Maps, keep: Maps):
        self._order, self._maps = order, maps
        self._keep = [keep_Bl.to(maps[0].dtype) for keep_Bl in keep]

    def __call__(self, state: Any, k: int) -> tuple[Tensor, Tensor]:
        """(idx_Bl, keep_Bl) of step k."""
        return self._order.targets(state, k, self._maps), self._order.targets(state, k, self._keep).bool()


def blended(img_B3HW: Tensor, painted_B3HW: Tensor, mask_BHW: Tensor) -> Tensor:
    """The known pixels as they were, the painted ones where the mask is 1."""
    mask_B1HW = mask_BHW[:, None].to(painted_B3HW.dtype)
    return img_B3HW * (1 - mask_B1HW) + painted_B3HW * mask_B1HW
