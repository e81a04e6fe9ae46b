"""GPT-2's block, as in VQGAN's transformer."""

from __future__ import annotations

from torch import Tensor, nn

from varlab.transformer.attention import Attention
from varlab.transformer.blocks.drops import Drop
from varlab.transformer.blocks.mlp import mlp
from varlab.transformer.blocks.residual import ResidualBlock
from varlab.transformer.context import Context


class GPT2Block(ResidualBlock):
    """GPT-2's pre-norm block, as in VQGAN's transformer: the class is known from the start token alone."""

    def __init__(self, *, width: int, heads: int, layer: int, drop_path: float, mlp_ratio: float):
        super().__init__()
        self.layer, self.drop = layer, Drop(drop_path)
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = Attention(width=width, heads=heads, qk_norm=False, scale=1.0, bias="all")
        self.mlp = mlp(width, mlp_ratio, "none")


class PlainHeadNorm(nn.Module):
    """An ordinary LayerNorm before the head."""

    def __init__(self, *, width: int):
        super().__init__()
        self.norm = nn.LayerNorm(width)

    def forward(self, x_BLD: Tensor, context: Context) -> Tensor:
        return self.norm(x_BLD)
