"""What all blocks do: attention, then an MLP, each added to its input."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from torch import Tensor, nn

from varlab.rng import Stream
from varlab.transformer.attention import Attention
from varlab.transformer.blocks.drops import Drop, Kept, kept
from varlab.transformer.context import Context


class Block(Protocol):
    """What the transformer asks of a block (a module made from keyword arguments width, heads, layer, drop_path)."""

    def __call__(self, x_BLD: Tensor, context: Context) -> Tensor: ...


BlockFactory = Callable[..., nn.Module]


class ResidualBlock(nn.Module):
    """Attention, then an MLP, each added to its input, with a norm of its own before it. A family with more overrides that.

    ``queries``, ``Attention.mixed`` and ``finished`` compute with tensors alone, and are what a GPU compiles; caches, random
    draws and numbers that differ from layer to layer stay outside.
    """

    layer: int
    drop: Drop
    attention: Attention
    norm1: nn.Module
    norm2: nn.Module
    mlp: nn.Module

    def given(self, context: Context) -> tuple[Tensor, ...]:
        """Tensors that the condition makes for this block."""
        return ()

    def queries(self, x_BLD: Tensor, given: tuple[Tensor, ...], rotary_2B1Ld: Tensor | None) -> tuple[Tensor, ...]:
        """q_BhLd, k_BhLd, v_BhLd."""
        return self.attention.project(self.norm1(x_BLD), rotary_2B1Ld)

    def finished(
        self, x_BLD: Tensor, attended_BLD: Tensor, given: tuple[Tensor, ...], drawn: Sequence[Sequence[Kept]]
    ) -> Tensor:
        """The block's output. drawn: what stays of the attention's branch, and of the MLP's."""
        x_BLD = x_BLD + kept(attended_BLD, drawn[0])
        return x_BLD + kept(self.mlp(self.norm2(x_BLD)), drawn[1])

    def draws(self, rng: Stream | None, step: int, x_BLD: Tensor) -> list[Kept]:
        """What stays of a branch, drawn at a step of the stream; x_BLD has the branch's shape."""
        return self.drop.draw(rng, step)

    def forward(self, x_BLD: Tensor, context: Context) -> Tensor:
        given = self.given(context)
        attended_BLD = self._attended(x_BLD, given, context)
        drawn = [self.draws(context.rng, 2 * self.layer + branch, x_BLD) for branch in (0, 1)]
        if context.compile:
            drawn = [[one.merged() for one in branch] for branch in drawn]
        return context.run(type(self).finished)(self, x_BLD, attended_BLD, given, drawn)

    def _attended(self, x_BLD: Tensor, given: tuple[Tensor, ...], context: Context) -> Tensor:
        q, k, v = context.run(type(self).queries)(self, x_BLD, given, context.rotary_2B1Ld)
        if context.cache is not None:
            k, v = context.cache.extend(self.layer, k, v)
        return context.run(Attention.mixed)(self.attention, q, k, v, context.visible)
