"""What an optimizer decays, and how its settings move during a training."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import pytest
import torch
from tiny_tasks import BATCH, CLASSES, SCALES, batch_at, generator_task, random_order_task
from torch import nn

from tests.bounds import SAME
from varlab.order import Random
from varlab.tasks import ScaleStages, Task, WarmupDecay
from varlab.tasks.update.optimizer import build_optimizer, parameter_groups
from varlab.transformer import GPT2Block, PlainHeadNorm, Transformer
from varlab.types import VarlabError

pytestmark = pytest.mark.usefixtures("in_float64")


def _at(task: Task, images: int, total: int = 800) -> Task:
    """One update of the task after so many images."""
    task.total_images, task.images = total, images
    task.training_step(batch_at(list(range(images, images + BATCH))), 0)
    return task


@pytest.mark.parametrize(
    ("images", "decay"), [(0, 0.05), (200, 0.05 + 0.03 * (1 - math.sqrt(0.5)) / 2), (400, 0.065), (800 - BATCH, 0.08)]
)
def test_weight_decay_moves_along_half_a_cosine(images: int, decay: float) -> None:
    """VAR's d30 and d36: from .05 to .08 over the whole training; what does not decay never does."""
    task = generator_task(weight_decay_end=0.08)
    _at(_at(task, 0), images)
    assert [group["weight_decay"] for group in task.optims[0].param_groups] == [pytest.approx(decay, rel=2e-3), 0.0]


def test_weight_decay_stays_by_default_and_survives_a_resume() -> None:
    assert {group["weight_decay"] for group in _at(generator_task(), 400).optims[0].param_groups} == {0.05, 0.0}
    before, after = (generator_task(weight_decay_end=0.08) for _ in range(2))
    after.load_state(_at(before, 400).state())
    assert _at(after, 600).optims[0].param_groups[0]["weight_decay"] == pytest.approx(
        0.08 - 0.03 * (1 - math.sqrt(0.5)) / 2, rel=1e-6
    )


def test_named_parameters_do_not_decay() -> None:
    module = nn.ModuleDict({"word": nn.Embedding(3, 2), "head": nn.Linear(2, 3), "norm": nn.LayerNorm(2)})
    decayed, plain = parameter_groups(module, ["wo*.weight"])
    assert [p.shape for p in decayed["params"]] == [(3, 2)] and decayed["params"][0] is module["head"].weight
    assert len(plain["params"]) == 4 and plain["weight_decay"] == 0.0
    assert len(parameter_groups(module)[0]["params"]) == 2
    with pytest.raises(VarlabError, match="ward"):
        build_optimizer(partial(torch.optim.AdamW, lr=1.0), module, ["ward.weight"])


def test_labels_are_dropped_only_for_a_null_class() -> None:
    """A tied table has none: the label that stands for no class would be the row of a token."""

    transformer = Transformer(
        vocab_size=16,
        code_dim=4,
        num_classes=CLASSES,
        positions_P3=Random(scales=SCALES).positions_P3,
        source_positions=True,
        width=16,
        depth=1,
        heads=2,
        block=partial(GPT2Block, mlp_ratio=2.0),
        head_norm=PlainHeadNorm,
        token_inputs=True,
        tied=True,
    )
    with pytest.raises(VarlabError, match=r"label_drop=0\.1"):
        random_order_task(transformer=transformer, label_drop=0.1)
    assert random_order_task(transformer=transformer, label_drop=0.0).label_drop == 0.0


# -- progressive training ----------------------------------------------------------------------------------------------


def stages(**changes: Any) -> ScaleStages:
    return ScaleStages(**({"until": 0.5, "first": 1, "warmup": 100} | changes)).checked((1, 4, 9, 16))


def test_scales_are_added_as_by_hand() -> None:
    """1,000 images, 100 of them warm-up: from 100 to 500 the last scale goes from 1 to 3, rounded: 2 at 200, 3 at 400."""
    made = stages()
    assert made.begins(1000, 100) == [0, 0, 200, 400]
    assert [made.last_scale(n, 1000, 100) for n in (0, 199, 200, 399, 400, 999)] == [1, 1, 2, 2, 3, 3]
    assert [made.tokens(n, 1000, 100) for n in (0, 200, 400)] == [5, 14, 30]


@pytest.mark.parametrize(("images", "new"), [(200, 0.01), (250, 0.5), (300, 1.0)])
def test_a_new_scale_gets_its_weight_slowly(images: int, new: float) -> None:
    weight_L = stages().weights(images, 1000, 100) * 30
    torch.testing.assert_close(weight_L[:5], torch.ones(5))
    torch.testing.assert_close(weight_L[5:14], torch.full((9,), new))


def test_first_and_last_stage_have_full_weight_at_once() -> None:
    made = stages()
    for images in (0, 400, 999):
        torch.testing.assert_close(made.weights(images, 1000, 100), torch.full((30,), 1 / 30))


def test_a_stage_trains_its_scales_alone() -> None:
    """Its loss is the tokens' cross-entropy over all tokens' number, and later positions get no gradient."""
    plain: dict[str, Any] = dict(label_smoothing=0.0, pkeep=1.0)
    task = generator_task(stages=ScaleStages(until=0.5, first=0, warmup=0), **plain)
    whole = generator_task(**plain)
    task.total_images = whole.total_images = 800
    batch = batch_at(list(range(BATCH)))
    loss, _ = task.loss(batch)
    loss.backward()
    logits_BLV, targets_BL, _ = whole.predict(batch)
    first = nn.functional.cross_entropy(logits_BLV[:, 0], targets_BL[:, 0]) / 5
    torch.testing.assert_close(loss, first, rtol=SAME, atol=SAME)
    position = task.model.position
    assert position is not None and bool((position.weight.grad[1:] == 0).all()) and bool(position.weight.grad[0].any())
    task.images = 799
    torch.testing.assert_close(task.loss(batch)[0], whole.loss(batch)[0], rtol=SAME, atol=SAME)


def test_stages_cost_what_they_train() -> None:
    task = generator_task(stages=ScaleStages(until=0.5, first=0, warmup=0))
    task.schedule = WarmupDecay(warmup=0, start=0.0, shape="constant", end=1.0)
    task.total_images, task.stage_flops = 800, [1, 5]
    (begin,) = task.stages.begins(800, 0)[1:]
    assert begin == 200
    assert [task.flops_at(n) for n in (0, 100, 200, 800)] == [0, 100, 200, 200 + 600 * 5]


def test_stages_need_a_scale_to_add() -> None:
    with pytest.raises(VarlabError, match=r"stages\.first=1"):
        generator_task(stages=ScaleStages(until=0.5, first=1, warmup=0))
