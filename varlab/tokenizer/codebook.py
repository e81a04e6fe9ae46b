"""The codebook: nearest code, and the revival of unused codes."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from varlab.rng import Stream

_EPS = 1e-5  # in LlamaGen's entropies and in VQGAN's averages, so that nothing meets zero


class Codebook(nn.Module):
    """V vectors of C numbers. Always in float32, because bf16 would flip near ties.

    init: the codes start uniform in ±init/V (VQGAN: 1). normalise: the nearest code is chosen by angle, not by distance.
    cosine: the codes also have length 1 wherever they are used (LlamaGen; Yu et al. 2021, "Vector-quantized image modeling
    with improved VQGAN"); they start with it, too. ema: the codes are moving averages of the vectors that chose them, with
    this decay, and are not trained by gradients (van den Oord et al. 2017, appendix A.1; None: they are trained).
    """

    count_V: Tensor
    sum_VC: Tensor

    def __init__(
        self, *, vocab_size: int, code_dim: int, init: float, normalise: bool, cosine: bool, ema: float | None = None
    ):
        super().__init__()
        weight_VC = torch.empty(vocab_size, code_dim).uniform_(-init / vocab_size, init / vocab_size)
        self.weight = nn.Parameter(F.normalize(weight_VC, dim=-1) if cosine else weight_VC, requires_grad=ema is None)
        self.normalise, self.cosine, self.ema = normalise or cosine, cosine, ema
        if ema is not None:
            self.register_buffer("count_V", torch.zeros(vocab_size))
            self.register_buffer("sum_VC", self.weight.detach().clone())

    def codes(self) -> Tensor:
        """codes_VC; of length 1 in a cosine codebook."""
        return F.normalize(self.weight, dim=-1) if self.cosine else self.weight

    def embed(self, idx_Bl: Tensor) -> Tensor:
        """idx_Bl → h_BlC."""
        h_BlC = F.embedding(idx_Bl, self.weight)
        return F.normalize(h_BlC, dim=-1) if self.cosine else h_BlC

    @torch.no_grad()
    def nearest(self, z_NC: Tensor) -> Tensor:
        """z_NC → idx_N, the first of equally near codes."""
        if self.normalise:
            return (F.normalize(z_NC, dim=-1) @ F.normalize(self.weight, dim=-1).T).argmax(1)
        distance_NV = z_NC.square().sum(1, keepdim=True) + self.weight.square().sum(1)
        return distance_NV.addmm_(z_NC, self.weight.T, alpha=-2).argmin(1)

    @torch.no_grad()
    def average(self, count_V: Tensor, sum_VC: Tensor) -> None:
        """Move the averages by an update's counts and sums of the vectors that chose each code, over all ranks.

        Codes are their sums over their counts; counts are smoothed, so that one that nobody chose is not divided by 0.
        """
        assert self.ema is not None
        self.count_V.lerp_(count_V.to(self.count_V), 1 - self.ema)
        self.sum_VC.lerp_(sum_VC.to(self.sum_VC), 1 - self.ema)
        total = self.count_V.sum()
        smooth_V = (self.count_V + _EPS) / (total + len(count_V) * _EPS) * total
        self.weight.copy_(self.sum_VC / smooth_V[:, None])

    @torch.no_grad()
    def revive(self, dead_V: Tensor, candidates_NC: Tensor, stream: Stream) -> int:
        """Put encoder vectors, drawn from the candidates, in the place of the codes marked dead. Returns how many."""
        dead = dead_V.nonzero().squeeze(1)
        if len(dead) == 0 or len(candidates_NC) == 0:
            return 0
        chosen = stream.integers(len(candidates_NC), len(dead))[0].to(candidates_NC.device)
        self.weight[dead] = candidates_NC[chosen].to(self.weight)
        if self.ema is not None:
            self.sum_VC[dead], self.count_V[dead] = self.weight[dead], 1.0
        return len(dead)


def entropy_loss(z_NC: Tensor, codes_VC: Tensor, *, temperature: float) -> Tensor:
    """Mean entropy of each vector's soft choice of a code, minus the entropy of the mean choice (Yu et al. 2023, MAGVIT-v2).

    Low where each choice is sure and all codes are used. The soft choice is the softmax of minus the squared distances
    divided by ``temperature``.
    """
    size_N1, size_V = z_NC.square().sum(1, keepdim=True), codes_VC.square().sum(1)
    logits_NV = -(size_N1 + size_V - 2 * z_NC @ codes_VC.T) / temperature
    choice_NV = logits_NV.softmax(-1)
    each = -(choice_NV * (logits_NV + _EPS).log_softmax(-1)).sum(-1).mean()
    mean_V = choice_NV.mean(0)
    return each + (mean_V * (mean_V + _EPS).log()).sum()
