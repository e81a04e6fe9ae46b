"""One update: accumulation equals the big batch, λ is the formula, and what is not finite changes nothing."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from tiny_tasks import (
    BATCH,
    CLASSES,
    Data,
    batch_at,
    classifier_task,
    discriminator,
    gan_loss,
    generator_task,
    held_back_task,
    random_order_task,
    same_state,
    tokenizer_task,
    train,
)
from torch import nn

from tests.bounds import SAME
from varlab.checkpoint import load_checkpoint
from varlab.losses.adversarial import generator_loss
from varlab.tasks import Task
from varlab.tasks.likelihood import pack
from varlab.tasks.update.code_use import CodebookUse
from varlab.types import VarlabError, to_float

pytestmark = [pytest.mark.numeric, pytest.mark.usefixtures("in_float64")]


def _updates(task: Task, count: int, *, start: int = 0) -> Task:
    task.total_images, task.images = 80, start
    for _ in range(count):
        first = task.images
        task.training_step(batch_at(list(range(first, first + BATCH))), 0)
    return task


def _plain(task: Task) -> Task:
    """With SGD, whose step shows the gradient itself and does not blow up rounding where it is tiny, as Adam's does."""
    modules = [task.model, *task.helpers().values()]
    task.optims = [torch.optim.SGD(m.parameters(), lr=0.1) for m in modules]
    for optimizer in task.optims:
        for group in optimizer.param_groups:
            group["initial_lr"] = group["lr"]
    return task


@pytest.mark.parametrize("micro_batch", [1, 3, 4])
@pytest.mark.parametrize("make", [classifier_task, generator_task, random_order_task, tokenizer_task, held_back_task])
def test_accumulation_equals_the_big_batch(make: Any, micro_batch: int) -> None:
    changes: dict[str, Any] = {"clip": None}
    if make in (tokenizer_task, held_back_task):
        changes["revival"] = None  # draws from a list of candidates whose order is that of the micro-batches
    whole = _updates(_plain(make(**changes)), 2, start=16)  # the tokenizer's discriminator plays from 16 images on
    parts = _updates(_plain(make(**changes, micro_batch=micro_batch)), 2, start=16)
    for a, b in zip([whole.model, *whole.helpers().values()], [parts.model, *parts.helpers().values()], strict=True):
        for (name, x), y in zip(a.named_parameters(), b.parameters(), strict=True):
            torch.testing.assert_close(x, y, atol=SAME, rtol=SAME, msg=name)
    logged, expected = parts.log_values(), whole.log_values()
    assert logged == pytest.approx(expected, rel=SAME, abs=SAME)


def test_lambda_and_gradients_are_those_of_the_full_formula() -> None:
    task = _plain(tokenizer_task(clip=None, revival=None))
    task.images = task.gan.start
    task.total_images = 80
    reference, disc = copy.deepcopy(task.model), copy.deepcopy(task.discriminator)
    batch = batch_at(list(range(16, 24)))
    img = to_float(batch.img_u8_B3HW)
    rec, quantized = reference(img)
    pixel = F.l1_loss(rec, img) + 0.5 * F.mse_loss(rec, img)
    gan = generator_loss(disc(rec))
    norm_rec, norm_gan = (
        torch.autograd.grad(loss, reference.last_layer, retain_graph=True)[0].norm() for loss in (pixel, gan)
    )
    weight = norm_rec / (norm_gan + 1e-4)
    total = pixel + quantized.vq_loss + 0.8 * weight.detach() * gan
    total.backward()
    task.training_step(batch, 0)
    factor = task.optims[0].param_groups[0]["lr"]
    moved = dict(task.model.named_parameters())
    for name, parameter in reference.named_parameters():
        if parameter.grad is not None:
            torch.testing.assert_close(moved[name], parameter - factor * parameter.grad, atol=SAME, rtol=SAME)
    values = task.log_values()
    assert values["train/lambda"] == pytest.approx(weight.item(), rel=SAME)
    assert values["train/grad_rec"] == pytest.approx(norm_rec.item(), rel=SAME)
    assert values["train/grad_gan"] == pytest.approx(norm_gan.item(), rel=SAME)
    assert values["train/loss"] == pytest.approx(total.item(), rel=SAME)


def test_lambda_is_clamped_and_can_be_left_out() -> None:
    clamped = _updates(tokenizer_task(gan=gan_loss(start=0, clamp=(0.0, 1e-3))), 1).log_values()
    assert clamped["train/lambda"] == pytest.approx(1e-3)
    fixed = _updates(tokenizer_task(gan=gan_loss(start=0, adaptive=False)), 1).log_values()
    assert "train/lambda" not in fixed
    parts = (fixed["train/l1"], 0.5 * fixed["train/l2"], fixed["train/vq"], 0.8 * fixed["train/gan"])
    assert fixed["train/loss"] == pytest.approx(sum(parts), rel=SAME)


def test_the_discriminator_rests_before_its_start() -> None:
    class Counting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net, self.calls = discriminator(), 0

        def forward(self, img: torch.Tensor) -> torch.Tensor:
            self.calls += 1
            return self.net(img)

    counting = Counting()
    task = tokenizer_task(discriminator=counting)
    initial = {k: v.clone() for k, v in counting.state_dict().items()}
    _updates(task, 2)
    assert counting.calls == 0 and same_state(initial, counting.state_dict())
    _updates(task, 1, start=16)
    assert counting.calls == 3 and not same_state(initial, counting.state_dict())


def test_batchnorm_and_micro_batches_do_not_go_together() -> None:
    with pytest.raises(VarlabError, match="norm=group"):
        tokenizer_task(discriminator=discriminator("batch"), micro_batch=2)


def test_perceptual_distance_enters_with_its_weight() -> None:
    class Distance(nn.Module):
        def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
            return self.distance(x, y).mean()

        def distance(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
            return (x.mean((2, 3)) - y.mean((2, 3))).square().sum(1)

    task = _updates(tokenizer_task(perceptual=Distance()), 1)
    values = task.log_values()
    parts = (values["train/l1"], 0.5 * values["train/l2"], values["train/perceptual"], values["train/vq"])
    assert values["train/loss"] == pytest.approx(sum(parts), rel=SAME)
    assert task.validate(Data().eval_loader("val", 0, 1))["val/perceptual"] > 0


@pytest.mark.parametrize("make", [generator_task, tokenizer_task])
def test_an_update_that_is_not_finite_changes_nothing_and_three_end_training(make: Any) -> None:
    task = _updates(make(), 3)
    weights = {k: v.clone() for k, v in task.model.state_dict().items()}
    average = {k: v.clone() for k, v in task.ema.weights(task.model).items()}
    poison = next(p for p in task.model.parameters() if p.requires_grad)
    handle = poison.register_hook(lambda grad: grad * float("nan"))
    _updates(task, 2, start=24)
    assert same_state(weights, task.model.state_dict()) and same_state(average, task.ema.weights(task.model))
    assert task.images == 40 and all(p.grad is None for p in task.parameters())
    handle.remove()
    _updates(task, 1, start=40)
    assert not same_state(weights, task.model.state_dict())
    assert task.log_values()["train/nonfinite"] == 2
    next(p for p in task.model.parameters() if p.requires_grad).register_hook(lambda grad: grad * float("inf"))
    with pytest.raises(VarlabError, match="diverged"):
        _updates(task, 3, start=48)


def test_gradients_are_clipped_by_their_global_norm() -> None:
    task = _plain(classifier_task(clip=1e-3))
    before = {n: p.clone() for n, p in task.model.named_parameters()}
    _updates(task, 1)
    lr = task.optims[0].param_groups[0]["lr"]
    step = torch.cat([(before[n] - p).flatten() for n, p in task.model.named_parameters()])
    assert step.norm().item() == pytest.approx(lr * 1e-3, rel=1e-2)
    assert task.log_values()["train/grad_norm"] > 1e-2


# -- the generator's inputs --------------------------------------------------------------------------------------------


def test_labels_are_dropped_by_position_at_the_given_rate() -> None:
    task = generator_task(label_drop=0.25)
    seen: list[torch.Tensor] = []
    task.model.register_forward_pre_hook(lambda m, args: seen.append(args[1]))
    batch = batch_at(list(range(400)))
    task.predict(batch)
    task.predict(batch_at(list(range(399, -1, -1))))
    task.validation_scores([batch])
    dropped = seen[0] == CLASSES
    assert 0.15 < dropped.float().mean() < 0.35
    assert torch.equal(seen[0], seen[1].flip(0)) and torch.equal(seen[2], batch.label_B)
    assert torch.equal(seen[0][~dropped], batch.label_B[~dropped])


def test_pkeep_corrupts_inputs_and_never_targets() -> None:
    batch = batch_at(list(range(64)))
    kept, noisy = generator_task(pkeep=1.0), generator_task(pkeep=0.5)
    (slots, targets), (other, same) = kept.pack(batch), noisy.pack(batch)
    assert torch.equal(targets, same) and not torch.equal(slots.x_BLC, other.x_BLC)
    clean, _ = pack(batch, order=noisy.order, tokenizer=noisy.tokenizer, condition=None, rng=noisy.rng)
    assert torch.equal(clean.x_BLC, slots.x_BLC)
    maps = noisy.tokenizer.encode(to_float(batch.img_u8_B3HW))
    changed = torch.cat(noisy.corrupt(maps, batch.position_B), 1) != torch.cat(maps, 1)
    assert 0.35 < changed.float().mean() < 0.6  # half are redrawn, and one in 16 of those hits itself


def test_the_tokenizer_stays_frozen() -> None:
    task = generator_task()
    before = {k: v.clone() for k, v in task.tokenizer.state_dict().items()}
    _updates(task.train(), 2)
    assert same_state(before, task.tokenizer.state_dict()) and not task.tokenizer.training


@pytest.mark.parametrize("make", [generator_task, random_order_task])
def test_levels_add_up_to_the_whole(make: Any) -> None:
    task = make(label_drop=0.0, label_smoothing=0.0, pkeep=1.0)
    task.observing = True
    values = _updates(task, 1).log_values()
    assert values["train/loss"] == pytest.approx((values["train/loss/0"] + 4 * values["train/loss/1"]) / 5, rel=SAME)
    assert values["train/loss/last"] == values["train/loss/1"]
    val = task.validate(Data().eval_loader("val", 0, 1))
    assert val["val/nll"] == pytest.approx(5 * val["val/loss"], rel=SAME)
    assert 0 <= val["val/accuracy/last"] <= 1


@pytest.mark.parametrize("make", [classifier_task, generator_task, random_order_task, tokenizer_task])
def test_validation_does_not_see_padding_nor_batch_size(make: Any) -> None:
    task = make()
    one = task.validate([batch_at([p]) for p in range(6)])
    padded = batch_at([0, 1, 2, 3, 4, 5, 5, 5])
    padded.valid_B[6:] = False
    empty = batch_at([5, 5])
    empty.valid_B[:] = False
    assert task.validate([padded, empty]) == pytest.approx(one, rel=SAME)
    with pytest.raises(VarlabError, match="empty"):
        task.validate([empty])


# -- the codebook ------------------------------------------------------------------------------------------------------


def test_dead_codes_are_revived_in_weights_average_and_moments() -> None:
    task = tokenizer_task()
    table = task.model.quantizer.codebook.weight
    with torch.no_grad():
        table[5:] = 1e3  # out of everyone's reach
    task.ema = type(task.ema)(task.model, decay=0.9)
    _updates(task, 2)
    assert (table[5:] > 900).all()
    _updates(task, 1, start=16)  # passes 24 images
    assert (table[5:].abs() < 100).all() and task.log_values()["train/revived"] >= 11
    average = task.ema.weights(task.model)["quantizer.codebook.weight"]
    revived = torch.arange(5, 16)
    torch.testing.assert_close(average[revived], table[revived].detach(), rtol=0.05, atol=0.05)
    moments = task.optims[0].state[table]["exp_avg"]
    assert (moments[revived] == 0).all() and (moments[:5] != 0).any()


def test_usage_counts_since_the_last_look() -> None:
    codes = CodebookUse(scales=2, vocab_size=4)
    codes.add(torch.tensor([[1, 1, 0, 0], [0, 0, 0, 4]]))
    assert codes.health() == pytest.approx({"usage/0": 0.5, "usage/1": 0.25, "perplexity/0": 2.0, "perplexity/1": 1.0})
    codes.reset_health()
    codes.add(torch.tensor([[0, 0, 0, 4], [4, 0, 0, 0]]))
    assert codes.health()["usage/0"] == 0.25
    assert codes.take_dead().tolist() == [False, False, True, False] and codes.take_dead().all()


def test_a_discriminator_warms_up_alone_and_then_gains_weight() -> None:
    """start 8, warm-up 8, ramp 24: it learns from 8 on; the tokenizer meets it from 16 on, in full from 39 on."""
    gan = held_back_task().gan
    assert [gan.active(n) for n in (0, 8)] == [False, True]
    assert [gan.factor(n) for n in (0, 8, 15, 16, 27, 39, 80)] == [0, 0, 0, 1 / 24, 0.5, 1, 1]
    task = held_back_task()
    before = {k: v.clone() for k, v in task.discriminator.state_dict().items()}
    _updates(task, 1, start=8)
    values = task.log_values()
    assert "train/gan" not in values and values["train/bcr"] >= 0 and "train/lecam" in values
    assert not same_state(before, task.discriminator.state_dict())
    _updates(task, 1, start=16)
    assert "train/gan" in task.log_values()


def test_consistency_without_augmentation_is_refused() -> None:
    with pytest.raises(VarlabError, match=r"give loss\.gan\.augment"):
        gan_loss(bcr=1.0)


@pytest.mark.parametrize("make", [generator_task, held_back_task])
def test_the_update_that_ended_a_training_can_be_replayed(make: Any, tmp_path: Path) -> None:
    """From the file, in a new task: the same values are not finite."""
    task = make()
    _updates(task, 2)
    with torch.no_grad():
        next(p for p in task.model.parameters()).fill_(float("inf"))
    with pytest.raises(VarlabError, match="diverged"):
        train(task, tmp_path, images=80)
    dump = load_checkpoint(tmp_path / "nan.ckpt")
    assert dump["batch"]["position_B"].tolist() == batch_at(list(range(32, 40))).position_B.tolist()
    again = make()
    assert again.replay(dump) == dump["names"] and "train/loss" in dump["names"]
    sound = dump["state"]["modules"]["model"]
    for name, value in make().model.state_dict().items():
        sound[name] = value
    assert make().replay(dump) == []


@pytest.mark.parametrize("make", [classifier_task, generator_task])
def test_an_update_that_raised_leaves_nothing_to_the_next(make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """As when the memory of a device does not suffice for the second micro-batch."""
    alone, broken = make(), make()
    for task in (alone, broken):
        task.micro_batch, task.total_images = BATCH // 2, 1000
    batch, loss = batch_at(list(range(BATCH))), broken.loss
    calls = iter([loss, lambda chunk: 1 / 0])
    monkeypatch.setattr(broken, "loss", lambda chunk: next(calls, loss)(chunk))
    with pytest.raises(ZeroDivisionError):
        broken.training_step(batch, 0)
    for task in (alone, broken):
        task.training_step(batch, 0)
    assert same_state(alone.model.state_dict(), broken.model.state_dict())
