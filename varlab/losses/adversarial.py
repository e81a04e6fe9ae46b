"""The adversarial losses of VQGAN, hinge and vanilla, in float32 even under autocast."""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import relu, softplus

from varlab.errors import VarlabError


def discriminator_loss(kind: str, real: Tensor, fake: Tensor) -> Tensor:
    """The discriminator's loss, a scalar, from its logits (any shape) on real images and on reconstructions.

    kind: hinge, 1/2 (E max(0, 1 - real) + E max(0, 1 + fake)) (Lim & Ye 2017, "Geometric GAN", eq. 16), or vanilla,
    1/2 (E softplus(-real) + E softplus(fake)) (Goodfellow et al. 2014, eq. 1). Raises VarlabError for another kind.
    """
    real, fake = real.float(), fake.float()
    if kind == "hinge":
        return 0.5 * (relu(1 - real).mean() + relu(1 + fake).mean())
    if kind == "vanilla":
        return 0.5 * (softplus(-real).mean() + softplus(fake).mean())
    raise VarlabError(f"loss.gan.kind is {kind!r}: use hinge or vanilla.")


def generator_loss(fake: Tensor) -> Tensor:
    """The tokenizer's loss, -E fake, for both kinds, as in VQGAN."""
    return -fake.float().mean()
