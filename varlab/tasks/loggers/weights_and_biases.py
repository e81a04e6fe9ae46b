"""Weights & Biases, one of its runs for each training."""

from __future__ import annotations

from lightning.pytorch.loggers import WandbLogger


class WeightsAndBiases(WandbLogger):
    """Lightning's logger, which ends its run with the training: the next job of a sweep in this process begins another."""

    def finalize(self, status: str) -> None:
        """End the run, with everything written."""
        super().finalize(status)
        if self._experiment is not None:
            self._experiment.finish(exit_code=int(status != "success"))
            self._experiment = None
