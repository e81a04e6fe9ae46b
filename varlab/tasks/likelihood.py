"""The likelihood of an image's tokens, each given the true tokens before it: what generators train on and are scored by."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from varlab.rng import Rng
from varlab.tasks.distributed.collectives import SumScores
from varlab.tokenizer import VQTokenizer
from varlab.tokenizer.condition import Condition
from varlab.transformer import Transformer
from varlab.types import Batch, Maps, Order, Slots, full_precision, to_float


@torch.no_grad()
def pack(
    batch: Batch,
    *,
    order: Order,
    tokenizer: VQTokenizer,
    condition: Condition | None,
    rng: Rng,
    corrupt: Callable[[Maps, Tensor], Maps] | None = None,
) -> tuple[Slots, Tensor]:
    """Pixels → token maps → slots (the condition's first) and targets_BL, in float32.

    corrupt: called as ``corrupt(maps, position_B)``, returns the maps that inputs are made from; targets stay clean.
    """
    with full_precision(batch.img_u8_B3HW):
        maps = _maps(batch, tokenizer)
        inputs = maps if corrupt is None else corrupt(maps, batch.position_B)
        slots, targets_BL = order.pack(inputs, tokenizer, rng.stream("order", batch.position_B))
        if corrupt is not None:
            targets_BL = torch.cat(maps, 1).gather(1, slots.pos_BL)
        if condition is not None:
            slots = order.conditioned(slots, condition.tokens(batch), 0)
        return slots, targets_BL


def _maps(batch: Batch, tokenizer: VQTokenizer) -> Maps:
    """The token maps in the batch if it brings some, or else those of its images."""
    if batch.tokens_BP is None:
        return tokenizer.encode(to_float(batch.img_u8_B3HW))
    return list(batch.tokens_BP.long().split([h * w for h, w in tokenizer.scales], 1))


def predict(
    transformer: Transformer,
    slots: Slots,
    targets_BL: Tensor,
    label_B: Tensor,
    *,
    rng: Rng | None = None,
    ids_B: Tensor | None = None,
    recompute: bool = False,
    compile: bool = False,
) -> tuple[Tensor, Tensor]:
    """logits_BLV of the targets, and the level_L of each. rng, ids_B, recompute, compile: in training."""
    tokens = targets_BL.shape[1]  # prefix slots come first and predict nothing
    logits_BLV = transformer(slots, label_B, rng=rng, ids_B=ids_B, recompute=recompute, compile=compile)
    if tokens < logits_BLV.shape[1]:  # a slice costs its backward pass a copy
        logits_BLV = logits_BLV[:, -tokens:]
    return logits_BLV, slots.level_L[-tokens:].to(targets_BL.device)


@torch.no_grad()
def level_sums(logits_BLV: Tensor, targets_BL: Tensor, level_L: Tensor) -> dict[str, Tensor]:
    """Per level (K): negative log-likelihood in nats, correct predictions and tokens, summed over the batch in float64."""
    nll_BL = F.cross_entropy(logits_BLV.float().transpose(1, 2), targets_BL, reduction="none")
    hits_BL = logits_BLV.argmax(-1) == targets_BL
    per_slot = {"nll_K": nll_BL, "hits_K": hits_BL, "tokens_K": torch.ones_like(nll_BL)}
    empty_K = torch.zeros(int(level_L.max()) + 1, dtype=torch.float64, device=level_L.device)
    return {name: empty_K.index_add(0, level_L, value.double().sum(0)) for name, value in per_slot.items()}


def level_means(sums: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """loss and accuracy per token: of all tokens, of each level, and of the last level."""
    loss_K, accuracy_K = sums["nll_K"] / sums["tokens_K"], sums["hits_K"] / sums["tokens_K"]
    tokens = sums["tokens_K"].sum()
    return {
        "loss": sums["nll_K"].sum() / tokens,
        "accuracy": sums["hits_K"].sum() / tokens,
        **{f"loss/{k}": value for k, value in enumerate(loss_K)},
        "loss/last": loss_K[-1],
        "accuracy/last": accuracy_K[-1],
    }


def likelihood(
    transformer: Transformer,
    *,
    order: Order,
    tokenizer: VQTokenizer,
    condition: Condition | None,
    rng: Rng,
) -> SumScores:
    """nll (nats per image, the sum over its tokens) and ``level_means``, under the true labels and conditions.

    Each image of all ranks counts once. rng: of random orders.
    """

    def sums(batch: Batch) -> dict[str, Tensor]:
        slots, targets_BL = pack(batch, order=order, tokenizer=tokenizer, condition=condition, rng=rng)
        logits_BLV, level_L = predict(transformer, slots, targets_BL, batch.label_B)
        nll = F.cross_entropy(logits_BLV.float().flatten(0, 1), targets_BL.flatten(), reduction="sum")
        return {"images": torch.tensor(len(batch)), "nll": nll, **level_sums(logits_BLV, targets_BL, level_L)}

    return SumScores(sums, lambda total: {"nll": total["nll"] / total["images"], **level_means(total)})
