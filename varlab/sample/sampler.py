"""The sampling loop, one for every order."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial

import torch
from torch import Tensor

from varlab.config import Config
from varlab.processor import hardware_precision
from varlab.rng import Rng
from varlab.sample import guidance
from varlab.sample.draws import AddressedDraws, TokenDraws
from varlab.sample.filter import filter_logits
from varlab.sample.smooth_codes import all_codes, soft_codes
from varlab.transformer import Cache, Transformer, working_copy
from varlab.types import Maps, Order, Tokenizer, VarlabError

Force = Callable[[object, int], tuple[Tensor, Tensor]]
"""(state, k) → (idx_Bl, keep_Bl): tokens of step k, and which of them replace the drawn ones. Used for editing."""
Watch = Callable[[int, object], None]
"""Called with (k, state) after each step."""

RAMPS = {"constant": guidance.constant, "linear": guidance.linear}

_ALLOWED: dict[str, tuple[Callable[[float], bool], str]] = {
    "cfg": (lambda t: 0 <= t < math.inf, "at least 0, which is no guidance"),
    "temperature": (
        lambda t: 0 < t < math.inf,
        "more than 0 (temperature=1 top_k=1 always takes the most probable token)",
    ),
    "top_k": (lambda k: isinstance(k, int) and k >= 0, "a whole number of at least 0, which keeps all tokens"),
    "top_p": (lambda p: 0 < p <= 1, "more than 0 and at most 1, which keeps all tokens"),
}


@dataclass(frozen=True, kw_only=True)
class Sampler:
    """The settings of sampling, and its loop; the defaults are those of VAR's FID table.

    cfg: guidance strength t at the last step (0: none); a model of one class is never guided. ramp: ``constant``, or VAR's
    ``linear``. temperature: divides the logits. top_k: number of tokens to keep (0: all). top_p: probability to keep
    (1: all). cfg_steps: number of first steps with guidance (None: all). smooth: VAR's ``more_smooth``, for display only; the
    image is then the state's canvas, and the token maps do not decode to it.
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
        for name, (allowed, words) in _ALLOWED.items():
            value = getattr(self, name)
            if not isinstance(value, int | float):
                raise VarlabError(f"{name}={value} must be a number, as {name}={getattr(Sampler, name)} is.")
            if not allowed(value):
                raise VarlabError(f"{name}={value} must be {words}.")
        if self.cfg_steps is not None and (not isinstance(self.cfg_steps, int) or self.cfg_steps < 0):
            raise VarlabError(f"Sampler cfg_steps={self.cfg_steps} must be a number of steps, or null for all of them.")

    def settings(self) -> Config:
        """The settings by name, as records and protocols hold them; with its ``_target_`` if the rule is another class's."""
        own = type(self)
        return asdict(self) | ({} if own is Sampler else {"_target_": f"{own.__module__}.{own.__qualname__}"})

    def filter(self, logits_BlV: Tensor, k: int) -> Tensor:
        """The logits of step k, with excluded tokens at -inf. A sampler with a rule of its own overrides this."""
        return filter_logits(logits_BlV, temperature=self.temperature, top_k=self.top_k, top_p=self.top_p)

    def guides(self, num_classes: int) -> bool:
        """Whether a model of so many classes is guided: with one class, both branches would be the same model."""
        return self.cfg > 0 and num_classes > 1

    def strengths(self, steps: int) -> list[float]:
        """The strength t of guidance at each step, up to the last step that is guided."""
        guided = steps if self.cfg_steps is None else min(self.cfg_steps, steps)
        strengths = [RAMPS[self.ramp](self.cfg, k / max(steps - 1, 1)) for k in range(guided)]
        while strengths and strengths[-1] == 0:
            strengths.pop()
        return strengths

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
        draws: TokenDraws | None = None,
        compile: bool = False,
    ) -> Maps:
        """Token maps for the labels. Sample b depends only on (rng.seed, ids_B[b]), its label and its condition.

        cond_BN: tokens of a condition, placed before the image's. draws: AddressedDraws by default. compile: see
        ``Transformer.forward``.
        """
        K, guided = len(order.steps), self.guides(transformer.num_classes)
        if guided and not transformer.has_null_class:
            raise VarlabError(f"cfg={self.cfg} needs a model with a null class, and this model has none: use cfg=0.")
        if self.smooth and transformer.token_inputs:
            raise VarlabError("smooth=true mixes codes, but this model's inputs are token ids: use smooth=false.")
        strengths, B = self.strengths(K) if guided else [], len(label_B)
        both_B = torch.cat([label_B, torch.full_like(label_B, transformer.num_classes)])
        cache = Cache.of(order.steps, transformer.cond_tokens) if order.cached else None
        as_it_is = compile and label_B.device.type == "cpu"  # a processor's own layout of weights cannot be compiled
        with hardware_precision(label_B):
            model = transformer if as_it_is else working_copy(transformer, label_B.device)
            ids_B = ids_B.to(label_B.device)  # where they are drawn, so that no step waits for a copy
            draws = draws or AddressedDraws(rng.stream("sample", ids_B))
            state = order.start(B, tokenizer, rng.stream("order", ids_B))
            for k, length in enumerate(order.steps):
                slots = order.inputs(state, k, tokenizer)
                if cond_BN is not None:
                    slots = order.conditioned(slots, cond_BN, k)
                if k < len(strengths):
                    guide = partial(guidance.guide, t=strengths[k])
                    logits = model(slots.repeat_batch(2), both_B, cache=cache, mix=guide, compile=compile)
                else:  # no later step is guided, so none reads the null branch again
                    if k == len(strengths) and cache is not None:
                        cache.keep(B)
                    logits = model(slots, label_B, cache=cache, compile=compile)
                logits = self.filter(logits[:, -length:].float(), k)
                idx_Bl = draws.pick(logits, k)
                h_BlC = None
                if self.smooth:
                    progress = k / max(K - 1, 1)
                    h_BlC = soft_codes(logits, draws.gumbel(logits, k), progress, all_codes(tokenizer, logits))
                if force is not None:
                    known_Bl, keep_Bl = force(state, k)
                    idx_Bl = torch.where(keep_Bl, known_Bl, idx_Bl)
                    if h_BlC is not None:
                        h_BlC = torch.where(keep_Bl[..., None], tokenizer.embed(known_Bl), h_BlC)
                state = order.advance(state, k, idx_Bl, tokenizer, h_BlC)
                if watch is not None:
                    watch(k, state)
            return order.finish(state)
