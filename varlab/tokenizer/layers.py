"""Building blocks of the CNN encoder and decoder (VQGAN, Esser et al. 2021, appendix; as used by VAR, Tian et al. 2024)."""

from __future__ import annotations

from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from varlab.errors import VarlabError
from varlab.rng import Stream


def group_norm(channels: int, groups: int) -> nn.GroupNorm:
    """GroupNorm with the field's epsilon; ``groups`` is cut to what divides ``channels`` evenly."""
    if not groups >= 1:
        raise VarlabError(f"groups is {groups!r:.40}, but must be at least 1.")
    most = next(g for g in range(min(groups, channels), 0, -1) if channels % g == 0)
    return nn.GroupNorm(most, channels, eps=1e-6)


def norm_silu(norm: nn.GroupNorm, x_BChw: Tensor) -> Tensor:
    """SiLU of the normalized x_BChw."""
    last = not x_BChw.is_contiguous() and x_BChw.is_contiguous(memory_format=torch.channels_last)
    if last and torch.is_grad_enabled() and x_BChw.device.type == "cpu":
        return cast(Tensor, _NormSiLU.apply(x_BChw, norm.weight, norm.bias, norm.num_groups, norm.eps))
    return F.silu(norm(x_BChw), inplace=not torch.is_grad_enabled())


class _NormSiLU(torch.autograd.Function):
    """SiLU of GroupNorm, for training on a CPU.

    torch's own backward pass through GroupNorm is many times slower in channels_last. Only the input is kept.
    """

    @staticmethod
    def forward(ctx: Any, x_BChw: Tensor, weight_C: Tensor, bias_C: Tensor, groups: int, eps: float) -> Tensor:
        B, C, h, w = x_BChw.shape
        y_BChw, mean_BG, rstd_BG = torch.native_group_norm(x_BChw, weight_C, bias_C, B, C, h * w, groups, eps)
        ctx.save_for_backward(x_BChw, weight_C, bias_C, mean_BG, rstd_BG)
        ctx.groups, ctx.eps = groups, eps
        return F.silu(y_BChw, inplace=True)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_BChw: Tensor) -> tuple[Tensor | None, ...]:
        x_BChw, weight_C, bias_C, mean_BG, rstd_BG = ctx.saved_tensors
        B, C, h, w = x_BChw.shape
        y_BChw = torch.native_group_norm(x_BChw, weight_C, bias_C, B, C, h * w, ctx.groups, ctx.eps)[0]
        g_BChw = torch.ops.aten.silu_backward(grad_BChw, y_BChw)
        along_BC = torch.mul(g_BChw, x_BChw, out=y_BChw).sum((2, 3), dtype=weight_C.dtype)
        sum_BC = g_BChw.sum((2, 3), dtype=weight_C.dtype)
        along_BGc, sum_BGc = (t.view(B, ctx.groups, -1) for t in (along_BC, sum_BC))
        mean_BG1, rstd_BG1 = mean_BG.to(weight_C)[..., None], rstd_BG.to(weight_C)[..., None]
        weight_Gc, count = weight_C.view(ctx.groups, -1), h * w * C // ctx.groups
        mean_g_BG1 = (weight_Gc * sum_BGc).sum(-1, keepdim=True) / count
        slope_BG1 = rstd_BG1**3 * (mean_BG1 * mean_g_BG1 - (weight_Gc * along_BGc).sum(-1, keepdim=True) / count)
        shift_BG1 = -slope_BG1 * mean_BG1 - rstd_BG1 * mean_g_BG1

        def broad(t_BGc: Tensor) -> Tensor:
            return t_BGc.expand(B, ctx.groups, C // ctx.groups).reshape(B, C, 1, 1).to(x_BChw.dtype)

        grad_x = torch.addcmul(broad(shift_BG1), x_BChw, broad(slope_BG1), out=y_BChw)
        grad_x.addcmul_(g_BChw, broad(rstd_BG1 * weight_Gc))
        weight_grad = (rstd_BG1 * (along_BGc - mean_BG1 * sum_BGc)).sum(0).flatten()
        return grad_x, weight_grad, sum_BC.sum(0), None, None


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
        h = norm_silu(self.norm2, self.conv1(norm_silu(self.norm1, x_BChw)))
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
    """Doubles h and w: nearest neighbour, then a 3×3 convolution.

    Computed as one transposed convolution of the small grid, which multiplies 4 values an output and not 9. FLOPs are
    counted (on the meta device) as the published codes compute it, so that they stay comparable.
    """

    def __init__(self, *, channels: int):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)
        along_34 = torch.tensor(((0.0, 0, 1, 1), (0, 1, 1, 0), (1, 1, 0, 0)))
        self.taps_9x16: Tensor
        self.register_buffer("taps_9x16", torch.kron(along_34, along_34), persistent=False)

    def forward(self, x_BChw: Tensor) -> Tensor:
        if x_BChw.is_meta:
            return self.conv(F.interpolate(x_BChw, scale_factor=2.0, mode="nearest"))
        kernel_IO44 = doubling_kernel(self.conv.weight, self.taps_9x16)
        return F.conv_transpose2d(x_BChw, kernel_IO44, self.conv.bias, stride=2, padding=1)


def doubling_kernel(weight_OI33: Tensor, taps_9x16: Tensor) -> Tensor:
    """(in, out, 4, 4): each tap of the 3×3 kernel, added at the two rows and columns that read the same cell."""
    kernel_OI16 = weight_OI33.flatten(2) @ taps_9x16.to(weight_OI33.dtype)
    return kernel_OI16.unflatten(2, (4, 4)).transpose(0, 1).contiguous()


def run(layers: nn.Sequential, x_BChw: Tensor, stream: Stream | None) -> Tensor:
    """The layers one after another, residual blocks with the draws of their dropout."""
    for layer in layers:
        if isinstance(layer, nn.Sequential):
            x_BChw = run(layer, x_BChw, stream)
        else:
            x_BChw = layer(x_BChw, stream) if isinstance(layer, ResBlock) else layer(x_BChw)
    return x_BChw
