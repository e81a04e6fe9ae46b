"""Regularisers against overfitting of a discriminator: balanced consistency, LeCam and R1."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from varlab.types import full_precision


def consistency(plain: Tensor, augmented: Tensor) -> Tensor:
    """One term of balanced consistency (bCR, Zhao et al. 2021, eq. 2): mean squared difference of the logits."""
    return (plain.float() - augmented.float()).square().mean()


def gradient_penalty(judge: Callable[[Tensor], Tensor], img_B3HW: Tensor) -> Tensor:
    """E |∇ D(x)|² over real images (R1, Mescheder et al. 2018, eq. 9), a scalar in float32 with a graph for its own gradient.

    judge: images → logits, of which each sample's sum is differentiated.
    """
    with full_precision(img_B3HW), sdpa_kernel(SDPBackend.MATH):  # the other kernels cannot be differentiated twice
        img_B3HW = img_B3HW.detach().requires_grad_()
        (grad_B3HW,) = torch.autograd.grad(judge(img_B3HW).sum(), img_B3HW, create_graph=True)
        return grad_B3HW.square().sum((1, 2, 3)).mean()


class LeCam:
    """LeCam regularisation (Tseng et al. 2021): pulls real logits towards the average fake one, and fake to real.

    E max(0, D(x) - a_fake)² + E max(0, a_real - D(G))², with moving averages of the logits. This is the form of the authors'
    code; the paper's eq. 4 has no maximum. decay: of the averages.
    """

    def __init__(self, *, decay: float):
        self.decay = decay
        self.real = self.fake = torch.zeros((), dtype=torch.float64)
        self.begun = False

    def observe(self, real: Tensor, fake: Tensor) -> None:
        """Update the averages with the mean logits (float64) of an update, which are equal on all ranks."""
        decay = self.decay if self.begun else 0.0
        self.real = decay * self.real.to(real.device) + (1 - decay) * real
        self.fake = decay * self.fake.to(fake.device) + (1 - decay) * fake
        self.begun = True

    def __call__(self, real: Tensor, fake: Tensor) -> Tensor:
        """The penalty, a scalar; 0 before the first ``observe``."""
        if not self.begun:
            return real.new_zeros(())
        over = torch.relu(real.float() - self.fake).square().mean()
        return over + torch.relu(self.real - fake.float()).square().mean()

    def state(self) -> dict[str, float | bool]:
        """The averages, for a checkpoint."""
        return {"real": float(self.real), "fake": float(self.fake), "begun": self.begun}

    def load_state(self, state: Mapping[str, float | bool]) -> None:
        """Restore the averages from ``state``."""
        self.real, self.fake = (torch.tensor(state[name], dtype=torch.float64) for name in ("real", "fake"))
        self.begun = bool(state["begun"])
