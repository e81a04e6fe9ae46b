"""Metrics from elsewhere get what they name, once an image, and keep the reference between scorings."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.image import StructuralSimilarityIndexMeasure
from torchmetrics.image.kid import KernelInceptionDistance

from varlab.errors import VarlabError
from varlab.metrics.own_metrics import OwnMetrics
from varlab.rng import Rng


class Counted(Metric):
    """Counts what its ``update`` gets."""

    higher_is_better = False

    def __init__(self) -> None:
        super().__init__()
        self.add_state("seen", torch.zeros(2, dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, features_BF: Tensor, label_B: Tensor, real: bool) -> None:
        assert len(features_BF) == len(label_B)
        self.seen[int(real)] += len(label_B)

    def compute(self) -> dict[str, Tensor]:
        return {"fake": self.seen[0], "real": self.seen[1]}


def images(seed: int, batch: int = 6) -> Tensor:
    return Rng(seed).stream("sample", torch.arange(batch)).integers(256, 3, 16, 16).to(torch.uint8)


def test_each_metric_gets_what_it_names() -> None:
    own = OwnMetrics({"counted": Counted(), "ssim": StructuralSimilarityIndexMeasure(data_range=1.0)})
    known = {"features_BF": torch.zeros(6, 4), "logits_BK": torch.zeros(6, 2), "label_B": torch.zeros(6)}
    own.update(images(0), real=True, **known)
    for _ in range(2):
        own.update(images(1), real=False, **known)
    own.update_pairs(images(0), images(0))
    scores = own.compute()
    assert scores == {"counted/fake": 12, "counted/real": 6, "ssim": pytest.approx(1.0)}
    assert own.ranked(scores | {"fid": 1.0}) == {"counted/fake": "min", "counted/real": "min", "ssim": "max"}


def test_a_metric_of_torchmetrics_takes_images_as_it_is() -> None:
    class Net(torch.nn.Module):
        num_features = 3

        def forward(self, img_u8_B3HW: Tensor) -> Tensor:
            return img_u8_B3HW.double().mean((2, 3))

    own = OwnMetrics({"kid": KernelInceptionDistance(feature=Net(), subsets=3, subset_size=4)})
    own.update(images(0), real=True)
    first = own.fresh()
    first.update(images(1), real=False)
    again = own.fresh()
    again.update(images(1), real=False)
    torch.manual_seed(0)
    scores = first.compute()
    torch.manual_seed(0)
    assert set(scores) == {"kid", "kid_std"} and again.compute() == scores
    assert own.ranked(scores) == {"kid": "min"}


def test_a_refusal_names_the_metric() -> None:
    class Strict(Counted):
        def update(self, img_u8_B3HW: Tensor) -> None:
            raise ValueError("images of 8 pixels only")

    with pytest.raises(VarlabError, match=r"metrics\.own\.strict refuses what it gets: images of 8 pixels only"):
        OwnMetrics({"strict": Strict()}).update(images(0), real=False)


def test_a_value_that_is_not_finite_is_refused() -> None:
    class Broken(Counted):
        def compute(self) -> Tensor:
            return torch.tensor(torch.nan)

    with pytest.raises(VarlabError, match="not a finite number"):
        OwnMetrics({"broken": Broken()}).compute()
