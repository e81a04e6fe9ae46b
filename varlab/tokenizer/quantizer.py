"""The multi-scale residual quantizer of VAR (Tian et al. 2024, algorithms 1 and 2). With one scale it is VQGAN's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from varlab.rng import Stream
from varlab.tokenizer.codebook import Codebook, entropy_loss
from varlab.types import Maps, Quantized, VarlabError, full_precision

# of VAR's tokenizer for 256 pixels
SCALES = tuple((side, side) for side in (1, 2, 3, 4, 5, 6, 8, 10, 13, 16))
CODE_DIM = 32


class Phi(nn.Module):
    """φ(h) = (1 - ratio)·h + ratio·conv3×3(h): restores detail after upsampling."""

    def __init__(self, *, code_dim: int, ratio: float):
        super().__init__()
        self.ratio = ratio
        self.conv = nn.Conv2d(code_dim, code_dim, 3, padding=1)

    def forward(self, h_BChw: Tensor) -> Tensor:
        return h_BChw.mul(1 - self.ratio) + self.conv(h_BChw).mul(self.ratio)


def enlarged(h_BChw: Tensor, size: tuple[int, int]) -> Tensor:
    """Interpolate by bicubic splines."""
    return by_products(h_BChw, size) if h_BChw.is_cuda else F.interpolate(h_BChw, size=size, mode="bicubic")


def by_products(h_BChw: Tensor, size: tuple[int, int]) -> Tensor:
    """The same by two matrix products.

    torch's kernel for GPUs goes through samples and channels one by one, and its backward pass adds in an order that varies.
    """
    rows_Hh, columns_Ww = (
        _spline(small, large, h_BChw.device) for small, large in zip(h_BChw.shape[2:], size, strict=True)
    )
    return rows_Hh @ h_BChw @ columns_Ww.T


@lru_cache(maxsize=256)
@torch.inference_mode(False)  # a later training may keep it for its backward pass
def _spline(small: int, large: int, device: torch.device) -> Tensor:
    """(large, small): what each of ``small`` cells in a row adds to each of ``large``."""
    return F.interpolate(torch.eye(small)[None, None], size=(large, small), mode="bicubic")[0, 0].to(device)


def phi_of_scale(scales: int, count: int) -> list[int]:
    """The index of the shared φ that each scale uses: the nearest of ``count`` ticks, as in the official code."""
    margin = 1 / 3 / count if count == 4 else 1 / 2 / count
    ticks = np.linspace(margin, 1 - margin, count)
    return [int(np.argmin(np.abs(ticks - k / max(scales - 1, 1)))) for k in range(scales)]


def check_scales(scales: Sequence[Sequence[int]]) -> tuple[tuple[int, int], ...]:
    """[[h, w], …] as tuples; raises VarlabError unless they grow from coarse to fine."""
    pairs = tuple((int(h), int(w)) for h, w in scales)
    if not pairs or any(h < 1 or w < 1 for h, w in pairs):
        raise VarlabError(f"Tokenizer scales {list(scales)} must be one or more pairs of positive (h, w).")
    if any(b[0] < a[0] or b[1] < a[1] for a, b in zip(pairs[:-1], pairs[1:], strict=True)):
        raise VarlabError(f"Tokenizer scales {list(scales)} must go from coarse to fine.")
    return pairs


class Quantizer(nn.Module):
    """Latent grids to token maps and back, always in float32. The defaults are the quantizer of VAR's tokenizer.

    scales: (h, w) per scale, coarse to fine. vocab_size: codes (V). code_dim: numbers per code (C). beta: weight of the
    commitment term, or of the codebook term if ``beta_term`` is "codebook" (as in the official VQGAN code unless
    legacy=False). phi_count: how many φ the scales share (0: none; 1: one for all; K: one each). phi_ratio: see ``Phi``.
    code_init, code_norm, cosine, ema: see ``Codebook``. code_range: the codes start in ± this number, in place of
    code_init/V. A cosine codebook also brings the latents to length 1, so it needs a single scale. entropy: {weight,
    temperature} of ``entropy_loss`` (None: no such loss); it needs a single scale, too.
    """

    draws = False  # whether training draws: ``forward`` then takes a stream, and ``anneal`` is called

    def __init__(
        self,
        *,
        scales: Sequence[Sequence[int]] = SCALES,
        vocab_size: int = 4096,
        code_dim: int = CODE_DIM,
        beta: float = 0.25,
        beta_term: str = "commitment",
        phi_count: int = 4,
        phi_ratio: float = 0.5,
        code_init: float = 1.0,
        code_range: float | None = None,
        code_norm: bool = False,
        cosine: bool = False,
        entropy: Mapping[str, float] | None = None,
        ema: float | None = None,
    ):
        super().__init__()
        self.scales, self.vocab_size, self.code_dim = check_scales(scales), vocab_size, code_dim
        if beta_term not in ("commitment", "codebook"):
            raise VarlabError(f"Tokenizer beta_term={beta_term!r} is unknown: use commitment or codebook.")
        if (cosine or entropy) and len(self.scales) > 1:
            raise VarlabError(
                f"A cosine codebook or an entropy loss needs a tokenizer of one scale, not {len(self.scales)}: set "
                "tokenizer.cosine=false tokenizer.entropy=null; tokenizer.code_norm=true chooses codes by angle on any scales."
            )
        self.commitment, self.codebook_weight = (beta, 1.0) if beta_term == "commitment" else (1.0, beta)
        if ema is not None and phi_count == 0:  # nothing is trained by the codebook term
            self.codebook_weight = 0.0
        self.entropy = entropy
        init = code_init if code_range is None else code_range * vocab_size
        self.codebook = Codebook(
            vocab_size=vocab_size, code_dim=code_dim, init=init, normalise=code_norm, cosine=cosine, ema=ema
        )
        self.phi = nn.ModuleList(Phi(code_dim=code_dim, ratio=phi_ratio) for _ in range(phi_count))
        self._phi_of_scale = phi_of_scale(len(self.scales), phi_count) if phi_count else []

    def accumulate(self, f_hat_BChw: Tensor, k: int, h_BlC: Tensor) -> Tensor:
        """The residual step: bring scale k's codes to full size, apply its φ, add. Not interpolated at the last scale."""
        with full_precision(h_BlC):
            h, w = self.scales[k]
            h_BChw = h_BlC.float().transpose(1, 2).reshape(h_BlC.shape[0], -1, h, w)
            if k < len(self.scales) - 1:
                h_BChw = enlarged(h_BChw, self.scales[-1])
            if self._phi_of_scale:
                h_BChw = self.phi[self._phi_of_scale[k]](h_BChw)
            return f_hat_BChw + h_BChw

    def _latents(self, f_BChw: Tensor) -> Tensor:
        """The latents to quantize, in float32; of length 1 for a cosine codebook."""
        f = f_BChw.float()
        if not self.codebook.cosine:
            return f
        # channels last in memory, as in LlamaGen's code: the decoder's convolutions then round as they do there
        return F.normalize(f.permute(0, 2, 3, 1).contiguous(), dim=-1).permute(0, 3, 1, 2)

    def _vectors(self, rest_BChw: Tensor, k: int) -> Tensor:
        """The residual at scale k, one row per token: (B·l, C)."""
        if k < len(self.scales) - 1:
            rest_BChw = F.interpolate(rest_BChw, size=self.scales[k], mode="area")
        return rest_BChw.permute(0, 2, 3, 1).reshape(-1, rest_BChw.shape[1])

    @torch.no_grad()
    def encode(self, f_BChw: Tensor) -> Maps:
        """f_BChw → token maps, greedily, scale by scale."""
        with full_precision(f_BChw):
            f = self._latents(f_BChw)
            f_hat, maps = torch.zeros_like(f), []
            for k in range(len(self.scales)):
                maps.append(self.codebook.nearest(self._vectors(f - f_hat, k)).view(len(f), -1))
                f_hat = self.accumulate(f_hat, k, self.codebook.embed(maps[-1]))
            return maps

    def forward(self, f_BChw: Tensor) -> Quantized:
        """Training: token maps, f_hat with the straight-through gradient, and the VQ loss (mean over the scales)."""
        with full_precision(f_BChw):
            f = self._latents(f_BChw)
            fixed = f.detach()
            f_hat, loss = torch.zeros_like(f), f.new_zeros(())
            maps, candidates, counts = [], [], []
            for k in range(len(self.scales)):
                z_NC = self._vectors(fixed - f_hat.detach(), k)
                idx_N = self.codebook.nearest(z_NC)
                maps.append(idx_N.view(len(f), -1))
                candidates.append(z_NC.view(len(f), -1, f.shape[1]))
                counts.append(idx_N.new_zeros(len(self.codebook.weight)).scatter_add(0, idx_N, torch.ones_like(idx_N)))
                f_hat = self.accumulate(f_hat, k, self.codebook.embed(maps[-1]))
                loss = loss + self.commitment * F.mse_loss(f, f_hat.detach())
                loss = loss + self.codebook_weight * F.mse_loss(f_hat, fixed)
            if self.entropy is not None:
                z_NC, weight = self._vectors(f, 0), self.entropy["weight"]
                loss = loss + weight * entropy_loss(
                    z_NC, self.codebook.codes(), temperature=self.entropy["temperature"]
                )
            return Quantized(
                f_hat_BChw=f + (f_hat - f).detach(),
                maps=maps,
                vq_loss=loss / len(self.scales),
                counts_KV=torch.stack(counts),
                # sample by sample, so that the order is the same on any number of ranks
                candidates_NC=torch.cat(candidates, 1).flatten(0, 1),
            )

    def revive(self, dead_V: Tensor, candidates_NC: Tensor, stream: Stream) -> int:
        """See ``Codebook.revive``."""
        return self.codebook.revive(dead_V, candidates_NC, stream)
