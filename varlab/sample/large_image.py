"""Images larger than the training images, by a sliding window (VQGAN, Esser et al. 2021, section 3.2)."""

from __future__ import annotations

import copy

import torch

from varlab.order import BaseOrder, Window
from varlab.tokenizer import VQTokenizer
from varlab.tokenizer.condition import Condition
from varlab.types import VarlabError


def enlarge(tokenizer: VQTokenizer, grid: tuple[int, int]) -> VQTokenizer:
    """A copy of a single-scale tokenizer for images of another size; the weights do not depend on it."""
    if len(tokenizer.scales) != 1:
        raise VarlabError(
            f"A tokenizer with the scales {list(tokenizer.scales)} has one image size: use one with a single scale."
        )
    large = copy.deepcopy(tokenizer)
    large.scales = large.quantizer.scales = (grid,)
    return large


def grid_of(tokenizer: VQTokenizer, size: tuple[int, int]) -> tuple[int, int]:
    """The token grid (h, w) for images of size (H, W)."""
    cell = tokenizer.downsample
    if size[0] % cell or size[1] % cell:
        raise VarlabError(f"A size of {size[0]}×{size[1]} pixels is no multiple of {cell}×{cell}: use whole tokens.")
    return size[0] // cell, size[1] // cell


def sliding_window(
    order: BaseOrder, tokenizer: VQTokenizer, grid: tuple[int, int], condition: Condition | None
) -> Window:
    """The window over a larger grid, for a transformer trained with this order, tokenizer and condition.

    Raises:
        VarlabError: the order is no raster over one scale, or the condition has several scales.
    """
    pos_P = torch.arange(order.num_positions)
    path_BP = getattr(order, "path_BP", lambda *_: None)(1, torch.device("cpu"), None) if order.fixed else None
    if len(order.scales) != 1 or path_BP is None or not torch.equal(path_BP[0], pos_P):
        raise VarlabError("A sliding window needs a model of order=raster and a tokenizer of one scale.")
    if condition is not None and len(condition.scales) != 1:
        raise VarlabError("A sliding window needs a condition whose tokenizer has one scale, not several.")
    return Window(
        scales=[grid], window=tokenizer.scales[0], cond_grid=None if condition is None else condition.scales[0]
    )
