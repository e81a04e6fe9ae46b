"""The laws of networks and numbers around a generator: extractors, perceptual distances, conditions, metrics."""

from __future__ import annotations

import copy
import math

import torch
from torch import Tensor, nn
from torchmetrics import Metric

from varlab.errors import VarlabError
from varlab.losses.perceptual import PerceptualDistance
from varlab.metrics.extractors import Extractor
from varlab.metrics.own_metrics import OwnMetrics
from varlab.rng import Rng
from varlab.testing.expectation import expect, expect_close, expect_tensor
from varlab.tokenizer.condition import SOURCES, Condition
from varlab.types import Batch

SIZE = (32, 32)
NUMBERS = {"features_BF": 16, "logits_BK": 4}
"""What a metric may ask for beside images, and how many numbers a sample has of it here."""


def drawn_batch(batch: int = 4, *, size: tuple[int, int] = SIZE, classes: int = 3, seed: int = 5) -> Batch:
    """Random images, labels, condition images and boxes."""
    ids_B = torch.arange(batch)
    stream = Rng(seed).stream("images", ids_B)
    corner_B2 = stream.at(3).uniform(2) / 2
    return Batch(
        img_u8_B3HW=stream.integers(256, 3, *size).to(torch.uint8),
        label_B=stream.at(1).integers(classes, 1)[:, 0],
        position_B=ids_B,
        valid_B=torch.ones(batch, dtype=torch.bool),
        cond_u8_B3HW=stream.at(2).integers(256, 3, *size).to(torch.uint8),
        box_B4=torch.cat([corner_B2, corner_B2 + 0.5], 1),
    )


def check_extractor(extractor: Extractor, *, size: tuple[int, int] = SIZE, atol: float = 1e-4) -> None:
    """Check an extractor on uint8 images of ``size``. Raises VarlabError with the first broken law."""
    name = type(extractor).__name__
    expect(isinstance(extractor, Extractor), f"{name} must be a varlab.metrics.extractors.Extractor.")
    for attribute in ("name", "resize", "hash"):
        said = isinstance(getattr(extractor, attribute, None), str) and getattr(extractor, attribute)
        expect(bool(said), f"{name}.{attribute} must be a text: it belongs to the protocol of every score.")
    trains = [key for key, parameter in extractor.named_parameters() if parameter.requires_grad]
    expect(not trains, f"{name} must be frozen, but {', '.join(trains[:4])} would be trained.")
    img_u8 = drawn_batch(size=size).img_u8_B3HW
    features_BF, logits_BK = extractor(img_u8)
    expect_tensor(features_BF, (len(img_u8), extractor.num_features), torch.float32, f"{name}: features_BF")
    K = extractor.num_classes or logits_BK.shape[-1]
    expect_tensor(logits_BK, (len(img_u8), K), torch.float32, f"{name}: logits_BK")
    expect_close(extractor(img_u8[1:2])[0], features_BF[1:2], atol, f"{name}: features depend on the rest of the batch")
    refused = False
    try:
        extractor(img_u8 / 255)
    except VarlabError:
        refused = True
    expect(refused, f"{name} must refuse images that are not uint8: write extract, not forward.")


def check_perceptual(distance: PerceptualDistance, *, size: tuple[int, int] = SIZE, atol: float = 1e-4) -> None:
    """Check a perceptual distance on images of ``size``. Raises VarlabError with the first broken law."""
    name = type(distance).__name__
    x_B3HW, y_B3HW = (drawn_batch(size=size, seed=seed).img_u8_B3HW / 127.5 - 1 for seed in (5, 6))
    y_B3HW.requires_grad_()
    d_B = distance.distance(x_B3HW, y_B3HW)
    expect_tensor(d_B, (len(x_B3HW),), torch.float32, f"{name}.distance")
    expect(bool((d_B >= 0).all()), f"{name}.distance is negative.")
    zero_B = distance.distance(x_B3HW, x_B3HW)
    expect_close(zero_B, torch.zeros_like(zero_B), atol, f"{name}.distance of equal images is not zero")
    one = distance.distance(x_B3HW[1:2], y_B3HW[1:2])
    expect_close(one, d_B[1:2], atol, f"{name}.distance of a pair depends on the others in its batch")
    expect_close(distance(x_B3HW, y_B3HW), d_B.mean(), atol, f"{name}: calling it must give the mean of distance")
    d_B.sum().backward()
    moved = y_B3HW.grad is not None and bool(y_B3HW.grad.isfinite().all()) and bool(y_B3HW.grad.any())
    expect(moved, f"{name}.distance has no finite gradient by its second image: it could train nothing.")


@torch.no_grad()
def check_condition(condition: Condition, *, size: tuple[int, int] = SIZE) -> None:
    """Check a condition on a batch of images of ``size``. Raises VarlabError with the first broken law."""
    name, batch = type(condition).__name__, drawn_batch(size=size)
    unknown = set(condition.needs) - set(SOURCES)
    expect(not unknown, f"{name}.needs names {sorted(unknown)}, but a batch has {', '.join(SOURCES)}.")
    cond_BN = condition.tokens(batch)
    expect_tensor(cond_BN, (len(batch), condition.num_tokens), torch.int64, f"{name}.tokens")
    inside = bool(((cond_BN >= 0) & (cond_BN < condition.vocab_size)).all())
    expect(inside, f"{name}.tokens gives tokens outside 0 … {condition.vocab_size - 1}.")
    alone = condition.tokens(batch.only(batch.position_B == 1))
    expect(torch.equal(alone, cond_BN[1:2]), f"{name}.tokens of a sample depends on the others in its batch.")
    given = condition.encode(**{field: getattr(batch, field) for field in condition.needs})
    expect(torch.equal(given, cond_BN), f"{name}.tokens reads fields of the batch that needs does not name.")
    shown = condition.shown(batch)
    expect_tensor(shown, (len(batch), 3, *shown.shape[2:]), torch.uint8, f"{name}.shown")
    trains = isinstance(condition, nn.Module) and any(p.requires_grad for p in condition.parameters())
    expect(not trains, f"{name} must be frozen: no parameter may require a gradient.")


def check_metric(metric: Metric, *, size: tuple[int, int] = SIZE, atol: float = 1e-4) -> None:
    """Check a metric of ``metrics.own``: the same value in one batch or in several. VarlabError with the first broken law."""
    name = type(metric).__name__
    expect(isinstance(metric, Metric), f"{name} must be a torchmetrics.Metric.")
    samples = [drawn_batch(8, size=size, seed=seed) for seed in (5, 6)]
    numbers = [
        {key: Rng(seed).stream(key, torch.arange(8)).normal(count) for key, count in NUMBERS.items()} for seed in (5, 6)
    ]
    values = [_value(copy.deepcopy(metric), name, samples, numbers, rows) for rows in (8, 4)]
    for key, value in values[0].items():
        expect(math.isfinite(value), f"{name} is not a finite number ({key}: {value}).")
        near = math.isclose(value, values[1][key], rel_tol=atol, abs_tol=atol)
        two = values[1][key]
        expect(near, f"{name}: {key} is {value:.6g} of one batch and {two:.6g} of two: it must not depend on batches.")


def _value(
    metric: Metric, name: str, samples: list[Batch], numbers: list[dict[str, Tensor]], rows: int
) -> dict[str, float]:
    """What a metric says of samples and reference images in batches of ``rows``."""
    own = OwnMetrics({name: metric})
    for first in range(0, 8, rows):
        part = slice(first, first + rows)
        for batch, known, real in zip(samples, numbers, (True, False), strict=True):
            given = {key: value[part] for key, value in known.items()}
            own.update(batch.img_u8_B3HW[part], real=real, label_B=batch.label_B[part], **given)
        own.update_pairs(samples[0].img_u8_B3HW[part], samples[1].img_u8_B3HW[part])
    return own.compute()
