"""Pixel distances between an image and its reconstruction, in float32 even under autocast."""

from __future__ import annotations

from torch import Tensor


def l1(rec_B3HW: Tensor, img_B3HW: Tensor) -> Tensor:
    """Mean absolute difference over all elements: a scalar, in the images' units (2 at most for images in [-1, 1])."""
    return (rec_B3HW.float() - img_B3HW.float()).abs().mean()


def l2(rec_B3HW: Tensor, img_B3HW: Tensor) -> Tensor:
    """Mean squared difference over all elements: a scalar, in the images' units squared."""
    return (rec_B3HW.float() - img_B3HW.float()).square().mean()
