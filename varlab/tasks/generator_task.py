"""The generator: a transformer over the tokens of a frozen tokenizer, in the order it is given."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from varlab.losses.token_loss import token_loss
from varlab.rng import Rng
from varlab.tasks.distributed import collectives
from varlab.tasks.distributed.collectives import SumScores
from varlab.tasks.likelihood import level_means, level_sums, likelihood, pack, predict
from varlab.tasks.loss_task import LossTask
from varlab.tasks.update.optimizer import OptimizerFactory, build_optimizer
from varlab.tasks.update.schedule import WarmupDecay
from varlab.tokenizer import VQTokenizer
from varlab.tokenizer.condition import Condition
from varlab.transformer import Transformer
from varlab.types import Batch, Maps, Order, Slots


class GeneratorTask(LossTask):
    """Cross-entropy of every token given the tokens that its order shows it.

    transformer: its ``num_classes`` is the index of the null class. tokenizer: frozen; it encodes in float32 and is in no
    checkpoint of this task. label_drop: probability that a sample trains the null class (Ho & Salimans 2022, for
    classifier-free guidance); the condition stays. A model of one class is unconditional: none is dropped. pkeep: probability
    that an input token is kept; the others are replaced by uniform ones (VQGAN). 1 keeps all; the condition's tokens are
    always kept. condition: its tokens come first and are never predicted. recompute: see ``Transformer.forward``.
    """

    model: Transformer

    def __init__(
        self,
        *,
        transformer: Transformer,
        order: Order,
        tokenizer: VQTokenizer,
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
        recompute: bool | None = None,
    ):
        super().__init__(
            model=transformer, schedule=schedule, clip=clip, ema_decay=ema_decay, micro_batch=micro_batch, rng=rng
        )
        self.tokenizer = tokenizer.eval().requires_grad_(False)
        self.order, self.condition, self.recompute = order, condition, bool(recompute)
        self.label_drop = label_drop if transformer.num_classes > 1 else 0.0
        self.label_smoothing, self.pkeep = label_smoothing, pkeep
        self.optims = [build_optimizer(optimizer, transformer)]
        self._level_sums: list[dict[str, Tensor]] = []  # of the micro-batches of a log point

    def shards(self) -> Sequence[nn.Module]:
        """The transformer's blocks."""
        return list(self.model.blocks)

    def loss(self, chunk: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """Encode, order, predict."""
        logits_BLV, targets_BL, level_L = self.predict(chunk)
        loss = token_loss(logits_BLV.flatten(0, 1), targets_BL.flatten(), label_smoothing=self.label_smoothing)
        if self.observing:
            self._level_sums.append(level_sums(logits_BLV.detach(), targets_BL, level_L))
        return loss, {}

    def observed(self) -> dict[str, Tensor]:
        """Loss and accuracy of each level."""
        means = level_means(collectives.add_by_name(self._level_sums))
        self._level_sums = []
        return {f"train/{name}": value for name, value in means.items() if name != "loss"}

    def predict(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        """logits_BLV, their targets_BL and the level_L of each; with dropped labels and corrupted inputs."""
        slots, targets_BL = self.pack(batch)
        dropped_B = self.rng.stream("label_drop", batch.position_B).uniform() < self.label_drop
        label_B = batch.label_B.masked_fill(dropped_B, self.model.num_classes)
        logits_BLV, level_L = predict(
            self.model, slots, targets_BL, label_B, rng=self.rng, ids_B=batch.position_B, recompute=self.recompute
        )
        return logits_BLV, targets_BL, level_L

    def pack(self, batch: Batch) -> tuple[Slots, Tensor]:
        """Slots with corrupted inputs, and clean targets_BL."""
        return pack(
            batch,
            order=self.order,
            tokenizer=self.tokenizer,
            condition=self.condition,
            rng=self.rng,
            corrupt=self.corrupt if self.pkeep < 1 else None,
        )

    def corrupt(self, maps: Maps, position_B: Tensor) -> Maps:
        """Token maps with each token kept with probability pkeep, else drawn uniformly from the vocabulary."""
        stream = self.rng.stream("pkeep", position_B)
        clean_BP = torch.cat(maps, 1)
        kept_BP = stream.uniform(clean_BP.shape[1]) < self.pkeep
        other_BP = stream.at(1).integers(self.tokenizer.vocab_size, clean_BP.shape[1])
        return list(torch.where(kept_BP, clean_BP, other_BP).split([m.shape[1] for m in maps], 1))

    def validator(self) -> SumScores:
        """Likelihood per image, likelihood and accuracy per token."""
        return likelihood(
            self.model,
            order=self.order,
            tokenizer=self.tokenizer,
            condition=self.condition,
            rng=self.rng,
        )

    def train(self, mode: bool = True) -> GeneratorTask:
        """As for any module, but the tokenizer stays frozen in evaluation mode."""
        super().train(mode)
        self.tokenizer.eval()
        return self
