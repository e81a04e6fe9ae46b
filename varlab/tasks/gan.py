"""The adversarial part of a tokenizer's update: the adaptive λ and the discriminator's losses.

The graph is cut at the reconstruction. The losses give gradients with respect to the reconstruction; the backward pass through
the tokenizer needs only these, and so does λ (through the last layer). So the discriminator and the perceptual network run
once, and with several micro-batches λ is known before any backward pass.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor, nn

from varlab.losses.adaptive_weight import adaptive_weight, discriminator_factor
from varlab.losses.adversarial import discriminator_loss
from varlab.losses.diff_augment import DiffAugment
from varlab.losses.regularisers import LeCam, consistency, gradient_penalty
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

    The others are as in VQGAN where they are None. disc_factor: of the sum of both terms of the discriminator's loss (None:
    1/2). joint: whether images and reconstructions go through the discriminator as one batch. evaluated: whether it judges in
    evaluation mode in the generator's turn. fade: images from ``start`` on over which a blur of what ``augment`` gets fades
    out. strong: a second augmentation, with which balanced consistency compares the first (without it, the plain images).
    r1: weight γ of γ/2·E|∇D|² on images, added every ``r1_every`` updates, that many times as large.
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
    disc_factor: float | None = None
    joint: bool | None = None
    evaluated: bool | None = None
    fade: int | None = None
    strong: DiffAugment | None = None
    r1: float | None = None
    r1_every: int | None = None

    def __post_init__(self) -> None:
        if self.bcr > 0 and self.augment is None:
            raise VarlabError(f"loss.gan.bcr={self.bcr} compares images with augmented ones: give loss.gan.augment.")

    def factor(self, images: int) -> float:
        """The factor of the generator's weight: 0 until the discriminator is warm, 1 after the ramp."""
        done = images - self.start - self.warmup
        if not self.active(images) or done < 0:
            return 0.0
        return min((done + 1) / self.ramp, 1.0) if self.ramp else 1.0

    def blur(self, images: int) -> float:
        """The share of the blur that is left, in [0, 1]."""
        return max(1 - (images - self.start) / self.fade, 0.0) if self.fade else 0.0

    def penalty(self, updates: int) -> float:
        """The factor of R1's E|∇D|² in the discriminator's update that follows so many; 0 where it is left out."""
        every = self.r1_every or 1
        return self.r1 / 2 * every if self.r1 and updates % every == 0 else 0.0

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
    drafts: Sequence[Draft],
    discriminator: nn.Module,
    gan: GanLoss,
    *,
    augment: Augment,
    lecam: LeCam | None,
    penalty: float = 0.0,
) -> dict[str, Tensor]:
    """The discriminator's losses on images and detached reconstructions; leaves gradients in its parameters.

    penalty: the factor of R1 in this update.
    """
    values: dict[str, Tensor] = {}
    for draft in drafts:
        real, fake = _judged(draft, discriminator, gan, augment, ("real", "fake"))
        loss = discriminator_loss(gan.kind, real, fake)
        loss = loss if gan.disc_factor is None else 2 * gan.disc_factor * loss
        parts = {"disc_loss": loss, "logits_real": real.float().mean(), "logits_fake": fake.float().mean()}
        if gan.bcr > 0:
            again = ("real_again", "fake_again") if gan.strong is not None else ("", "")
            other_real, other_fake = _judged(draft, discriminator, gan, augment, again)
            parts["bcr"] = consistency(other_real, real)
            parts["bcr"] = parts["bcr"] + consistency(other_fake, fake)
            loss = loss + gan.bcr * parts["bcr"]
        if lecam is not None:
            parts["lecam"] = lecam(real, fake)
            loss = loss + gan.lecam * parts["lecam"]
        if penalty:
            judge = partial(_augmented, discriminator, augment, draft.position_B)
            parts["r1"] = gradient_penalty(judge, draft.img_B3HW)
            loss = loss + penalty * parts["r1"]
        with full_precision(loss):
            (loss * draft.share).backward()
        accumulate(values, {f"train/{name}": part.detach() for name, part in parts.items()}, draft.share)
    return values


def _augmented(discriminator: nn.Module, augment: Augment, position_B: Tensor, img_B3HW: Tensor) -> Tensor:
    """Logits of images as in the turn of the real ones."""
    logits: Tensor = discriminator(augment(img_B3HW, position_B, "real"))
    return logits


def _judged(
    draft: Draft, discriminator: nn.Module, gan: GanLoss, augment: Augment, turns: tuple[str, str]
) -> tuple[Tensor, Tensor]:
    """Logits of the images and of the reconstructions, augmented as in these turns; plain in the turn ""."""
    pair = [
        augment(img, draft.position_B, turn) if turn else img
        for img, turn in zip((draft.img_B3HW, draft.rec_B3HW), turns, strict=True)
    ]
    if gan.joint:
        real, fake = discriminator(torch.cat(pair)).chunk(2)
        return real, fake
    return discriminator(pair[0]), discriminator(pair[1])
