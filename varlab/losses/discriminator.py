"""PatchGAN: a discriminator that judges overlapping patches."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

from varlab.errors import VarlabError
from varlab.types import image_layout

_SLOPE = 0.2  # of the leaky ReLUs, in the paper and every implementation
_WIDEST = 8  # channels stop growing at 8 * width
_GROUP = 16  # channels of one group of GroupNorm


def _norms() -> dict[str, Callable[[int], nn.Module]]:
    return {
        "batch": nn.BatchNorm2d,
        "group": lambda channels: nn.GroupNorm(max(1, channels // _GROUP), channels),
        "actnorm": ActNorm,
        "none": lambda channels: nn.Identity(),
    }


class ActNorm(nn.Module):
    """scale · (x + loc) per channel, initialized by the first training batch to mean 0 and deviation 1 (Kingma & Dhariwal
    2018, Glow, sec. 3.1; an option of VQGAN). That batch is the global one: its sums are reduced over ranks.
    """

    initialized: Tensor

    def __init__(self, channels: int):
        super().__init__()
        self.loc = nn.Parameter(torch.zeros(1, channels, 1, 1))
        self.scale = nn.Parameter(torch.ones(1, channels, 1, 1))
        self.register_buffer("initialized", torch.tensor(0, dtype=torch.uint8))

    @torch.no_grad()
    def _initialize(self, x_BChw: Tensor) -> None:
        x = x_BChw.double()
        sums = torch.stack([torch.ones_like(x).sum((0, 2, 3)), x.sum((0, 2, 3)), x.square().sum((0, 2, 3))])
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            torch.distributed.all_reduce(sums)
        count, total, squares = sums
        mean = total / count
        deviation = ((squares - count * mean.square()) / (count - 1)).clamp_min(0).sqrt()
        self.loc.copy_(-mean.view_as(self.loc))
        self.scale.copy_(1 / (deviation + 1e-6).view_as(self.scale))
        self.initialized.fill_(1)

    def forward(self, x_BChw: Tensor) -> Tensor:
        if self.training and not self.initialized.is_meta and not bool(self.initialized):
            self._initialize(x_BChw)
        return self.scale * (x_BChw + self.loc)


class PatchGAN(nn.Module):
    """pix2pix's discriminator (Isola et al. 2017, appendix 6.1.2); VQGAN uses it with width 64, 3 layers and BatchNorm.

    width: channels of the first convolution, doubled in each layer up to eight times. layers: convolutions with stride 2; a
    logit sees a patch of 34 pixels with 2 layers, of 70 with 3. norm: batch, group, actnorm or none; not batch with gradient
    accumulation, because BatchNorm takes its statistics from the micro-batch. Weights start as N(0, 0.02), norm gains as
    N(1, 0.02). torch_bias: whether the convolutions' biases start as torch makes them, as in pix2pix's and VQGAN's code (None:
    at 0). Raises VarlabError for an unknown norm.
    """

    def __init__(self, *, width: int, layers: int, norm: str, torch_bias: bool | None = None):
        super().__init__()
        if norm not in _norms():
            raise VarlabError(f"discriminator.norm is {norm!r}: use one of {', '.join(_norms())}.")
        sequence: list[nn.Module] = [nn.Conv2d(3, width, 4, stride=2, padding=1), nn.LeakyReLU(_SLOPE)]
        before = width
        for n in range(1, layers + 1):
            channels = width * min(2**n, _WIDEST)
            stride = 2 if n < layers else 1
            # BatchNorm has a bias of its own, so pix2pix and VQGAN leave out the convolution's (only there)
            sequence += [nn.Conv2d(before, channels, 4, stride=stride, padding=1, bias=norm != "batch")]
            sequence += [_norms()[norm](channels), nn.LeakyReLU(_SLOPE)]
            before = channels
        sequence += [nn.Conv2d(before, 1, 4, stride=1, padding=1)]
        self.net = nn.Sequential(*sequence)
        self.apply(partial(_init, torch_bias=bool(torch_bias)))

    def forward(self, img_B3HW: Tensor) -> Tensor:
        """img_B3HW in [-1, 1] → logits_B1hw, one for each patch: positive where it looks real."""
        return self.net(image_layout(img_B3HW))


def _init(module: nn.Module, *, torch_bias: bool) -> None:
    if isinstance(module, nn.Conv2d):
        nn.init.normal_(module.weight, 0.0, 0.02)
        if module.bias is not None and not torch_bias:
            nn.init.zeros_(module.bias)
    elif isinstance(module, nn.BatchNorm2d | nn.GroupNorm):
        nn.init.normal_(module.weight, 1.0, 0.02)
        nn.init.zeros_(module.bias)
