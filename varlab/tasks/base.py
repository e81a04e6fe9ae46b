"""The base of all tasks: the clock of images, one update per global batch, EMA, validation, a state that resumes exactly."""

from __future__ import annotations

import copy
from abc import abstractmethod
from collections.abc import Mapping, Sequence

import torch
from lightning.pytorch.utilities.types import STEP_OUTPUT
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils import clip_grads_with_norm_
from torch.optim import Optimizer

from varlab.config import Config
from varlab.rng import Rng
from varlab.tasks.distributed import collectives, fsdp
from varlab.tasks.resume_state import ResumableModule
from varlab.tasks.update.counters import DivergedError, Means, SkippedUpdates, Stopwatch
from varlab.tasks.update.ema import EMA
from varlab.tasks.update.optimizer import anneal_weight_decay, gradients, scale_learning_rate
from varlab.tasks.update.schedule import WarmupDecay
from varlab.tasks.update.stop_request import StopRequest
from varlab.tasks.validation import as_metrics
from varlab.types import Batch, VarlabError

ENDLESS = 1 << 40
"""Images of a training whose length is not decided, or of which only the first updates are made."""


class Task(ResumableModule):
    """One Lightning batch is one update of the global batch, in micro-batches if ``micro_batch`` is set.

    A task trains under any ``lightning.Trainer`` whose batches are ``Batch`` objects, each a rank's share of a global batch.

    model: the module that is trained, averaged and exported (other modules of a task are helpers). clip: the largest
    gradient norm (over all parameters of an optimizer), or None. micro_batch: samples of a rank's share that go through
    the model at once, or None for all. weight_decay_end: the model's weight decay at the end, to which it moves along half a
    cosine (VAR: from .05 to .08); None leaves it as it is.

    The caller may set ``train_flops_per_image``, and ``total_images`` (the length of the training, in whole batches), which
    otherwise follows from the Trainer.
    """

    def __init__(
        self,
        *,
        model: nn.Module,
        schedule: WarmupDecay,
        clip: float | None,
        ema_decay: float,
        micro_batch: int | None,
        rng: Rng,
        weight_decay_end: float | None = None,
    ):
        super().__init__()
        self.automatic_optimization = False
        self.model = model
        self.schedule, self.weight_decay_end = schedule, weight_decay_end
        self.clip, self.micro_batch, self.rng = clip, micro_batch, rng
        self.ema = EMA(model, decay=ema_decay)
        self.optims: list[Optimizer] = []
        self.images = 0  # consumed by updates, over all ranks: the clock of everything
        # images of the last update until its log point, validation, scores and pictures are done, then 0
        self.pending = 0
        self.total_images = 0
        self.train_flops_per_image = 0
        self.observing = False  # whether this update also computes values that only a log point needs
        self.logs_itself = True  # at the Trainer's log points, unless the callback TrainingLog does it on the clock
        self.published: set[str] = set()  # names of the numbers that callbacks have handed to the loggers
        self.scores: dict[str, float] = {}  # of the last update, by the names under which they were logged
        self.logged = False  # whether a log point has read the means, so that the next update begins new ones
        self.means, self.skipped, self.stopwatch = Means(), SkippedUpdates(), Stopwatch()
        self.stop_request = StopRequest()
        self.post_mortem: Config | None = None  # of the update that ended the training: see ``replay``
        self._batch: Batch | None = None  # of the present update
        self._before: Config | None = None  # the state before the present update, if it may end the training
        self._last_loss = torch.full((), torch.nan)
        self._derived_images = 0  # total_images, as it follows from the Trainer

    # -- what a task is ------------------------------------------------------------------------------------------------

    @abstractmethod
    def update(self, batch: Batch) -> None:
        """Use this rank's share of a global batch for one update."""

    def shards(self) -> Sequence[nn.Module]:
        """The parts of ``model`` that are gathered one at a time when its weights are sharded.

        Raises VarlabError for a task that cannot be sharded."""
        raise VarlabError(
            f"trainer.shard=true shards a generator's transformer over the ranks, not what {type(self).__name__} trains: "
            "use trainer=ddp, where each rank holds the whole model."
        )

    def flops_at(self, images: int) -> int:
        """FLOPs of the forward and backward passes of the trained modules after so many images."""
        return images * self.train_flops_per_image

    @property
    def is_endless(self) -> bool:
        """Whether the length of the training is not decided yet."""
        return self.total_images >= ENDLESS

    # -- an update -----------------------------------------------------------------------------------------------------

    def on_fit_start(self) -> None:
        """Refuse settings of the Trainer that this task cannot follow, and forget the length of an earlier fit."""
        self.check_trainer()
        self.end_validation()
        if self.total_images == self._derived_images:
            self.total_images = 0

    def check_trainer(self) -> None:
        """Raise VarlabError for settings of the Trainer that this task cannot follow."""
        trainer = self.trainer
        if str(trainer.precision).startswith("16"):
            raise VarlabError(
                f"trainer.precision={trainer.precision} needs a gradient scaler, which updates here do not have: use "
                "bf16-mixed or 32-true."
            )
        if trainer.accumulate_grad_batches != 1:
            raise VarlabError(
                "One batch is one update here, so accumulate_grad_batches has no meaning: set micro_batch to have a batch go "
                "through the model in parts."
            )

    def on_train_start(self) -> None:
        """Count the seconds of training from here on."""
        self.stopwatch.start()

    def configure_optimizers(self) -> list[Optimizer]:
        """Lightning moves the optimizers' state to the device."""
        return self.optims

    def shard(self) -> None:
        """Keep only this rank's shard of the model on the device; moments and averages will be sharded the same way."""
        fsdp.shard(self.model, self.optims[0], parts=self.shards(), device=self.device)
        self.ema = EMA(self.model, decay=self.ema.decay)

    def training_step(self, batch: Batch, batch_idx: int) -> STEP_OUTPUT:
        """One update; the clock advances by the images of the global batch."""
        self.begin(batch)
        return self.advance(batch)

    def advance(self, batch: Batch) -> STEP_OUTPUT:
        """Make the update that has begun; returns what callbacks get as the outputs of the step."""
        self.update(batch)
        self.finish()
        return {"loss": self._last_loss}

    def begin(self, batch: Batch) -> None:
        """Set what an update depends on: new means after a log point, and learning rates by the clock."""
        if self.logged:
            self.reset_log()
        if self._trainer is not None:
            self._follow_trainer(batch)
        for optimizer, factor in zip(self.optims, self.rates(), strict=True):
            scale_learning_rate(optimizer, factor)
        if self.weight_decay_end is not None:
            anneal_weight_decay(self.optims[0], self.weight_decay_end, self.images / self.total_images)
        self._batch, self.scores = batch, {}
        if self.skipped.next_one_ends:
            self._before = copy.deepcopy(self.state(keep=collectives.rank() == 0))

    def rates(self) -> list[float]:
        """The learning rate of each optimizer for the next update, as a factor of its base rate."""
        return [self.schedule.factor(self.images, self.total_images)] * len(self.optims)

    def finish(self) -> None:
        """Advance the clock, and log if this update is a log point of the Trainer."""
        assert self._batch is not None
        self.pending = len(self._batch) * collectives.world_size()
        self.images += self.pending
        self._batch = self._before = None
        if self.observing and self.logs_itself and self._trainer is not None:
            self.log_dict(as_metrics(self.clock() | self.log_values()))

    def on_train_batch_end(self, outputs: STEP_OUTPUT, batch: Batch, batch_idx: int) -> None:
        """Put the clock beside what other callbacks logged, which Lightning hands to the loggers after this last hook."""
        if self.observing and not self.logs_itself and self.trainer.logged_metrics.keys() - self.published:
            self.log_dict(as_metrics({"step": self.images} | self.clock()))

    def _follow_trainer(self, batch: Batch) -> None:
        """Take the length of the training from the Trainer if nobody set it, and its log points if nobody else logs."""
        if not self.total_images:
            steps = self.trainer.estimated_stepping_batches
            if not 0 < steps < float("inf"):
                raise VarlabError(
                    "The learning rate follows the length of the training: give the Trainer max_steps or max_epochs."
                )
            self._update_images = self._update_images or len(batch) * collectives.world_size()
            self.total_images = self._derived_images = int(steps) * self._update_images
        if self.logs_itself:
            every: int = self.trainer.log_every_n_steps  # type: ignore[attr-defined]  # set, but not declared
            self.observing = every > 0 and (self.trainer.global_step + 1) % every == 0

    def replay(self, post_mortem: Config) -> list[str]:
        """Repeat the update that ended a training; returns the names of values that are not finite, empty if all are.

        post_mortem: the content of ``nan.ckpt`` (``varlab.checkpoint.load_checkpoint``). The task must be built as the
        run's task was.
        """
        self.load_state(post_mortem["state"])
        self.total_images = post_mortem["total_images"]
        try:
            self.training_step(Batch(**post_mortem["batch"]), 0)
        except DivergedError as error:
            return error.names
        return []

    def step(self, optimizer: Optimizer, values: Mapping[str, Tensor], *, norm_name: str) -> bool:
        """Average gradients over the ranks, clip, step. Returns whether the step was made.

        values: as for ``average``. If a number is not finite, nothing changes but the count of skipped updates.
        """
        norm = self.average(optimizer, values, norm_name=norm_name)
        if norm is not None:
            self.clip_to(optimizer, norm)
            optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if optimizer is self.optims[0] and self._trainer is not None:
            # Lightning counts each step of an optimizer; an update counts once in ``global_step``, also a skipped one.
            counter = self.trainer.fit_loop.epoch_loop.manual_optimization.optim_step_progress
            counter.increment_ready()
            counter.increment_completed()
        return norm is not None

    def average(self, optimizer: Optimizer, values: Mapping[str, Tensor], *, norm_name: str) -> Tensor | None:
        """Average gradients over the ranks; returns their norm, or None, without gradients, if a number is not finite.

        values: this rank's scalars (losses), averaged and logged with the gradient norm. Every rank sees the same numbers, so
        all decide alike. Whether all are finite is the one number that the host waits for.
        """
        grads = gradients(optimizer)
        scalars = torch.stack([value.detach().float() for value in values.values()])
        collectives.average([*self.not_averaged(grads), scalars])
        norm = fsdp.total_norm(grads)
        names, numbers = (*values, norm_name), torch.cat([scalars, norm.view(1)])
        if "train/loss" in values:
            self._last_loss = numbers[names.index("train/loss")]
        if self.postpone(optimizer, norm_name, names, numbers):
            return norm
        if not self.check(norm_name, names, numbers):
            optimizer.zero_grad(set_to_none=True)
            return None
        self.means.add(names, numbers)
        return norm

    def not_averaged(self, grads: Sequence[Tensor]) -> list[Tensor]:
        """The gradients that the backward pass has not averaged over the ranks."""
        return [] if self._strategy_averages else [grad for grad in grads if not fsdp.is_sharded(grad)]

    @property
    def _strategy_averages(self) -> bool:
        """Whether the backward pass has averaged the gradients: DDP does, unless the task optimises by itself."""
        trainer = self._trainer
        return (
            trainer is not None and self.automatic_optimization and isinstance(trainer.model, DistributedDataParallel)
        )

    def postpone(self, optimizer: Optimizer, norm_name: str, names: Sequence[str], numbers: Tensor) -> bool:
        """Whether the device decides if the optimizer steps, so that the host need not wait for these numbers now."""
        return False

    def check(self, norm_name: str, names: Sequence[str], numbers: Tensor, *, known: bool | None = None) -> bool:
        """Whether all numbers are finite. Raises DivergedError, with the post-mortem kept, after too many that are not."""
        try:
            return self.skipped.check(norm_name, names, numbers, self.images, known=known)
        except DivergedError as error:
            self.post_mortem = {
                "state": self._before,
                "batch": self._batch.state() if self._batch is not None else None,
                "total_images": self.total_images,
                "seed": self.rng.seed,
                "names": error.names,
            }
            raise

    def clip_to(self, optimizer: Optimizer, norm: Tensor) -> None:
        """Scale an optimizer's gradients, whose norm is given, down to the norm ``clip``."""
        if self.clip is not None:
            clip_grads_with_norm_([p for group in optimizer.param_groups for p in group["params"]], self.clip, norm)

    def observe(self, values: Mapping[str, Tensor]) -> None:
        """Log values of this update alone, averaged over the ranks."""
        scalars = torch.stack([value.detach().float() for value in values.values()])
        collectives.average([scalars])
        self.means.add(tuple(values), scalars)

    @property
    def last_loss(self) -> float:
        """The loss of the last update, averaged over the ranks: to read it waits for the device."""
        return float(self._last_loss)

    def clock(self) -> dict[str, float]:
        """Images, FLOPs and seconds of training so far: what every log point begins with."""
        return {
            "images": self.images,
            "flops": self.flops_at(self.images),
            "seconds": round(self.stopwatch.seconds, 3),
        }

    def log_values(self) -> dict[str, float]:
        """``train/*`` since the last log point, equal on all ranks. The next update begins new means."""
        self.settle()
        self.logged = True
        rate, skipped = float(self.optims[0].param_groups[0]["lr"]), float(self.skipped.total)
        return {**self.means.values(), "train/lr": rate, "train/nonfinite": skipped}

    def reset_log(self) -> None:
        """Begin new means after a log point."""
        self.logged = False
        self.means.reset()
