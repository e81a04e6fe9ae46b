"""The one sampling loop, for every order."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from varlab.rng import Rng
from varlab.sample import guidance
from varlab.sample.filter import filter_logits, pick
from varlab.transformer import Cache, Transformer
from varlab.types import Maps, Order, Tokenizer, VarlabError

Force = Callable[[Any, int, Tensor], Tensor]
"""(state, k, sampled idx_Bl) → idx_Bl with the known tokens in their places: editing."""
Watch = Callable[[int, Any], None]
"""Called with (k, state) after each step."""

RAMPS = {"constant": guidance.constant, "linear": guidance.linear}


@dataclass(frozen=True, kw_only=True)
class Sampler:
    """How tokens are drawn. cfg: guidance strength t at full progress (0: none). ramp: constant, or VAR's linear one.

    top_k: keep this many tokens (0: all). top_p: keep this much probability (1: all). temperature: divides the logits.
    """

    cfg: float
    ramp: str
    temperature: float
    top_k: int
    top_p: float

    def __post_init__(self) -> None:
        if self.ramp not in RAMPS:
            raise VarlabError(f"Sampler ramp={self.ramp!r} is unknown: use one of {sorted(RAMPS)}.")
        if not all(isinstance(x, int | float) for x in (self.cfg, self.temperature, self.top_k, self.top_p)):
            raise VarlabError(f"Sampler settings {asdict(self)} must be numbers (ramp aside).")
        if self.temperature <= 0 or not 0 < self.top_p <= 1 or self.top_k < 0 or self.cfg < 0:
            raise VarlabError(
                f"Sampler settings {asdict(self)} need temperature > 0, 0 < top_p <= 1, top_k >= 0, cfg >= 0."
            )

    @torch.no_grad()
    def __call__(
        self,
        *,
        transformer: Transformer,
        order: Order,
        tokenizer: Tokenizer,
        label_B: Tensor,
        ids_B: Tensor,
        rng: Rng,
        force: Force | None = None,
        watch: Watch | None = None,
    ) -> Maps:
        """Token maps for the labels. Sample b depends on (rng.seed, ids_B[b]) and its label alone."""
        K = len(order.steps)
        branches = 2 if self.cfg > 0 else 1
        labels = torch.cat([label_B, torch.full_like(label_B, transformer.num_classes)])[: branches * len(label_B)]
        cache = Cache(length=sum(order.steps))
        draws = rng.stream("sample", ids_B)
        state = order.start(len(label_B), tokenizer, rng.stream("order", ids_B))
        for k, length in enumerate(order.steps):
            logits = transformer(order.inputs(state, k, tokenizer).repeat_batch(branches), labels, cache=cache)
            if branches == 2:
                logits = guidance.guide(logits, RAMPS[self.ramp](self.cfg, k / max(K - 1, 1)))
            logits = filter_logits(
                logits[:, -length:], temperature=self.temperature, top_k=self.top_k, top_p=self.top_p
            )
            idx_Bl = pick(logits, draws.at(k).uniform(length).to(logits.device))
            if force is not None:
                idx_Bl = force(state, k, idx_Bl)
            state = order.advance(state, k, idx_Bl, tokenizer)
            if watch is not None:
                watch(k, state)
        return order.finish(state)
