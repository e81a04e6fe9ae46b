"""The generator: a transformer over the tokens of a frozen tokenizer, in the order it is given."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from varlab.losses.token_loss import token_loss
from varlab.rng import Rng
from varlab.tasks.distributed import collectives
from varlab.tasks.distributed.collectives import SumScores
from varlab.tasks.likelihood import level_means, level_sums, likelihood, pack, predict
from varlab.tasks.loss_task import LossTask
from varlab.tasks.update.optimizer import OptimizerFactory, build_optimizer
from varlab.tasks.update.scale_stages import ScaleStages
from varlab.tasks.update.schedule import WarmupDecay
from varlab.tokenizer import VQTokenizer
from varlab.tokenizer.condition import Condition
from varlab.transformer import Transformer
from varlab.types import Batch, Maps, Order, Slots, VarlabError


class GeneratorTask(LossTask):
    """Cross-entropy of every token given the tokens that its order shows it.

    transformer: its ``num_classes`` is the index of the null class. tokenizer: frozen; it encodes in float32 and is in no
    checkpoint of this task. label_drop: probability that a sample trains the null class (Ho & Salimans 2022, for
    classifier-free guidance); the condition stays. A model of one class is unconditional: none is dropped. pkeep: probability
    that an input token is kept; the others are replaced by uniform ones (VQGAN). 1 keeps all; the condition's tokens are
    always kept. condition: its tokens come first and are never predicted. recompute, compile: see ``Transformer.forward``.
    stages: how the training proceeds from few scales to all (None: all from the beginning). no_decay: names of parameters
    without weight decay, or patterns. Raises VarlabError for a label_drop without a null class.
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
        compile: bool | None = None,
        stages: ScaleStages | None = None,
        no_decay: Sequence[str] | None = None,
        weight_decay_end: float | None = None,
    ):
        super().__init__(
            model=transformer,
            schedule=schedule,
            clip=clip,
            ema_decay=ema_decay,
            micro_batch=micro_batch,
            rng=rng,
            weight_decay_end=weight_decay_end,
        )
        require_null_class(label_drop, transformer)
        self.tokenizer = tokenizer.eval().requires_grad_(False)
        self.order, self.condition = order, condition
        self.recompute, self.compile_blocks = bool(recompute), bool(compile)
        self.label_drop = label_drop if transformer.num_classes > 1 else 0.0
        self.label_smoothing, self.pkeep = label_smoothing, pkeep
        self.optims = [build_optimizer(optimizer, transformer, no_decay)]
        self.stages = None if stages is None else stages.checked(order.lengths)
        self.stage_flops: Sequence[int] = ()  # forward and backward of an image up to each scale; the caller sets them
        self._level_sums: list[dict[str, Tensor]] = []  # of the micro-batches of a log point

    def shards(self) -> Sequence[nn.Module]:
        """The transformer's blocks."""
        return list(self.model.blocks)

    def flops_at(self, images: int) -> int:
        """Stages with fewer scales cost less."""
        if self.stages is None or not self.stage_flops:
            return super().flops_at(images)
        begins = self.stages.begins(*self._length(images))
        shares = [min(end, images) - min(begin, images) for begin, end in pairwise([*begins, images])]
        return sum(n * flops for n, flops in zip(shares, self.stage_flops, strict=True))

    def _length(self, images: int = 0) -> tuple[int, float]:
        """Images of the training (if not known yet, those given) and of the learning rate's warm-up."""
        total = self.total_images or images
        return total, self.schedule.warmup_images(total)

    def loss(self, chunk: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """Encode, order, predict."""
        logits_BLV, targets_BL, level_L = self.predict(chunk)
        if self.observing:
            self._level_sums.append(level_sums(logits_BLV.detach(), targets_BL, level_L))
        if self.stages is None:
            loss = token_loss(logits_BLV.flatten(0, 1), targets_BL.flatten(), label_smoothing=self.label_smoothing)
        else:
            weight_L = self.stages.weights(self.images, *self._length())[: targets_BL.shape[1]]
            nll_BL = F.cross_entropy(
                logits_BLV.float().transpose(1, 2), targets_BL, label_smoothing=self.label_smoothing, reduction="none"
            )
            loss = (nll_BL * weight_L.to(nll_BL)).sum(1).mean()
        return loss, {}

    def _forget(self) -> None:
        super()._forget()
        self._level_sums = []

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
            self.model,
            slots,
            targets_BL,
            label_B,
            rng=self.rng,
            ids_B=batch.position_B,
            recompute=self.recompute,
            compile=self.compile_blocks,
        )
        return logits_BLV, targets_BL, level_L

    def pack(self, batch: Batch) -> tuple[Slots, Tensor]:
        """Slots with corrupted inputs, and clean targets_BL; of the scales that are trained now."""
        slots, targets_BL = pack(
            batch,
            order=self.order,
            tokenizer=self.tokenizer,
            condition=self.condition,
            rng=self.rng,
            corrupt=self.corrupt if self.pkeep < 1 else None,
        )
        if self.stages is None:
            return slots, targets_BL
        tokens = self.stages.tokens(self.images, *self._length())
        return slots.first(len(slots) - targets_BL.shape[1] + tokens), targets_BL[:, :tokens]

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


def require_null_class(label_drop: float, transformer: Transformer) -> None:
    """Raise VarlabError if labels would be dropped, and the transformer has no class for those that are."""
    if label_drop > 0 and not transformer.has_null_class and transformer.num_classes > 1:
        raise VarlabError(
            f"task.label_drop={label_drop} trains the null class, which transformer.tied=true does not have: set "
            "task.label_drop=0 (and sample without guidance), or transformer.tied=false."
        )
