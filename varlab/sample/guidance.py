"""Classifier-free guidance (Ho & Salimans 2022) as VAR writes it: (1 + t)·conditional - t·unconditional."""

from __future__ import annotations

from torch import Tensor


def constant(strength: float, progress: float) -> float:
    """t = strength at every step."""
    return strength


def linear(strength: float, progress: float) -> float:
    """VAR's ramp: t = strength·k/(K-1), from 0 at the first step to ``strength`` at the last."""
    return strength * progress


def guide(x_2B: Tensor, t: float) -> Tensor:
    """Combine the conditional half (first) and the unconditional half (second) of logits, or of what the head makes them of."""
    cond, uncond = x_2B.chunk(2)
    return ((1 + t) * cond).sub_(t * uncond)
