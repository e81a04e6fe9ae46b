"""The one sampling loop, for every order."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from varlab.rng import Rng
from varlab.sample import guidance
from varlab.sample.draws import AddressedDraws, Draws
from varlab.sample.filter import filter_logits
from varlab.sample.smooth import codes_of, soft_codes
from varlab.transformer import Cache, Transformer
from varlab.types import Maps, Order, Tokenizer, VarlabError

Force = Callable[[Any, int], tuple[Tensor, Tensor]]
"""(state, k) → (idx_Bl, keep_Bl): the known tokens of step k, and which of them replace what is drawn: editing."""
Watch = Callable[[int, Any], None]
"""Called with (k, state) after each step."""

RAMPS = {"constant": guidance.constant, "linear": guidance.linear}


@dataclass(frozen=True, kw_only=True)
class Sampler:
    """How tokens are drawn; the defaults are those of VAR's FID table.

    cfg: guidance strength t at full progress (0: none). ramp: constant, or VAR's linear one.

    top_k: keep this many tokens (0: all). top_p: keep this much probability (1: all). temperature: divides the logits.
    cfg_steps: guide only the first so many steps (None: all). smooth: VAR's ``more_smooth``, for pictures only: the image
    is then the state's canvas, not the maps'.
    """

    cfg: float = 1.5
    ramp: str = "linear"
    temperature: float = 1.0
    top_k: int = 900
    top_p: float = 0.96
    cfg_steps: int | None = None
    smooth: bool = False

    def __post_init__(self) -> None:
        if self.ramp not in RAMPS:
            raise VarlabError(f"Sampler ramp={self.ramp!r} is unknown: use one of {sorted(RAMPS)}.")
        if not all(isinstance(x, int | float) for x in (self.cfg, self.temperature, self.top_k, self.top_p)):
            raise VarlabError(f"Sampler settings {asdict(self)} must be numbers (ramp aside).")
        if self.cfg_steps is not None and (not isinstance(self.cfg_steps, int) or self.cfg_steps < 0):
            raise VarlabError(f"Sampler cfg_steps={self.cfg_steps} must be a number of steps, or null for all of them.")
        if self.temperature <= 0 or not 0 < self.top_p <= 1 or self.top_k < 0 or self.cfg < 0:
            raise VarlabError(
                f"Sampler settings {asdict(self)} need temperature > 0, 0 < top_p <= 1, top_k >= 0, cfg >= 0."
            )

    def _guided(self, logits: Tensor, k: int, steps: int) -> Tensor:
        """Logits of the conditional branch, pushed away from those of the null branch where there is one."""
        if self.cfg == 0:
            return logits
        off = self.cfg_steps is not None and k >= self.cfg_steps
        t = 0.0 if off else RAMPS[self.ramp](self.cfg, k / max(steps - 1, 1))
        return guidance.guide(logits, t)

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
        cond_BN: Tensor | None = None,
        force: Force | None = None,
        watch: Watch | None = None,
        draws: Draws | None = None,
    ) -> Maps:
        """Token maps for the labels. Sample b depends on (rng.seed, ids_B[b]), its label and its condition alone.

        cond_BN: tokens of a condition, which come before everything. draws: addressed ones where not given.
        """
        K = len(order.steps)
        if self.cfg > 0 and not transformer.has_null_class:
            raise VarlabError(f"cfg={self.cfg} needs a model with a null class, which this one has not: use cfg=0.")
        if self.smooth and transformer.token_inputs:
            raise VarlabError("smooth=true mixes codes, but this model's inputs are token ids: use smooth=false.")
        branches = 2 if self.cfg > 0 else 1
        labels = torch.cat([label_B, torch.full_like(label_B, transformer.num_classes)])[: branches * len(label_B)]
        cache = Cache(length=sum(order.steps) + transformer.cond_tokens) if order.cached else None
        draws = draws or AddressedDraws(rng.stream("sample", ids_B))
        state = order.start(len(label_B), tokenizer, rng.stream("order", ids_B))
        for k, length in enumerate(order.steps):
            slots = order.inputs(state, k, tokenizer)
            if cond_BN is not None:
                slots = order.conditioned(slots, cond_BN, k)
            logits = transformer(slots.repeat_batch(branches), labels, cache=cache)[:, -length:]
            logits = filter_logits(
                self._guided(logits, k, K), temperature=self.temperature, top_k=self.top_k, top_p=self.top_p
            )
            idx_Bl = draws.pick(logits, k)
            h_BlC = None
            if self.smooth:
                progress = k / max(K - 1, 1)
                h_BlC = soft_codes(logits, draws.gumbel(logits, k), progress, codes_of(tokenizer, logits))
            if force is not None:
                known_Bl, keep_Bl = force(state, k)
                idx_Bl = torch.where(keep_Bl, known_Bl, idx_Bl)
                if h_BlC is not None:
                    h_BlC = torch.where(keep_Bl[..., None], tokenizer.embed(known_Bl), h_BlC)
            state = order.advance(state, k, idx_Bl, tokenizer, h_BlC)
            if watch is not None:
                watch(k, state)
        return order.finish(state)
