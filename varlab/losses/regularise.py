"""What keeps a discriminator from overfitting: balanced consistency and LeCam."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor


def consistency(plain: Tensor, augmented: Tensor) -> Tensor:
    """Balanced consistency (bCR, Zhao et al. 2021, eq. 2), one of its two terms: mean squared difference of the logits."""
    return (plain.float() - augmented.float()).square().mean()


class LeCam:
    """LeCam regularisation (Tseng et al. 2021, eq. 4): real logits are held to the average fake one, and the reverse.

    E max(0, D(x) - a_fake)² + E max(0, a_real - D(G))², with averages of the logits so far. decay: of the averages.
    """

    def __init__(self, *, decay: float):
        self.decay = decay
        self.real = self.fake = 0.0
        self.begun = False

    def observe(self, real: float, fake: float) -> None:
        """The mean logits of an update, equal on all ranks."""
        decay = self.decay if self.begun else 0.0
        self.real = decay * self.real + (1 - decay) * real
        self.fake = decay * self.fake + (1 - decay) * fake
        self.begun = True

    def __call__(self, real: Tensor, fake: Tensor) -> Tensor:
        """The penalty: a scalar, 0 before anything was observed."""
        if not self.begun:
            return real.new_zeros(())
        over = torch.relu(real.float() - self.fake).square().mean()
        return over + torch.relu(self.real - fake.float()).square().mean()

    def state(self) -> dict[str, float | bool]:
        """For a checkpoint."""
        return {"real": self.real, "fake": self.fake, "begun": self.begun}

    def load_state(self, state: Mapping[str, float | bool]) -> None:
        """Take up where ``state`` left off."""
        self.real, self.fake, self.begun = float(state["real"]), float(state["fake"]), bool(state["begun"])
