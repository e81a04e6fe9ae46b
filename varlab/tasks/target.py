"""What a classifier learns to predict: the labels of images, or, for images without labels, how each was turned."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

__all__ = ["Labels", "Rotation", "Target"]


class Target(Protocol):
    """Makes a classifier's inputs and their answers from images and labels.

    predicts: the name of the answers, in records and protocols. baseline: the name of a guess that looks at no image.
    views: how many inputs are made of each image.
    """

    predicts: str
    baseline: str
    views: int

    def __call__(self, img_u8_B3HW: Tensor, label_B: Tensor) -> tuple[Tensor, Tensor]: ...  # img_u8_N3HW, answer_N
    def size(self, image_size: tuple[int, int]) -> tuple[int, int]: ...  # (h, w) of the inputs
    def answers(self, num_classes: int) -> int: ...  # how many different answers there are
    def majority(self, label_N: Tensor) -> float: ...  # accuracy of always giving the answer that is right most often


class Labels:
    """The class of each image, as the shards say it."""

    predicts, baseline, views = "labels", "majority class", 1

    def __call__(self, img_u8_B3HW: Tensor, label_B: Tensor) -> tuple[Tensor, Tensor]:
        """The images and labels unchanged."""
        return img_u8_B3HW, label_B

    def size(self, image_size: tuple[int, int]) -> tuple[int, int]:
        """That of the images."""
        return image_size

    def answers(self, num_classes: int) -> int:
        """One for each class."""
        return num_classes

    def majority(self, label_N: Tensor) -> float:
        """The share of the largest class."""
        return float(label_N.bincount().max()) / len(label_N) if len(label_N) else 1.0


class Rotation:
    """How often each image was turned by 90 degrees: 0, 1, 2 or 3 times. Labels are not used.

    Gidaris et al. 2018, "Unsupervised Representation Learning by Predicting Image Rotations" (RotNet). As there, all four
    copies of an image are in one update, so nothing is random. An image that is no square is cut to its central one.
    """

    predicts, baseline, views = "rotation", "chance", 4

    def __call__(self, img_u8_B3HW: Tensor, label_B: Tensor) -> tuple[Tensor, Tensor]:
        """All images unturned, then all turned once (anticlockwise), twice, three times."""
        square_B3HW = _central_square(img_u8_B3HW)
        turned = [square_B3HW.rot90(turns, (2, 3)) for turns in range(self.views)]
        return torch.cat(turned), torch.arange(self.views, device=label_B.device).repeat_interleave(len(label_B))

    def size(self, image_size: tuple[int, int]) -> tuple[int, int]:
        """The largest square."""
        return min(image_size), min(image_size)

    def answers(self, num_classes: int) -> int:
        """Four, whatever the classes."""
        return self.views

    def majority(self, label_N: Tensor) -> float:
        """Every answer is right equally often."""
        return 1 / self.views


def _central_square(img_B3HW: Tensor) -> Tensor:
    H, W = img_B3HW.shape[2:]
    side = min(H, W)
    top, left = (H - side) // 2, (W - side) // 2
    return img_B3HW[:, :, top : top + side, left : left + side]
