"""Conditions beside the class, as tokens that precede the image's own (VQGAN, Esser et al. 2021, section 3.2)."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from varlab.tokenizer.model import VQTokenizer
from varlab.types import Batch, DataInfo, VarlabError, full_precision, to_float, to_uint8


class Condition(ABC, nn.Module):
    """A batch → cond_BN, the tokens of its conditions; frozen. scales: their grids, flattened one after another.

    Guidance and label_drop drop only the class, never the condition.
    """

    vocab_size: int
    scales: tuple[tuple[int, int], ...]

    @property
    def num_tokens(self) -> int:
        """N."""
        return sum(h * w for h, w in self.scales)

    @abstractmethod
    def check(self, info: DataInfo) -> None:
        """Raise VarlabError unless the shards hold the data of this condition."""

    @abstractmethod
    def tokens(self, batch: Batch) -> Tensor:
        """cond_BN int64 in [0, vocab_size)."""

    @abstractmethod
    def shown(self, batch: Batch) -> Tensor:
        """img_u8_B3HW: the conditions as pictures."""

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

    def check(self, info: DataInfo) -> None:
        if info.condition is None:
            raise VarlabError(
                f"condition=spatial needs shards with conditions, and {info.path} has none: pack some "
                "(varlab pack condition=edges)."
            )

    def tokens(self, batch: Batch) -> Tensor:
        assert batch.cond_u8_B3HW is not None
        return self.encode(to_float(batch.cond_u8_B3HW))

    @torch.no_grad()
    def encode(self, cond_B3HW: Tensor) -> Tensor:
        """Condition images in [-1, 1] → cond_BN, all scales in a row."""
        with full_precision(cond_B3HW):
            return torch.cat(self.tokenizer.encode(cond_B3HW), 1)

    def shown(self, batch: Batch) -> Tensor:
        assert batch.cond_u8_B3HW is not None
        return batch.cond_u8_B3HW


class CoordinateCondition(Condition):
    """The place of each latent cell in the whole picture (VQGAN's condition for large images that have no other).

    grid: (h, w) of the cells. rows, columns: how many places are distinguished vertically and horizontally; the
    vocabulary is their product. Nothing is learned. In a mirrored crop columns run from right to left, as its pixels do.
    """

    def __init__(self, *, grid: Sequence[int], rows: int, columns: int):
        super().__init__()
        if rows < 1 or columns < 1:
            raise VarlabError(f"condition.rows={rows} and condition.columns={columns} must be at least 1.")
        self.rows, self.columns, self.vocab_size = rows, columns, rows * columns
        self.scales = ((int(grid[0]), int(grid[1])),)

    def check(self, info: DataInfo) -> None:
        if not info.boxes:
            raise VarlabError(
                f"condition=coordinates needs shards that store the place of each image in its picture; {info.path} does not: "
                "pack them with varlab pack source=photos condition=coordinates."
            )

    def tokens(self, batch: Batch) -> Tensor:
        assert batch.box_B4 is not None
        return self.encode(batch.box_B4, self.scales[0])

    def encode(self, box_B4: Tensor, grid: tuple[int, int]) -> Tensor:
        """cond_BN of images of ``grid`` cells that lie in these boxes (top, left, bottom, right) of [0, 1]."""
        top, left, bottom, right = box_B4.unbind(1)
        row_Bh = _places(top, bottom, grid[0], self.rows)
        column_Bw = _places(left, right, grid[1], self.columns)
        return (row_Bh[:, :, None] * self.columns + column_Bw[:, None, :]).flatten(1)

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
