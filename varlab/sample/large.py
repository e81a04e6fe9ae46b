"""Images larger than the trained ones, by a window that slides (VQGAN, Esser et al. 2021, section 3.2)."""

from __future__ import annotations

import copy

import torch

from varlab.order import BaseOrder, Window
from varlab.tokenizer import VQTokenizer
from varlab.tokenizer.condition import Condition
from varlab.types import VarlabError


def enlarged(tokenizer: VQTokenizer, grid: tuple[int, int]) -> VQTokenizer:
    """A copy of a tokenizer of one scale for images of another size: its weights know none."""
    if len(tokenizer.scales) != 1:
        raise VarlabError(
            f"A tokenizer of the scales {list(tokenizer.scales)} has one image size only: one scale has any."
        )
    large = copy.deepcopy(tokenizer)
    large.scales = large.quantizer.scales = (grid,)
    return large


def grid_of(tokenizer: VQTokenizer, size: tuple[int, int]) -> tuple[int, int]:
    """(h, w) of tokens for images of size (H, W)."""
    cell = tokenizer.downsample
    if size[0] % cell or size[1] % cell:
        raise VarlabError(f"An image of {size[0]}×{size[1]} is no whole number of {cell}×{cell} tokens: use multiples.")
    return size[0] // cell, size[1] // cell


def sliding(order: BaseOrder, tokenizer: VQTokenizer, grid: tuple[int, int], condition: Condition | None) -> Window:
    """The window over a larger grid, for a transformer that was trained on this order, tokenizer and condition.

    Raises:
        VarlabError: anything but a raster over one scale, or a condition of several scales.
    """
    pos_P = torch.arange(order.num_positions)
    path_BP = getattr(order, "path_BP", lambda *_: None)(1, torch.device("cpu"), None) if order.fixed else None
    if len(order.scales) != 1 or path_BP is None or not torch.equal(path_BP[0], pos_P):
        raise VarlabError("A sliding window needs a model of order=raster and a tokenizer of one scale.")
    if condition is not None and len(condition.scales) != 1:
        raise VarlabError("A sliding window needs a condition of one scale: this one's tokenizer has several.")
    return Window(
        scales=[grid], window=tokenizer.scales[0], cond_grid=None if condition is None else condition.scales[0]
    )
