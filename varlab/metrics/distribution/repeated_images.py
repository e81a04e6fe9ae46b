"""Copies among images: how many have the same pixels as another one."""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities.data import dim_zero_cat

__all__ = ["RepeatedImages"]


class RepeatedImages(Metric):
    """The number of images with the same pixels as an earlier one, by hashes of 64 bits: ``update(img_u8_B3HW)``."""

    full_state_update = False
    higher_is_better = False
    digest: list[Tensor]

    def __init__(self) -> None:
        super().__init__()
        self.add_state("digest", [], dist_reduce_fx="cat")

    def update(self, img_u8_B3HW: Tensor) -> None:
        """Add images."""
        pixels_B = img_u8_B3HW.cpu().contiguous().numpy()
        hashes = [hashlib.blake2b(pixels.tobytes(), digest_size=8).digest() for pixels in pixels_B]
        numbers = [int.from_bytes(digest, "little", signed=True) for digest in hashes]
        self.digest.append(torch.tensor(numbers, dtype=torch.int64, device=img_u8_B3HW.device))

    def compute(self) -> Tensor:
        """The number, int64."""
        digest_N = dim_zero_cat(self.digest)
        return torch.tensor(len(digest_N) - len(digest_N.unique()), device=digest_N.device)
