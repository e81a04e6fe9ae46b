"""The Inception score (Salimans et al. 2016), over random parts or over the parts of a reference code."""

from __future__ import annotations

import warnings

import numpy as np
import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.image.inception import InceptionScore
from torchmetrics.utilities.data import dim_zero_cat

from varlab.errors import VarlabError
from varlab.metrics.distribution.frechet import PassThrough
from varlab.metrics.features import ordered_rows, sorted_rows
from varlab.rng import Rng

__all__ = ["FileInceptionScore", "SeededInceptionScore"]

_FEWEST = 0.75  # share of the classes in a part of a shuffled file that a part must see
_FIDELITY_SEED = 2020  # torch-fidelity's


class SeededInceptionScore(InceptionScore):
    """torchmetrics' Inception score over logits: ``update(logits_BK)``.

    The score is a mean over ``splits`` random parts. Here the parts depend only on the logits and ``seed``, not on the
    order of samples (samples sorted by class would score a fifth), the number of ranks or torch's global generator.
    """

    features: list[Tensor]

    def __init__(self, *, splits: int, seed: int):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # "will save all extracted features": that is intended
            super().__init__(feature=PassThrough(0), splits=splits)
        # "cat" gathers one tensor per rank; the default gathers each batch and hangs if ranks have different numbers of them
        self.add_state("features", [], dist_reduce_fx="cat")
        self.rng = Rng(seed)

    def compute(self) -> tuple[Tensor, Tensor]:
        """(mean, standard deviation over the splits); the deviation is NaN for one split."""
        self.features = [sorted_rows(dim_zero_cat(self.features))]
        with self.rng.scope("metrics"), warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*degrees of freedom")  # with one split; the NaN says so
            return super().compute()


class FileInceptionScore(Metric):
    """The Inception score over parts of a file, by the rows' numbers: ``update(logits_BK, row_B)``, in float64.

    order: file, as the ADM suite, in parts of ``split_size`` images; fidelity, as torch-fidelity, shuffled by its seed, in
    ``splits`` equal parts. A file that is sorted by class is shuffled by ``seed`` first, as its parts would see few classes:
    ``was_sorted`` says so after ``compute``.
    """

    full_state_update = False
    higher_is_better = True
    logits: list[Tensor]
    row: list[Tensor]

    def __init__(self, *, order: str, splits: int, split_size: int | None, seed: int):
        super().__init__()
        if order not in ("file", "fidelity"):
            raise VarlabError(f"metrics.inception.order={order} is unknown: use file or fidelity.")
        self.order, self.splits, self.split_size, self.seed = order, splits, split_size, seed
        self.was_sorted = False
        self.add_state("logits", [], dist_reduce_fx="cat")
        self.add_state("row", [], dist_reduce_fx="cat")

    def update(self, logits_BK: Tensor, row_B: Tensor) -> None:
        """Add logits and their numbers in the file."""
        self.logits.append(logits_BK)
        self.row.append(row_B)

    def compute(self) -> tuple[Tensor, Tensor]:
        """(mean, standard deviation over the parts, with the number of parts in the denominator)."""
        logits_NK = ordered_rows(self.logits, self.row)[:]
        n = len(logits_NK)
        if self.order == "fidelity":
            shuffled = np.random.RandomState(_FIDELITY_SEED).permutation(n)
            logits_NK = logits_NK[torch.from_numpy(shuffled).to(logits_NK.device)]
        else:
            own = Rng(self.seed).stream("metrics").permutation(n)[0].to(logits_NK.device)
            self.was_sorted = _is_sorted(logits_NK.argmax(1), own, self._bounds(n))
            logits_NK = logits_NK[own] if self.was_sorted else logits_NK
        scores = torch.stack([_score(logits_NK[a:b]) for a, b in self._bounds(n)])
        return scores.mean(), scores.std(correction=0)

    def _bounds(self, n: int) -> list[tuple[int, int]]:
        if self.split_size is not None:
            return [(a, min(a + self.split_size, n)) for a in range(0, n, self.split_size)]
        return [(i * n // self.splits, (i + 1) * n // self.splits) for i in range(self.splits)]


def _is_sorted(class_N: Tensor, shuffled_N: Tensor, bounds: list[tuple[int, int]]) -> bool:
    """Whether the parts of a file see far fewer classes than the parts of the same file, shuffled."""
    seen, expected = (sum(len(classes[a:b].unique()) for a, b in bounds) for classes in (class_N, class_N[shuffled_N]))
    return seen < _FEWEST * expected


def _score(logits_NK: Tensor) -> Tensor:
    log_p_NK = logits_NK.double().log_softmax(1)
    p_NK = log_p_NK.exp()
    return (p_NK * log_p_NK - torch.special.xlogy(p_NK, p_NK.mean(0))).sum(1).mean().exp()
