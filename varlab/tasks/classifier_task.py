"""The classifier: judge of samples, features for FID and perceptual network, trained on the same shards."""

from __future__ import annotations

from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from varlab.rng import Rng
from varlab.tasks.base import Task
from varlab.tasks.distributed import collectives
from varlab.tasks.update.optimizer import OptimizerFactory, build_optimizer
from varlab.tasks.update.schedule import WarmupDecay
from varlab.types import Batch, full_precision, to_float


class ClassifierTask(Task):
    """Cross-entropy on labels. classifier: img_B3HW in [-1, 1] → logits_BK."""

    def __init__(
        self,
        *,
        classifier: nn.Module,
        optimizer: OptimizerFactory,
        schedule: WarmupDecay,
        clip: float | None,
        ema_decay: float,
        label_smoothing: float,
        micro_batch: int | None,
        rng: Rng,
    ):
        super().__init__(
            model=classifier, schedule=schedule, clip=clip, ema_decay=ema_decay, micro_batch=micro_batch, rng=rng
        )
        self.label_smoothing = label_smoothing
        self.optims = [build_optimizer(optimizer, classifier)]

    def update(self, batch: Batch) -> None:
        """Cross-entropy, in micro-batches."""
        values = {name: torch.zeros((), device=self.device) for name in ("train/loss", "train/accuracy")}
        self.model.train()
        for chunk in batch.chunks(self.micro_batch):
            share = len(chunk) / len(batch)
            logits_BK = self.model(to_float(chunk.img_u8_B3HW)).float()
            loss = F.cross_entropy(logits_BK, chunk.label_B, label_smoothing=self.label_smoothing) * share
            with full_precision(loss):
                loss.backward()
            values["train/loss"] += loss.detach()
            values["train/accuracy"] += (logits_BK.argmax(1) == chunk.label_B).float().mean() * share
        if self.step(self.optims[0], values, norm_name="train/grad_norm"):
            self.ema.update(self.model)

    def validation_scores(self, batches: Iterable[Batch]) -> dict[str, float]:
        """Cross-entropy (without smoothing) and accuracy per image."""
        total = collectives.sum_by_name(map(self._sums, batches))
        return {name: float(total[name] / total["images"]) for name in ("loss", "accuracy")}

    def _sums(self, batch: Batch) -> dict[str, Tensor]:
        logits_BK = self.model(to_float(batch.img_u8_B3HW)).float()
        return {
            "images": torch.tensor(len(batch)),
            "loss": F.cross_entropy(logits_BK, batch.label_B, reduction="sum"),
            "accuracy": (logits_BK.argmax(1) == batch.label_B).sum(),
        }
