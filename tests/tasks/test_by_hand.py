"""Parts of an update by hand: what is counted, drawn, weighted, kept and left out."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tiny_tasks import BATCH, CLASSES, RNG, SCALES, batch_at, discriminator, gan_loss, generator_task, tokenizer_task
from torch import Tensor, nn

from tests.bounds import SAME
from varlab.losses.adversarial import discriminator_loss
from varlab.losses.diff_augment import faded
from varlab.order import Random
from varlab.rng import Stream
from varlab.tasks import ScaleStages
from varlab.tasks.gan import GanLoss, discriminate, last_layer_gradients, measure_lambda
from varlab.tasks.generator_task import require_null_class
from varlab.tasks.likelihood import level_means, level_sums
from varlab.tasks.tokenizer_task import TURNS
from varlab.tasks.update.code_use import CodebookUse, average_codes, revive
from varlab.tasks.update.ema import EMA
from varlab.transformer import GPT2Block, PlainHeadNorm, Transformer
from varlab.types import Quantized, VarlabError

from .test_gan_parts import draft

pytestmark = pytest.mark.usefixtures("in_float64")


# -- the adversarial loss ----------------------------------------------------------------------------------------------


def test_what_a_gan_loss_leaves_out_by_default() -> None:
    gan = gan_loss(start=0)
    assert (gan.warmup, gan.ramp, gan.bcr, gan.lecam, gan.lecam_decay) == (0, 0, 0.0, 0.0, 0.99)
    others = (gan.augment, gan.disc_factor, gan.joint, gan.evaluated, gan.fade, gan.strong, gan.r1, gan.r1_every)
    assert others == (None,) * 8
    assert gan.factor(0) == gan.factor(999) == 1.0 and gan.blur(0) == 0.0 and gan.passes == 2
    assert gan_loss(bcr=0.1, augment=lambda img, stream: img).passes == 4
    assert not gan_loss(weight=0.0).active(99) and gan_loss(weight=0.0).factor(99) == 0.0
    assert [gan_loss(r1=3.0).penalty(n) for n in (0, 1, 2)] == [1.5, 1.5, 1.5]
    assert [gan_loss(r1=3.0, r1_every=3).penalty(n) for n in range(4)] == [4.5, 0.0, 0.0, 4.5]


@pytest.mark.parametrize(("images", "factor"), [(9, 0), (10, 0), (14, 0), (15, 0.25), (16, 0.5), (18, 1), (19, 1)])
def test_the_generators_weight_by_hand(images: int, factor: float) -> None:
    """From 10 on the discriminator plays, from 15 on it counts, and four images later in full."""
    assert gan_loss(start=10, warmup=5, ramp=4).factor(images) == factor
    assert gan_loss(start=10, warmup=5).factor(images) == float(images >= 15)
    assert gan_loss(start=10, fade=8).blur(max(images, 10)) == max(1 - (max(images, 10) - 10) / 8, 0.0)


def plain_values(gan: GanLoss, **more: Any) -> dict[str, Tensor]:
    def augment(img: Tensor, position_B: Tensor, turn: str) -> Tensor:
        return img if turn == "real" else img * 0.5

    return discriminate([draft()], discriminator().train(), gan, augment=augment, lecam=None, **more)


def test_a_discriminators_values_by_hand() -> None:
    values, disc, d = plain_values(gan_loss()), discriminator().train(), draft()
    real, fake = disc(d.img_B3HW), disc(d.rec_B3HW * 0.5)
    assert set(values) == {"train/disc_loss", "train/logits_real", "train/logits_fake"}
    expected = (discriminator_loss("hinge", real, fake), real.mean(), fake.mean())
    for name, number in zip(("disc_loss", "logits_real", "logits_fake"), expected, strict=True):
        torch.testing.assert_close(values[f"train/{name}"], number.detach(), rtol=SAME, atol=SAME)
    assert "train/r1" in plain_values(gan_loss(), penalty=1.0)


def test_lambda_from_gradients_by_hand() -> None:
    """(3, 4) has length 5 and (6, 8) length 10; the clamp holds both ends."""
    rec, gan = torch.tensor([3.0, 4.0]), torch.tensor([6.0, 8.0])
    values = measure_lambda(rec.clone(), gan.clone(), gan_loss(delta=0.0))
    assert {k: float(v) for k, v in values.items()} == {
        "train/lambda": 0.5,
        "train/grad_rec": 5.0,
        "train/grad_gan": 10.0,
    }
    for clamp, weight in (((0.7, 1.0), 0.7), ((0.0, 0.2), 0.2)):
        found = measure_lambda(rec.clone(), gan.clone(), gan_loss(delta=0.0, clamp=clamp))
        assert float(found["train/lambda"]) == pytest.approx(weight)


def test_the_last_layers_gradients_are_those_of_each_loss() -> None:
    d, layer = draft(), torch.tensor(2.0, requires_grad=True)
    d.grad_rec_B3HW = torch.full_like(d.img_B3HW, 0.25)
    d.grad_gan_B3HW = torch.full_like(d.img_B3HW, -1.5)
    rec, gan = last_layer_gradients(d.img_B3HW * layer, d, layer)
    total = d.img_B3HW.sum()
    torch.testing.assert_close(rec, (0.25 * total).float(), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(gan, (-1.5 * total).float(), rtol=1e-6, atol=1e-6)


# -- the tokenizer's task ----------------------------------------------------------------------------------------------


def test_the_discriminator_costs_from_its_start() -> None:
    task = tokenizer_task(gan=gan_loss(start=16))
    task.train_flops_per_image, task.disc_flops_per_image = 7, 3
    assert [task.flops_at(n) for n in (0, 16, 20)] == [0, 112, 140 + 4 * 3]
    for other in (tokenizer_task(gan=gan_loss(weight=0.0)), tokenizer_task(discriminator=None)):
        other.train_flops_per_image, other.disc_flops_per_image = 7, 3
        assert other.flops_at(20) == 140


class Seen:
    """An augmentation that keeps what it gets."""

    def __init__(self) -> None:
        self.calls: list[tuple[Tensor, Tensor]] = []

    def __call__(self, img_B3HW: Tensor, stream: Stream) -> Tensor:
        self.calls.append((img_B3HW, stream.uniform(3)))
        return img_B3HW


def test_each_turn_has_draws_of_its_own() -> None:
    """The second augmentation sees no blur."""
    weak, strong = Seen(), Seen()
    task = tokenizer_task(gan=gan_loss(start=0, fade=16, augment=weak, strong=strong))
    img, ids = draft().img_B3HW, draft().position_B
    task.images = 8
    for turn in TURNS:
        task._augment(img, ids, turn)
    assert TURNS == ("real", "fake", "generator", "real_again", "fake_again")
    assert [len(weak.calls), len(strong.calls)] == [3, 2]
    for step, (seen, draws) in enumerate([*weak.calls, *strong.calls]):
        assert torch.equal(draws, RNG.stream("augment_disc", ids, step).uniform(3))
        assert torch.equal(seen, faded(img, 0.5) if step < 3 else img)
    assert tokenizer_task()._augment(img, ids, "real") is img
    blurred = tokenizer_task(gan=gan_loss(start=0, fade=16))._augment(img, ids, "fake")
    assert torch.equal(blurred, faded(img, 1.0))


def test_r1_follows_the_updates_not_the_images(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every second update of 8 images, in micro-batches, too."""
    for micro_batch in (None, 3):
        task = tokenizer_task(gan=gan_loss(start=0, r1=1.0, r1_every=2), micro_batch=micro_batch)
        task.total_images, seen = 80, []
        for _ in range(4):
            task.training_step(batch_at(list(range(BATCH))), 0)
            seen.append("train/r1" in task.log_values())
            task.reset_log()
        assert seen == [True, False, True, False]


def test_modules_train_in_an_update_and_nothing_was_revived_before() -> None:
    task = tokenizer_task(revival=None)
    task.total_images = 80
    assert task.log_values()["train/revived"] == 0.0
    task.model.eval()
    task.discriminator.eval()
    task.images = 16
    task.training_step(batch_at(list(range(BATCH))), 0)
    assert task.model.training and task.discriminator.training
    values = task.log_values()
    assert values["train/revived"] == 0.0 and 0 < values["train/usage/1"] <= 1
    task.revived = 5
    assert task.log_values()["train/revived"] == 5.0
    task.reset_log()
    assert task.log_values()["train/revived"] == 0.0 and task.log_values()["train/usage/1"] == 0.0


def test_a_tokenizer_that_knows_no_dropout_gets_no_stream() -> None:
    class Plain(nn.Module):
        def forward(self, img_B3HW: Tensor) -> str:
            return "without a stream"

    task = tokenizer_task()
    task.model = Plain()
    assert task._reconstruct(draft().img_B3HW, draft().position_B) == "without a stream"


def test_state_and_helpers_of_a_tokenizers_task() -> None:
    task, plain = tokenizer_task(gan=gan_loss(lecam=0.3)), tokenizer_task(discriminator=None)
    assert task.helpers() == {"discriminator": task.discriminator} and plain.helpers() == {}
    task.revived = 4
    task.lecam.observe(torch.tensor(1.0), torch.tensor(-2.0))
    other = tokenizer_task(gan=gan_loss(lecam=0.3))
    other.load_own_state(task.own_state())
    assert other.own_state()["lecam"] == task.own_state()["lecam"] == {"real": 1.0, "fake": -2.0, "begun": True}
    assert other.revived == 4 and "lecam" not in plain.own_state()
    assert tokenizer_task().lecam is None and task.lecam.decay == 0.99


# -- codes -------------------------------------------------------------------------------------------------------------


def test_revived_rows_alone_are_overwritten() -> None:
    task = tokenizer_task()
    table, optimizer = task.model.quantizer.codebook.weight, task.optims[0]
    task.total_images = 80
    task.training_step(batch_at(list(range(BATCH))), 0)
    average = task.ema.weights(task.model)["quantizer.codebook.weight"].clone()
    moments = optimizer.state[table]["exp_avg"].clone()
    dead_V = torch.arange(16) % 5 == 0
    candidates = torch.arange(12.0).view(3, 4)
    stream = RNG.stream("revive", step=8)
    assert revive(task.model, dead_V, candidates, stream=stream, ema=task.ema, optimizer=optimizer) == 4
    chosen = candidates[stream.integers(3, 4)[0]]
    torch.testing.assert_close(table[dead_V].detach(), chosen)
    after = task.ema.weights(task.model)["quantizer.codebook.weight"]
    torch.testing.assert_close(after[dead_V], chosen)
    assert torch.equal(after[~dead_V], average[~dead_V])
    assert torch.equal(optimizer.state[table]["exp_avg"], moments.masked_fill(dead_V[:, None], 0))
    assert revive(task.model, dead_V & False, candidates, stream=stream, ema=task.ema, optimizer=optimizer) == 0


def test_averages_take_the_vectors_of_all_micro_batches() -> None:
    from .test_gan_parts import averaging

    model = averaging()
    codebook = model.quantizer.codebook
    first = codebook.weight.detach().clone()
    none = torch.zeros(1)
    parts = [
        Quantized(f_hat_BChw=none, maps=[torch.tensor([[1], [3]]), torch.tensor([[1, 1], [2, 3]])], vq_loss=none,
                  counts_KV=none, candidates_NC=torch.arange(24.0).view(6, 4)),
        Quantized(f_hat_BChw=none, maps=[torch.tensor([[3]]), torch.tensor([[0, 3]])], vq_loss=none,
                  counts_KV=none, candidates_NC=torch.arange(100.0, 112.0).view(3, 4)),
    ]  # fmt: skip
    average_codes(model, parts)
    rows = torch.cat([p.candidates_NC for p in parts])
    idx = torch.tensor([1, 1, 1, 3, 2, 3, 3, 0, 3])
    counts = torch.tensor([float((idx == v).sum()) for v in range(16)])
    sums = torch.stack([rows[idx == v].sum(0) for v in range(16)])
    torch.testing.assert_close(codebook.count_V, 0.1 * counts.to(codebook.count_V))
    torch.testing.assert_close(codebook.sum_VC, 0.9 * first + 0.1 * sums.to(first))
    average_codes(tokenizer_task().model, parts)  # codes that are trained do not move


def test_counts_of_codes_travel_in_checkpoints() -> None:
    codes, other = CodebookUse(scales=1, vocab_size=3), CodebookUse(scales=1, vocab_size=3)
    codes.add(torch.tensor([[2, 0, 0]]))
    codes.reset_health()
    codes.add(torch.tensor([[0, 1, 0]]))
    other.load_state(codes.state())
    assert other.health() == codes.health() == pytest.approx({"usage/0": 1 / 3, "perplexity/0": 1.0})
    assert other.take_dead().tolist() == [False, False, True] and codes.take_dead().tolist() == [False, False, True]


def test_an_average_overwrites_some_rows() -> None:
    net = nn.Linear(2, 3, bias=False)
    ema = EMA(net, decay=0.5)
    assert ema.updates == 0 and torch.equal(ema.weights(net)["weight"], net.weight)
    ema.update(net)
    assert ema.updates == 1
    ema.overwrite("weight", torch.tensor([True, False, True]), torch.tensor([[1.0, 2.0], [3.0, 4.0]]))
    average = ema.weights(net)["weight"]
    assert average[[0, 2]].tolist() == [[1.0, 2.0], [3.0, 4.0]] and torch.equal(average[1], net.weight[1].detach())
    again = EMA(nn.Linear(2, 3, bias=False), decay=0.5)
    again.load_state(ema.state())
    assert again.updates == 1 and torch.equal(again.weights(net)["weight"], average)


# -- the generator's task ----------------------------------------------------------------------------------------------


def test_likelihoods_of_levels_by_hand() -> None:
    """Two samples of one token and then two; the right logit is 0 and the other is log 3, so that p is 1/4."""
    logits = torch.tensor([0.0, 3.0]).log().nan_to_num(neginf=-1e9).expand(2, 3, 2).clone()
    logits[..., 0] = 0.0
    targets, level_L = torch.tensor([[0, 0, 1], [1, 0, 0]]), torch.tensor([0, 1, 1])
    sums = level_sums(logits, targets, level_L)
    wrong, right = torch.tensor(4.0).log(), torch.tensor(4 / 3).log()
    torch.testing.assert_close(sums["nll_K"], torch.stack([wrong + right, 3 * wrong + right]).double())
    assert sums["hits_K"].tolist() == [1, 1] and sums["tokens_K"].tolist() == [2, 4]
    means = {name: float(value) for name, value in level_means(sums).items()}
    assert means == pytest.approx(
        {
            "loss": float(4 * wrong + 2 * right) / 6, "accuracy": 2 / 6, "loss/0": float(wrong + right) / 2,
            "loss/1": float(3 * wrong + right) / 4, "loss/last": float(3 * wrong + right) / 4, "accuracy/last": 0.25,
        }, rel=1e-6
    )  # fmt: skip


def tied(classes: int) -> Transformer:
    return Transformer(
        vocab_size=16, code_dim=4, num_classes=classes, positions_P3=Random(scales=SCALES).positions_P3,
        source_positions=True, width=16, depth=1, heads=2, head_norm=PlainHeadNorm, token_inputs=True, tied=True,
        block=lambda **sizes: GPT2Block(mlp_ratio=2.0, **sizes),
    )  # fmt: skip


def test_who_needs_a_null_class() -> None:
    """A model of one class drops no label."""
    require_null_class(0.1, tied(1))
    require_null_class(0.0, tied(CLASSES))
    require_null_class(0.1, generator_task().model)
    with pytest.raises(VarlabError, match="label_drop"):
        require_null_class(0.1, tied(2))


def test_labels_are_dropped_where_the_stream_says_so() -> None:
    task, batch = generator_task(label_drop=0.4), batch_at(list(range(50)))
    seen: list[Tensor] = []
    task.model.register_forward_pre_hook(lambda module, args: seen.append(args[1]))
    task.predict(batch)
    dropped = RNG.stream("label_drop", batch.position_B).uniform() < 0.4
    assert torch.equal(seen[0], torch.where(dropped, CLASSES, batch.label_B)) and 5 < int(dropped.sum()) < 35


def test_tokens_are_kept_where_the_stream_says_so() -> None:
    task, ids = generator_task(pkeep=0.6), torch.tensor([4, 9])
    maps = [torch.full((2, 1), 3), torch.full((2, 4), 7)]
    noisy = torch.cat(task.corrupt(maps, ids), 1)
    stream = RNG.stream("pkeep", ids)
    kept, other = stream.uniform(5) < 0.6, stream.at(1).integers(16, 5)
    assert torch.equal(noisy, torch.where(kept, torch.cat(maps, 1), other))
    assert [m.shape for m in task.corrupt(maps, ids)] == [(2, 1), (2, 4)]


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_the_loss_of_stages_weights_each_position(smoothing: float) -> None:
    task = generator_task(stages=ScaleStages(until=0.5, first=0, warmup=0), label_smoothing=smoothing, pkeep=1.0)
    task.total_images, task.images = 800, 799
    batch = batch_at(list(range(BATCH)))
    logits_BLV, targets_BL, _ = task.predict(batch)
    expected = nn.functional.cross_entropy(logits_BLV.flatten(0, 1), targets_BL.flatten(), label_smoothing=smoothing)
    torch.testing.assert_close(task.loss(batch)[0], expected, rtol=SAME, atol=SAME)


def test_the_ends_of_stages() -> None:
    for good in ({"until": 1.0}, {"first": 0}, {"warmup": 0}):
        ScaleStages(**({"until": 0.5, "first": 0, "warmup": 0} | good))
    for bad in ({"until": 0.0}, {"until": 1.01}, {"first": -1}, {"warmup": -1}):
        with pytest.raises(VarlabError, match="stages"):
            ScaleStages(**({"until": 0.5, "first": 0, "warmup": 0} | bad))
    for first in (2, 3):
        with pytest.raises(VarlabError, match="stages"):
            ScaleStages(until=0.5, first=first, warmup=0).checked((1, 4, 9))
    made = ScaleStages(until=0.5, first=0, warmup=0.1).checked((1, 4, 9))
    assert made.begins(1000, 100) == [0, 200, 400] and made.begins(100, 400) == [0, 400, 400]
    for images, share in ((200, 0.01), (250, 0.5), (310, 1.0)):
        weights = made.weights(images, 1000, 100) * 14
        torch.testing.assert_close(weights[1:5], torch.full((4,), share))
        torch.testing.assert_close(weights[[0, *range(5, 14)]], torch.ones(10))
