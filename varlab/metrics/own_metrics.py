"""Metrics from elsewhere, by ``_target_`` in ``metrics.own``: torchmetrics' interface, and arguments by their names."""

from __future__ import annotations

import copy
import inspect
import math
from collections.abc import Mapping
from typing import cast

import torch
from torch import Tensor, nn
from torchmetrics import Metric

from varlab.errors import VarlabError


class OwnMetrics(nn.Module):
    """Metrics of samples or reconstructions, by name. Each ``update`` gets what it names as parameters.

    ``features_BF``, ``logits_BK``, ``label_B``: of the extractor, and the labels. ``real``: False for samples; a metric that
    names it also sees the reference images, with True. ``preds`` and ``target``: reconstructions and their images, float in
    [0, 1]. Its first parameter, if it has another name, is ``img_u8_B3HW``, as in torchmetrics' own image metrics.
    """

    def __init__(self, metrics: Mapping[str, Metric]):
        super().__init__()
        self.metrics = nn.ModuleDict(metrics)

    @property
    def best(self) -> dict[str, str]:
        """Whether the larger (max) or the smaller (min) value of each metric is better; empty if it does not say."""
        ways = {True: "max", False: "min", None: ""}
        return {name: ways[metric.higher_is_better] for name, metric in self._all().items()}

    def _all(self) -> dict[str, Metric]:
        return {name: cast(Metric, metric) for name, metric in self.metrics.items()}

    def ranked(self, scores: Mapping[str, float]) -> dict[str, str]:
        """``best`` of each score that one of these metrics gave."""
        best = self.best
        return {name: best[first] for name in scores if (first := name.partition("/")[0]) in best}

    def fresh(self) -> OwnMetrics:
        """A copy, with the reference images that these metrics have seen."""
        return copy.deepcopy(self)

    def update(self, img_u8_B3HW: Tensor, *, real: bool, **known: Tensor) -> None:
        """Add images: samples or reconstructions, or the reference (``real``). known: features_BF, logits_BK, label_B."""
        for name, metric in self._all().items():
            names = list(inspect.signature(metric.update).parameters)
            if "target" in names or (real and "real" not in names):
                continue
            given = {key: value for key, value in {**known, "real": real}.items() if key in names}
            images = [] if names[:1] and names[0] in given else [img_u8_B3HW]
            self._call(name, *images, **given)

    def update_pairs(self, rec_u8_B3HW: Tensor, img_u8_B3HW: Tensor) -> None:
        """Add reconstructions with their images, for the metrics that compare pairs."""
        for name, metric in self._all().items():
            if "target" in inspect.signature(metric.update).parameters:
                self._call(name, rec_u8_B3HW.float() / 255, img_u8_B3HW.float() / 255)

    def _call(self, name: str, *images: Tensor, **given: object) -> None:
        try:
            self._all()[name].update(*images, **given)
        except (TypeError, ValueError, RuntimeError) as error:
            raise VarlabError(f"metrics.own.{name} refuses what it gets: {' '.join(str(error).split())}") from error

    def compute(self) -> dict[str, float]:
        """Each value by its metric's name: a pair is a mean and its deviation (``_std``), a dict has ``name/key``.

        All ranks must call it together. Raises VarlabError for a value that is not finite.
        """
        values: dict[str, float] = {}
        for name, metric in self._all().items():
            values |= _named(name, metric.compute())
        if not all(map(math.isfinite, values.values())):
            raise VarlabError(f"An own metric is not a finite number ({values}): check it, and the samples for NaN.")
        return values


def _named(name: str, value: object) -> dict[str, float]:
    if isinstance(value, Mapping):
        return {f"{name}/{key}": float(one) for key, one in value.items()}
    if isinstance(value, tuple | list):
        return dict(zip((name, f"{name}_std"), map(float, value), strict=True))
    return {name: float(torch.as_tensor(value))}
