"""The tokenizer's training: VQGAN's losses, one update of the tokenizer and one of its discriminator per batch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from varlab.config import Config
from varlab.losses.adversarial import generator_loss
from varlab.losses.diff_augment import faded
from varlab.losses.perceptual import PerceptualDistance
from varlab.losses.reconstruction import l1, l2
from varlab.losses.regularisers import LeCam
from varlab.metrics.tokenizer_scores import ReconstructionScores
from varlab.processor import hardware_precision
from varlab.rng import Rng
from varlab.tasks.base import Task
from varlab.tasks.distributed import collectives
from varlab.tasks.gan import (
    Draft,
    GanLoss,
    LossWeights,
    discriminate,
    last_layer_gradients,
    measure_lambda,
)
from varlab.tasks.update.code_use import CodebookUse, Revival, average_codes, revive
from varlab.tasks.update.counters import accumulate
from varlab.tasks.update.optimizer import OptimizerFactory, build_optimizer
from varlab.tasks.update.schedule import WarmupDecay
from varlab.tokenizer import VQTokenizer
from varlab.types import Batch, Quantized, VarlabError, full_precision, to_float

TURNS = ("real", "fake", "generator", "real_again", "fake_again")
"""The turns in which the discriminator gets an image: each has its own random draws."""


class TokenizerTask(Task):
    """L = rec + w_vq·vq + λ·w_gan·gan for the tokenizer, hinge or vanilla for the discriminator (VQGAN, eq. 4 to 7).

    discriminator, perceptual: None leaves their losses out. λ and the quantizer are float32.
    disc_schedule: the discriminator's learning rate, from ``gan.start`` to the end of the training (None: the tokenizer's
    schedule). no_decay: names of the tokenizer's parameters without weight decay, or patterns. Raises VarlabError for a
    discriminator whose BatchNorm would see micro-batches.
    """

    model: VQTokenizer

    def __init__(
        self,
        *,
        tokenizer: VQTokenizer,
        discriminator: nn.Module | None,
        perceptual: PerceptualDistance | None,
        weights: LossWeights,
        gan: GanLoss,
        optimizer: OptimizerFactory,
        disc_optimizer: OptimizerFactory,
        schedule: WarmupDecay,
        clip: float | None,
        revival: Revival | None,
        ema_decay: float,
        micro_batch: int | None,
        rng: Rng,
        disc_schedule: WarmupDecay | None = None,
        no_decay: Sequence[str] | None = None,
        weight_decay_end: float | None = None,
    ):
        super().__init__(
            model=tokenizer,
            schedule=schedule,
            clip=clip,
            ema_decay=ema_decay,
            micro_batch=micro_batch,
            rng=rng,
            weight_decay_end=weight_decay_end,
        )
        self.disc_schedule = disc_schedule
        self.discriminator, self.perceptual = discriminator, perceptual
        self.weights, self.gan, self.revival = weights, gan, revival
        self.optims = [build_optimizer(optimizer, tokenizer, no_decay)]
        if discriminator is not None:
            self.optims.append(build_optimizer(disc_optimizer, discriminator))
            if micro_batch is not None and any(map(_mixes_batch, discriminator.modules())):
                raise VarlabError(
                    "The discriminator's BatchNorm (or minibatch deviation) would see micro-batches in place of the batch: "
                    "set discriminator.norm=group (or group=1), or leave trainer.micro_batch empty."
                )
        self.lecam = LeCam(decay=gan.lecam_decay) if gan.lecam > 0 else None
        self.codes = CodebookUse(scales=len(self.model.scales), vocab_size=self.model.vocab_size)
        self.revived = 0  # codes since the last log point
        self.disc_flops_per_image = 0  # of the discriminator's own update; the caller sets it

    def flops_at(self, images: int) -> int:
        """The discriminator counts from its start."""
        judged = max(images - self.gan.start, 0) if self.discriminator is not None and self.gan.weight else 0
        return super().flops_at(images) + judged * self.disc_flops_per_image

    def rates(self) -> list[float]:
        """The discriminator's own schedule begins with its training; before, its rate is 0."""
        rates, start = super().rates(), self.gan.start
        if self.disc_schedule is not None and len(rates) > 1:
            begun = self.images >= start
            rates[1] = self.disc_schedule.factor(self.images - start, self.total_images - start) if begun else 0.0
        return rates

    # -- an update -----------------------------------------------------------------------------------------------------

    def update(self, batch: Batch) -> None:
        """The tokenizer's turn, then (from ``gan.start`` images on) the discriminator's."""
        with hardware_precision(batch.img_u8_B3HW):
            self.model.train()
            if getattr(self.model, "draws", False):
                self.model.anneal(self.images / self.total_images)
            disc = self.discriminator if self.gan.active(self.images) else None
            opponent = disc if self.gan.factor(self.images) > 0 else None  # while it warms up, it learns alone
            drafts, quantized, balance = self._backpropagate(batch.chunks(self.micro_batch), len(batch), opponent)
            values = self._values(drafts, quantized, balance)
            if not self.step(self.optims[0], values, norm_name="train/grad_norm"):
                if disc is not None:
                    self.optims[1].zero_grad(set_to_none=True)
                return
            if disc is not None:
                self._update_discriminator(drafts, disc)
            self.ema.update(self.model)
            self._count(batch, quantized)

    def _backpropagate(
        self, chunks: list[Batch], samples: int, disc: nn.Module | None
    ) -> tuple[list[Draft], list[Quantized], dict[str, Tensor]]:
        """All micro-batches forward and back. λ needs the whole batch: with several, they go forward once more before."""
        adaptive = disc is not None and self.gan.adaptive
        again = adaptive and len(chunks) > 1
        drafts, results, gradients = [], [], []
        balance: dict[str, Tensor] = {}
        for chunk in chunks:
            draft, rec_B3HW, quantized = self._draft(chunk, len(chunk) / samples, disc)
            drafts.append(draft)
            with full_precision(rec_B3HW):
                if adaptive:
                    gradients.append(last_layer_gradients(rec_B3HW, draft, self.model.last_layer))
                if adaptive and not again:
                    balance = measure_lambda(*gradients[0], self.gan)
            if not again:
                results.append(self._backward(draft, rec_B3HW, quantized, balance))
        if again:
            rec, gan = (torch.stack(parts).sum(0) for parts in zip(*gradients, strict=True))
            balance = measure_lambda(rec, gan, self.gan)
            for draft in drafts:
                rec_B3HW, quantized = self._reconstruct(draft.img_B3HW, draft.position_B)
                results.append(self._backward(draft, rec_B3HW, quantized, balance))
        return drafts, results, balance

    def _draft(self, chunk: Batch, share: float, disc: nn.Module | None) -> tuple[Draft, Tensor, Quantized]:
        """A micro-batch forward: its reconstruction with the graph, its losses and their gradients by the image."""
        img_B3HW = to_float(chunk.img_u8_B3HW)
        rec_B3HW, quantized = self._reconstruct(img_B3HW, chunk.position_B)
        leaf_B3HW = rec_B3HW.detach().float().requires_grad_()
        values = {"l1": l1(leaf_B3HW, img_B3HW), "l2": l2(leaf_B3HW, img_B3HW)}
        loss = self.weights.l1 * values["l1"] + self.weights.l2 * values["l2"]
        if self.perceptual is not None:
            values["perceptual"] = self.perceptual(leaf_B3HW, img_B3HW)
            loss = loss + self.weights.perceptual * values["perceptual"]
        values["rec"] = loss
        with full_precision(loss):
            (grad_rec,) = torch.autograd.grad(loss * share, leaf_B3HW)
        grad_gan = None
        if disc is not None:
            disc.train(not self.gan.evaluated)
            values["gan"] = generator_loss(disc(self._augment(leaf_B3HW, chunk.position_B, "generator")))
            with full_precision(loss):
                (grad_gan,) = torch.autograd.grad(values["gan"] * share, leaf_B3HW)
        draft = Draft(
            share=share,
            img_B3HW=img_B3HW,
            rec_B3HW=leaf_B3HW.detach(),
            position_B=chunk.position_B,
            grad_rec_B3HW=grad_rec,
            grad_gan_B3HW=grad_gan,
            values={name: value.detach() for name, value in values.items()},
        )
        return draft, rec_B3HW, quantized

    def _reconstruct(self, img_B3HW: Tensor, position_B: Tensor) -> tuple[Tensor, Quantized]:
        """The tokenizer's output with the graph; what it drops and draws depends on the sample alone."""
        if not getattr(self.model, "draws", False):
            return self.model(img_B3HW)
        return self.model(img_B3HW, self.rng.stream("dropout", position_B))

    def _backward(
        self, draft: Draft, rec_B3HW: Tensor, quantized: Quantized, balance: Mapping[str, Tensor]
    ) -> Quantized:
        """Add a micro-batch's gradients to the tokenizer's parameters; returns ``quantized`` without its graph."""
        grad_B3HW = draft.grad_rec_B3HW
        if draft.grad_gan_B3HW is not None:
            grad_B3HW = grad_B3HW + draft.grad_gan_B3HW * (self._gan_weight() * balance.get("train/lambda", 1.0))
        vq_loss = quantized.vq_loss * (self.weights.vq * draft.share)
        with full_precision(rec_B3HW):
            torch.autograd.backward([rec_B3HW, vq_loss], [grad_B3HW.to(rec_B3HW.dtype), torch.ones_like(vq_loss)])
        return replace(quantized, f_hat_BChw=quantized.f_hat_BChw.detach(), vq_loss=quantized.vq_loss.detach())

    def _update_discriminator(self, drafts: list[Draft], disc: nn.Module) -> None:
        """On the images and on the reconstructions of the tokenizer's update."""
        disc.train()
        updates = self.images // (sum(len(draft.img_B3HW) for draft in drafts) * collectives.world_size())
        penalty = self.gan.penalty(updates)
        values = discriminate(drafts, disc, self.gan, augment=self._augment, lecam=self.lecam, penalty=penalty)
        if self.lecam is not None:
            logits = torch.stack([values["train/logits_real"], values["train/logits_fake"]]).float()
            collectives.average([logits])
            self.lecam.observe(*logits.double())
        self.step(self.optims[1], values, norm_name="train/disc_grad_norm")

    def _gan_weight(self) -> float:
        """The weight of the generator's loss at this point of the training."""
        return self.gan.weight * self.gan.factor(self.images)

    def _augment(self, img_B3HW: Tensor, position_B: Tensor, turn: str) -> Tensor:
        """Images for the discriminator, augmented by draws of their own for each sample and turn."""
        again = turn.endswith("_again")
        augment, left = (self.gan.strong, 0.0) if again else (self.gan.augment, self.gan.blur(self.images))
        if left > 0:
            img_B3HW = faded(img_B3HW, left)
        if augment is None:
            return img_B3HW
        stream = self.rng.stream("augment_disc", position_B, TURNS.index(turn))
        return augment(img_B3HW, stream)

    def _values(
        self, drafts: list[Draft], quantized: list[Quantized], balance: Mapping[str, Tensor]
    ) -> dict[str, Tensor]:
        """This rank's losses, and their weighted sum."""
        parts: dict[str, Tensor] = {}
        for draft, result in zip(drafts, quantized, strict=True):
            accumulate(parts, {**draft.values, "vq": result.vq_loss.float()}, draft.share)
        loss = parts.pop("rec") + self.weights.vq * parts["vq"]
        if "gan" in parts:
            loss = loss + self._gan_weight() * balance.get("train/lambda", 1.0) * parts["gan"]
        return {"train/loss": loss, **{f"train/{name}": value for name, value in parts.items()}, **balance}

    def _count(self, batch: Batch, quantized: list[Quantized]) -> None:
        """Count the codes of this update, and revive unused ones if that is due."""
        self.codes.add(torch.stack([q.counts_KV for q in quantized]).sum(0))
        average_codes(self.model, quantized)
        after = self.images + len(batch) * collectives.world_size()
        if self.revival is not None and self.revival.due(self.images, after, self.total_images):
            self.revived += revive(
                self.model,
                self.codes.take_dead(),
                torch.cat([q.candidates_NC for q in quantized]),
                stream=self.rng.stream("revive", step=after),
                ema=self.ema,
                optimizer=self.optims[0],
            )

    def log_values(self) -> dict[str, float]:
        """Losses, λ and logits, and the use of the codebook since the last log point."""
        health = {f"train/{name}": value for name, value in self.codes.health().items()}
        return {**super().log_values(), **health, "train/revived": float(self.revived)}

    def reset_log(self) -> None:
        """Begin new means and counts."""
        super().reset_log()
        self.codes.reset_health()
        self.revived = 0

    # -- evaluation ----------------------------------------------------------------------------------------------------

    def validator(self) -> ReconstructionScores:
        """Distances of reconstructions and the use of the codebook."""
        distance = None if self.perceptual is None else self.perceptual.distance
        return ReconstructionScores(self.model, extractor=None, perceptual=distance)

    # -- checkpoints ---------------------------------------------------------------------------------------------------

    def helpers(self) -> dict[str, nn.Module]:
        """The discriminator."""
        return {} if self.discriminator is None else {"discriminator": self.discriminator}

    def own_state(self) -> Config:
        """Codebook counts and LeCam's averages."""
        lecam = {} if self.lecam is None else {"lecam": self.lecam.state()}
        return {"codes": self.codes.state(), "revived": self.revived, **lecam}

    def load_own_state(self, state: Config) -> None:
        """Restore ``own_state``."""
        self.codes.load_state(state["codes"])
        self.revived = state["revived"]
        if self.lecam is not None:
            self.lecam.load_state(state["lecam"])


def _mixes_batch(module: nn.Module) -> bool:
    """Whether a sample's logits depend on the other samples of its batch."""
    return isinstance(module, nn.BatchNorm2d) or getattr(module, "mixes_batch", False)
