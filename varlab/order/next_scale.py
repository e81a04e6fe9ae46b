"""Next-scale prediction (VAR, Tian et al. 2024): all tokens of a scale at once, given the image so far at that size."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from varlab.order.base import BaseOrder
from varlab.rng import Stream
from varlab.types import Maps, Slots, Tokenizer, VarlabError


@dataclass(frozen=True)
class NextScaleState:
    """The image so far, and the maps that made it."""

    f_hat_BChw: Tensor
    maps: tuple[Tensor, ...]


class NextScale(BaseOrder[NextScaleState]):
    """Step k predicts scale k. Its input is f_hat, area-downsampled to that scale; the first step has no input."""

    def __init__(self, *, scales: Sequence[Sequence[int]]):
        super().__init__(scales=scales)
        if len(self.scales) < 2:
            raise VarlabError(
                f"order=next_scale needs a tokenizer of several scales, but this one has {list(self.scales)}: "
                "use order=raster, or the run of a tokenizer that was trained with tokenizer=multi."
            )
        self.steps = self.lengths
        self._offsets = [sum(self.lengths[:k]) for k in range(len(self.scales))]

    def start(self, batch: int, tokenizer: Tokenizer, rng: Stream | None = None) -> NextScaleState:
        return NextScaleState(tokenizer.blank(batch), ())

    def inputs(self, state: NextScaleState, k: int, tokenizer: Tokenizer) -> Slots:
        f_hat = state.f_hat_BChw
        length, device = self.lengths[k], f_hat.device
        pos_l = torch.arange(self._offsets[k], self._offsets[k] + length, device=device)
        pos_BL = pos_l.expand(len(f_hat), -1)
        none_BL = torch.full_like(pos_BL, -1)
        small = F.interpolate(f_hat, size=self.scales[k], mode="area") if k < len(self.scales) - 1 else f_hat
        return Slots(
            x_BLC=small.flatten(2).transpose(1, 2),
            tok_BL=none_BL,
            src_BL=pos_BL if k else none_BL,
            pos_BL=pos_BL,
            level_L=torch.full((length,), k, device=device),
            step_L=torch.full((length,), k),
        )

    def targets(self, state: NextScaleState, k: int, maps: Maps) -> Tensor:
        return maps[k]

    def advance(
        self, state: NextScaleState, k: int, idx_Bl: Tensor, tokenizer: Tokenizer, h_BlC: Tensor | None = None
    ) -> NextScaleState:
        h_BlC = tokenizer.embed(idx_Bl) if h_BlC is None else h_BlC
        return NextScaleState(tokenizer.accumulate(state.f_hat_BChw, k, h_BlC), (*state.maps, idx_Bl))

    def canvas(self, state: NextScaleState, tokenizer: Tokenizer) -> Tensor:
        return state.f_hat_BChw

    def finish(self, state: NextScaleState) -> Maps:
        return list(state.maps)
