"""Building blocks of the CNN encoder and decoder (VQGAN, Esser et al. 2021, appendix; as used by VAR, Tian et al. 2024)."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from varlab.errors import VarlabError
from varlab.rng import Stream


def group_norm(channels: int, groups: int) -> nn.GroupNorm:
    """GroupNorm with the field's epsilon; ``groups`` is cut to what divides ``channels`` evenly."""
    if not groups >= 1:
        raise VarlabError(f"groups is {groups!r:.40}, but must be at least 1.")
    most = next(g for g in range(min(groups, channels), 0, -1) if channels % g == 0)
    return nn.GroupNorm(most, channels, eps=1e-6)


class ResBlock(nn.Module):
    """(B, in, h, w) → (B, out, h, w): norm, SiLU, conv, twice, plus a shortcut (1×1 where the width changes).

    dropout: rate before the second convolution. place: a number of its own among the blocks of a network, by which it draws.
    """

    dropout, place = 0.0, 0

    def __init__(self, *, in_channels: int, out_channels: int, groups: int):
        super().__init__()
        self.norm1 = group_norm(in_channels, groups)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.norm2 = group_norm(out_channels, groups)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        same = in_channels == out_channels
        self.shortcut = nn.Identity() if same else nn.Conv2d(in_channels, out_channels, 1)

    def forward(self, x_BChw: Tensor, stream: Stream | None = None) -> Tensor:
        """stream: of the dropout, in training."""
        h = F.silu(self.norm2(self.conv1(F.silu(self.norm1(x_BChw)))))
        if stream is not None and self.dropout > 0:
            h = h * stream.at(self.place).keep(self.dropout, *h.shape[1:]).to(h)
        return self.shortcut(x_BChw) + self.conv2(h)


class AttnBlock(nn.Module):
    """(B, C, h, w) → the same shape: residual single-head attention over all cells."""

    def __init__(self, *, channels: int, groups: int):
        super().__init__()
        self.norm = group_norm(channels, groups)
        self.qkv = nn.Conv2d(channels, 3 * channels, 1)
        self.proj = nn.Conv2d(channels, channels, 1)

    def forward(self, x_BChw: Tensor) -> Tensor:
        B, C, h, w = x_BChw.shape
        qkv = self.qkv(self.norm(x_BChw)).reshape(B, 3, C, h * w).transpose(2, 3)
        q, k, v = qkv.unbind(1)
        attended = F.scaled_dot_product_attention(q, k, v)
        return x_BChw + self.proj(attended.transpose(1, 2).reshape(B, C, h, w))


class Downsample(nn.Module):
    """Halves h and w by a strided 3×3 convolution, padded at the right and bottom only."""

    def __init__(self, *, channels: int):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2)

    def forward(self, x_BChw: Tensor) -> Tensor:
        return self.conv(F.pad(x_BChw, (0, 1, 0, 1)))


class Upsample(nn.Module):
    """Doubles h and w: nearest neighbour, then a 3×3 convolution."""

    def __init__(self, *, channels: int):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x_BChw: Tensor) -> Tensor:
        return self.conv(F.interpolate(x_BChw, scale_factor=2.0, mode="nearest"))


def run(layers: nn.Sequential, x_BChw: Tensor, stream: Stream | None) -> Tensor:
    """The layers one after another, residual blocks with the draws of their dropout."""
    for layer in layers:
        if isinstance(layer, nn.Sequential):
            x_BChw = run(layer, x_BChw, stream)
        else:
            x_BChw = layer(x_BChw, stream) if isinstance(layer, ResBlock) else layer(x_BChw)
    return x_BChw
