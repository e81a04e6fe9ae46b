"""The codebook: nearest code, and the revival of codes that nobody uses."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from varlab.rng import Stream


class Codebook(nn.Module):
    """V vectors of C numbers. Works in float32 whatever autocast says: near ties would flip in bf16.

    init: the codes start uniform in ±init/V (VQGAN: 1). normalise: the nearest code is chosen by angle, not by distance.
    """

    def __init__(self, *, vocab_size: int, code_dim: int, init: float, normalise: bool):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(vocab_size, code_dim).uniform_(-init / vocab_size, init / vocab_size))
        self.normalise = normalise

    def embed(self, idx_Bl: Tensor) -> Tensor:
        """idx_Bl → h_BlC."""
        return F.embedding(idx_Bl, self.weight)

    @torch.no_grad()
    def nearest(self, z_NC: Tensor) -> Tensor:
        """z_NC → idx_N, the first of equally near codes."""
        if self.normalise:
            return (F.normalize(z_NC, dim=-1) @ F.normalize(self.weight, dim=-1).T).argmax(1)
        size_V = self.weight.square().sum(1)
        distance_NV = torch.addmm(z_NC.square().sum(1, keepdim=True) + size_V, z_NC, self.weight.T, alpha=-2)
        return distance_NV.argmin(1)

    @torch.no_grad()
    def revive(self, dead_V: Tensor, candidates_NC: Tensor, stream: Stream) -> int:
        """Put encoder vectors, drawn from the candidates, in the place of the codes marked dead. Returns how many."""
        dead = dead_V.nonzero().squeeze(1)
        if len(dead) == 0 or len(candidates_NC) == 0:
            return 0
        chosen = stream.integers(len(candidates_NC), len(dead))[0].to(candidates_NC.device)
        self.weight[dead] = candidates_NC[chosen].to(self.weight)
        return len(dead)
