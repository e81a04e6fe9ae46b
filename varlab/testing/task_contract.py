"""The laws of tasks: they train under a plain ``lightning.Trainer``, and their state is all that a training to come needs."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping, Sequence

import torch
from lightning.pytorch import Trainer
from torch import Tensor
from torch.utils.data import DataLoader

from varlab.tasks import Task
from varlab.testing.expectation import expect
from varlab.types import Batch


def check_task(make: Callable[[], Task], batches: Sequence[Batch]) -> None:
    """Check a kind of task. make: builds it, equal each time. batches: two or more of one size, to train on.

    Raises VarlabError with the first broken law.
    """
    whole, first, half = make(), make(), len(batches) // 2
    name, initial = type(whole).__name__, _weights(whole)
    expect(half > 0, "check_task needs two batches or more.")
    expect(_same(initial, _weights(first)), f"{name} has other initial weights the second time: draw them from a seed.")
    _train(whole, batches, of=batches)
    images = sum(map(len, batches))
    expect(whole.images == images, f"{name}.images is {whole.images} after {images} images.")
    expect(math.isfinite(whole.last_loss), f"{name}: the loss of the last update is {whole.last_loss}.")
    expect(not _same(initial, _weights(whole)), f"{name}: its updates change no weight of model.")
    _train(first, batches[:half], of=batches)
    state = copy.deepcopy(first.state())
    alien = _alien(state)
    expect(not alien, f"{name}.state holds {alien}, but a checkpoint holds tensors and JSON types only.")
    resumed = make()
    resumed.load_state(state)
    _train(resumed, batches[half:], of=batches)
    same = _same(_weights(resumed), _weights(whole))
    expect(
        same, f"{name}: resumed from its state it trains to other weights; own_state and helpers must hold the rest."
    )
    scores = whole.validate(batches)
    numbers = bool(scores) and all(isinstance(x, int | float) and math.isfinite(x) for x in scores.values())
    expect(numbers, f"{name}: the validation's scores must be finite numbers by name, not {scores}.")


def _train(task: Task, part: Sequence[Batch], of: Sequence[Batch]) -> None:
    """Train on a part of the batches, whose learning rates follow from all of them."""
    task.total_images = sum(map(len, of))
    trainer = Trainer(
        accelerator="cpu",
        devices=1,
        max_epochs=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(task, DataLoader(list(part), batch_size=None))  # type: ignore[arg-type]  # a list is a dataset


def _weights(task: Task) -> dict[str, Tensor]:
    """A copy of all trained weights."""
    modules = {"model": task.model, **task.helpers()}
    return {f"{name}.{key}": t.clone() for name, module in modules.items() for key, t in module.state_dict().items()}


def _same(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def _alien(value: object) -> str:
    """The type of a value that no checkpoint can hold; empty if all can."""
    if isinstance(value, Mapping):
        return next(filter(None, map(_alien, value.values())), "")
    if isinstance(value, list | tuple):
        return next(filter(None, map(_alien, value)), "")
    return "" if value is None or isinstance(value, Tensor | str | int | float | bool) else type(value).__name__
