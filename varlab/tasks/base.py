"""The base of all tasks: the clock of images, one update per global batch, EMA, validation, a state that resumes exactly."""

from __future__ import annotations

import copy
from abc import abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torch.nn.utils import clip_grads_with_norm_
from torch.optim import Optimizer

from varlab.config import Config
from varlab.rng import Rng
from varlab.tasks.distributed import collectives, fsdp
from varlab.tasks.stop_request import StopRequest
from varlab.tasks.update.counters import DivergedError, Means, SkippedUpdates, Stopwatch
from varlab.tasks.update.ema import EMA
from varlab.tasks.update.optimizer import gradients, scale_learning_rate
from varlab.tasks.update.schedule import WarmupDecay
from varlab.types import Batch, VarlabError


class Task(LightningModule):
    """One Lightning batch is one update of the global batch, in micro-batches if ``micro_batch`` is set.

    model: the module that is trained, averaged and exported (other modules of a task are helpers). clip: the largest
    gradient norm (over all parameters of an optimizer), or None. micro_batch: samples of a rank's share that go through
    the model at once, or None for all.

    The caller sets ``total_images`` (the length of the training, in whole batches) and ``train_flops_per_image``.
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
    ):
        super().__init__()
        self.automatic_optimization = False
        self.model = model
        self.schedule = schedule
        self.clip, self.micro_batch, self.rng = clip, micro_batch, rng
        self.ema = EMA(model, decay=ema_decay)
        self.optims: list[Optimizer] = []
        self.images = 0  # consumed by updates, over all ranks: the clock of everything
        # images of the last update until its log point, validation, scores and pictures are done, then 0
        self.pending = 0
        self.last_loss = float("nan")  # of the first optimizer's last update, for the progress bar
        self.total_images = 0
        self.train_flops_per_image = 0
        self.observing = False  # whether this update also computes values that only a log point needs
        self.logged = False  # whether a log point has read the means, so that the next update begins new ones
        self.means, self.skipped, self.stopwatch = Means(), SkippedUpdates(), Stopwatch()
        self.stop_request = StopRequest()
        self.post_mortem: Config | None = None  # of the update that ended the training: see ``replay``

    # -- what a task is ------------------------------------------------------------------------------------------------

    @abstractmethod
    def update(self, batch: Batch) -> None:
        """Use this rank's share of a global batch for one update."""

    @abstractmethod
    def validation_scores(self, batches: Iterable[Batch]) -> dict[str, float]:
        """Scores over the images of all ranks, by name. batches: this rank's, without padding, on the device."""

    def helpers(self) -> dict[str, nn.Module]:
        """Trained modules other than ``model``; checkpoints hold them too."""
        return {}

    def own_state(self) -> Config:
        """What else a task needs to resume: tensors and JSON types."""
        return {}

    def load_own_state(self, state: Config) -> None:
        """Restore ``own_state``."""

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

    # -- an update -----------------------------------------------------------------------------------------------------

    def configure_optimizers(self) -> list[Optimizer]:
        """Lightning moves the optimizers' state to the device."""
        return self.optims

    @property
    def is_sharded(self) -> bool:
        """Whether each rank holds only its shard of the model."""
        return fsdp.is_sharded(self.model)

    def shard(self) -> None:
        """Keep only this rank's shard of the model on the device; moments and averages will be sharded the same way."""
        fsdp.shard(self.model, self.optims[0], parts=self.shards(), device=self.device)
        self.ema = EMA(self.model, decay=self.ema.decay)

    def training_step(self, batch: Batch, batch_idx: int) -> None:
        """One update; the clock advances by the images of the global batch."""
        if self.logged:
            self.reset_log()
        for optimizer in self.optims:
            scale_learning_rate(optimizer, self.schedule.factor(self.images, self.total_images))
        before = None
        if self.skipped.next_one_ends:
            before = copy.deepcopy(self.state(keep=collectives.rank() == 0))
        try:
            self.update(batch)
        except DivergedError as error:
            self.post_mortem = {
                "state": before,
                "batch": batch.state(),
                "total_images": self.total_images,
                "seed": self.rng.seed,
                "names": error.names,
            }
            raise
        self.pending = len(batch) * collectives.world_size()
        self.images += self.pending

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

        values: this rank's scalars (losses), averaged and logged with the gradient norm. If one of them is not finite,
        nothing changes but the count of skipped updates; every rank sees the same numbers, so all decide alike.
        """
        grads = gradients(optimizer)
        scalars = torch.stack([value.detach().float() for value in values.values()])
        collectives.average([*(grad for grad in grads if not fsdp.is_sharded(grad)), scalars])
        norm = fsdp.total_norm(grads)
        numbers = dict(zip([*values, norm_name], torch.cat([scalars, norm.view(1)]).tolist(), strict=True))
        self.last_loss = numbers.get("train/loss", self.last_loss)
        finite = self.skipped.check(norm_name, numbers, self.images)
        if finite:
            if self.clip is not None:
                clip_grads_with_norm_([p for g in optimizer.param_groups for p in g["params"]], self.clip, norm)
            optimizer.step()
            self.means.add(numbers)
        optimizer.zero_grad(set_to_none=True)
        return finite

    def observe(self, values: Mapping[str, Tensor]) -> None:
        """Log values of this update alone, averaged over the ranks."""
        scalars = torch.stack([value.detach().float() for value in values.values()])
        collectives.average([scalars])
        self.means.add(dict(zip(values, scalars.tolist(), strict=True)))

    def log_values(self) -> dict[str, float]:
        """``train/*`` since the last log point, equal on all ranks. The next update begins new means."""
        self.logged = True
        rate, skipped = float(self.optims[0].param_groups[0]["lr"]), float(self.skipped.total)
        return {**self.means.values(), "train/lr": rate, "train/nonfinite": skipped}

    def reset_log(self) -> None:
        """Begin new means after a log point."""
        self.logged = False
        self.means.reset()

    # -- evaluation ----------------------------------------------------------------------------------------------------

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
        batches = without_padding(self.stop_request.between(loader), self.device)
        with self.evaluation(), self._autocast():
            scores = self.validation_scores(batches)
        return {f"val/{name}": value for name, value in scores.items()}

    def _autocast(self) -> AbstractContextManager[None]:
        """The trainer's precision, if there is a trainer (Lightning itself applies it only to training steps)."""
        return self.trainer.precision_plugin.forward_context() if self._trainer is not None else nullcontext()

    # -- checkpoints ---------------------------------------------------------------------------------------------------

    def state(self, *, keep: bool = True) -> Config:
        """Everything that the weights to come depend on, and the means that are not yet logged.

        All ranks must call it. One that does not ``keep`` the result (rank 0 writes it) may get less.
        """
        modules = {name: module.state_dict() for name, module in self._trained().items()}
        optimizers = [optimizer.state_dict() for optimizer in self.optims]
        tensors: Config = {"modules": modules, "ema": self.ema.state(), "optimizers": optimizers}
        return {
            "images": self.images,
            "pending": self.pending,
            **(fsdp.full_state(tensors, keep=keep) if self.is_sharded else tensors),
            "means": self.means.state(),
            "logged": self.logged,
            "faults": self.skipped.state(),
            "seconds": self.stopwatch.seconds,
            "own": self.own_state(),
        }

    def load_state(self, state: Config) -> None:
        """Restore ``state``, so that training continues as if it had never stopped."""
        for name, module in self._trained().items():
            module.load_state_dict(fsdp.shard_state(state["modules"][name], module.state_dict()))
        self.ema.load_state(state["ema"])
        for optimizer, saved in zip(self.optims, state["optimizers"], strict=True):
            optimizer.load_state_dict(fsdp.shard_moments(saved, optimizer))
        self.means.load_state(state["means"])
        self.logged = state.get("logged", False)
        self.skipped.load_state(state["faults"])
        self.images, self.stopwatch.seconds = state["images"], state["seconds"]
        # version d11e80b and earlier: "owed"
        self.pending = int(state.get("pending", 0) or state.get("owed", 0))
        self.load_own_state(state["own"])

    def _trained(self) -> dict[str, nn.Module]:
        return {"model": self.model, **self.helpers()}


def without_padding(batches: Iterable[Batch], device: torch.device) -> Iterator[Batch]:
    """The batches on a device, without padding; none of them is empty."""
    for padded in batches:
        batch = padded.only(padded.valid_B).to(device)
        if len(batch):
            yield batch
