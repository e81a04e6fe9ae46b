"""The state from which a training resumes exactly, in varlab's checkpoints and in Lightning's."""

from __future__ import annotations

from torch import nn
from torch.optim import Optimizer

from varlab.config import Config
from varlab.tasks.distributed import fsdp
from varlab.tasks.update.counters import Means, SkippedUpdates
from varlab.tasks.validation import ValidatedModule
from varlab.types import VarlabError


class ResumableModule(ValidatedModule):
    """A module that hands out and takes back everything that its weights to come depend on. Subclasses set the attributes."""

    optims: list[Optimizer]
    images: int
    pending: int
    logged: bool
    means: Means
    skipped: SkippedUpdates

    def __init__(self) -> None:
        super().__init__()
        self._update_images = 0  # of one update, as they follow from the Trainer

    @property
    def is_sharded(self) -> bool:
        """Whether each rank holds only its shard of the model."""
        return fsdp.is_sharded(self.model)

    def helpers(self) -> dict[str, nn.Module]:
        """Trained modules other than ``model``; checkpoints hold them too."""
        return {}

    def settle(self) -> None:
        """Finish what the last update left for later: its result is not read at once."""

    def own_state(self) -> Config:
        """What else a task needs to resume: tensors and JSON types."""
        return {}

    def load_own_state(self, state: Config) -> None:
        """Restore ``own_state``."""

    def state(self, *, keep: bool = True) -> Config:
        """Everything that the weights to come depend on, and the means that are not yet logged.

        All ranks must call it. One that does not ``keep`` the result (rank 0 writes it) may get less.
        """
        self.settle()
        modules = {name: module.state_dict() for name, module in self._trained().items()}
        optimizers = [optimizer.state_dict() for optimizer in self.optims]
        tensors: Config = {"modules": modules, "ema": self.ema.state(), "optimizers": optimizers}
        return (fsdp.full_state(tensors, keep=keep) if self.is_sharded else tensors) | self._progress()

    def _progress(self) -> Config:
        self.settle()
        return {
            "images": self.images,
            "pending": self.pending,
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
        for optimizer, saved in zip(self.optims, state["optimizers"], strict=True):
            optimizer.load_state_dict(fsdp.shard_moments(saved, optimizer))
        self._load_progress(state)

    def _load_progress(self, state: Config) -> None:
        self.ema.load_state(state["ema"])
        self.means.load_state(state["means"])
        self.logged = state.get("logged", False)
        self.skipped.load_state(state["faults"])
        self.images, self.stopwatch.seconds = state["images"], state["seconds"]
        # version d11e80b and earlier: "owed"
        self.pending = int(state.get("pending", 0) or state.get("owed", 0))
        self.load_own_state(state["own"])

    def on_save_checkpoint(self, checkpoint: Config) -> None:
        """Add to a checkpoint of Lightning's, which has weights and optimizers, what else an exact resume needs."""
        if self._validator is not None:  # inside validation, the weights are averages
            self._evaluating.close()
            checkpoint["state_dict"] = self.state_dict()
        own = self._progress() | {
            "pending": 0,
            "update_images": self._update_images,
        }  # Lightning saves after all actions
        checkpoint["varlab"] = {"ema": self.ema.state()} | own

    def on_load_checkpoint(self, checkpoint: Config) -> None:
        """Restore what ``on_save_checkpoint`` added."""
        if "varlab" not in checkpoint:
            raise VarlabError(
                "This checkpoint is not of a varlab task: give ckpt_path one that a Trainer wrote of such."
            )
        self._load_progress(checkpoint["varlab"])
        self._update_images = checkpoint["varlab"]["update_images"]

    def _trained(self) -> dict[str, nn.Module]:
        return {"model": self.model, **self.helpers()}
