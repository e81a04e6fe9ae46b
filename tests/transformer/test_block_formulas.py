"""Blocks and head norms against their formulas, written out; small inputs, so that an epsilon counts."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.bounds import SAME
from varlab.transformer import AdaLNBlock, GPT2Block, LlamaBlock, SharedAdaLNBlock
from varlab.transformer.attention import EVERYTHING
from varlab.transformer.blocks.adaln import AdaLNHeadNorm
from varlab.transformer.context import Context
from varlab.transformer.llama import RMSHeadNorm

pytestmark = [pytest.mark.numeric, pytest.mark.usefixtures("in_float64")]
D, EPS = 8, 1e-6


@pytest.fixture
def x() -> Tensor:
    return torch.randn(2, 3, D, generator=torch.Generator().manual_seed(0)).double() * 2e-3


def around(shared: Tensor | None = None) -> Context:
    cond = torch.randn(2, D, generator=torch.Generator().manual_seed(1)).double()
    return Context(cond_BD=cond, visible=EVERYTHING, cache=None, rng=None, shared_B16D=shared)


def drawn(module: nn.Module) -> nn.Module:
    """With weights, gains and biases that all count."""
    module.double()
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator).double() / 2)
    return module


def plain_norm(x: Tensor, eps: float) -> Tensor:
    return (x - x.mean(-1, keepdim=True)) / (x.var(-1, keepdim=True, correction=0) + eps).sqrt()


def rms(x: Tensor, eps: float) -> Tensor:
    return x / (x.square().mean(-1, keepdim=True) + eps).sqrt()


def close(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=1e3 * SAME, atol=1e3 * SAME)


@pytest.mark.parametrize("shared", [False, True])
def test_an_adaln_block(x: Tensor, shared: bool) -> None:
    """VAR: x + γ·branch(norm(x)·(1 + scale) + shift), attention first; GELU in its tanh form."""
    kind = SharedAdaLNBlock if shared else AdaLNBlock
    block = drawn(kind(width=D, heads=2, layer=3, drop_path=0.5))
    common = torch.randn(2, 1, 6, D, generator=torch.Generator().manual_seed(3)).double()
    context = around(common if shared else None)
    own = common + block.offset_116D if shared else block.modulate(F.silu(context.cond_BD)).view(2, 1, 6, D)
    gamma1, gamma2, scale1, scale2, shift1, shift2 = own.unbind(2)
    h = x + gamma1 * block.attention(plain_norm(x, EPS) * (1 + scale1) + shift1, context, 3)
    first, last = block.mlp[0], block.mlp[2]
    branch = last(F.gelu(first(plain_norm(h, EPS) * (1 + scale2) + shift2), approximate="tanh"))
    assert first.out_features == 4 * D
    close(block(x, context), h + gamma2 * branch)


def test_a_gpt2_block(x: Tensor) -> None:
    block = drawn(GPT2Block(width=D, heads=2, layer=1, drop_path=0.5, mlp_ratio=3.0))
    context = around()

    def norm(layer: nn.LayerNorm, x: Tensor) -> Tensor:
        return plain_norm(x, 1e-5) * layer.weight + layer.bias

    h = x + block.attention(norm(block.norm1, x), context, 1)
    close(block(x, context), h + block.mlp[2](F.gelu(block.mlp[0](norm(block.norm2, h)))))


def test_a_llama_block(x: Tensor) -> None:
    """The SwiGLU is ⌈2/3·ratio·width⌉ wide, rounded up to a multiple."""
    sizes: dict[str, Any] = dict(mlp_ratio=4.0, multiple_of=8, kv_heads=None, norm_eps=1e-5, dropout=0.5)
    block = drawn(LlamaBlock(width=D, heads=2, layer=1, drop_path=0.5, **sizes))
    assert not any("bias" in name for name, _ in block.named_parameters())
    context = around()
    assert block.mlp.up.out_features == block.mlp.gate.out_features == 24
    h = x + block.attention(rms(x, 1e-5) * block.norm1.weight, context, 1)
    inner = rms(h, 1e-5) * block.norm2.weight
    close(block(x, context), h + block.mlp.down(F.silu(block.mlp.gate(inner)) * block.mlp.up(inner)))


def test_head_norms(x: Tensor) -> None:
    norm, context = drawn(AdaLNHeadNorm(width=D)), around()
    scale, shift = norm.modulate(F.silu(context.cond_BD)).view(2, 1, 2, D).unbind(2)
    close(norm(x, context), plain_norm(x, EPS) * (1 + scale) + shift)
    head = drawn(RMSHeadNorm(width=D, norm_eps=1e-5))
    close(head(x, context), rms(x, 1e-5) * head.norm.weight)


def test_first_modulation() -> None:
    """VAR's aln and alng: γ starts small, scale and shift at half, biases at 0; the head has no γ."""
    block, head = drawn(AdaLNBlock(width=D, heads=2, layer=0, drop_path=0.0)), drawn(AdaLNHeadNorm(width=D))
    before, of_head = block.modulate.weight.detach().clone(), head.modulate.weight.detach().clone()
    block.init_modulation(0.5, 1e-3)
    head.init_modulation(0.5, 1e-3)
    close(block.modulate.weight, torch.cat([before[: 2 * D] * 1e-3, before[2 * D :] * 0.5]))
    close(head.modulate.weight, of_head * 0.5)
    assert not block.modulate.bias.any() and not head.modulate.bias.any()
    shared = drawn(SharedAdaLNBlock(width=D, heads=2, layer=0, drop_path=0.0))
    offset = shared.offset_116D.detach().clone()
    shared.init_modulation(0.5, 1e-3)
    close(shared.offset_116D, torch.cat([offset[:, :, :2] * 1e-3, offset[:, :, 2:] * 0.5], 2))
