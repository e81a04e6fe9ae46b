"""Differentiable augmentation of a discriminator's inputs (DiffAug, Zhao et al. 2020), with addressed draws."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from varlab.errors import VarlabError
from varlab.rng import Stream

POLICIES = ("color", "translation", "cutout")


class DiffAugment:
    """Augment images that a discriminator sees; gradients pass.

    policies: some of color (brightness, saturation, contrast), translation (up to an eighth) and cutout, applied in this order.
    rate: the probability that a sample is augmented. cutout: the sides of the rectangle that is cut out, as a share of the
    image's. crop: pixels; each sample is then brought to this side, with probability 1/2 by cutting it out at a random place,
    otherwise by area (if it is smaller: by bicubic enlarging). The draws for a sample depend on its id only, so they are the
    same on any number of ranks and in any micro-batch.
    """

    def __init__(self, *, policies: Sequence[str], rate: float, cutout: float = 0.5, crop: int | None = None):
        unknown = sorted(set(policies) - set(POLICIES))
        if unknown or not 0 <= rate <= 1 or not 0 <= cutout <= 1:
            raise VarlabError(
                f"loss.gan.augment has unknown policies {unknown}, rate={rate} or cutout={cutout}: use some of {POLICIES} and "
                "numbers in [0, 1]."
            )
        self.policies, self.rate, self.cutout, self.crop = tuple(policies), rate, cutout, crop

    def __call__(self, img_B3HW: Tensor, stream: Stream) -> Tensor:
        """img_B3HW in [-1, 1] → img_B3HW, of another size with ``crop``."""
        u_B = stream.uniform(8 if self.crop is None else 11).to(img_B3HW.device)
        augmented = img_B3HW
        for policy in self.policies:
            if policy == "color":
                augmented = _color(augmented, u_B[:, :3])
            elif policy == "translation":
                augmented = _translate(augmented, u_B[:, 3:5])
            else:
                augmented = _cutout(augmented, u_B[:, 5:7], self.cutout)
        if self.rate < 1:
            augmented = torch.where(u_B[:, 7].view(-1, 1, 1, 1) < self.rate, augmented, img_B3HW)
        return augmented if self.crop is None else _resized(augmented, u_B[:, 8:], self.crop)


def faded(img_B3HW: Tensor, left: float) -> Tensor:
    """Images blurred as at the beginning of StyleGAN-T's training (Sauer et al. 2023), with ``left`` in [0, 1] of the blur.

    The Gaussian 2^-(x/σ)² with σ = left·√(H/2) is cut off at 3σ; edges are mirrored.
    """
    sigma = left * (img_B3HW.shape[2] / 2) ** 0.5
    radius = min(math.floor(3 * sigma), min(img_B3HW.shape[2:]) - 1)
    if radius < 1:
        return img_B3HW
    weights = (-(torch.arange(-radius, radius + 1, device=img_B3HW.device) / sigma).square()).exp2()
    kernel = (weights / weights.sum()).to(img_B3HW.dtype).view(1, 1, -1, 1).expand(3, -1, -1, -1)
    padded = F.pad(img_B3HW, (radius,) * 4, mode="reflect")
    return F.conv2d(F.conv2d(padded, kernel, groups=3), kernel.transpose(2, 3), groups=3)


def _resized(img: Tensor, u_B3: Tensor, side: int) -> Tensor:
    """Bring each sample to side × side: cut out at a random place, or resized as a whole."""
    H, W = img.shape[2:]
    mode = "area" if min(H, W) > side else "bicubic"
    whole = F.interpolate(img, size=(side, side), mode=mode) if (side, side) != (H, W) else img
    if min(H, W) <= side:
        return whole
    top_B, left_B = ((u_B3[:, i] * (n - side + 1)).long() for i, n in ((0, H), (1, W)))
    inside = torch.arange(side, device=img.device)
    batch = torch.arange(len(img), device=img.device)[:, None, None]
    rows, columns = (top_B[:, None] + inside)[:, :, None], (left_B[:, None] + inside)[:, None, :]
    part = img.permute(0, 2, 3, 1)[batch, rows, columns].permute(0, 3, 1, 2)
    return torch.where(u_B3[:, 2].view(-1, 1, 1, 1) < 0.5, part, whole)


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


def _cutout(img: Tensor, u_B2: Tensor, share: float) -> Tensor:
    """Set a rectangle of that share of the sides, centred anywhere, to 0."""
    H, W = img.shape[2:]
    (h, w), (row, column) = (round(H * share), round(W * share)), _coordinates(img)
    top = (u_B2[:, 0] * (H + 1 - h % 2)).long() - h // 2
    left = (u_B2[:, 1] * (W + 1 - w % 2)).long() - w // 2
    rows = (row >= top[:, None]) & (row < top[:, None] + h)
    columns = (column >= left[:, None]) & (column < left[:, None] + w)
    return img * ~(rows[:, None, :, None] & columns[:, None, None, :])
