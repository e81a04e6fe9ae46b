"""One token per step along a path over the grid, scale after scale: raster, spirals, random and others."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from varlab.order.base import BaseOrder, OnDevices
from varlab.rng import Stream
from varlab.types import Maps, Slots, Tokenizer, VarlabError

Path = Callable[[int, int], Tensor]


@dataclass(frozen=True)
class PermutationState:
    """Where each step lands, the tokens known so far (-1 where unknown, by position), and their codes in visiting order."""

    path_BP: Tensor
    tok_BP: Tensor
    h_B1C: tuple[Tensor, ...]


class Permutation(BaseOrder[PermutationState]):
    """Step k predicts the token at the k-th place of the path, given the code of the one before."""

    def __init__(self, *, scales: Sequence[Sequence[int]], path: Path):
        super().__init__(scales=scales)
        self.steps = (1,) * self.num_positions
        paths = [path(h, w) for h, w in self.scales]
        for (h, w), cells in zip(self.scales, paths, strict=True):
            if not torch.equal(cells.sort().values, torch.arange(h * w)):
                raise VarlabError(f"The path of this order does not visit each cell of a {h}×{w} grid exactly once.")
        self._path_P = self._join(paths)
        self._paths, self._levels = OnDevices(self._path_P), OnDevices(self.positions_P3[self._path_P, 2])

    def _join(self, paths: list[Tensor]) -> Tensor:
        """Join one path per scale (last dimension) into one path over all scales, coarse to fine."""
        offsets = [sum(self.lengths[:k]) for k in range(len(paths))]
        return torch.cat([path + offset for path, offset in zip(paths, offsets, strict=True)], -1)

    def path_BP(self, batch: int, device: torch.device, rng: Stream | None) -> Tensor:
        """The visiting order of each sample."""
        return self._paths.on(device).expand(batch, -1)

    def start(self, batch: int, tokenizer: Tokenizer, rng: Stream | None = None) -> PermutationState:
        path_BP = self.path_BP(batch, tokenizer.blank(1).device, rng)
        return PermutationState(path_BP, torch.full_like(path_BP, -1), ())

    def _slots(self, x_BLC: Tensor, tok_BL: Tensor, src_BL: Tensor, pos_BL: Tensor, first: int) -> Slots:
        device, last = pos_BL.device, first + pos_BL.shape[1]
        # the levels are the same for every sample, because scales come one after another
        level_P = self._levels.on(device)
        step_L = torch.arange(first, last)
        return Slots(x_BLC, tok_BL, src_BL, pos_BL, level_L=level_P[first:last], step_L=step_L)

    def inputs(self, state: PermutationState, k: int, tokenizer: Tokenizer) -> Slots:
        pos_B1 = state.path_BP[:, k : k + 1]
        if k == 0:
            none_B1 = torch.full_like(pos_B1, -1)
            nothing = tokenizer.blank(1).new_zeros(len(pos_B1), 1, tokenizer.code_dim)
            return self._slots(nothing, none_B1, none_B1, pos_B1, 0)
        src_B1 = state.path_BP[:, k - 1 : k]
        return self._slots(state.h_B1C[-1], state.tok_BP.gather(1, src_B1), src_B1, pos_B1, k)

    def targets(self, state: PermutationState, k: int, maps: Maps) -> Tensor:
        return torch.cat(maps, 1).gather(1, state.path_BP[:, k : k + 1])

    def advance(
        self, state: PermutationState, k: int, idx_Bl: Tensor, tokenizer: Tokenizer, h_BlC: Tensor | None = None
    ) -> PermutationState:
        h_B1C = tokenizer.embed(idx_Bl) if h_BlC is None else h_BlC
        tok_BP = state.tok_BP.scatter(1, state.path_BP[:, k : k + 1], idx_Bl)
        return PermutationState(state.path_BP, tok_BP, (*state.h_B1C, h_B1C))

    def canvas(self, state: PermutationState, tokenizer: Tokenizer) -> Tensor:
        f_hat = tokenizer.blank(len(state.path_BP))
        if not state.h_B1C:
            return f_hat
        known_BnC = torch.cat(state.h_B1C, 1)
        where_BnC = state.path_BP[:, : known_BnC.shape[1], None].expand_as(known_BnC)
        h_BPC = known_BnC.new_zeros(len(f_hat), self.num_positions, tokenizer.code_dim).scatter(1, where_BnC, known_BnC)
        for k, h_BlC in enumerate(h_BPC.split(self.lengths, 1)):
            if len(state.h_B1C) > sum(self.lengths[:k]):
                f_hat = tokenizer.accumulate(f_hat, k, h_BlC)
        return f_hat

    def finish(self, state: PermutationState) -> Maps:
        return list(state.tok_BP.split(self.lengths, 1))

    def pack(self, maps: Maps, tokenizer: Tokenizer, rng: Stream | None = None) -> tuple[Slots, Tensor]:
        """All steps at once: a gather along the path, shifted by one."""
        tok_BP = torch.cat(maps, 1)
        path_BP = self.path_BP(len(tok_BP), tok_BP.device, rng)
        targets_BP = tok_BP.gather(1, path_BP)
        x_BPC = F.pad(tokenizer.embed(targets_BP[:, :-1]), (0, 0, 1, 0))
        before_BP, src_BP = (F.pad(t[:, :-1], (1, 0), value=-1) for t in (targets_BP, path_BP))
        return self._slots(x_BPC, before_BP, src_BP, path_BP, 0), targets_BP


class Random(Permutation):
    """A random path for each sample, from its own stream: within each scale, all orders are equally likely."""

    fixed = False

    def __init__(self, *, scales: Sequence[Sequence[int]]):
        super().__init__(scales=scales, path=lambda h, w: torch.arange(h * w))

    def path_BP(self, batch: int, device: torch.device, rng: Stream | None) -> Tensor:
        if rng is None or len(rng.ids_B) != batch:
            raise ValueError("a random order needs a stream with one id per sample")
        paths = [rng.at(k).permutation(length) for k, length in enumerate(self.lengths)]
        return self._join(paths).to(device)
