"""Scores of a tokenizer: the quality of its reconstructions, and the use of its codebook."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Protocol

import torch
from torch import Tensor, nn
from torchmetrics import Metric
from torchmetrics.functional.image import structural_similarity_index_measure
from torchmetrics.image import PeakSignalNoiseRatio

from varlab.errors import VarlabError
from varlab.metrics.distribution.frechet import FID
from varlab.metrics.distribution.inception_score import SeededInceptionScore
from varlab.metrics.extractors import Extractor
from varlab.metrics.own_metrics import OwnMetrics
from varlab.types import Batch, Quantized, to_float, to_uint8

_WINDOW = 11  # pixels of SSIM's Gaussian; it says nothing of smaller images
_PIXELS = 1 << 18  # of a call of SSIM, which needs some 5 KB a pixel

Distance = Callable[[Tensor, Tensor], Tensor]
"""(x_B3HW, y_B3HW) in [-1, 1] → d_B, a perceptual distance."""


def codebook_health(counts_KV: Tensor) -> dict[str, float]:
    """usage/<k>, the share of codes used at all, and perplexity/<k>, the exponential of the entropy of their use.

    counts_KV: uses of each code per scale. The perplexity is the number of codes that, used equally, would have this entropy:
    1 for a scale that used one code, or none.
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
        """Add the counts of a batch (int64)."""
        self.counts_KV += counts_KV

    def compute(self) -> dict[str, float]:
        """usage/<k> and perplexity/<k>."""
        return codebook_health(self.counts_KV)


def plain_psnr(img_u8_N3HW: Tensor) -> float:
    """The PSNR (dB) of images if each of their pixels had the mean colour of all."""
    img_N3HW = to_float(img_u8_N3HW)
    spread = float((img_N3HW - img_N3HW.mean((0, 2, 3), keepdim=True)).square().mean())
    return 10 * math.log10(4 / max(spread, 1e-9))  # images are in [-1, 1]


class ImageMean(Metric):
    """The mean over images of a value, in float64: its digits do not depend on how ranks share the images."""

    full_state_update = False
    total: Tensor
    count: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_state("total", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("count", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, x_B: Tensor) -> None:
        """Add the values of a batch."""
        self.total += x_B.double().sum()
        self.count += len(x_B)

    def compute(self) -> Tensor:
        """float64; NaN without images."""
        return self.total / self.count


class TokenizerScores(nn.Module):
    """psnr, ssim, l1, perceptual, rfid and codebook health of images and reconstructions, equal on any number of ranks.

    extractor: for rfid (reconstructions against the same images), or None. perceptual: a distance, or None. scales,
    vocab_size: of the tokenizer. own: further metrics. ris: the Inception score of reconstructions, if the extractor's logits
    are of what images show. Padding must be removed before.
    """

    def __init__(
        self,
        *,
        scales: int,
        vocab_size: int,
        extractor: Extractor | None,
        perceptual: Distance | None,
        own: OwnMetrics | None = None,
        ris: SeededInceptionScore | None = None,
    ):
        super().__init__()
        self.own = own
        self.ris = ris if ris is not None and extractor is not None and extractor.knows_content else None
        self._extract, self._perceptual = extractor, perceptual
        self.health = CodebookHealth(scales=scales, vocab_size=vocab_size)
        # per image, then the mean: the PSNR of the mean error would depend mostly on the worst images
        psnr = PeakSignalNoiseRatio(data_range=255.0, dim=(1, 2, 3))
        none_03HW = torch.zeros(0, 3, 1, 1, dtype=torch.float64)
        psnr.update(none_03HW, none_03HW)  # a rank without images must gather tensors of the same type as the others
        self.psnr, self.ssim, self.l1 = psnr, ImageMean(), ImageMean()
        self.perceptual = ImageMean() if perceptual is not None else None
        self.rfid = FID(num_features=extractor.num_features) if extractor is not None else None

    def update(self, img_u8_B3HW: Tensor, rec_u8_B3HW: Tensor, counts_KV: Tensor) -> None:
        """Add images, their reconstructions (rounded to uint8) and the counts of their codes."""
        img_B3HW, rec_B3HW = to_float(img_u8_B3HW), to_float(rec_u8_B3HW)
        self.health.update(counts_KV)
        self.psnr.update(rec_u8_B3HW.double(), img_u8_B3HW.double())
        if min(img_u8_B3HW.shape[2:]) >= _WINDOW:
            self.ssim.update(_ssim(rec_u8_B3HW, img_u8_B3HW))
        self.l1.update((rec_B3HW - img_B3HW).abs().mean((1, 2, 3)))
        if self._perceptual is not None and self.perceptual is not None:
            self.perceptual.update(self._perceptual(rec_B3HW, img_B3HW))
        for img_u8, real in ((img_u8_B3HW, True), (rec_u8_B3HW, False)):
            known: dict[str, Tensor] = {}
            if self._extract is not None and self.rfid is not None:
                known = dict(zip(("features_BF", "logits_BK"), self._extract(img_u8), strict=True))
                self.rfid.update(known["features_BF"], real=real)
                if self.ris is not None and not real:
                    self.ris.update(known["logits_BK"])
            if self.own is not None:
                self.own.update(img_u8, real=real, **known)
        if self.own is not None:
            self.own.update_pairs(rec_u8_B3HW, img_u8_B3HW)

    def compute(self) -> dict[str, float]:
        """psnr (dB, mean of images), ssim (likewise), l1 (in [0, 2]), perceptual, rfid, ris, usage/<k>, perplexity/<k>.

        ssim: Wang et al. 2004, of images of 11 pixels and more. All ranks must call it together. Raises VarlabError if there
        was no image.
        """
        means = {"psnr": self.psnr, "ssim": self.ssim, "l1": self.l1, "perceptual": self.perceptual, "rfid": self.rfid}
        scores = {name: float(metric.compute()) for name, metric in means.items() if metric is not None}
        if math.isnan(scores["ssim"]):
            del scores["ssim"]
        if math.isnan(scores["l1"]):
            raise VarlabError("There is no image to validate on: the split is empty.")
        if self.ris is not None:
            scores["ris"] = float(self.ris.compute()[0])
        return (self.own.compute() if self.own else {}) | scores | self.health.compute()


def _ssim(rec_u8_B3HW: Tensor, img_u8_B3HW: Tensor) -> Tensor:
    """ssim_B of images in 0..255, with the constants of the paper and a Gaussian of 1.5 pixels."""
    few = max(1, _PIXELS // math.prod(img_u8_B3HW.shape[2:]))
    parts = []
    for rec, img in zip(rec_u8_B3HW.split(few), img_u8_B3HW.split(few), strict=True):
        ssim = structural_similarity_index_measure(rec.double(), img.double(), data_range=255.0, reduction="none")
        assert isinstance(ssim, Tensor)
        parts.append(ssim.reshape(-1))
    return torch.cat(parts)


class Autoencoder(Protocol):
    """The interface of a tokenizer that is scored: img_B3HW → (rec_B3HW, Quantized)."""

    scales: tuple[tuple[int, int], ...]
    vocab_size: int

    @property
    def last_layer(self) -> Tensor: ...
    def __call__(self, img_B3HW: Tensor) -> tuple[Tensor, Quantized]: ...


class ReconstructionScores:
    """``TokenizerScores`` of a tokenizer's reconstructions, batch by batch: without padding, on the tokenizer's device."""

    def __init__(
        self,
        tokenizer: Autoencoder,
        *,
        extractor: Extractor | None,
        perceptual: Distance | None,
        own: OwnMetrics | None = None,
        ris: SeededInceptionScore | None = None,
    ):
        self._tokenizer = tokenizer
        self._scores = TokenizerScores(
            scales=len(tokenizer.scales),
            vocab_size=tokenizer.vocab_size,
            extractor=extractor,
            perceptual=perceptual,
            own=own,
            ris=ris,
        ).to(tokenizer.last_layer.device)

    @torch.no_grad()
    def update(self, batch: Batch) -> None:
        """Add a batch of this rank."""
        rec_B3HW, quantized = self._tokenizer(to_float(batch.img_u8_B3HW))
        self._scores.update(batch.img_u8_B3HW, to_uint8(rec_B3HW), quantized.counts_KV)

    def over(self, batches: Iterable[Batch]) -> dict[str, float]:
        """The scores of this rank's batches, and those of the other ranks."""
        for batch in batches:
            self.update(batch)
        return self.compute()

    def compute(self) -> dict[str, float]:
        """The scores. All ranks call it together."""
        return self._scores.compute()
