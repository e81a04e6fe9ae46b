"""Pictures of images: many in one grid, enlarged by whole factors, with the name of each column, as PNG files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor
from torch.nn import functional as F

from varlab.errors import VarlabError
from varlab.files import atomic_write

__all__ = ["enlarged", "grid", "headed", "poster", "write_png"]

_WIDTH = 1024  # pixels to which a grid is enlarged, at most
_IMAGE = 128  # pixels to which the height of one of its images is enlarged, at most
_FONT, _SMALLEST = 14, 9  # pixels of a letter's height
_MARGIN = 3  # pixels between the names of two columns
_MOST_LINES = 3


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


def poster(img_u8_N3HW: Tensor, *, columns: int, names: Sequence[str] = ()) -> Tensor:
    """A grid that is enlarged by a whole factor, below the names of its columns, if there are any."""
    img_u8_3HW = enlarged(grid(img_u8_N3HW, columns=columns), height=img_u8_N3HW.shape[-2])
    return headed(img_u8_3HW, names) if names else img_u8_3HW


def enlarged(img_u8_3HW: Tensor, *, height: int) -> Tensor:
    """The picture with each pixel as a square of the largest whole side that keeps it within 1024 pixels of width.

    height: of one image in it, which is enlarged up to 128 pixels.
    """
    factor = max(1, min(_WIDTH // img_u8_3HW.shape[-1], _IMAGE // height))
    return img_u8_3HW.repeat_interleave(factor, -1).repeat_interleave(factor, -2)


def headed(img_u8_3HW: Tensor, names: Sequence[str]) -> Tensor:
    """The picture below a white strip with a name above the middle of each of its columns. Long names are
    written smaller, then cut."""
    width = img_u8_3HW.shape[-1]
    column = width / len(names)
    words = [name.replace("_", " ").replace("-", " ") for name in names]
    font = _fitting(words, column)
    lines = [_lines(name, font, column) for name in words]
    height = max(map(len, lines)) * (int(font.size) + 2) + 6
    strip = Image.new("RGB", (width, height), "white")
    draw = ImageDraw.Draw(strip)
    for i, text in enumerate(lines):
        place = ((i + 0.5) * column, height - 4)
        draw.multiline_text(place, "\n".join(text), fill="black", font=font, anchor="md", align="center", spacing=2)
    return torch.cat([torch.from_numpy(np.array(strip)).permute(2, 0, 1), img_u8_3HW], dim=1)


def _fitting(names: Sequence[str], column: float) -> ImageFont.FreeTypeFont:
    """The largest font, down to ``_SMALLEST``, in which each word fits its column."""
    words = {word for name in names for word in name.split()}
    for size in range(_FONT, _SMALLEST, -1):
        font = _font(size)
        if all(font.getlength(word) <= column - _MARGIN for word in words):
            return font
    return _font(_SMALLEST)


def _font(size: int) -> ImageFont.FreeTypeFont:
    font = ImageFont.load_default(size)
    assert isinstance(font, ImageFont.FreeTypeFont)  # with a size it is always one
    return font


def _lines(name: str, font: ImageFont.FreeTypeFont, column: float) -> list[str]:
    """A name in lines that fit a column. Words and lines beyond that are cut."""
    lines: list[str] = []
    for word in name.split() or [""]:
        if lines and font.getlength(f"{lines[-1]} {word}") <= column - _MARGIN:
            lines[-1] += f" {word}"
        else:
            lines.append(word)
    if len(lines) > _MOST_LINES:
        lines = [*lines[: _MOST_LINES - 1], f"{lines[_MOST_LINES - 1]}…"]
    return [_cut(line, font, column - _MARGIN) for line in lines]


def _cut(line: str, font: ImageFont.FreeTypeFont, width: float) -> str:
    kept = line
    while len(kept) > 1 and font.getlength(kept) > width:
        kept = f"{kept.removesuffix('…')[:-1]}…"
    return kept
