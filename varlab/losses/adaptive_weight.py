"""The adaptive weight of the adversarial loss: VQGAN (Esser et al. 2021), eq. 7."""

from __future__ import annotations

from torch import Tensor


def adaptive_weight(grad_rec: Tensor, grad_gan: Tensor, *, delta: float, clamp_min: float, clamp_max: float) -> Tensor:
    """lambda = |grad_rec| / (|grad_gan| + delta), clamped: a detached float32 scalar.

    grad_rec, grad_gan: gradients of the reconstruction loss (perceptual included) and of the generator's loss by the
    weight of the decoder's last convolution, over the whole global batch. delta: 1e-6 in the paper, 1e-4 in the
    official code.
    """
    norm_rec, norm_gan = grad_rec.detach().float().norm(), grad_gan.detach().float().norm()
    return (norm_rec / (norm_gan + delta)).clamp(clamp_min, clamp_max)


def discriminator_factor(images: int, start: int) -> float:
    """0 until ``start`` images were seen, then 1. Before, neither player trains and lambda is not needed."""
    return float(images >= start)
