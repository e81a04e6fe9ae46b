"""What a training needs on this machine, before it begins: operations, updates, memory and time."""

from __future__ import annotations

import statistics
import tempfile
import time
from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import torch
from lightning.pytorch import Callback, Trainer
from torch import Tensor

from varlab.config import Config
from varlab.data import BaseDataModule
from varlab.errors import Stopped
from varlab.processor import widened
from varlab.recipe.assembly import example_slots
from varlab.recipe.flops import FlopCounter
from varlab.recipe.plan import Plan, parameters
from varlab.recipe.preflight.requested_ranks import world_size
from varlab.recipe.token_shards.token_cache import TokenCache
from varlab.recipe.trainer.free_memory import free_bytes
from varlab.recipe.trainer.memory import Devices, LiveBytes, Memory, tensor_bytes, training_memory
from varlab.tasks import GeneratorTask, Task
from varlab.types import Batch

__all__ = ["Forecast", "forecast"]

_SHORT = 20.0  # seconds that a trial may take, if it computed nothing but matrix products
_TRIALS = ((32, 8), (8, 3))  # updates, and how many of the first ones are not measured
_SIDE = 1024  # of the matrices whose product is measured


@dataclass(frozen=True, kw_only=True)
class Forecast:
    """seconds: of training alone. rate: FLOPs a second of matrix products. measured: updates of the trial, 0 for none.

    memory: of each device; None where activations are known only by a trial, and there was none. encoded: what is encoded
    before the first update, if anything is; its time counts.
    """

    parameters: int
    images: int
    updates: int
    flops: int
    memory: Memory | None
    seconds: float
    rate: float
    measured: int
    encoded: str = ""

    def rows(self) -> list[Sequence[str]]:
        """A table of names and values."""
        minutes = f"{self.seconds / 60:,.1f}" if self.seconds >= 60 else f"{self.seconds / 60:.2g}"
        rows: list[Sequence[str]] = [
            ("parameters", f"{self.parameters:,}"),
            ("images", f"{self.images:,}"),
            ("updates", f"{self.updates:,}"),
            ("FLOPs of an update", f"{self.flops / self.updates:.3g}"),
            ("FLOPs in all", f"{self.flops:.3g}"),
            *([("encoded once", self.encoded)] if self.encoded else []),
        ]
        if self.memory is not None:
            rows += [(f"memory: {name}", _size(value)) for name, value in vars(self.memory).items() if value]
            rows.append(("memory: peak of a device", _size(self.memory.total)))
        if self.measured:
            return [*rows, ("minutes", f"{minutes} (measured: {self.measured} updates)")]
        products = f"{self.rate / 1e9:,.0f} GFLOP/s of matrix products"
        return [*rows, ("minutes", f"at least {minutes} (not measured: from {products})")]


def forecast(
    plan: Plan, data: BaseDataModule, trainer: Config, *, images: int | None, seconds: float | None = None
) -> Forecast:
    """Forecast a training of so many images, or seconds.

    plan: made for this alone, since a trial trains its weights; there is none if they are on ``meta``. trainer: as for its
    ``fit``.
    """
    task, ranks, cache = plan.task, world_size(trainer), plan.cache
    each, cached = _frozen_flops(plan, data)

    def work(images: int) -> int:
        """FLOPs of a training of so many images that encodes each batch; the images themselves if no operation counts."""
        return task.flops_at(images) + images * (each + cached) or images

    rate, timed = matrix_rate(trainer), images is None
    if images is None:
        assert seconds is not None
        images = _images_of(work, seconds * rate * ranks, data.batch)
    encoded = images if cache is None else cache.images
    memory = _generator_memory(task, trainer, data.batch // ranks) if isinstance(task, GeneratorTask) else None
    update = work(images) / images * data.batch / rate
    real = ranks == 1 and not next(task.model.parameters()).is_meta
    trial = next((trial for trial in _TRIALS if trial[0] * update <= _SHORT), None) if real else None
    if trial is None or (memory is not None and memory.total > free_bytes(trainer)):
        seconds, measured = (work(images) - (images - encoded) * cached) / rate / ranks, 0
    else:
        clock, peak, (measured, warm_up) = _Clock(work), _Peak(), trial
        _try(plan, data, trainer, batches=measured, callbacks=[clock, peak])
        pace = clock.pace(warm_up)
        if timed and seconds is not None:
            images = encoded = _images_of(work, seconds * pace, data.batch)
        # later updates may cost more: a discriminator begins to learn, or scales are added
        seconds = work(images) / pace
        if cache is not None:
            seconds -= (images - encoded) * _encoding_seconds(cache, trainer)
        memory = memory or _measured_memory(task, peak.bytes)
    return Forecast(
        parameters=parameters(task.model),
        images=images,
        updates=-(-images // data.batch),
        flops=task.flops_at(images),
        memory=memory,
        seconds=seconds,
        rate=rate,
        measured=measured,
        encoded="" if cache is None else str(cache),
    )


def _frozen_flops(plan: Plan, data: BaseDataModule) -> tuple[int, int]:
    """FLOPs with which a generator's frozen tokenizers encode an image: in each batch, and once if there is a cache."""
    if not isinstance(plan.task, GeneratorTask):
        return 0, 0
    each = sum(plan.cost.get(key, 0) for key in ("encode_flops_per_image", "condition_flops_per_image"))
    cache = plan.cache
    return each, 0 if cache is None else FlopCounter().encode(cache.tokenizer, data.info.image_size)


def matrix_rate(trainer: Config) -> float:
    """Measure FLOPs a second of matrix products in the precision and with the threads of a training.

    A processor that would emulate bfloat16 multiplies in float32, as it does in training.
    """
    dtype = torch.bfloat16 if str(trainer["precision"]).startswith("bf16") else torch.float32
    a, b = widened(*torch.ones(2, _SIDE, _SIDE, dtype=dtype, device=_device(trainer)))
    return 2 * _SIDE**3 / _fastest(lambda: (a @ b)[0, 0], trainer)


def _encoding_seconds(cache: TokenCache, trainer: Config) -> float:
    """Measure the seconds of encoding an image."""
    tokenizer = cache.tokenizer.to(_device(trainer))
    img_B3HW = torch.zeros(cache.batch, 3, *cache.data.info.image_size, device=_device(trainer))
    return _fastest(lambda: tokenizer.encode(img_B3HW)[0][0, 0], trainer) / cache.batch


def _fastest(compute: Callable[[], Tensor], trainer: Config) -> float:
    """Seconds of the fastest of five calls, with the threads of a training. compute: returns one number."""
    before = torch.get_num_threads()
    torch.set_num_threads(trainer.get("threads") or before)
    times = []
    for _ in range(5):
        start = time.perf_counter()
        compute().item()  # waits for a GPU
        times.append(time.perf_counter() - start)
    torch.set_num_threads(before)
    return min(times)


def _device(trainer: Config) -> torch.device:
    return torch.device("cpu" if trainer["accelerator"] == "cpu" or not torch.cuda.is_available() else "cuda")


def _images_of(work: Callable[[int], int], amount: float, batch: int) -> int:
    """The images of a training that is so much work, rounded up to whole batches."""
    return bisect_left(range(1 << 62), amount, lo=1, key=lambda batches: work(batches * batch)) * batch


def _try(plan: Plan, data: BaseDataModule, trainer: Config, *, batches: int, callbacks: Sequence[Callback]) -> None:
    """Make a training of a few batches in a folder that is deleted afterwards. Raises Stopped after a signal."""
    trainer = {key: value for key, value in trainer.items() if key != "fast_dev_run"}  # which would make fewer
    with tempfile.TemporaryDirectory() as name:
        try:
            plan.fit(data, Path(name), images=batches * data.batch, trainer=trainer, callbacks=callbacks)
        except Stopped as stop:
            raise Stopped(stop.number, "before the first update") from stop
    plan.task.total_images = 0  # the FLOPs of a training depend on its length, which was the trial's


class _Clock(Callback):
    """Notes the time after each update, and the work until then."""

    def __init__(self, work: Callable[[int], int]) -> None:
        self._work = work
        self._notes: list[tuple[float, int]] = []

    def on_train_batch_end(self, trainer: Trainer, task: Task, outputs: object, batch: Batch, batch_idx: int) -> None:  # type: ignore[override]
        """Note them."""
        self._notes.append((time.perf_counter(), self._work(task.images)))

    def pace(self, warm_up: int) -> float:
        """Work a second after the first updates, where updates of equal work take their median time."""
        seconds: dict[int, list[float]] = {}
        for (start, before), (end, after) in pairwise(self._notes[warm_up:]):
            seconds.setdefault(after - before, []).append(end - start)
        work = sum(each * len(times) for each, times in seconds.items())
        return work / sum(statistics.median(times) * len(times) for times in seconds.values())


class _Peak(Callback):
    """Follows the memory of the last update of a trial: weights, moments and average exist then."""

    def __init__(self) -> None:
        self._live = LiveBytes()
        self.bytes = 0

    def on_train_batch_start(self, trainer: Trainer, task: Task, batch: Batch, batch_idx: int) -> None:  # type: ignore[override]
        """Begin before the last update."""
        if task.device.type == "cpu" and task.images + len(batch) == task.total_images:
            self._live.__enter__()

    def on_train_batch_end(self, trainer: Trainer, task: Task, outputs: object, batch: Batch, batch_idx: int) -> None:  # type: ignore[override]
        """End after it."""
        if task.device.type == "cpu" and task.images == task.total_images:
            self._live.__exit__(None, None, None)
            self.bytes = self._live.peak


def _generator_memory(task: GeneratorTask, trainer: Config, share: int) -> Memory:
    slots = example_slots(task.order, task.tokenizer, task.condition)
    micro_batch = min(task.micro_batch or share, share)
    devices = Devices(
        world=world_size(trainer),
        shard=trainer.get("shard", False),
        recompute=task.recompute,
        precision=str(trainer["precision"]),
        micro_batch=micro_batch,
        whole=micro_batch == share,
        average=task.ema.decay > 0,
    )
    return training_memory(task.model, slots, devices)


def _measured_memory(task: Task, peak: int) -> Memory | None:
    """peak: bytes alive at once in an update, gradients among them; 0 if it was not followed."""
    own = tensor_bytes(p for p in task.parameters() if p.requires_grad)
    return (
        None
        if not peak
        else Memory(
            weights=tensor_bytes(task.parameters()),
            gradients=min(own, peak),
            moments=2 * own,
            average=tensor_bytes(task.model.state_dict().values()) if task.ema.decay else 0,
            gathered=0,
            activations=max(peak - own, 0),
        )
    )


def _size(size: int) -> str:
    return f"{size / 2**30:,.2f} GiB" if size >= 1 << 30 else f"{size / 2**20:,.2f} MiB"
