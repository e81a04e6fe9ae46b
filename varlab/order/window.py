"""A window that slides over a grid larger than the trained one (VQGAN, Esser et al. 2021, section 3.2)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from varlab.order.base import BaseOrder
from varlab.order.paths import raster
from varlab.order.permutation import Permutation
from varlab.rng import Stream
from varlab.types import Maps, Slots, Tokenizer, VarlabError


@dataclass(frozen=True)
class WindowState:
    """The tokens and codes of the whole grid, row by row; -1 and zeros where unknown."""

    tok_BP: Tensor
    h_BPC: Tensor


class Window(BaseOrder[WindowState]):
    """Row by row over the grid of ``scales`` (one scale), each token seen through a trained ``window`` (h, w) around it.

    The token of step k is in the middle of the window, or nearer to the window's border at the border of the grid. Every step
    computes all slots of its window again: in raster order up to the token, at the positions of the trained grid. At the
    trained size the window is the whole grid, so the logits equal those of raster.

    cond_grid: (h, w) of a condition's cells in the trained size (None: no condition). Conditions are then tokens of a grid
    that is larger by the same factor, and each step sees the part of its window.
    """

    cached = False

    def __init__(
        self,
        *,
        scales: Sequence[Sequence[int]],
        window: Sequence[int],
        cond_grid: Sequence[int] | None = None,
    ):
        super().__init__(scales=scales)
        self.window = (int(window[0]), int(window[1]))
        if len(self.scales) != 1:
            raise VarlabError(f"A sliding window goes over one scale, not over {list(self.scales)}.")
        self.height, self.width = self.scales[0]
        h, w = self.window
        if h > self.height or w > self.width:
            raise VarlabError(f"A grid of {self.height}×{self.width} is smaller than the window of {h}×{w}.")
        self._cells = (1, 1)  # cells of the condition per token
        if cond_grid is not None:
            if cond_grid[0] % h or cond_grid[1] % w:
                raise VarlabError(
                    f"A window of {h}×{w} tokens cannot slide over a condition of {cond_grid[0]}×{cond_grid[1]}: "
                    "it needs whole cells for every token."
                )
            self._cells = (int(cond_grid[0]) // h, int(cond_grid[1]) // w)
        self.steps = (1,) * self.num_positions
        self._inside = Permutation(scales=[self.window], path=raster)

    def corner(self, k: int) -> tuple[int, int]:
        """Row and column of the window's upper left cell at step k."""
        (h, w), row, column = self.window, k // self.width, k % self.width
        return _clamp(row - h // 2, self.height - h), _clamp(column - w // 2, self.width - w)

    def start(self, batch: int, tokenizer: Tokenizer, rng: Stream | None = None) -> WindowState:
        blank = tokenizer.blank(1)
        tok_BP = torch.full((batch, self.num_positions), -1, dtype=torch.int64, device=blank.device)
        return WindowState(tok_BP, blank.new_zeros(batch, self.num_positions, tokenizer.code_dim))

    def inputs(self, state: WindowState, k: int, tokenizer: Tokenizer) -> Slots:
        w, (top, left) = self.window[1], self.corner(k)
        last = (k // self.width - top) * w + k % self.width - left  # index of the token inside the window
        device = state.tok_BP.device
        inside_l = torch.arange(last, device=device)
        cell_l = (top + inside_l // w) * self.width + left + inside_l % w
        B, pad = len(state.tok_BP), (1, 0)
        pos_BL = torch.arange(last + 1, device=device).expand(B, -1)
        return Slots(
            x_BLC=F.pad(state.h_BPC[:, cell_l], (0, 0, *pad)),
            tok_BL=F.pad(state.tok_BP[:, cell_l], pad, value=-1),
            src_BL=pos_BL - 1,
            pos_BL=pos_BL,
            level_L=torch.zeros(last + 1, dtype=torch.int64, device=device),
            step_L=torch.arange(last + 1),
        )

    def conditioned(self, slots: Slots, cond_BN: Tensor, k: int) -> Slots:
        """The window's slots after those of its part of the condition."""
        (h, w), (top, left), (down, across) = self.window, self.corner(k), self._cells
        cond_Bhw = cond_BN.unflatten(1, (self.height * down, self.width * across))
        part = cond_Bhw[:, top * down : (top + h) * down, left * across : (left + w) * across].flatten(1)
        return self._inside.conditioned(slots, part, 0)

    def targets(self, state: WindowState, k: int, maps: Maps) -> Tensor:
        return maps[0][:, k : k + 1]

    def advance(
        self, state: WindowState, k: int, idx_Bl: Tensor, tokenizer: Tokenizer, h_BlC: Tensor | None = None
    ) -> WindowState:
        here_1 = torch.tensor([k], device=idx_Bl.device)
        h_BlC = tokenizer.embed(idx_Bl) if h_BlC is None else h_BlC
        return WindowState(
            state.tok_BP.index_copy(1, here_1, idx_Bl), state.h_BPC.index_copy(1, here_1, h_BlC.to(state.h_BPC.dtype))
        )

    def pack(self, maps: Maps, tokenizer: Tokenizer, rng: Stream | None = None) -> tuple[Slots, Tensor]:
        """Raise VarlabError: windows are not one sequence, so nothing can be trained on them."""
        raise VarlabError("A sliding window only samples: train with order=raster on images of the window's size.")

    def canvas(self, state: WindowState, tokenizer: Tokenizer) -> Tensor:
        return tokenizer.accumulate(tokenizer.blank(len(state.tok_BP)), 0, state.h_BPC)

    def finish(self, state: WindowState) -> Maps:
        return [state.tok_BP]


def _clamp(place: int, largest: int) -> int:
    return min(max(place, 0), largest)
