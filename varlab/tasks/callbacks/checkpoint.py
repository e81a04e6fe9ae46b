"""Save and resume: a training killed at any moment continues as if it had never stopped."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Collection
from pathlib import Path

from lightning.pytorch import Callback, Trainer

from varlab.checkpoint import check_state, diverged, load_checkpoint, save_checkpoint, save_weights
from varlab.files import write_errors
from varlab.tasks.base import Task
from varlab.tasks.callbacks.best_weights import BestWeights
from varlab.tasks.distributed import fsdp
from varlab.types import Batch, VarlabError

_log = logging.getLogger(__name__)
_DIGITS = 20  # of the count in the progress file, which is overwritten in place


class Checkpointer(Callback):
    """Writes checkpoints after updates, and the weights at the end. Must follow all periodic callbacks.

    path: the one checkpoint, replaced atomically. every: at most so many images (but at least one batch) lie between two
    checkpoints, so a killed run repeats no more. minutes: the longest time between two, by rank 0's clock; None for any.
    config_hash: of all settings that the weights depend on. weights: directory of ``weights.safetensors`` (averaged) and
    ``weights_raw.safetensors``. keep: after the update that reaches one of these numbers of images, the state is also written
    beside the checkpoint, as ``kept-<images>.ckpt``. best: keeps the weights at the best value of a score.
    """

    def __init__(
        self,
        *,
        path: Path,
        every: int,
        config_hash: str,
        weights: Path,
        minutes: float | None = None,
        keep: Collection[int] = (),
        best: BestWeights | None = None,
    ):
        if not isinstance(keep, Collection) or not all(isinstance(images, int) and images > 0 for images in keep):
            raise VarlabError(f"checkpoint.keep is {keep}: give a list of images, as in checkpoint.keep=[4096,8192].")
        if minutes is not None and not minutes > 0:
            raise VarlabError(f"checkpoint.minutes is {minutes}: give a number above 0, or null for no limit in time.")
        self._path, self._every, self._config_hash, self._weights = path, every, config_hash, weights
        self._minutes, self._keep, self._best = minutes, keep, best
        self._saved_at, self._saved_time = 0, 0.0  # images, and seconds of the clock that only goes forward

    def save(self, trainer: Trainer, task: Task) -> None:
        """Write the state of the task; rank 0 writes, all ranks must call it if the weights are sharded."""
        self._saved_at, self._saved_time = task.images, time.monotonic()
        self._write(trainer, task, self._path)

    def _write(self, trainer: Trainer, task: Task, path: Path) -> None:
        state = task.state(keep=trainer.is_global_zero)
        if trainer.is_global_zero:
            save_checkpoint(path, {"config_hash": self._config_hash, **state})

    def load(self, task: Task) -> None:
        """Restore the checkpoint if there is one. Raises VarlabError if it is damaged or of another configuration."""
        if self._path.exists():
            self._restore(task)
        if self._best is not None:
            self._best.load(task)

    def _restore(self, task: Task) -> None:
        state = load_checkpoint(self._path)
        if state.get("config_hash") != self._config_hash:
            raise VarlabError(
                f"{self._path} is a checkpoint of another configuration: give this run another directory (out=…)."
            )
        check_state(task.model.state_dict(), state["modules"]["model"], self._path)
        task.load_state(state)

    def on_train_start(self, trainer: Trainer, task: Task) -> None:
        """The actions that were pending are done: this is the last callback."""
        self._saved_at, self._saved_time = task.images, time.monotonic()
        self._end_update(trainer, task)

    def on_train_batch_end(self, trainer: Trainer, task: Task, outputs: object, batch: Batch, batch_idx: int) -> None:
        """Save if another update would go beyond ``every``, if ``minutes`` are over, and after the last one."""
        next_update = task.images + task.pending
        self._end_update(trainer, task)
        is_due = task.images >= task.total_images or next_update - self._saved_at > self._every
        if is_due or (self._minutes is not None and self._is_late(trainer)):
            self.save(trainer, task)

    @property
    def seconds_left(self) -> float | None:
        """Seconds until the next checkpoint is due by ``minutes``; None without that setting."""
        if self._minutes is None:
            return None
        return max(60 * self._minutes - (time.monotonic() - self._saved_time), 0.0)

    def _is_late(self, trainer: Trainer) -> bool:
        """Whether a checkpoint is due by ``minutes`` on rank 0."""
        return bool(trainer.strategy.broadcast(self.seconds_left == 0))

    def _end_update(self, trainer: Trainer, task: Task) -> None:
        """Nothing is pending any more. Keep the weights if they are the best ones, the state at a number of images to keep."""
        if self._best is not None:
            self._best.keep(trainer, task)
        before, task.pending = task.images - task.pending, 0
        if any(before < images <= task.images for images in self._keep):
            self._write(trainer, task, self._path.with_name(f"kept-{task.images}.ckpt"))

    def on_exception(self, trainer: Trainer, task: Task, exception: BaseException) -> None:
        """Write ``nan.ckpt`` beside the checkpoint if the training diverged; ``Task.replay`` repeats its last update."""
        if task.post_mortem is None:  # all ranks diverge together
            return
        if trainer.is_global_zero:
            save_checkpoint(self._path.with_name("nan.ckpt"), task.post_mortem)
        trainer.strategy.barrier()  # the launcher ends the other ranks when one leaves

    def on_fit_end(self, trainer: Trainer, task: Task) -> None:
        """Export the weights, also if a resumed run had nothing left to train."""
        clock, keep = {"images": str(task.images)}, trainer.is_global_zero
        if self._best is not None and keep:
            self._best.end()
        for name, state in (
            ("weights.safetensors", task.ema.weights(task.model)),
            ("weights_raw.safetensors", task.model.state_dict()),
        ):
            tensors = fsdp.full_state(state, keep=keep)
            if keep:
                if (tensor := diverged(tensors)) is not None:
                    raise VarlabError(
                        f"Training diverged: after {task.images} images the weights hold NaN, infinity or numbers too large to "
                        f"use (in '{tensor}'). Lower the learning rate, and start again in another out=."
                    )
                save_weights(self._weights / name, tensors, clock)


class Resume(Callback):
    """Restores the last checkpoint before training, and counts the images in a file that survives a kill.

    progress: the file of the count. on_resume: called on rank 0 with ``{"from": images, "repeated": images}`` if an earlier
    attempt exists.
    """

    def __init__(self, *, checkpointer: Checkpointer, progress: Path, on_resume: Callable[[dict[str, int]], None]):
        self._checkpointer, self._progress, self._on_resume = checkpointer, progress, on_resume
        self._descriptor: int | None = None

    def on_fit_start(self, trainer: Trainer, task: Task) -> None:
        """Restore on all ranks. The next checkpoint is written only after all ranks have taken part in an update."""
        self._checkpointer.load(task)
        trainer.datamodule.start = task.images  # type: ignore[attr-defined]
        if not trainer.is_global_zero:
            return
        done = _read_count(self._progress)
        for logger in trainer.loggers:
            if hasattr(logger, "cut"):
                logger.cut(task.images - bool(task.pending))  # pending actions write their lines again
        if done is not None or task.images:
            resumed = {"from": task.images, "repeated": max((done or 0) - task.images, 0)}
            detail = {"detail": not resumed["repeated"]}
            _log.info("resuming at %(from)d images; %(repeated)d are trained again", resumed, extra=detail)
            self._on_resume(resumed)
        with write_errors(self._progress):
            self._descriptor = os.open(self._progress, os.O_WRONLY | os.O_CREAT, 0o644)
        self._count(task.images)

    def on_train_batch_end(self, trainer: Trainer, task: Task, outputs: object, batch: Batch, batch_idx: int) -> None:
        """Count after each update, before any other callback acts on it."""
        self._count(task.images)

    def teardown(self, trainer: Trainer, task: Task, stage: str) -> None:
        """Close the file."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def _count(self, images: int) -> None:
        if self._descriptor is not None:
            with write_errors(self._progress):
                os.pwrite(self._descriptor, f"{images:0{_DIGITS}d}\n".encode(), 0)


def _read_count(path: Path) -> int | None:
    try:
        return int(path.read_text())
    except (OSError, ValueError):
        return None
