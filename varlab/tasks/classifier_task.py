"""The classifier: judge of samples, features for FID and perceptual network, trained on the same shards."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from varlab.rng import Rng
from varlab.tasks.distributed.collectives import SumScores
from varlab.tasks.loss_task import LossTask
from varlab.tasks.target import Labels, Target
from varlab.tasks.update.optimizer import OptimizerFactory, build_optimizer
from varlab.tasks.update.schedule import WarmupDecay
from varlab.types import Batch, to_float


class ClassifierTask(LossTask):
    """Cross-entropy on the answers of a target. classifier: img_B3HW in [-1, 1] → logits_BK. target: labels by default."""

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
        target: Target | None = None,
    ):
        super().__init__(
            model=classifier, schedule=schedule, clip=clip, ema_decay=ema_decay, micro_batch=micro_batch, rng=rng
        )
        self.label_smoothing, self.target = label_smoothing, target or Labels()
        self.optims = [build_optimizer(optimizer, classifier)]

    def chunks(self, batch: Batch) -> list[Batch]:
        """Micro-batches that count every view of an image."""
        return batch.chunks(self.micro_batch and max(1, self.micro_batch // self.target.views))

    def loss(self, chunk: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """Cross-entropy, and the accuracy."""
        logits_BK, answer_B = self._predict(chunk)
        loss = F.cross_entropy(logits_BK, answer_B, label_smoothing=self.label_smoothing)
        return loss, {"train/accuracy": (logits_BK.argmax(1) == answer_B).float().mean()}

    def _predict(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Float32 logits_BK and the right answer_B; B is ``target.views`` times the images."""
        img_u8_B3HW, answer_B = self.target(batch.img_u8_B3HW, batch.label_B)
        return self.model(to_float(img_u8_B3HW)).float(), answer_B

    def validator(self) -> SumScores:
        """Cross-entropy (without smoothing) and accuracy per answer."""
        names = ("loss", "accuracy")
        return SumScores(self._sums, lambda total: {name: total[name] / total["answers"] for name in names})

    def _sums(self, batch: Batch) -> dict[str, Tensor]:
        logits_BK, answer_B = self._predict(batch)
        return {
            "answers": torch.tensor(len(answer_B)),
            "loss": F.cross_entropy(logits_BK, answer_B, reduction="sum"),
            "accuracy": (logits_BK.argmax(1) == answer_B).sum(),
        }
