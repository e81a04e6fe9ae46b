"""Editing by known tokens (VAR, Tian et al. 2024, sec. 5.3): at every step they replace the drawn ones."""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor

from varlab.types import Maps, Order

_SMALL = 3  # tokens; scales of no more describe the image as a whole


def kept_maps(mask_BHW: Tensor, scales: Sequence[tuple[int, int]], *, force_small: bool) -> Maps:
    """keep_Bl (bool) for each scale: where 1 - mask, bilinearly resized to the scale, exceeds 0.5.

    mask_BHW: 1 where the image is to be repainted. force_small: keep all of the scales of h·w ≤ 3, as VAR's published
    editing code does (demo_zero_shot_edit.ipynb).
    """
    keep_B1HW = 1 - mask_BHW.float()[:, None]
    maps = []
    for h, w in scales:
        keep = F.interpolate(keep_B1HW, size=(h, w), mode="bilinear", align_corners=False) > 0.5
        if force_small and h * w <= _SMALL:
            keep = keep.new_ones(keep.shape)
        maps.append(keep.flatten(1))
    return maps


class KnownTokens:
    """A ``force`` for the sampler: the tokens of ``maps`` where ``keep`` is true replace drawn ones."""

    def __init__(self, *, order: Order, maps: Maps, keep: Maps):
        self._order, self._maps = order, maps
        self._keep = [keep_Bl.to(maps[0].dtype) for keep_Bl in keep]

    def __call__(self, state: object, k: int) -> tuple[Tensor, Tensor]:
        """(idx_Bl, keep_Bl) of step k, in the order's sequence."""
        return self._order.targets(state, k, self._maps), self._order.targets(state, k, self._keep).bool()


def blend_images(img_B3HW: Tensor, painted_B3HW: Tensor, mask_BHW: Tensor) -> Tensor:
    """The painted image where the mask is 1, and the original elsewhere."""
    mask_B1HW = mask_BHW[:, None].to(painted_B3HW.dtype)
    return img_B3HW * (1 - mask_B1HW) + painted_B3HW * mask_B1HW
