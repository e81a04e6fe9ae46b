"""The mean cross-entropy of tokens, from logits that are never held as a whole in float32."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

_ROWS = 256  # tokens at once


class TokenLoss(torch.autograd.Function):
    """``apply(logits_NV, targets_N, label_smoothing)`` → the mean loss, in float32, of logits in a narrower type.

    The backward pass overwrites nothing: it keeps the logits and makes their gradient in their own type.
    """

    @staticmethod
    def forward(ctx: Any, logits_NV: Tensor, targets_N: Tensor, label_smoothing: float) -> Tensor:
        ctx.label_smoothing = label_smoothing
        losses, lse = [], []
        for logits, targets in zip(logits_NV.split(_ROWS), targets_N.split(_ROWS), strict=True):
            wide = logits.float()
            lse.append(wide.logsumexp(1))
            right = wide.gather(1, targets[:, None])[:, 0]
            if label_smoothing:
                right = torch.lerp(right, wide.mean(1), label_smoothing)
            losses.append(lse[-1] - right)
        ctx.save_for_backward(logits_NV, targets_N, torch.cat(lse))
        return torch.cat(losses).mean()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        logits_NV, targets_N, lse_N = ctx.saved_tensors
        (N, V), smooth = logits_NV.shape, ctx.label_smoothing
        grad_NV = torch.empty_like(logits_NV)
        chunks = zip(*(x.split(_ROWS) for x in (grad_NV, logits_NV, targets_N, lse_N)), strict=True)
        for made, logits, targets, lse in chunks:
            wide = (logits.float() - lse[:, None]).exp_()
            wide.scatter_add_(1, targets[:, None], wide.new_full((len(targets), 1), smooth - 1))
            made.copy_((wide - smooth / V if smooth else wide).mul_(grad / N))
        return grad_NV, None, None


def token_loss(logits_NV: Tensor, targets_N: Tensor, *, label_smoothing: float) -> Tensor:
    """The mean cross-entropy in float32."""
    if logits_NV.dtype in (torch.float32, torch.float64):
        return F.cross_entropy(logits_NV, targets_N, label_smoothing=label_smoothing)
    loss: Tensor = TokenLoss.apply(logits_NV, targets_N, label_smoothing)
    return loss
