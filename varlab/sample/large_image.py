"""Images larger than the training images, by a sliding window (VQGAN, Esser et al. 2021, section 3.2)."""

from __future__ import annotations

import torch

from varlab.order import BaseOrder, Window
from varlab.tokenizer import VQTokenizer
from varlab.tokenizer.condition import Condition
from varlab.types import VarlabError


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
