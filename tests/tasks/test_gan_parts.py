"""The parts of the adversarial game that the published trainers add to VQGAN's."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from tiny_tasks import BATCH, RNG, batch_at, discriminator, gan_loss, gumbel_task, tokenizer, tokenizer_task

from tests.bounds import SAME
from varlab.losses.diff_augment import DiffAugment
from varlab.losses.regularisers import consistency, gradient_penalty
from varlab.tasks import TokenizerTask, WarmupDecay
from varlab.tasks.gan import Draft, discriminate
from varlab.types import to_float

pytestmark = pytest.mark.usefixtures("in_float64")


def draft() -> Draft:
    batch = batch_at(list(range(BATCH)))
    img = to_float(batch.img_u8_B3HW)
    none = torch.zeros_like(img)
    return Draft(share=1.0, img_B3HW=img, rec_B3HW=img.flip(0) * 0.5, position_B=batch.position_B, grad_rec_B3HW=none)


def judged(norm: str = "group", *, penalty: float = 0.0, **changes: Any) -> tuple[dict[str, float], list[torch.Tensor]]:
    """The values and the gradients of a discriminator's turn."""
    disc, gan = discriminator(norm).train(), gan_loss(**changes)

    def augment(img: torch.Tensor, position_B: torch.Tensor, turn: str) -> torch.Tensor:
        chosen = gan.strong if turn.endswith("_again") else gan.augment
        return img if chosen is None else chosen(img, RNG.stream("augment_disc", position_B, len(turn)))

    values = discriminate([draft()], disc, gan, augment=augment, lecam=None, penalty=penalty)
    return {name: float(v) for name, v in values.items()}, [p.grad for p in disc.parameters() if p.grad is not None]


def test_the_discriminators_loss_has_the_factor_that_is_asked_for() -> None:
    """VQGAN: 1/2 of the sum; vaex: the sum."""
    (half, grads), (whole, twice) = judged(), judged(disc_factor=1.0)
    assert whole["train/disc_loss"] == pytest.approx(2 * half["train/disc_loss"])
    for a, b in zip(grads, twice, strict=True):
        torch.testing.assert_close(2 * a, b, rtol=SAME, atol=SAME)
    assert judged(disc_factor=0.25)[0]["train/disc_loss"] == pytest.approx(half["train/disc_loss"] / 2)


def test_one_batch_of_both_changes_batchnorm_alone() -> None:
    assert judged(joint=True)[0] == pytest.approx(judged()[0])
    assert judged("batch", joint=True)[0]["train/disc_loss"] != pytest.approx(judged("batch")[0]["train/disc_loss"])


@pytest.mark.parametrize("strong", [True, False])
def test_balanced_consistency_compares_images_and_reconstructions(strong: bool) -> None:
    """With the plain images, or with a second augmentation of its own draws (vaex)."""
    weak = DiffAugment(policies=["color"], rate=1.0)
    hard = DiffAugment(policies=["color", "cutout"], rate=1.0) if strong else None
    values, _ = judged(augment=weak, strong=hard, bcr=4.0)
    disc, d = discriminator().train(), draft()

    def logits(img: torch.Tensor, chosen: DiffAugment | None, turn: str) -> torch.Tensor:
        return disc(img if chosen is None else chosen(img, RNG.stream("augment_disc", d.position_B, len(turn))))

    terms = [
        consistency(logits(img, hard, f"{turn}_again"), logits(img, weak, turn))
        for img, turn in ((d.img_B3HW, "real"), (d.rec_B3HW, "fake"))
    ]
    assert values["train/bcr"] == pytest.approx(float(sum(terms)))


def test_the_gradient_penalty_is_added_every_so_many_updates() -> None:
    gan = gan_loss(r1=10.0, r1_every=4)
    assert [gan.penalty(n) for n in range(5)] == [20.0, 0.0, 0.0, 0.0, 20.0]
    assert gan_loss().penalty(0) == 0.0
    values, grads = judged(penalty=20.0)
    _, plain = judged()
    disc = discriminator().train()
    penalty = gradient_penalty(disc, draft().img_B3HW)
    assert values["train/r1"] == pytest.approx(float(penalty))
    wanted = torch.autograd.grad(20 * penalty, list(disc.parameters()), allow_unused=True)
    for a, b, c in zip(grads, plain, wanted, strict=True):
        torch.testing.assert_close(a, b if c is None else b + c, rtol=SAME, atol=SAME)


def test_a_discriminators_own_schedule_begins_with_it() -> None:
    """At a cosine from its start (16) to the end (96): before, its rate is 0."""
    own = WarmupDecay(warmup=8, start=0.5, shape="cosine", end=0.2)
    task = tokenizer_task(disc_schedule=own)
    task.total_images = 96
    for images, factor in ((0, 0.0), (15, 0.0), (16, 0.5), (24, 1.0), (60, 0.6), (96, 0.2)):
        task.images = images
        assert task.rates() == [task.schedule.factor(images, 96), pytest.approx(factor)]
    assert tokenizer_task().rates()[0] == tokenizer_task().rates()[1]


def test_a_blur_is_left_at_the_start_and_gone_after_its_images() -> None:
    gan = gan_loss(start=100, fade=40)
    assert [gan.blur(n) for n in (100, 110, 140, 999)] == [1.0, 0.75, 0.0, 0.0] and gan_loss().blur(16) == 0.0
    task = tokenizer_task(gan=gan_loss(start=0, fade=16, bcr=1.0, augment=DiffAugment(policies=[], rate=1.0)))
    img, ids = draft().img_B3HW, draft().position_B
    seen = [(setattr(task, "images", n), task._augment(img, ids, "real"))[1] for n in (0, 8, 16)]
    assert seen[0].std() < seen[1].std() < seen[2].std() and torch.equal(seen[2], img)


def test_a_generator_is_judged_in_evaluation_mode() -> None:
    """Then its turn moves no running average."""

    def turn(evaluated: bool | None) -> tuple[TokenizerTask, torch.Tensor]:
        task = tokenizer_task(discriminator=discriminator("batch"), gan=gan_loss(start=0, evaluated=evaluated))
        norm = next(m for m in task.discriminator.modules() if isinstance(m, torch.nn.BatchNorm2d))
        task._draft(batch_at(list(range(BATCH))), 1.0, task.discriminator)
        return task, norm.running_mean

    assert not bool(turn(True)[1].any()) and bool(turn(None)[1].any())
    task, _ = turn(True)
    task.total_images = 80
    task.training_step(batch_at(list(range(BATCH))), 0)
    assert task.discriminator.training


def test_codes_that_are_averages_move_with_their_vectors_alone() -> None:
    """One update: the average of the vectors of all micro-batches; the optimizer does not know the codes."""
    task = tokenizer_task(tokenizer=averaging(), revival=None, discriminator=None)
    parts = tokenizer_task(tokenizer=averaging(), revival=None, discriminator=None, micro_batch=3)
    before = copy.deepcopy(task.model.quantizer.codebook)
    for one in (task, parts):
        one.total_images = 80
        one.training_step(batch_at(list(range(BATCH))), 0)
    codebook = task.model.quantizer.codebook
    _, quantized = averaging()(to_float(batch_at(list(range(BATCH))).img_u8_B3HW))
    idx = torch.cat(quantized.maps, 1).flatten()
    sums = torch.zeros_like(before.weight).index_add(0, idx, quantized.candidates_NC)
    before.average(idx.bincount(minlength=16).double(), sums)
    torch.testing.assert_close(codebook.weight, before.weight, rtol=SAME, atol=SAME)
    torch.testing.assert_close(parts.model.quantizer.codebook.weight, before.weight, rtol=SAME, atol=SAME)
    assert not any(codebook.weight is p for group in task.optims[0].param_groups for p in group["params"])


def averaging() -> Any:
    return tokenizer(ema=0.9)


def dropping_task(**changes: Any) -> TokenizerTask:
    return tokenizer_task(tokenizer=tokenizer(dropout=0.3), revival=None, **changes)


@pytest.mark.parametrize("make", [dropping_task, gumbel_task])
def test_what_is_drawn_is_the_same_in_any_micro_batch(make: Callable[..., TokenizerTask]) -> None:
    whole, parts = (make(micro_batch=size, gan=gan_loss(start=0)) for size in (None, 3))
    for task in (whole, parts):
        task.total_images = 80
        task.training_step(batch_at(list(range(BATCH))), 0)
    assert parts.log_values() == pytest.approx(whole.log_values(), rel=1e-6, abs=1e-9)


def test_the_temperature_of_drawn_codes_follows_the_clock() -> None:
    task = gumbel_task()
    task.total_images, task.images = 80, 40
    task.training_step(batch_at(list(range(BATCH))), 0)
    assert task.model.quantizer.temperature == pytest.approx(0.55)
