"""The Gumbel quantizer of VQGAN's code (Jang et al. 2017; Maddison et al. 2017): codes are drawn, not found by distance."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from varlab.rng import Stream
from varlab.tokenizer.quantizer import Quantizer
from varlab.types import Maps, Quantized, VarlabError, full_precision

_NOISE = 1 << 32  # from this step on, a tokenizer's stream is Gumbel noise; before, it is dropout
_EPS = 1e-10  # in the code's divergence, so that nothing meets log(0)


class GumbelQuantizer(Quantizer):
    """A convolution gives each place logits of the codes: training draws one, inference takes the likeliest.

    The forward pass has the drawn code, the backward pass the softmax of (logits + noise) / temperature (straight through).
    kl: weight of the mean divergence of the softmax of the logits from equal shares, the only loss of its own. temperature:
    at the beginning and at the end of the training, between them half a cosine. It needs a single scale; scales, vocab_size
    and code_dim are those of ``Quantizer``. Unused codes are never replaced: all codes have gradients.
    Raises VarlabError for several scales, and for settings of codes that are found by distance.
    """

    draws = True

    def __init__(
        self,
        *,
        kl: float,
        temperature: Sequence[float],
        scales: Sequence[Sequence[int]],
        vocab_size: int,
        code_dim: int,
        **by_distance: Any,
    ):
        if len(scales) > 1 or any(
            by_distance.get(key) for key in ("phi_count", "cosine", "code_norm", "entropy", "ema")
        ):
            raise VarlabError(
                "Codes drawn with Gumbel noise need a tokenizer of one scale without φ: set tokenizer.scales=one "
                "tokenizer.phi_count=0 tokenizer.cosine=false tokenizer.code_norm=false tokenizer.entropy=null "
                "tokenizer.ema=null, or tokenizer.gumbel=null."
            )
        if len(temperature) != 2 or min(temperature) <= 0:
            raise VarlabError(
                f"tokenizer.gumbel.temperature={list(temperature)} must be two numbers above 0: first and last."
            )
        super().__init__(scales=scales, vocab_size=vocab_size, code_dim=code_dim, phi_count=0)
        nn.init.normal_(self.codebook.weight)
        self.proj = nn.Conv2d(code_dim, vocab_size, 1)
        self.kl, self.first_last = kl, (float(temperature[0]), float(temperature[1]))
        self.temperature = self.first_last[0]

    def anneal(self, progress: float) -> None:
        """Set the temperature by the share of the training that is done, from 0 to 1."""
        first, last = self.first_last
        self.temperature = last + (first - last) * (1 + math.cos(math.pi * min(progress, 1.0))) / 2

    @torch.no_grad()
    def encode(self, f_BChw: Tensor) -> Maps:
        """f_BChw → one token map, of the likeliest codes."""
        with full_precision(f_BChw):
            return [self.proj(f_BChw.float()).flatten(2).argmax(1)]

    def forward(self, f_BChw: Tensor, stream: Stream | None = None) -> Quantized:
        """Training: as ``Quantizer``. stream: of the noise, with one id a sample; without it there is no noise."""
        with full_precision(f_BChw):
            logits_BVl = self.proj(f_BChw.float()).flatten(2)
            soft_BVl = ((logits_BVl + _noise(logits_BVl, stream)) / self.temperature).softmax(1)
            idx_Bl = soft_BVl.argmax(1)
            hard_BVl = torch.zeros_like(soft_BVl).scatter_(1, idx_Bl[:, None], 1.0)
            chosen_BVl = hard_BVl - soft_BVl.detach() + soft_BVl
            share_BVl = logits_BVl.softmax(1)
            divergence = (share_BVl * (share_BVl * self.vocab_size + _EPS).log()).sum(1).mean()
            return Quantized(
                f_hat_BChw=torch.einsum("bvl,vc->bcl", chosen_BVl, self.codebook.weight).view_as(f_BChw),
                maps=[idx_Bl],
                vq_loss=self.kl * divergence,
                counts_KV=F.one_hot(idx_Bl.flatten(), self.vocab_size).sum(0)[None],
                candidates_NC=f_BChw.detach().float().flatten(2).transpose(1, 2).flatten(0, 1),
            )

    def revive(self, dead_V: Tensor, candidates_NC: Tensor, stream: Stream) -> int:
        """No code is replaced: latents are no codes here."""
        return 0


def _noise(logits_BVl: Tensor, stream: Stream | None) -> Tensor | float:
    """Standard Gumbel noise, by sample and place."""
    if stream is None:
        return 0.0
    return stream.at(_NOISE).gumbel(*logits_BVl.shape[1:]).to(logits_BVl)
