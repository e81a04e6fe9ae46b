"""Tasks with one loss and one optimizer, which Lightning optimises: classifier and generator."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
from lightning.pytorch.utilities.types import STEP_OUTPUT
from torch import Tensor
from torch.optim import Optimizer

from varlab.tasks.base import Task
from varlab.tasks.distributed import collectives, fsdp
from varlab.tasks.distributed.backward_average import BackwardAverage
from varlab.tasks.update.counters import HostFlag, accumulate
from varlab.tasks.update.ema import EMA
from varlab.tasks.update.optimizer import skips_on_device
from varlab.types import Batch, full_precision


class LossTask(Task):
    """A task that only says what its loss is: Lightning's automatic optimisation makes the update.

    Lightning calls ``training_step``, ``backward``, ``on_after_backward``, ``configure_gradient_clipping`` and the optimizer,
    and the hooks of its callbacks in between. Here, ``on_after_backward`` averages gradients over the ranks, and removes them
    if a number is not finite: an optimizer changes nothing without gradients.
    """

    def __init__(self, **settings: Any):
        self._made: tuple[str, Sequence[str], Tensor, HostFlag] | None = (
            None  # the numbers of the last update, if nobody read them
        )
        super().__init__(**settings)
        self.automatic_optimization = True
        self._values: dict[str, Tensor] = {}  # this rank's means of the present update
        self._norm: Tensor | None = None  # of its gradients; None if it is to be skipped
        self._unread: tuple[str, Sequence[str], Tensor, HostFlag] | None = None  # of the present update
        self._backward_average: BackwardAverage | None = None  # with several ranks

    @abstractmethod
    def loss(self, chunk: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """The mean loss of some samples, with its graph, and further means to log."""

    def chunks(self, batch: Batch) -> list[Batch]:
        """The micro-batches of a batch."""
        return batch.chunks(self.micro_batch)

    def observed(self) -> dict[str, Tensor]:
        """What only a log point shows of its update, by name."""
        return {}

    def advance(self, batch: Batch) -> STEP_OUTPUT:
        """Return the loss, from which Lightning goes on."""
        return super().advance(batch) if self._trainer is None else self._accumulate(batch)

    def update(self, batch: Batch) -> None:
        """A whole update without a Trainer, by the steps that Lightning makes with one."""
        loss = self._accumulate(batch)
        with full_precision(loss):
            loss.backward()
        self.on_after_backward()
        self.configure_gradient_clipping(self.optims[0])
        self.optims[0].step()
        self._complete()

    def _accumulate(self, batch: Batch) -> Tensor:
        """The loss of the last micro-batch, weighted by its share; those before it leave their gradients."""
        self.model.train()
        self._forget()
        *before, last = self.chunks(batch)
        fsdp.reduce_gradients(self.model, not before)
        for chunk in before:
            loss = self._weighted(chunk, batch)
            with full_precision(loss):
                loss.backward()
        fsdp.reduce_gradients(self.model, True)
        loss = self._weighted(last, batch)
        if collectives.world_size() > 1 and not self.is_sharded and not self._strategy_averages:
            self._backward_average = self._backward_average or BackwardAverage(self.parameters())
            self._backward_average.begin()
        return loss

    def _forget(self) -> None:
        """Drop what an update that raised has left."""
        self._values = {}
        self.optims[0].zero_grad(set_to_none=True)

    def not_averaged(self, grads: Sequence[Tensor]) -> list[Tensor]:
        """None: the backward pass averages all, and ends here."""
        if self._backward_average is None:
            return super().not_averaged(grads)
        self._backward_average.finish()
        return []

    def _weighted(self, chunk: Batch, batch: Batch) -> Tensor:
        share = len(chunk) / len(batch)
        loss, values = self.loss(chunk)
        accumulate(self._values, {"train/loss": loss.detach(), **values}, share)
        return loss * share

    def on_after_backward(self) -> None:
        """Average gradients and numbers over the ranks."""
        self._norm = self.average(self.optims[0], self._values, norm_name="train/grad_norm")

    def configure_gradient_clipping(
        self,
        optimizer: Optimizer,
        gradient_clip_val: int | float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clip as the Trainer says, else by the task's ``clip``."""
        if gradient_clip_val is not None:
            super().configure_gradient_clipping(optimizer, gradient_clip_val, gradient_clip_algorithm)
        elif self._norm is not None:
            self.clip_to(self.optims[0], self._norm)

    def optimizer_step(self, *arguments: Any, **keywords: Any) -> None:
        """The whole update: forward, backward, clipping and step, in a closure of Lightning's; then average and clock."""
        super().optimizer_step(*arguments, **keywords)
        self._complete()
        self.finish()

    def optimizer_zero_grad(self, *arguments: Any) -> None:
        """Do nothing: Lightning asks between forward and backward, when micro-batches have left gradients."""

    def postpone(self, optimizer: Optimizer, norm_name: str, names: Sequence[str], numbers: Tensor) -> bool:
        """Leave it to an optimizer that can skip a step on the device, unless the last update was skipped.

        Its numbers are read when the next update has been sent to the device, or when anybody asks for the state.
        """
        self.settle()
        if not skips_on_device(optimizer) or self.is_sharded or self.skipped.in_doubt:
            return False
        finite = numbers.isfinite().all()
        optimizer.found_inf = finite.logical_not().to(torch.float32)  # type: ignore[attr-defined]
        self._unread = norm_name, names, numbers, HostFlag(finite)
        return True

    def settle(self) -> None:
        """Count the last update: as skipped, or in the means and the average of the weights."""
        if self._made is not None:
            (norm_name, names, numbers, finite), self._made = self._made, None
            if self.check(norm_name, names, numbers, known=finite.read()):
                self.means.add(tuple(names), numbers)
                self._average.update(self.model)

    @property
    def ema(self) -> EMA:
        """The average of the weights after all updates so far."""
        self.settle()
        return self._average

    @ema.setter
    def ema(self, average: EMA) -> None:
        self._average = average

    def _complete(self) -> None:
        if self._unread is not None:
            del self.optims[0].found_inf  # type: ignore[attr-defined]
            self._made, self._unread = self._unread, None
            if self.observing:
                self.settle()
        elif self._norm is not None:
            self.ema.update(self.model)
        if self.observing and (values := self.observed()):
            self.observe(values)
        self.optims[0].zero_grad(set_to_none=True)
