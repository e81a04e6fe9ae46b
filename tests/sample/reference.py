"""The plain sampling loop that the fast one must equal: no cache, a dense mask, a full sort, both branches."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from varlab.rng import Rng, Stream
from varlab.sample.sampler import RAMPS, Sampler
from varlab.transformer import Transformer
from varlab.types import Maps, Order, Slots, Tokenizer


def reference_filter(logits: Tensor, *, temperature: float, top_k: int, top_p: float) -> Tensor:
    """The rule in one sort, whose order decides which of equal logits top-p removes."""
    logits = logits / temperature
    if 0 < top_k < logits.shape[-1]:
        logits = logits.masked_fill(logits < logits.sort(-1).values[..., -top_k, None], -torch.inf)
    if 0 < top_p < 1:
        ascending, where = logits.sort(dim=-1)
        tail = ascending.softmax(-1).cumsum(-1) <= 1 - top_p
        tail[..., -1] = False
        logits = logits.masked_fill(tail.scatter(-1, where, tail), -torch.inf)
    return logits


def reference_pick(logits: Tensor, stream: Stream) -> Tensor:
    cdf = logits.double().softmax(-1).cumsum(-1)
    reached = stream.uniform(logits.shape[1]).double()[..., None] * cdf[..., -1:]
    return torch.searchsorted(cdf, reached, right=True).squeeze(-1).clamp_max(logits.shape[-1] - 1)


@torch.no_grad()
def reference_sample(
    sampler: Sampler,
    *,
    transformer: Transformer,
    order: Order,
    tokenizer: Tokenizer,
    label_B: Tensor,
    ids_B: Tensor,
    rng: Rng,
    logits_of_steps: list[Tensor] | None = None,
) -> Maps:
    """The token maps of ``sampler`` by computing all slots of both branches again at every step.

    logits_of_steps: takes the guided logits of each step.
    """
    K, B = len(order.steps), len(label_B)
    labels = torch.cat([label_B, torch.full_like(label_B, transformer.num_classes)])
    state, seen = order.start(B, tokenizer, rng.stream("order", ids_B)), []
    for k, length in enumerate(order.steps):
        seen.append(order.inputs(state, k, tokenizer))
        cond, null = transformer(Slots.cat(seen).repeat_batch(2), labels)[:, -length:].chunk(2)
        off = sampler.cfg_steps is not None and k >= sampler.cfg_steps
        t = 0.0 if off else RAMPS[sampler.ramp](sampler.cfg, k / max(K - 1, 1))
        logits = (1 + t) * cond - t * null
        if logits_of_steps is not None:
            logits_of_steps.append(logits)
        settings: Mapping[str, float] = {"temperature": sampler.temperature, "top_p": sampler.top_p}
        kept = reference_filter(logits, top_k=sampler.top_k, **settings)
        state = order.advance(state, k, reference_pick(kept, rng.stream("sample", ids_B).at(k)), tokenizer)
    return order.finish(state)
