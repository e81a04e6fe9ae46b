"""Pictures of images: many in one grid, as PNG files."""

from __future__ import annotations

from pathlib import Path

import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from varlab.errors import VarlabError
from varlab.files import atomic_write

__all__ = ["grid", "write_png"]


def write_png(path: Path, img_u8_3HW: Tensor) -> None:
    """Write an image as a PNG, atomically."""
    with atomic_write(path) as file:
        Image.fromarray(img_u8_3HW.permute(1, 2, 0).contiguous().numpy()).save(file, format="PNG")


def grid(img_u8_N3HW: Tensor, *, columns: int) -> Tensor:
    """Arrange images row by row in one picture ``img_u8_3HW`` on white, a sixteenth of an image apart."""
    if columns < 1 or len(img_u8_N3HW) == 0:
        raise VarlabError(f"A grid of {len(img_u8_N3HW)} images in {columns} columns has nothing to show.")
    missing = -len(img_u8_N3HW) % columns
    n, channels, height, width = img_u8_N3HW.shape
    gap = max(height // 16, 1)
    white = img_u8_N3HW.new_full((missing, channels, height, width), 255)
    rows = (n + missing) // columns
    tiles = F.pad(torch.cat([img_u8_N3HW, white]), (0, gap, 0, gap), value=255)
    joined = tiles.view(rows, columns, channels, height + gap, width + gap).permute(2, 0, 3, 1, 4)
    return joined.reshape(channels, rows * (height + gap), columns * (width + gap))[:, :-gap, :-gap]
