"""Validation with averaged weights: by Lightning's own loop, or by ``validate``, which gives the same scores."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import Protocol

import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn

from varlab.tasks.distributed import fsdp
from varlab.tasks.update.counters import Stopwatch
from varlab.tasks.update.ema import EMA
from varlab.tasks.update.stop_request import StopRequest
from varlab.types import Batch, without_padding


class Validator(Protocol):
    """Scores of a split, batch by batch: valid samples only, on the device, with averaged weights in the model."""

    def update(self, batch: Batch) -> None:
        """Add a batch of this rank."""

    def compute(self) -> dict[str, float]:
        """The scores of all ranks' batches, by name. All ranks call it together."""


class ValidatedModule(LightningModule):
    """A module whose scores are those of its averaged weights. Subclasses set the attributes."""

    model: nn.Module
    ema: EMA
    stopwatch: Stopwatch
    stop_request: StopRequest

    def __init__(self) -> None:
        super().__init__()
        self._evaluating = ExitStack()  # holds the averaged weights in the model during Lightning's validation
        self._validator: Validator | None = None

    @abstractmethod
    def validator(self) -> Validator:
        """An object that scores one pass over a split."""

    @abstractmethod
    def clock(self) -> dict[str, float]:
        """What every log point begins with."""

    @contextmanager
    def evaluation(self) -> Iterator[None]:
        """Averaged weights, evaluation mode, no gradients and a paused stopwatch; all is restored afterwards.

        All ranks must enter it; inside, no rank has to wait for another."""
        modes = {module: module.training for module in self.modules()}
        with self.stopwatch.paused(), torch.no_grad(), self.ema.swap(self.model), fsdp.gathered(self.model):
            self.eval()
            try:
                yield
            finally:
                for module, training in modes.items():
                    module.training = training

    def validate(self, loader: Iterable[Batch]) -> dict[str, float]:
        """``val/*`` with averaged weights over all ranks: each image counts once, padding does not count."""
        with self.evaluation(), self._autocast():
            scores = self.validation_scores(without_padding(self.stop_request.between(loader), self.device))
        return {f"val/{name}": value for name, value in scores.items()}

    def validation_scores(self, batches: Iterable[Batch]) -> dict[str, float]:
        """Scores over the images of all ranks, by name. batches: this rank's, without padding, on the device."""
        validator = self.validator()
        for batch in batches:
            validator.update(batch)
        return validator.compute()

    def on_validation_epoch_start(self) -> None:
        """Lightning's own validation begins: averaged weights, as in ``validate``."""
        self._evaluating.enter_context(self.evaluation())
        self._validator = self.validator()

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Score a batch. Outside of inference mode, whose tensors no later update could use."""
        assert self._validator is not None
        with torch.inference_mode(False), torch.no_grad():
            for valid in without_padding([batch], self.device):
                self._validator.update(valid)

    def on_validation_epoch_end(self) -> None:
        """Log ``val/*`` and restore the weights, before any callback saves them."""
        assert self._validator is not None
        scores = {f"val/{name}": value for name, value in self._validator.compute().items()}
        self.end_validation()
        self.log_dict(as_metrics(self.clock() | scores))

    def end_validation(self) -> None:
        """Restore the weights, if a validation of Lightning's has averages in the model."""
        self._evaluating.close()
        self._validator = None

    def _autocast(self) -> AbstractContextManager[None]:
        """The trainer's precision, if there is a trainer (Lightning itself applies it only to training steps)."""
        return self.trainer.precision_plugin.forward_context() if self._trainer is not None else nullcontext()


def as_metrics(values: Mapping[str, float]) -> dict[str, Tensor]:
    """Numbers for ``self.log``, which would round a Python float to float32."""
    return {name: torch.tensor(value, dtype=torch.float64) for name, value in values.items()}
