"""Conditions beside the class, as tokens that precede the image's own (VQGAN, Esser et al. 2021, section 3.2)."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from varlab.config import Config
from varlab.tokenizer.model import VQTokenizer, grid_of
from varlab.types import Batch, DataInfo, VarlabError, full_precision, to_float, to_uint8

SOURCES = {
    "label_B": "labels",
    "img_u8_B3HW": "the images themselves (img_B3HW, cond=FILE)",
    "cond_u8_B3HW": "condition images (cond_img_B3HW, cond=FILE)",
    "box_B4": "boxes (box_B4)",
}
"""The fields of a ``Batch`` that a condition may be made from, and how a person gives them."""


class Condition(ABC, nn.Module):
    """A batch → cond_BN, the tokens of its conditions; frozen.

    vocab_size: of these tokens. scales: their grids (h, w), flattened one after another. needs: the fields of a batch that
    ``tokens`` reads (``SOURCES``). Guidance and label_drop drop only the class, never the condition.
    """

    vocab_size: int
    scales: tuple[tuple[int, int], ...]
    needs: tuple[str, ...] = ("cond_u8_B3HW",)

    @property
    def num_tokens(self) -> int:
        """N."""
        return sum(h * w for h, w in self.scales)

    @abstractmethod
    def tokens(self, batch: Batch) -> Tensor:
        """cond_BN int64 in [0, vocab_size)."""

    def shown(self, batch: Batch) -> Tensor:
        """img_u8_B3HW: the conditions as pictures; by default the condition images, else the images."""
        return batch.img_u8_B3HW if batch.cond_u8_B3HW is None else batch.cond_u8_B3HW

    def check(self, info: DataInfo) -> None:
        """Raise VarlabError unless the shards hold what the condition needs."""
        if info.tokens is not None and set(self.needs) != {"label_B"}:
            raise VarlabError(f"{info.path} holds no conditions: train with a condition from images (data=shards).")
        if "cond_u8_B3HW" in self.needs and info.condition is None:
            raise VarlabError(
                f"This condition needs shards with conditions, and {info.path} has none: pack some "
                "(varlab pack condition=edges)."
            )
        if "box_B4" in self.needs and not info.boxes:
            raise VarlabError(
                f"This condition needs shards that store the place of each image in its picture; {info.path} does not: "
                "pack them with varlab pack source=photos condition=coordinates."
            )

    def describe(self, info: DataInfo) -> str:
        """Name the condition in the protocol of a score."""
        return (info.condition if "cond_u8_B3HW" in self.needs else None) or type(self).__name__

    def defaults(self, count: int) -> dict[str, Tensor]:
        """The fields that a picture outside any shard has, if nobody gives them."""
        return {}

    def encode(self, **fields: Tensor) -> Tensor:
        """cond_BN from some fields of a batch. Raises VarlabError for one that is missing."""
        missing = [name for name in self.needs if name not in fields]
        if missing:
            wants = " and ".join(SOURCES[name] for name in missing)
            raise VarlabError(f"This run is made with {wants}, one for each sample: give it that.")
        given = fields[self.needs[0]]
        position_B = torch.arange(len(given), device=given.device)
        blank: Config = {
            "img_u8_B3HW": position_B.new_zeros(len(given), 3, 0, 0).byte(),
            "label_B": torch.zeros_like(position_B),
        }
        return self.tokens(Batch(position_B=position_B, valid_B=position_B >= 0, **blank | fields))

    def enlarged(self, size: tuple[int, int], grid: tuple[int, int]) -> Condition:
        """The condition of images of ``size`` (H, W), whose tokens have the grid (h, w)."""
        raise VarlabError(f"{type(self).__name__} is made for images of the trained size: leave size= out.")

    def train(self, mode: bool = True) -> Condition:
        """Set the training mode; frozen children stay in evaluation mode."""
        super().train(mode)
        for module in self.children():
            module.eval()
        return self


class SpatialCondition(Condition):
    """Images (edges, segmentation, depth, low resolution) as the tokens of a tokenizer of their own."""

    def __init__(self, *, tokenizer: VQTokenizer):
        super().__init__()
        self.tokenizer = tokenizer.eval().requires_grad_(False)
        self.vocab_size, self.scales = tokenizer.vocab_size, tokenizer.scales

    @torch.no_grad()
    def tokens(self, batch: Batch) -> Tensor:
        """All scales in a row."""
        assert batch.cond_u8_B3HW is not None
        h, w = self.tokenizer.image_size
        if (found := tuple(batch.cond_u8_B3HW.shape[2:])) != (h, w):
            raise VarlabError(f"This run needs condition images of {h}×{w}, not {found}.")
        cond_B3HW = to_float(batch.cond_u8_B3HW)
        with full_precision(cond_B3HW):
            return torch.cat(self.tokenizer.encode(cond_B3HW), 1)

    def enlarged(self, size: tuple[int, int], grid: tuple[int, int]) -> SpatialCondition:
        """With its tokenizer for condition images of that size."""
        return SpatialCondition(tokenizer=self.tokenizer.enlarged(grid_of(self.tokenizer, size)))


class CoordinateCondition(Condition):
    """The place of each latent cell in the whole picture (VQGAN's condition for large images that have no other).

    grid: (h, w) of the cells. rows, columns: how many places are distinguished vertically and horizontally; the
    vocabulary is their product. Nothing is learned. In a mirrored crop columns run from right to left, as its pixels do.
    """

    needs = ("box_B4",)

    def __init__(self, *, grid: Sequence[int], rows: int, columns: int):
        super().__init__()
        if rows < 1 or columns < 1:
            raise VarlabError(f"condition.rows={rows} and condition.columns={columns} must be at least 1.")
        self.rows, self.columns, self.vocab_size = rows, columns, rows * columns
        self.scales = ((int(grid[0]), int(grid[1])),)

    def describe(self, info: DataInfo) -> str:
        return "coordinates"

    def defaults(self, count: int) -> dict[str, Tensor]:
        """An image is the whole picture."""
        return {"box_B4": torch.tensor([[0.0, 0.0, 1.0, 1.0]]).expand(count, -1)}

    def tokens(self, batch: Batch) -> Tensor:
        """The places of the cells of each image's box."""
        assert batch.box_B4 is not None
        top, left, bottom, right = batch.box_B4.unbind(1)
        (h, w) = self.scales[0]
        row_Bh = _places(top, bottom, h, self.rows)
        column_Bw = _places(left, right, w, self.columns)
        return (row_Bh[:, :, None] * self.columns + column_Bw[:, None, :]).flatten(1)

    def enlarged(self, size: tuple[int, int], grid: tuple[int, int]) -> CoordinateCondition:
        """With more cells, of as many places."""
        return CoordinateCondition(grid=grid, rows=self.rows, columns=self.columns)

    def shown(self, batch: Batch) -> Tensor:
        """Red from top to bottom, green from left to right."""
        h, w = self.scales[0]
        cell_Bhw = self.tokens(batch).unflatten(1, (h, w))
        row, column = cell_Bhw // self.columns, cell_Bhw % self.columns
        red, green = row / max(self.rows - 1, 1), column / max(self.columns - 1, 1)
        small = to_uint8(torch.stack([red, green, torch.zeros_like(red)], 1) * 2 - 1)
        height, width = batch.img_u8_B3HW.shape[2:]
        return small.repeat_interleave(height // h, 2).repeat_interleave(width // w, 3)


def _places(low_B: Tensor, high_B: Tensor, cells: int, places: int) -> Tensor:
    """(B, cells) int64 in [0, places): where the middle of each cell between low and high falls."""
    middle_n = (torch.arange(cells, device=low_B.device) + 0.5) / cells
    at_Bn = low_B[:, None] + (high_B - low_B)[:, None] * middle_n
    return (at_Bn * places).floor().long().clamp(0, places - 1)
