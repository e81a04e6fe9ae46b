"""One update of a VQGAN-style tokenizer in pieces: losses of the image alone, the adaptive λ, the discriminator's turn.

The graph is cut at the reconstruction. Losses of the image give gradients by the image; these are all that the backward
pass through the tokenizer needs, and (through the last layer) all that λ needs. So the discriminator and the perceptual
net are walked once, and with several micro-batches λ is known before any of them goes back.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from varlab.losses.adaptive_weight import adaptive_weight, discriminator_factor
from varlab.losses.adversarial import discriminator_loss, generator_loss
from varlab.losses.diff_augment import DiffAugment
from varlab.losses.reconstruction import l1, l2
from varlab.losses.regularisers import LeCam, consistency
from varlab.tasks.distributed import collectives
from varlab.types import VarlabError

See = Callable[[Tensor, Tensor, str], Tensor]
"""(img_B3HW, position_B, whose turn) → img_B3HW as the discriminator sees it."""


@dataclass(frozen=True, kw_only=True)
class LossWeights:
    """Weights of all losses but the adversarial: pixels (l1, l2), perceptual distance, vector quantization."""

    l1: float
    l2: float
    perceptual: float
    vq: float


@dataclass(frozen=True, kw_only=True)
class GanLoss:
    """The adversarial loss: VQGAN (Esser et al. 2021), eq. 5 to 7.

    kind: hinge or vanilla. weight: of the generator's loss, times λ where adaptive. start: images before it begins.
    delta, clamp (lowest, highest): of λ. warmup: images from ``start`` on for which the discriminator learns alone; ramp:
    images over which the generator's weight then grows to its full size. augment: of all that the discriminator sees.
    bcr, lecam: weights of balanced consistency (which needs ``augment``) and of LeCam, with the decay of its averages.
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
        """Of the generator's weight: 0 until the discriminator is warm, 1 after the ramp."""
        done = images - self.start - self.warmup
        if not self.active(images) or done < 0:
            return 0.0
        return min((done + 1) / self.ramp, 1.0) if self.ramp else 1.0

    @property
    def passes(self) -> int:
        """Of the discriminator's update: forward and backward passes per image, the reconstruction's included."""
        return 4 if self.bcr > 0 else 2

    def active(self, images: int) -> bool:
        """Whether the factor is not 0 at this point of the training."""
        return self.weight != 0 and discriminator_factor(images, self.start) != 0


@dataclass(kw_only=True)
class Draft:
    """A micro-batch between the tokenizer's forward and backward pass; its gradients count its share of the batch."""

    share: float  # of the rank's samples
    img_B3HW: Tensor
    rec_B3HW: Tensor  # float32, detached
    position_B: Tensor
    grad_rec_B3HW: Tensor  # of the weighted pixel and perceptual losses
    grad_gan_B3HW: Tensor | None = None  # of the generator's loss, not weighted
    values: dict[str, Tensor] = field(default_factory=dict)  # its losses, detached


def draft_losses(
    img_B3HW: Tensor,
    rec_B3HW: Tensor,
    *,
    share: float,
    weights: LossWeights,
    perceptual: nn.Module | None,
    discriminator: nn.Module | None,
    position_B: Tensor,
    see: See,
    plain: Callable,
) -> Draft:
    """The losses of a reconstruction and their gradients by it. plain: a context without autocast, to go back in.

    see: how the discriminator sees images (augmented, or as they are).
    """
    leaf_B3HW = rec_B3HW.detach().float().requires_grad_()
    values = {"l1": l1(leaf_B3HW, img_B3HW), "l2": l2(leaf_B3HW, img_B3HW)}
    loss = weights.l1 * values["l1"] + weights.l2 * values["l2"]
    if perceptual is not None:
        values["perceptual"] = perceptual(leaf_B3HW, img_B3HW)
        loss = loss + weights.perceptual * values["perceptual"]
    values["rec"] = loss
    with plain():
        (grad_rec,) = torch.autograd.grad(loss * share, leaf_B3HW)
    grad_gan = None
    if discriminator is not None:
        values["gan"] = generator_loss(discriminator(see(leaf_B3HW, position_B, "generator")))
        with plain():
            (grad_gan,) = torch.autograd.grad(values["gan"] * share, leaf_B3HW)
    return Draft(
        share=share,
        img_B3HW=img_B3HW,
        rec_B3HW=leaf_B3HW.detach(),
        position_B=position_B,
        grad_rec_B3HW=grad_rec,
        grad_gan_B3HW=grad_gan,
        values={name: value.detach() for name, value in values.items()},
    )


def last_layer_gradients(rec_B3HW: Tensor, draft: Draft, last_layer: nn.Parameter) -> tuple[Tensor, Tensor]:
    """What a draft adds to the last layer's gradients of the reconstruction and generator losses. Keeps the graph."""
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
    drafts: Sequence[Draft], discriminator: nn.Module, gan: GanLoss, *, see: See, lecam: LeCam | None, plain: Callable
) -> dict[str, Tensor]:
    """The discriminator's losses on images and detached reconstructions; gradients are left in its parameters."""
    values: dict[str, Tensor] = {}
    for draft in drafts:
        real = discriminator(see(draft.img_B3HW, draft.position_B, "real"))
        fake = discriminator(see(draft.rec_B3HW, draft.position_B, "fake"))
        loss = discriminator_loss(gan.kind, real, fake)
        parts = {"disc_loss": loss, "logits_real": real.float().mean(), "logits_fake": fake.float().mean()}
        if gan.bcr > 0:
            parts["bcr"] = consistency(discriminator(draft.img_B3HW), real)
            parts["bcr"] = parts["bcr"] + consistency(discriminator(draft.rec_B3HW), fake)
            loss = loss + gan.bcr * parts["bcr"]
        if lecam is not None:
            parts["lecam"] = lecam(real, fake)
            loss = loss + gan.lecam * parts["lecam"]
        with plain():
            (loss * draft.share).backward()
        accumulate(values, {f"train/{name}": part.detach() for name, part in parts.items()}, draft.share)
    return values


def accumulate(total: dict[str, Tensor], values: dict[str, Tensor], share: float) -> None:
    """Add a micro-batch's means to those of the batch."""
    for name, value in values.items():
        total[name] = total[name] + value * share if name in total else value * share
