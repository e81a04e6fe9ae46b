"""The adversarial part of a tokenizer's update: the adaptive λ and the discriminator's losses.

The graph is cut at the reconstruction. The losses give gradients with respect to the reconstruction; the backward pass through
the tokenizer needs only these, and so does λ (through the last layer). So the discriminator and the perceptual network run
once, and with several micro-batches λ is known before any backward pass.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from varlab.losses.adaptive_weight import adaptive_weight, discriminator_factor
from varlab.losses.adversarial import discriminator_loss
from varlab.losses.diff_augment import DiffAugment
from varlab.losses.regularisers import LeCam, consistency
from varlab.tasks.distributed import collectives
from varlab.tasks.update.counters import accumulate
from varlab.types import VarlabError, full_precision

Augment = Callable[[Tensor, Tensor, str], Tensor]
"""(img_B3HW, position_B, turn) → img_B3HW that the discriminator gets."""


@dataclass(frozen=True, kw_only=True)
class LossWeights:
    """Weights of the losses other than the adversarial one: pixels (l1, l2), perceptual distance, vector quantization."""

    l1: float
    l2: float
    perceptual: float
    vq: float


@dataclass(frozen=True, kw_only=True)
class GanLoss:
    """The adversarial loss: VQGAN (Esser et al. 2021), eq. 5 to 7.

    kind: hinge or vanilla. weight: of the generator's loss, times λ if adaptive. start: images before the game begins.
    delta, clamp (lowest, highest): of λ. warmup: images from ``start`` on during which only the discriminator learns; ramp:
    images over which the generator's weight then grows to its full size. augment: of all images that the discriminator gets.
    bcr, lecam: weights of balanced consistency (which needs ``augment``) and of LeCam; lecam_decay: of LeCam's averages.
    """

    kind: str
    weight: float
    start: int
    adaptive: bool
    delta: float
    clamp: Sequence[float]
    warmup: int = 0
    ramp: int = 0
    augment: DiffAugment | None = None
    bcr: float = 0.0
    lecam: float = 0.0
    lecam_decay: float = 0.99

    def __post_init__(self) -> None:
        if self.bcr > 0 and self.augment is None:
            raise VarlabError(f"loss.gan.bcr={self.bcr} compares images with augmented ones: give loss.gan.augment.")

    def factor(self, images: int) -> float:
        """The factor of the generator's weight: 0 until the discriminator is warm, 1 after the ramp."""
        done = images - self.start - self.warmup
        if not self.active(images) or done < 0:
            return 0.0
        return min((done + 1) / self.ramp, 1.0) if self.ramp else 1.0

    @property
    def passes(self) -> int:
        """Forward and backward passes of the discriminator per image in its own update, the reconstruction's included."""
        return 4 if self.bcr > 0 else 2

    def active(self, images: int) -> bool:
        """Whether the factor is not 0 at this point of the training."""
        return self.weight != 0 and discriminator_factor(images, self.start) != 0


@dataclass(kw_only=True)
class Draft:
    """A micro-batch between the tokenizer's forward and backward pass; its gradients are scaled by its share of the batch."""

    share: float  # of the rank's samples
    img_B3HW: Tensor
    rec_B3HW: Tensor  # float32, detached
    position_B: Tensor
    grad_rec_B3HW: Tensor  # of the weighted pixel and perceptual losses
    grad_gan_B3HW: Tensor | None = None  # of the generator's loss, not weighted
    values: dict[str, Tensor] = field(default_factory=dict)  # its losses, detached


def last_layer_gradients(rec_B3HW: Tensor, draft: Draft, last_layer: Tensor) -> tuple[Tensor, Tensor]:
    """The last layer's gradients of a draft's reconstruction and generator losses. Keeps the graph."""
    assert draft.grad_gan_B3HW is not None
    rec, gan = (
        torch.autograd.grad(rec_B3HW, last_layer, grad.to(rec_B3HW.dtype), retain_graph=True)[0].float()
        for grad in (draft.grad_rec_B3HW, draft.grad_gan_B3HW)
    )
    return rec, gan


def measure_lambda(grad_rec: Tensor, grad_gan: Tensor, gan: GanLoss) -> dict[str, Tensor]:
    """λ and both norms from the last layer's gradients over this rank's samples (summed over its micro-batches)."""
    collectives.average([grad_rec, grad_gan])
    low, high = gan.clamp
    weight = adaptive_weight(grad_rec, grad_gan, delta=gan.delta, clamp_min=low, clamp_max=high)
    return {"train/lambda": weight, "train/grad_rec": grad_rec.norm(), "train/grad_gan": grad_gan.norm()}


def discriminate(
    drafts: Sequence[Draft], discriminator: nn.Module, gan: GanLoss, *, augment: Augment, lecam: LeCam | None
) -> dict[str, Tensor]:
    """The discriminator's losses on images and detached reconstructions; leaves gradients in its parameters."""
    values: dict[str, Tensor] = {}
    for draft in drafts:
        real = discriminator(augment(draft.img_B3HW, draft.position_B, "real"))
        fake = discriminator(augment(draft.rec_B3HW, draft.position_B, "fake"))
        loss = discriminator_loss(gan.kind, real, fake)
        parts = {"disc_loss": loss, "logits_real": real.float().mean(), "logits_fake": fake.float().mean()}
        if gan.bcr > 0:
            parts["bcr"] = consistency(discriminator(draft.img_B3HW), real)
            parts["bcr"] = parts["bcr"] + consistency(discriminator(draft.rec_B3HW), fake)
            loss = loss + gan.bcr * parts["bcr"]
        if lecam is not None:
            parts["lecam"] = lecam(real, fake)
            loss = loss + gan.lecam * parts["lecam"]
        with full_precision(loss):
            (loss * draft.share).backward()
        accumulate(values, {f"train/{name}": part.detach() for name, part in parts.items()}, draft.share)
    return values
