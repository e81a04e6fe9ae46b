"""Scores of a tokenizer: how well it reconstructs, and how much of its codebook it uses."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torchmetrics import MeanMetric, Metric
from torchmetrics.image import PeakSignalNoiseRatio

from varlab.metrics.extractors import Extractor
from varlab.metrics.scores import FID
from varlab.types import to_float


def codebook_health(counts_KV: Tensor) -> dict[str, float]:
    """usage/<k>, the share of codes used at all, and perplexity/<k>, exp(entropy), as if so many codes were used alike.

    counts_KV: how often each code was used, per scale. Perplexity is 1 for a scale that used one code, or none.
    """
    counts_KV = counts_KV.double()
    usage_K = (counts_KV > 0).double().mean(1)
    p_KV = counts_KV / counts_KV.sum(1, keepdim=True).clamp_min(1)
    perplexity_K = torch.special.entr(p_KV).sum(1).exp()
    health = {f"usage/{k}": float(usage) for k, usage in enumerate(usage_K)}
    return health | {f"perplexity/{k}": float(perplexity) for k, perplexity in enumerate(perplexity_K)}


class CodebookHealth(Metric):
    """``codebook_health`` of counts summed over batches and ranks."""

    full_state_update = False
    counts_KV: Tensor

    def __init__(self, *, scales: int, vocab_size: int):
        super().__init__()
        self.add_state("counts_KV", torch.zeros(scales, vocab_size, dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, counts_KV: Tensor) -> None:
        """Add a batch's counts (int64)."""
        self.counts_KV += counts_KV

    def compute(self) -> dict[str, float]:
        """usage/<k> and perplexity/<k>."""
        return codebook_health(self.counts_KV)


class TokenizerScores:
    """psnr, l1, perceptual, rfid and codebook health over pairs of images and reconstructions, equal on any number of
    ranks.

    extractor: for rfid (reconstructions against the *same* images), or None; perceptual: ``distance(x_B3HW, y_B3HW) ->
    d_B`` on images in [-1, 1], or None; scales, vocab_size: of the tokenizer. Padding must be masked before it comes
    here.
    """

    def __init__(
        self,
        *,
        scales: int,
        vocab_size: int,
        extractor: Extractor | None,
        perceptual: Callable[[Tensor, Tensor], Tensor] | None,
    ):
        self._extract, self._perceptual = extractor, perceptual
        self.health = CodebookHealth(scales=scales, vocab_size=vocab_size)
        self.means: dict[str, Metric] = {
            # per image, then the mean: the PSNR of the mean error would be ruled by the worst images
            "psnr": PeakSignalNoiseRatio(data_range=255.0, dim=(1, 2, 3)),
            "l1": MeanMetric(),
        }
        if perceptual is not None:
            self.means["perceptual"] = MeanMetric()
        if extractor is not None:
            self.means["rfid"] = FID(num_features=extractor.num_features)

    def to(self, device: torch.device | str) -> TokenizerScores:
        """Moves the states (not the extractor, nor the perceptual net); returns itself."""
        for metric in (self.health, *self.means.values()):
            metric.to(device)
        return self

    def update(self, img_u8_B3HW: Tensor, rec_u8_B3HW: Tensor, counts_KV: Tensor) -> None:
        """Add images, their reconstructions (rounded to uint8) and how often their codes were used."""
        img_B3HW, rec_B3HW = to_float(img_u8_B3HW), to_float(rec_u8_B3HW)
        self.health.update(counts_KV)
        self.means["psnr"].update(rec_u8_B3HW.double(), img_u8_B3HW.double())
        self.means["l1"].update((rec_B3HW - img_B3HW).abs().mean((1, 2, 3)))
        if self._perceptual is not None:
            self.means["perceptual"].update(self._perceptual(rec_B3HW, img_B3HW))
        if self._extract is not None:
            self.means["rfid"].update(self._extract(img_u8_B3HW)[0], real=True)
            self.means["rfid"].update(self._extract(rec_u8_B3HW)[0], real=False)

    def compute(self) -> dict[str, float]:
        """psnr (dB, mean of images), l1 (in [0, 2]), perceptual, rfid, usage/<k>, perplexity/<k>. All ranks at once."""
        return {name: float(metric.compute()) for name, metric in self.means.items()} | self.health.compute()
