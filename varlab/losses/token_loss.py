"""The mean cross-entropy of tokens, from logits that are never held as a whole in float32."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

_PAIRS = {"cpu": 1 << 18}  # of token and logit at once: so many stay in the processor's cache
_MANY_PAIRS = 1 << 26  # on a device that computes many at once


class TokenLoss(torch.autograd.Function):
    """``apply(logits_NV, targets_N, label_smoothing)`` → the mean loss, in float32, of logits in a narrower type.

    The forward pass overwrites the logits with their gradient if they need one: the backward pass only scales it.
    """

    @staticmethod
    def forward(ctx: Any, logits_NV: Tensor, targets_N: Tensor, label_smoothing: float) -> Tensor:
        rows = max(1, _PAIRS.get(logits_NV.device.type, _MANY_PAIRS) // logits_NV.shape[1])
        share, losses = 1 / len(logits_NV), []
        for logits, targets in zip(logits_NV.split(rows), targets_N[:, None].split(rows), strict=True):
            wide = logits.float()
            p = wide.softmax(1)
            right = wide.gather(1, targets)[:, 0]
            if label_smoothing:
                right = torch.lerp(right, wide.mean(1), label_smoothing)
            losses.append(wide.amax(1) - p.amax(1).log() - right)  # the largest p is never 0
            if ctx.needs_input_grad[0]:
                p.scatter_add_(1, targets, p.new_full(targets.shape, label_smoothing - 1))
                logits.copy_(p.sub_(label_smoothing / p.shape[1]).mul_(share) if label_smoothing else p.mul_(share))
        if ctx.needs_input_grad[0]:
            ctx.save_for_backward(logits_NV)
        return torch.cat(losses).mean()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        return ctx.saved_tensors[0].mul_(grad), None, None


def token_loss(logits_NV: Tensor, targets_N: Tensor, *, label_smoothing: float) -> Tensor:
    """The mean cross-entropy in float32. It overwrites logits of a narrower type that need a gradient."""
    if logits_NV.dtype in (torch.float32, torch.float64):
        return F.cross_entropy(logits_NV, targets_N, label_smoothing=label_smoothing)
    loss: Tensor = TokenLoss.apply(logits_NV, targets_N, label_smoothing)
    return loss
