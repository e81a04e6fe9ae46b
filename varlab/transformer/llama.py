"""LLaMA's block as LlamaGen has it (Sun et al. 2024): RMSNorm, rotary attention, SwiGLU, no biases."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from varlab.rng import Stream
from varlab.transformer.attention import Attention
from varlab.transformer.blocks.drops import Drop, Kept
from varlab.transformer.blocks.residual import ResidualBlock
from varlab.transformer.cast_linear import Linear, WideLinear
from varlab.transformer.context import Context

_DROPOUT = 1 << 20  # steps of the dropout stream from here on belong to this file; stochastic depth has those below


class SwiGLU(nn.Module):
    """down(SiLU(gate(x)) · up(x)) (Shazeer 2020); 2/3 of the hidden width, rounded up to ``multiple_of``."""

    def __init__(self, *, width: int, mlp_ratio: float, multiple_of: int):
        super().__init__()
        hidden = -(-int(2 * width * mlp_ratio / 3) // multiple_of) * multiple_of
        self.gate = WideLinear(width, hidden, bias=False)
        self.up = WideLinear(width, hidden, bias=False)
        self.down = Linear(hidden, width, bias=False)

    def forward(self, x_BLD: Tensor) -> Tensor:
        return self.down(F.silu(self.gate(x_BLD)) * self.up(x_BLD))


class LlamaBlock(ResidualBlock):
    """kv_heads: see ``Attention``. dropout: of each branch's output, element by element, in training only."""

    def __init__(
        self,
        *,
        width: int,
        heads: int,
        layer: int,
        drop_path: float,
        mlp_ratio: float,
        multiple_of: int,
        kv_heads: int | None,
        norm_eps: float,
        dropout: float,
    ):
        super().__init__()
        self.layer, self.drop, self.dropout = layer, Drop(drop_path), dropout
        self.norm1, self.norm2 = nn.RMSNorm(width, eps=norm_eps), nn.RMSNorm(width, eps=norm_eps)
        self.attention = Attention(width=width, heads=heads, qk_norm=False, scale=1.0, bias="none", kv_heads=kv_heads)
        self.mlp = SwiGLU(width=width, mlp_ratio=mlp_ratio, multiple_of=multiple_of)

    def draws(self, rng: Stream | None, step: int, x_BLD: Tensor) -> list[Kept]:
        if rng is None or self.dropout == 0:
            return self.drop.draw(rng, step)
        u_BLD = rng.at(_DROPOUT + step).uniform(*x_BLD.shape[1:])
        return [Kept.of(u_BLD, self.dropout), *self.drop.draw(rng, step)]


class RMSHeadNorm(nn.Module):
    """An RMSNorm before the head."""

    def __init__(self, *, width: int, norm_eps: float):
        super().__init__()
        self.norm = nn.RMSNorm(width, eps=norm_eps)

    def forward(self, x_BLD: Tensor, context: Context) -> Tensor:
        return self.norm(x_BLD)
