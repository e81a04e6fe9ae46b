"""The generator: a transformer over the tokens of a frozen tokenizer, in whatever order it is given."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from varlab.rng import Rng
from varlab.tasks.base import Task
from varlab.tasks.distributed import fsdp
from varlab.tasks.update.optimizer import OptimizerFactory, build_optimizer
from varlab.tasks.update.schedule import WarmupDecay
from varlab.tokenizer.condition import Condition
from varlab.types import Batch, Maps, Order, Slots, to_float


class GeneratorTask(Task):
    """Cross-entropy of every token given what its order lets it see.

    transformer: ``forward(slots, label_B, rng=, ids_B=) → logits_BLV``; its ``num_classes`` is the null class's index.
    tokenizer: frozen; it encodes in float32 and is in no checkpoint of this task. label_drop: probability that a
    sample trains the null class (Ho & Salimans 2022, for classifier-free guidance); the condition stays. pkeep: an input
    token stays what it is with this probability and is replaced by a uniform one otherwise (VQGAN); 1 keeps all, and the
    condition's tokens always are. condition: its tokens come first and are learned from, never predicted.
    """

    def __init__(
        self,
        *,
        transformer: nn.Module,
        order: Order,
        tokenizer: nn.Module,
        label_drop: float,
        optimizer: OptimizerFactory,
        schedule: WarmupDecay,
        clip: float | None,
        ema_decay: float,
        label_smoothing: float,
        pkeep: float,
        micro_batch: int | None,
        rng: Rng,
        condition: Condition | None = None,
    ):
        super().__init__(
            model=transformer, schedule=schedule, clip=clip, ema_decay=ema_decay, micro_batch=micro_batch, rng=rng
        )
        self.tokenizer: Any = tokenizer.eval().requires_grad_(False)
        self.order, self.condition = order, condition
        self.label_drop, self.label_smoothing, self.pkeep = label_drop, label_smoothing, pkeep
        self.optims = [build_optimizer(optimizer, transformer)]

    def parts(self) -> Sequence[nn.Module]:
        """The transformer's blocks, where it has some."""
        return list(getattr(self.model, "blocks", ()))

    def update(self, batch: Batch) -> None:
        """Encode, put in order, predict; in micro-batches."""
        total = torch.zeros((), device=self.device)
        seen: dict[str, Tensor] = {}
        self.model.train()
        chunks = batch.chunks(self.micro_batch)
        for chunk in chunks:
            fsdp.reduce_gradients(self.model, chunk is chunks[-1])
            share = len(chunk) / len(batch)
            logits_BLV, targets_BL, level_L = self.predict(chunk, training=True)
            loss = F.cross_entropy(logits_BLV.flatten(0, 1), targets_BL.flatten(), label_smoothing=self.label_smoothing)
            with self.full_precision():
                (loss * share).backward()
            total += loss.detach() * share
            if self.observing:
                _add(seen, _level_sums(logits_BLV.detach(), targets_BL, level_L))
        if self.step(self.optims[0], {"train/loss": total}, norm_name="train/grad_norm"):
            self.ema.update(self.model)
        if self.observing:
            means = _level_means(seen)
            self.observe({f"train/{name}": value for name, value in means.items() if name != "loss"})

    def predict(self, batch: Batch, *, training: bool) -> tuple[Tensor, Tensor, Tensor]:
        """Float32 logits_BLV, their targets_BL and the level_L of each. Training drops labels and corrupts inputs."""
        slots, targets_BL = self.pack(batch, training=training)
        label_B, rng = batch.label_B, None
        if training:
            rng = self.rng
            dropped_B = rng.stream("label_drop", batch.position_B).uniform() < self.label_drop
            label_B = label_B.masked_fill(dropped_B, self.model.num_classes)
        logits_BLV = self.model(slots, label_B, rng=rng, ids_B=batch.position_B)
        tokens = targets_BL.shape[1]  # prefix slots come first and predict nothing
        return logits_BLV[:, -tokens:].float(), targets_BL, slots.level_L[-tokens:].to(targets_BL.device)

    @torch.no_grad()
    def pack(self, batch: Batch, *, training: bool) -> tuple[Slots, Tensor]:
        """Pixels → token maps → slots (the condition's first) and targets_BL, in float32."""
        with self.full_precision():
            maps = self.maps(batch)
            stream = self.rng.stream("order", batch.position_B)
            known = self.corrupt(maps, batch.position_B) if training and self.pkeep < 1 else maps
            slots, targets_BL = self.order.pack(known, self.tokenizer, stream)
            if known is not maps:  # what is predicted stays clean, where the same slots land
                targets_BL = torch.cat(maps, 1).gather(1, slots.pos_BL)
            if self.condition is not None:
                slots = self.order.conditioned(slots, self.condition.tokens(batch), 0)
            return slots, targets_BL

    def maps(self, batch: Batch) -> Maps:
        """The token maps that the batch brings, or else those of its images."""
        if batch.tokens_BP is None:
            encoded: Maps = self.tokenizer.encode(to_float(batch.img_u8_B3HW))
            return encoded
        sizes = [h * w for h, w in self.tokenizer.scales]
        return list(batch.tokens_BP.long().split(sizes, 1))

    def corrupt(self, maps: Maps, position_B: Tensor) -> Maps:
        """Token maps with each token kept with probability pkeep, else drawn uniformly from the vocabulary."""
        stream = self.rng.stream("pkeep", position_B)
        clean_BP = torch.cat(maps, 1)
        kept_BP = stream.uniform(clean_BP.shape[1]) < self.pkeep
        other_BP = stream.at(1).integers(self.tokenizer.vocab_size, clean_BP.shape[1])
        return list(torch.where(kept_BP, clean_BP, other_BP).split([m.shape[1] for m in maps], 1))

    def validation_sums(self, batch: Batch) -> dict[str, Tensor]:
        """Likelihood and hits per level, with the true labels."""
        sums = _level_sums(*self.predict(batch, training=False))
        return {**sums, "images": torch.tensor(len(batch))}

    def summarise(self, sums: Mapping[str, Tensor]) -> dict[str, float]:
        """Nats per image (the sum over its tokens), and means per token, over all and per level."""
        values = {f"val/{name}": float(value) for name, value in _level_means(sums).items()}
        return {"val/nll": float(sums["nll_K"].sum() / sums["images"]), **values}

    def train(self, mode: bool = True) -> GeneratorTask:
        """As for any module, but the tokenizer stays frozen in evaluation mode."""
        super().train(mode)
        self.tokenizer.eval()
        return self


@torch.no_grad()
def _level_sums(logits_BLV: Tensor, targets_BL: Tensor, level_L: Tensor) -> dict[str, Tensor]:
    """Per level (K): negative log-likelihood in nats, right guesses and tokens, summed over the batch in float64."""
    nll_BL = F.cross_entropy(logits_BLV.transpose(1, 2), targets_BL, reduction="none")
    hits_BL = logits_BLV.argmax(-1) == targets_BL
    per_slot = {"nll_K": nll_BL, "hits_K": hits_BL, "tokens_K": torch.ones_like(nll_BL)}
    empty_K = torch.zeros(int(level_L.max()) + 1, dtype=torch.float64, device=level_L.device)
    return {name: empty_K.index_add(0, level_L, value.double().sum(0)) for name, value in per_slot.items()}


def _add(total: dict[str, Tensor], sums: Mapping[str, Tensor]) -> None:
    for name, value in sums.items():
        total[name] = total[name] + value if name in total else value


def _level_means(sums: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """loss and accuracy per token: of all, of each level, and of the last level."""
    loss_K, accuracy_K = sums["nll_K"] / sums["tokens_K"], sums["hits_K"] / sums["tokens_K"]
    tokens = sums["tokens_K"].sum()
    return {
        "loss": sums["nll_K"].sum() / tokens,
        "accuracy": sums["hits_K"].sum() / tokens,
        **{f"loss/{k}": value for k, value in enumerate(loss_K)},
        "loss/last": loss_K[-1],
        "accuracy/last": accuracy_K[-1],
    }
