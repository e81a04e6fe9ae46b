"""Augment a batch of images of one size before training: flip, crop and noise, on uint8."""

from __future__ import annotations

import cv2
import torch
from torch import Tensor
from torch.nn import functional as F

from varlab.errors import VarlabError
from varlab.rng import Rng

__all__ = ["Augment"]


class Augment:
    """Random flip, crop and noise of a batch: for the image with id p a function of (seed, p) alone.

    Args:
        flip: mirror left and right with probability 1/2.
        crop: enlarge by this ratio (bilinear), then crop the old size at a random place (VAR: 1.125); 1 does nothing.
        noise: standard deviation of Gaussian noise added to each pixel, equal in its three colours, in steps of 1/255
            (hides the coarse quantization of scanned images); 0 does nothing.
    """

    def __init__(self, *, flip: bool, crop: float, noise: float):
        if crop < 1:
            raise VarlabError(f"augment.crop is {crop}, but it enlarges before it crops: set at least 1.")
        if noise < 0:
            raise VarlabError(f"augment.noise is {noise}, but it is a standard deviation: set at least 0.")
        self._flip, self._crop, self._noise = flip, crop, noise

    def __call__(self, img_u8_B3HW: Tensor, ids_B: Tensor, rng: Rng) -> Tensor:
        """Augment uint8 images; the result has the same shape, and the input may be overwritten."""
        return self._noisy(self.moved(img_u8_B3HW, ids_B, rng), ids_B, rng)

    @property
    def looks(self) -> int:
        """In how many ways an image may look: 1, 2 where it may be mirrored, 0 for any number of ways."""
        return 0 if self._crop > 1 or self._noise else 1 + self._flip

    @staticmethod
    def flips(ids_B: Tensor, rng: Rng) -> Tensor:
        """Which images are mirrored where any are: int64 0 or 1."""
        return (rng.stream("augment", ids=ids_B).uniform(3)[:, 0] < 0.5).long()

    def moved(self, img_u8_B3HW: Tensor, ids_B: Tensor, rng: Rng) -> Tensor:
        """Crop and flip alone, equal for an image and its condition. The input may be overwritten."""
        if not self._flip and self._crop == 1:
            return img_u8_B3HW
        flip_B, u_B, v_B = self._draws(ids_B, rng)
        if self._crop > 1:
            img_u8_B3HW = self._random_crop(img_u8_B3HW, u_B, v_B)
        if self._flip:
            _mirror(img_u8_B3HW, flip_B)
        return img_u8_B3HW

    def boxes(self, box_B4: Tensor, size: tuple[int, int], ids_B: Tensor, rng: Rng) -> Tensor:
        """The boxes, in their pictures, of images of that (H, W) after ``moved``; a flipped one has left > right."""
        flip_B, u_B, v_B = self._draws(ids_B, rng)
        top_B, left_B, bottom_B, right_B = box_B4.unbind(1)
        if self._crop > 1:
            top_B, bottom_B = self._within(top_B, bottom_B, size[0], u_B)
            left_B, right_B = self._within(left_B, right_B, size[1], v_B)
        if self._flip:
            left_B, right_B = torch.where(flip_B, right_B, left_B), torch.where(flip_B, left_B, right_B)
        return torch.stack([top_B, left_B, bottom_B, right_B], 1)

    def _draws(self, ids_B: Tensor, rng: Rng) -> tuple[Tensor, Tensor, Tensor]:
        """Whether to flip, and the place of the crop from the top and from the left, in [0, 1)."""
        u_B3 = rng.stream("augment", ids=ids_B).uniform(3)
        return u_B3[:, 0] < 0.5, u_B3[:, 1], u_B3[:, 2]

    def _noisy(self, img_u8_B3HW: Tensor, ids_B: Tensor, rng: Rng) -> Tensor:
        if not self._noise:
            return img_u8_B3HW
        noise_B1HW = rng.stream("augment", ids=ids_B, step=1).normal(1, *img_u8_B3HW.shape[2:])
        return (img_u8_B3HW.float() + self._noise * noise_B1HW).round().clamp(0, 255).to(torch.uint8)

    def _within(self, low_B: Tensor, high_B: Tensor, side: int, u_B: Tensor) -> tuple[Tensor, Tensor]:
        """The part of [low, high] that a crop of ``side`` of the enlarged side's pixels covers."""
        large = round(side * self._crop)
        first_B = (u_B * (large - side + 1)).long()
        span_B = (high_B - low_B) / large
        return low_B + first_B * span_B, low_B + (first_B + side) * span_B

    def _random_crop(self, img_u8_B3HW: Tensor, u_B: Tensor, v_B: Tensor) -> Tensor:
        height, width = img_u8_B3HW.shape[2:]
        larger = (round(height * self._crop), round(width * self._crop))
        large = F.interpolate(img_u8_B3HW.float(), size=larger, mode="bilinear", align_corners=False)
        windows = large.round().to(torch.uint8).unfold(2, height, 1).unfold(3, width, 1)
        y_B, x_B = (u_B * windows.shape[2]).long(), (v_B * windows.shape[3]).long()
        return windows[torch.arange(len(u_B)), :, y_B, x_B]


def _mirror(img_u8_B3HW: Tensor, flip_B: Tensor) -> None:
    """Mirror those images in place; one by one where a pixel's colours are adjacent in memory, as after reading."""
    img_BHW3 = img_u8_B3HW.permute(0, 2, 3, 1)
    if not img_BHW3.is_contiguous():
        img_u8_B3HW[flip_B] = img_u8_B3HW[flip_B].flip(3)
        return
    pixels = img_BHW3.numpy()
    for row in flip_B.nonzero()[:, 0].tolist():
        cv2.flip(pixels[row], 1, dst=pixels[row])
