"""The base class of orders: positions of an image's tokens, condition slots, and ``pack`` as a walk."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Generic, TypeVar

import torch
from torch import Tensor

from varlab.rng import Stream
from varlab.types import Maps, Slots, Tokenizer


def positions(scales: Sequence[tuple[int, int]]) -> Tensor:
    """(P, 3) int64: row, column and level of every position, scale after scale, each row by row."""
    rows = [
        torch.stack(
            torch.meshgrid(torch.arange(h), torch.arange(w), indexing="ij") + (torch.full((h, w), k),), -1
        ).view(-1, 3)
        for k, (h, w) in enumerate(scales)
    ]
    return torch.cat(rows)


State = TypeVar("State")


class OnDevices:
    """A constant, copied to each device once: no later step waits for a copy."""

    def __init__(self, constant: Tensor):
        self._copies = {constant.device: constant}
        self._constant = constant

    def on(self, device: torch.device) -> Tensor:
        """The constant on a device."""
        if device not in self._copies:
            with torch.inference_mode(False):  # a later training may keep it for its backward pass
                self._copies[device] = self._constant.to(device)
        return self._copies[device]


class BaseOrder(ABC, Generic[State]):
    """An order over the token maps of ``scales``; see ``varlab.types.Order`` for the contract of each method.

    Subclasses set ``steps`` and write the five abstract methods. ``pack`` walks through all steps with the true tokens; a
    subclass may replace it by something faster (a law holds that both agree).
    """

    steps: tuple[int, ...]
    fixed: bool = True  # positions and sources are the same for every sample
    cached: bool = True  # each slot is computed once, so a cache can keep its keys and values

    def __init__(self, *, scales: Sequence[Sequence[int]]):
        self.scales: tuple[tuple[int, int], ...] = tuple((int(h), int(w)) for h, w in scales)
        self.positions_P3 = positions(self.scales)
        self.lengths = tuple(h * w for h, w in self.scales)

    @property
    def num_positions(self) -> int:
        """P: tokens of one image."""
        return len(self.positions_P3)

    @abstractmethod
    def start(self, batch: int, tokenizer: Tokenizer, rng: Stream | None = None) -> State:
        """The state before anything is known."""

    @abstractmethod
    def inputs(self, state: State, k: int, tokenizer: Tokenizer) -> Slots:
        """The slots of step k: the known inputs, and where the tokens will land."""

    def conditioned(self, slots: Slots, cond_BN: Tensor, k: int) -> Slots:
        """Put the condition's slots before ``slots``: the slots of step k, or of all steps if k is 0."""
        return Slots.cat([self.prefix(cond_BN, slots), slots]) if k == 0 else slots

    def prefix(self, cond_BN: Tensor, slots: Slots) -> Slots:
        """The slots of a condition: they see each other (VQGAN's r‖s), have positions after the image's and a level of
        their own, and predict nothing. slots: those that follow.
        """
        B, N = cond_BN.shape
        place_BN = torch.arange(self.num_positions, self.num_positions + N, device=cond_BN.device).expand(B, -1)
        return Slots(
            x_BLC=slots.x_BLC.new_zeros(B, N, slots.x_BLC.shape[2]),
            tok_BL=cond_BN,
            src_BL=place_BN,
            pos_BL=place_BN,
            level_L=torch.full((N,), len(self.scales), device=cond_BN.device),
            step_L=torch.full((N,), -1),
        )

    @abstractmethod
    def targets(self, state: State, k: int, maps: Maps) -> Tensor:
        """idx_Bl: the tokens of ``maps`` that step k predicts."""

    @abstractmethod
    def advance(self, state: State, k: int, idx_Bl: Tensor, tokenizer: Tokenizer, h_BlC: Tensor | None = None) -> State:
        """The state after step k's tokens are known (h_BlC in place of their codes for smooth sampling)."""

    @abstractmethod
    def canvas(self, state: State, tokenizer: Tokenizer) -> Tensor:
        """f_hat_BChw of the tokens known so far: decoded, it shows how an image grows."""

    @abstractmethod
    def finish(self, state: State) -> Maps:
        """The token maps, after the last step."""

    def pack(self, maps: Maps, tokenizer: Tokenizer, rng: Stream | None = None) -> tuple[Slots, Tensor]:
        """Slots and targets_BL of all steps with the true tokens as inputs: what training sees."""
        state = self.start(len(maps[0]), tokenizer, rng)
        slots, targets = [], []
        for k in range(len(self.steps)):
            slots.append(self.inputs(state, k, tokenizer))
            targets.append(self.targets(state, k, maps))
            if k < len(self.steps) - 1:
                state = self.advance(state, k, targets[-1], tokenizer)
        return Slots.cat(slots), torch.cat(targets, 1)
