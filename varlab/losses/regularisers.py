"""Regularisers against overfitting of a discriminator: balanced consistency and LeCam."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor


def consistency(plain: Tensor, augmented: Tensor) -> Tensor:
    """One term of balanced consistency (bCR, Zhao et al. 2021, eq. 2): mean squared difference of the logits."""
    return (plain.float() - augmented.float()).square().mean()


class LeCam:
    """LeCam regularisation (Tseng et al. 2021, eq. 4): pulls real logits towards the average fake one, and fake to real.

    E max(0, D(x) - a_fake)² + E max(0, a_real - D(G))², with moving averages of the logits. decay: of the averages.
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
