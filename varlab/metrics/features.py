"""Features gathered from all batches and ranks."""

from __future__ import annotations

from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities.data import dim_zero_cat


class FeatureSet(Metric):
    """All features that were added: of held-out images, for varlab.metrics.comparison. Every rank must add some."""

    full_state_update = False
    rows: list[Tensor]

    def __init__(self) -> None:
        super().__init__()
        self.add_state("rows", [], dist_reduce_fx="cat")

    def update(self, features_BF: Tensor) -> None:
        """Add a batch's features."""
        self.rows.append(features_BF)

    def compute(self) -> Tensor:
        """features_NF of all ranks. Every rank must call this at once."""
        return dim_zero_cat(self.rows)
