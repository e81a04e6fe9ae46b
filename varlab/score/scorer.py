"""Scores of a generator or a tokenizer: images are made, pass an extractor once, and every metric is fed from that pass."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import DataLoader

from varlab.metrics.comparison import matched_draws, nearest_scores
from varlab.metrics.extractors import Extractor
from varlab.metrics.features import FeatureSet
from varlab.metrics.scores import GenerationScores
from varlab.metrics.tokenizer_scores import TokenizerScores
from varlab.order import BaseOrder
from varlab.rng import Rng
from varlab.score.samples import SampleSource
from varlab.tasks.distributed import collectives
from varlab.tokenizer import VQTokenizer
from varlab.tokenizer.condition import Condition
from varlab.transformer import Transformer
from varlab.types import Batch, VarlabError, to_float, to_uint8

if TYPE_CHECKING:
    from varlab.data import BaseDataModule

Distance = Callable[[Tensor, Tensor], Tensor]
"""(x_B3HW, y_B3HW) → d_B, a perceptual distance."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What the metrics themselves are set to: see ``GenerationScores`` and ``matched_draws`` for each."""

    splits: int
    neighbours: int
    manifold: int | None
    draws: int


class GeneratorScorer:
    """FID, Inception score, precision, recall and accuracy of ``n`` samples against the training split; on all ranks.

    data: has ``eval_loader(split, rank, world)``. The features of the real images are computed once.
    """

    def __init__(self, *, source: SampleSource, extractor: Extractor, data: BaseDataModule, n: int, settings: Settings):
        self.source, self._extract, self._data, self._n, self._settings = source, extractor, data, n, settings
        self._real: dict[str, tuple[Tensor, Tensor]] = {}
        self._fake_label_N = FeatureSet()

    @property
    def device(self) -> torch.device:
        """Where images are made and scored."""
        return self.source.tokenizer.last_layer.device

    def _features(self, split: str) -> tuple[Tensor, Tensor]:
        """This rank's features of a split's images, and their labels."""
        if split not in self._real:
            features, labels = [], []
            for batch in self._data.eval_loader(split, collectives.rank(), collectives.world_size()):
                features.append(self._extract(batch.img_u8_B3HW[batch.valid_B].to(self.device))[0])
                labels.append(batch.label_B[batch.valid_B].to(self.device))
            self._real[split] = torch.cat(features), torch.cat(labels)
        return self._real[split]

    def _scores(self) -> GenerationScores:
        if self._n < 2 * collectives.world_size():
            raise VarlabError(f"Scores of {self._n} samples mean nothing: ask for more.")
        extract, settings = self._extract.to(self.device), self._settings
        ids_N = torch.arange(self._n)[collectives.rank() :: collectives.world_size()]
        self._fake_label_N.reset()
        made = ((*extract(img_u8), label_B) for img_u8, label_B in self.source.images(ids_N))
        scores: GenerationScores | None = None
        for features_BF, logits_BK, label_B in made:
            scores = scores or GenerationScores(
                num_features=extract.num_features,
                num_logits=logits_BK.shape[1],
                num_classes=extract.num_classes,
                splits=settings.splits,
                neighbours=settings.neighbours,
                manifold=settings.manifold,
                seed=self.source.seed,
            ).to(features_BF.device)
            scores.update_fake(features_BF, logits_BK, label_B)
            self._fake_label_N.update(label_B)
        assert scores is not None
        scores.update_real(self._features("train")[0])
        return scores

    def __call__(self) -> dict[str, float]:
        """The scores by name."""
        return self._scores().compute()

    def compare(self) -> dict[str, float]:
        """The scores, with those that hold samples against held-out images (see ``varlab.metrics.comparison``)."""
        scores = self._scores()
        values = scores.compute()
        real_NF, fake_NF = scores.features()
        val_NF, val_label_M = (_gathered(part) for part in self._features("val"))
        draws = matched_draws(
            fake_NF,
            self._fake_label_N.compute(),
            real_NF,
            val_NF,
            val_label_M,
            draws=self._settings.draws,
            rng=Rng(self.source.seed),
        )
        return values | draws | nearest_scores(fake_NF, real_NF, val_NF)


def _gathered(rows: Tensor) -> Tensor:
    """All ranks' rows."""
    together = FeatureSet().to(rows.device)
    together.update(rows)
    return together.compute()


@torch.no_grad()
def validation_nll(
    transformer: Transformer,
    order: BaseOrder,
    tokenizer: VQTokenizer,
    loader: DataLoader[Batch],
    *,
    seed: int,
    condition: Condition | None = None,
) -> float:
    """Nats per image of a split's token maps under the true labels and conditions, each image once over all ranks."""
    device = tokenizer.last_layer.device
    sums = {"nll": torch.zeros((), dtype=torch.float64), "images": torch.zeros((), dtype=torch.float64)}
    for padded in loader:
        batch = padded.only(padded.valid_B)
        maps = tokenizer.encode(to_float(batch.img_u8_B3HW.to(device)))
        slots, targets_BL = order.pack(maps, tokenizer, Rng(seed).stream("order", batch.position_B))
        if condition is not None:
            slots = order.conditioned(slots, condition.tokens(batch.to(device)), 0)
        logits_BLV = transformer(slots, batch.label_B.to(device))[:, -targets_BL.shape[1] :]
        sums["nll"] += F.cross_entropy(logits_BLV.flatten(0, 1), targets_BL.flatten(), reduction="sum").double().cpu()
        sums["images"] += len(batch)
    total = collectives.add_up_named(sums)
    return float(total["nll"] / total["images"])


@torch.no_grad()
def score_tokenizer(
    tokenizer: VQTokenizer, loader: DataLoader[Batch], *, extractor: Extractor | None, perceptual: Distance | None
) -> dict[str, float]:
    """rFID, PSNR, L1, perceptual distance, and usage and perplexity per scale, over a split."""
    device = tokenizer.last_layer.device
    scores = TokenizerScores(
        scales=len(tokenizer.scales),
        vocab_size=tokenizer.vocab_size,
        extractor=extractor,
        perceptual=perceptual,
    ).to(device)
    for batch in loader:
        img_u8 = batch.img_u8_B3HW[batch.valid_B].to(device)
        rec, quantized = tokenizer(to_float(img_u8))
        scores.update(img_u8, to_uint8(rec), quantized.counts_KV)
    return scores.compute()
