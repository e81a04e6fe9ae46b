"""What every task shares: the clock of images, one update per global batch, EMA, a state that resumes to the bit."""

from __future__ import annotations

import copy
from abc import abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torch.nn.utils import clip_grads_with_norm_
from torch.optim import Optimizer

from varlab.config import Config
from varlab.rng import Rng
from varlab.tasks.distributed import collectives, fsdp
from varlab.tasks.update.counters import DivergedError, Faults, Means, Stopwatch
from varlab.tasks.update.ema import EMA
from varlab.tasks.update.optimizer import gradients, scale_learning_rate
from varlab.tasks.update.schedule import WarmupDecay
from varlab.types import Batch, VarlabError


class Task(LightningModule):
    """One Lightning batch is one update of the global batch, cut into micro-batches if they are asked for.

    model: what is trained, averaged and exported (other modules of a task are helpers). clip: the largest gradient norm
    (over all parameters of an optimizer), or None. micro_batch: samples of a rank's share that go through the model at
    once, or None for all.

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
        self.model: Any = model
        self.schedule = schedule
        self.clip, self.micro_batch, self.rng = clip, micro_batch, rng
        self.ema = EMA(model, decay=ema_decay)
        self.optims: list[Optimizer] = []
        self.images = 0  # consumed by updates, over all ranks: the clock of everything
        self.last_batch = 0  # images of the last update
        # images of a restored update whose log point, validation and pictures are still to come: see ``Stop``
        self.owed = 0
        self.last_loss = float("nan")  # of the first optimizer's last update, for the eye
        self.total_images = 0
        self.train_flops_per_image = 0
        self.observing = False  # whether this update also computes what only a log point needs
        self.means, self.faults, self.stopwatch = Means(), Faults(), Stopwatch()
        self.post_mortem: Config | None = None  # of the update that ended the training: see ``replay``

    # -- what a task is ------------------------------------------------------------------------------------------------

    @abstractmethod
    def update(self, batch: Batch) -> None:
        """Use this rank's share of a global batch for one update."""

    @abstractmethod
    def validation_sums(self, batch: Batch) -> dict[str, Tensor]:
        """Sums over the images of a batch (all valid), by name; they are added up over batches and ranks."""

    @abstractmethod
    def summarise(self, sums: Mapping[str, Tensor]) -> dict[str, float]:
        """Validation metrics, by their names in ``metrics.jsonl``, from the sums over all images."""

    def helpers(self) -> dict[str, nn.Module]:
        """Modules other than ``model`` that are trained, and so belong into a checkpoint."""
        return {}

    def own_state(self) -> Config:
        """What else a task needs to resume: tensors and JSON types."""
        return {}

    def load_own_state(self, state: Mapping[str, Any]) -> None:
        """Take up where ``own_state`` left off."""

    def parts(self) -> Sequence[nn.Module]:
        """The parts of ``model`` that are gathered one at a time where its weights are spread over the ranks.

        Raises VarlabError where a task cannot be spread."""
        raise VarlabError(
            f"trainer.shard=true spreads a generator's transformer over the ranks, not what {type(self).__name__} trains: "
            "use trainer=ddp, where each rank holds it whole."
        )

    def flops_at(self, images: int) -> int:
        """Forward and backward of what is trained, spent on so many images."""
        return images * self.train_flops_per_image

    # -- an update -----------------------------------------------------------------------------------------------------

    def configure_optimizers(self) -> list[Optimizer]:
        """For Lightning, which moves their state to the device."""
        return self.optims

    @property
    def is_spread(self) -> bool:
        """Whether each rank holds only its part of the model."""
        return fsdp.is_spread(self.model)

    def spread(self) -> None:
        """Leave this rank its part of the model, on the device, with the moments and the average to come."""
        fsdp.spread(self.model, self.optims[0], parts=self.parts(), device=self.device)
        self.ema = EMA(self.model, decay=self.ema.decay)

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> int | None:
        """-1, by which Lightning ends the training, where nothing is left to train but something was owed."""
        return -1 if self.images >= self.total_images else None

    def training_step(self, batch: Batch, batch_idx: int) -> None:
        """One update, and the clock."""
        for optimizer in self.optims:
            scale_learning_rate(optimizer, self.schedule.factor(self.images, self.total_images))
        before = None
        if self.faults.one_more_is_too_many:
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
        self.last_batch = len(batch) * collectives.world_size()
        self.images += self.last_batch

    def replay(self, post_mortem: Mapping[str, Any]) -> list[str]:
        """The update that ended a training, once more: the names of what is not finite in it, empty if all is.

        post_mortem: what ``nan.ckpt`` holds (``varlab.checkpoint.load_checkpoint``). The task must be made as the run's was.
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

        values: this rank's scalars (losses), averaged and logged with the gradient norm. Where one of them is not
        finite nothing changes but the count of faults; every rank sees the same numbers, so all decide alike.
        """
        grads = gradients(optimizer)
        scalars = torch.stack([value.detach().float() for value in values.values()])
        collectives.average([*(grad for grad in grads if not fsdp.is_spread(grad)), scalars])
        norm = fsdp.total_norm(grads)
        numbers = dict(zip([*values, norm_name], torch.cat([scalars, norm.view(1)]).tolist(), strict=True))
        self.last_loss = numbers.get("train/loss", self.last_loss)
        sound = self.faults.check(norm_name, numbers, self.images)
        if sound:
            if self.clip is not None:
                clip_grads_with_norm_([p for g in optimizer.param_groups for p in g["params"]], self.clip, norm)
            optimizer.step()
            self.means.add(numbers)
        optimizer.zero_grad(set_to_none=True)
        return sound

    def observe(self, values: Mapping[str, Tensor]) -> None:
        """Log values of this update alone, averaged over the ranks."""
        scalars = torch.stack([value.detach().float() for value in values.values()])
        collectives.average([scalars])
        self.means.add(dict(zip(values, scalars.tolist(), strict=True)))

    def full_precision(self) -> AbstractContextManager:
        """No autocast inside: for what wants float32, and for backward passes, whose products it would cast again."""
        return torch.autocast(self.device.type, enabled=False)

    def log_values(self) -> dict[str, float]:
        """``train/*`` since the last log point, equal on all ranks."""
        values = self.means.take()
        values["train/lr"] = float(self.optims[0].param_groups[0]["lr"])
        values["train/nonfinite"] = float(self.faults.total)
        return values

    # -- evaluation ----------------------------------------------------------------------------------------------------

    @contextmanager
    def evaluation(self) -> Iterator[None]:
        """Averaged weights, evaluation mode, no gradients, the stopwatch standing still; all as before afterwards.

        All ranks must enter it; inside, none has to wait for another."""
        modes = {module: module.training for module in self.modules()}
        with self.stopwatch.paused(), torch.no_grad(), self.ema.swap(self.model), fsdp.gathered(self.model):
            self.eval()
            try:
                yield
            finally:
                for module, training in modes.items():
                    module.training = training

    def validate(self, loader: Iterable[Batch]) -> dict[str, float]:
        """``val/*`` on averaged weights, exact over ranks: each image counts once, padding does not count."""
        sums: dict[str, Tensor] = {}
        with self.evaluation(), self._autocast():
            for padded in loader:
                batch = _valid(padded.to(self.device))
                if len(batch):
                    for name, value in self.validation_sums(batch).items():
                        value = value.double()
                        sums[name] = sums[name] + value if name in sums else value
        total = collectives.add_up_named(sums)
        if not total:
            raise VarlabError("There is no image to validate on: the split is empty.")
        return self.summarise(total)

    def _autocast(self) -> AbstractContextManager:
        """The trainer's precision, where there is a trainer (Lightning applies it to training steps by itself)."""
        return self.trainer.precision_plugin.forward_context() if self._trainer is not None else nullcontext()

    # -- checkpoints ---------------------------------------------------------------------------------------------------

    def state(self, *, keep: bool = True) -> Config:
        """Everything that has a say in the weights to come, and the counts of what was not yet logged.

        All ranks must ask; one that does not ``keep`` what it gets (rank 0 writes) may be given less.
        """
        modules = {name: module.state_dict() for name, module in self._trained().items()}
        optimizers = [optimizer.state_dict() for optimizer in self.optims]
        tensors = {"modules": modules, "ema": self.ema.state(), "optimizers": optimizers}
        return {
            "images": self.images,
            **(fsdp.whole(tensors, keep=keep) if self.is_spread else tensors),
            "means": self.means.state(),
            "faults": self.faults.state(),
            "seconds": self.stopwatch.seconds,
            "own": self.own_state(),
        }

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Continue as if never stopped."""
        for name, module in self._trained().items():
            module.load_state_dict(fsdp.all_like(state["modules"][name], module.state_dict()))
        self.ema.load_state(state["ema"])
        for optimizer, saved in zip(self.optims, state["optimizers"], strict=True):
            optimizer.load_state_dict(fsdp.moments_like(saved, optimizer))
        self.means.load_state(state["means"])
        self.faults.load_state(state["faults"])
        self.images, self.stopwatch.seconds = state["images"], state["seconds"]
        self.load_own_state(state["own"])

    def _trained(self) -> dict[str, nn.Module]:
        return {"model": self.model, **self.helpers()}


def _valid(batch: Batch) -> Batch:
    """The batch without its padding."""
    keep = batch.valid_B
    return batch if bool(keep.all()) else batch.only(keep)
