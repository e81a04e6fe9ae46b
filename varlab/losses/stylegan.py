"""StyleGAN2's discriminator (Karras et al. 2020, "Analyzing and Improving the Image Quality of StyleGAN", app. B)."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_SLOPE, _GAIN = 0.2, math.sqrt(2)  # of a leaky ReLU that keeps the variance
_FINAL = 4  # height and width of the last feature map


class EqualConv(nn.Module):
    """A convolution with equalized learning rate: weights start as N(0, 1), and 1/√fan_in scales them at run time."""

    def __init__(self, before: int, after: int, kernel: int, *, stride: int = 1, bias: bool = True):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(after, before, kernel, kernel))
        self.bias = nn.Parameter(torch.zeros(after)) if bias else None
        self.scale, self.stride = 1 / math.sqrt(before * kernel**2), stride
        self.padding = kernel // 2 if stride == 1 else 0

    def forward(self, x_BChw: Tensor) -> Tensor:
        return F.conv2d(x_BChw, self.weight * self.scale, self.bias, stride=self.stride, padding=self.padding)


class EqualLinear(nn.Module):
    """A linear layer with equalized learning rate."""

    def __init__(self, before: int, after: int):
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.randn(after, before)), nn.Parameter(torch.zeros(after))
        self.scale = 1 / math.sqrt(before)

    def forward(self, x_BC: Tensor) -> Tensor:
        return F.linear(x_BC, self.weight * self.scale, self.bias)


def blur(x_BChw: Tensor, pad: tuple[int, int]) -> Tensor:
    """Filter each channel with (1, 3, 3, 1) in both directions, so that striding does not alias."""
    row = x_BChw.new_tensor([1.0, 3.0, 3.0, 1.0]) / 8
    channels = x_BChw.shape[1]
    kernel = torch.outer(row, row).expand(channels, 1, 4, 4)
    return F.conv2d(F.pad(x_BChw, (*pad, *pad)), kernel, groups=channels)


def act(x: Tensor) -> Tensor:
    """Leaky ReLU that keeps the variance."""
    return F.leaky_relu(x, _SLOPE) * _GAIN


class Down(nn.Module):
    """(B, before, h, w) → (B, after, h/2, w/2): two convolutions and a shortcut."""

    def __init__(self, before: int, after: int):
        super().__init__()
        self.conv1 = EqualConv(before, before, 3)
        self.conv2 = EqualConv(before, after, 3, stride=2)
        self.shortcut = EqualConv(before, after, 1, stride=2, bias=False)

    def forward(self, x_BChw: Tensor) -> Tensor:
        h = act(self.conv2(blur(act(self.conv1(x_BChw)), (2, 2))))
        return (h + self.shortcut(blur(x_BChw, (1, 1)))) / _GAIN


class MinibatchDeviation(nn.Module):
    """Add a channel with the deviation over groups of samples, so that a discriminator can see a lack of variety.

    group: the largest size of a group; the largest number up to it that divides the batch is used. The logits of a sample
    depend on its neighbours.
    """

    mixes_batch = True

    def __init__(self, *, group: int):
        super().__init__()
        self.group = group

    def forward(self, x_BChw: Tensor) -> Tensor:
        B, _, h, w = x_BChw.shape
        size = max(n for n in range(1, self.group + 1) if B % n == 0)
        spread = x_BChw.view(size, B // size, *x_BChw.shape[1:]).var(0, unbiased=False).add(1e-8).sqrt()
        mean_B = spread.mean((1, 2, 3)).repeat(size)
        return torch.cat([x_BChw, mean_B.view(B, 1, 1, 1).expand(-1, -1, h, w)], 1)


class StyleGANDiscriminator(nn.Module):
    """A logit for each image in [-1, 1].

    width: channels at the full resolution, doubled with every halving up to ``widest``. layers: halvings. group: see
    ``MinibatchDeviation``; 1 turns it off, which gradient accumulation needs.
    """

    def __init__(self, *, width: int, widest: int, layers: int, group: int):
        super().__init__()
        widths = [min(width * 2**i, widest) for i in range(layers + 1)]
        self.conv_in = EqualConv(3, widths[0], 1)
        self.blocks = nn.Sequential(*(Down(a, b) for a, b in zip(widths[:-1], widths[1:], strict=True)))
        self.deviation = MinibatchDeviation(group=group) if group > 1 else None
        self.conv_out = EqualConv(widths[-1] + (group > 1), widths[-1], 3)
        self.hidden = EqualLinear(widths[-1] * _FINAL**2, widths[-1])
        self.head = EqualLinear(widths[-1], 1)

    def forward(self, img_B3HW: Tensor) -> Tensor:
        """logits_B1: positive where the image looks real."""
        h = self.blocks(act(self.conv_in(img_B3HW)))
        if self.deviation is not None:
            h = self.deviation(h)
        h = F.adaptive_avg_pool2d(act(self.conv_out(h)), _FINAL)
        return self.head(act(self.hidden(h.flatten(1))))
