"""The CNN encoder and decoder: pixels to a latent grid and back."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from varlab.rng import Stream
from varlab.tokenizer.layers import AttnBlock, Downsample, ResBlock, Upsample, group_norm, norm_silu, run
from varlab.types import image_layout


def _stage(widths: Sequence[int], *, groups: int, attention: bool) -> nn.Sequential:
    """Residual blocks from widths[0] to widths[1] to …, each followed by attention where asked."""
    layers: list[nn.Module] = []
    for before, after in zip(widths[:-1], widths[1:], strict=True):
        layers.append(ResBlock(in_channels=before, out_channels=after, groups=groups))
        if attention:
            layers.append(AttnBlock(channels=after, groups=groups))
    return nn.Sequential(*layers)


def _middle(width: int, *, groups: int, attention: bool) -> nn.Sequential:
    around = [ResBlock(in_channels=width, out_channels=width, groups=groups) for _ in range(2)]
    between = [AttnBlock(channels=width, groups=groups)] if attention else []
    return nn.Sequential(around[0], *between, around[1])


def attending(attention: Sequence[int], stages: int) -> set[int]:
    """Indices of the stages that attend, finest first; -1 is the lowest resolution."""
    return {range(stages)[i] for i in attention}


class Encoder(nn.Module):
    """img_B3HW → z_BZhw with h = H / 2^(stages - 1), Z = z_channels. attention: the stages that attend, by index."""

    def __init__(
        self,
        *,
        channels: int,
        channel_mult: Sequence[int],
        res_blocks: int,
        z_channels: int,
        groups: int,
        attention: Sequence[int],
        mid_attention: bool,
    ):
        super().__init__()
        widths = [channels * m for m in channel_mult]
        attend = attending(attention, len(widths))
        self.conv_in = nn.Conv2d(3, channels, 3, padding=1)
        stages: list[nn.Module] = []
        before = channels
        for i, width in enumerate(widths):
            lowest = i == len(widths) - 1
            stages.append(_stage([before] + [width] * res_blocks, groups=groups, attention=i in attend))
            if not lowest:
                stages.append(Downsample(channels=width))
            before = width
        self.stages = nn.Sequential(*stages)
        self.middle = _middle(before, groups=groups, attention=mid_attention)
        self.norm_out = group_norm(before, groups)
        self.conv_out = nn.Conv2d(before, z_channels, 3, padding=1)

    def forward(self, img_B3HW: Tensor, stream: Stream | None = None) -> Tensor:
        """stream: of the dropout, in training."""
        h = run(self.stages, self.conv_in(image_layout(img_B3HW)), stream)
        return self.conv_out(norm_silu(self.norm_out, run(self.middle, h, stream)))


class Decoder(nn.Module):
    """z_BZhw → img_B3HW; the encoder mirrored, with one more residual block a stage. Stages count from the finest."""

    def __init__(
        self,
        *,
        channels: int,
        channel_mult: Sequence[int],
        res_blocks: int,
        z_channels: int,
        groups: int,
        attention: Sequence[int],
        mid_attention: bool,
    ):
        super().__init__()
        widths = [channels * m for m in reversed(channel_mult)]
        self.scale = 2 ** (len(widths) - 1)  # pixels of the image along a cell of z
        attend = {len(widths) - 1 - i for i in attending(attention, len(widths))}
        self.conv_in = nn.Conv2d(z_channels, widths[0], 3, padding=1)
        self.middle = _middle(widths[0], groups=groups, attention=mid_attention)
        stages: list[nn.Module] = []
        before = widths[0]
        for i, width in enumerate(widths):
            stages.append(_stage([before] + [width] * (res_blocks + 1), groups=groups, attention=i in attend))
            if i < len(widths) - 1:
                stages.append(Upsample(channels=width))
            before = width
        self.stages = nn.Sequential(*stages)
        self.norm_out = group_norm(before, groups)
        self.conv_out = nn.Conv2d(before, 3, 3, padding=1)

    def forward(self, z_BZhw: Tensor, stream: Stream | None = None) -> Tensor:
        """stream: of the dropout, in training."""
        h = run(self.middle, self.conv_in(image_layout(z_BZhw, scale=self.scale)), stream)
        return self.conv_out(norm_silu(self.norm_out, run(self.stages, h, stream)))
