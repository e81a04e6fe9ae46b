"""Differentiable augmentation of a discriminator's inputs (DiffAug, Zhao et al. 2020), with addressed draws."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from varlab.errors import VarlabError
from varlab.rng import Stream

POLICIES = ("color", "translation", "cutout")


class DiffAugment:
    """Augment images that a discriminator sees; gradients pass.

    policies: color (brightness, saturation, contrast), translation (up to an eighth), cutout (half a side). rate: the
    probability that a sample is augmented. The draws for a sample depend on its id only, so they are the same on any number
    of ranks and in any micro-batch.
    """

    def __init__(self, *, policies: Sequence[str], rate: float):
        unknown = sorted(set(policies) - set(POLICIES))
        if unknown or not 0 <= rate <= 1:
            raise VarlabError(
                f"loss.gan.augment has unknown policies {unknown} or rate={rate}: use some of {POLICIES} and 0 <= rate <= 1."
            )
        self.policies, self.rate = tuple(policies), rate

    def __call__(self, img_B3HW: Tensor, stream: Stream) -> Tensor:
        """img_B3HW in [-1, 1] → img_B3HW."""
        u_B8 = stream.uniform(8).to(img_B3HW.device)
        augmented = img_B3HW
        if "color" in self.policies:
            augmented = _color(augmented, u_B8[:, :3])
        if "translation" in self.policies:
            augmented = _translate(augmented, u_B8[:, 3:5])
        if "cutout" in self.policies:
            augmented = _cutout(augmented, u_B8[:, 5:7])
        if self.rate == 1:
            return augmented
        return torch.where(u_B8[:, 7].view(-1, 1, 1, 1) < self.rate, augmented, img_B3HW)


def _color(img: Tensor, u_B3: Tensor) -> Tensor:
    """Change brightness by ±0.5, saturation by a factor of 0 to 2, contrast by 0.5 to 1.5."""
    brightness, saturation, contrast = (u_B3[:, i].view(-1, 1, 1, 1) for i in range(3))
    img = img + (brightness - 0.5)
    grey = img.mean(1, keepdim=True)
    img = grey + (img - grey) * (2 * saturation)
    mean = img.mean((1, 2, 3), keepdim=True)
    return mean + (img - mean) * (contrast + 0.5)


def _coordinates(img: Tensor) -> tuple[Tensor, Tensor]:
    H, W = img.shape[2:]
    return torch.arange(H, device=img.device), torch.arange(W, device=img.device)


def _translate(img: Tensor, u_B2: Tensor) -> Tensor:
    """Move by whole pixels, up to an eighth of each side, with black at the edges."""
    H, W = img.shape[2:]
    reach_h, reach_w = round(H / 8), round(W / 8)
    down_B = (u_B2[:, 0] * (2 * reach_h + 1)).long() - reach_h
    right_B = (u_B2[:, 1] * (2 * reach_w + 1)).long() - reach_w
    row, column = _coordinates(img)
    from_row = (row - down_B[:, None]).clamp(-1, H) + 1
    from_column = (column - right_B[:, None]).clamp(-1, W) + 1
    padded = F.pad(img, (1, 1, 1, 1))
    batch = torch.arange(len(img), device=img.device)
    moved = padded.permute(0, 2, 3, 1)[batch[:, None, None], from_row[:, :, None], from_column[:, None, :]]
    return moved.permute(0, 3, 1, 2)


def _cutout(img: Tensor, u_B2: Tensor) -> Tensor:
    """Set a rectangle of half the sides, centred anywhere, to 0."""
    H, W = img.shape[2:]
    row, column = _coordinates(img)
    top, left = (u_B2[:, 0] * (H + 1)).long() - H // 4, (u_B2[:, 1] * (W + 1)).long() - W // 4
    rows = (row >= top[:, None]) & (row < top[:, None] + H // 2)
    columns = (column >= left[:, None]) & (column < left[:, None] + W // 2)
    return img * ~(rows[:, None, :, None] & columns[:, None, None, :])
