"""What training, evaluation and pictures ask of data, whatever it is read from."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from lightning import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader

from varlab.data.faults import FaultCounter
from varlab.data.format.duplicates import Duplicates
from varlab.data.limits import require_at_least
from varlab.data.read.loader import BatchDataset, EvalBatches, Loader, Passes, SplitDataset, TrainBatches
from varlab.types import Batch, DataInfo

__all__ = ["BaseDataModule"]


class BaseDataModule(LightningDataModule):
    """Global batches of images and labels. Nothing is read before it is needed.

    Under a Trainer, a training epoch is a pass over as many images as the split holds. It begins where the task's clock stands
    (``images`` of the LightningModule), so a resumed training reads what it would have read. A caller may set ``start`` and
    ``stop`` (in images) instead, for one epoch that lies between them.

    Args:
        path: names the data in logs and errors. batch: images in a training batch, over all ranks. eval_batch: the same in
            evaluation. seed: of the order and of the augmentation. workers: loader processes per rank; 0 reads in the
            trainer's process.

    Raises:
        VarlabError: a number is too small.
    """

    def __init__(self, *, path: str, batch: int, eval_batch: int, seed: int, workers: int):
        super().__init__()
        require_at_least(1, batch=batch, eval_batch=eval_batch)
        require_at_least(0, workers=workers)
        self.path, self.batch, self.eval_batch, self._seed, self._workers = path, batch, eval_batch, seed, workers
        self.start = 0
        self.stop: int | None = None

    @property
    def info(self) -> DataInfo:
        """Classes, image size, counts and hash."""
        raise NotImplementedError

    @property
    def watches(self) -> Mapping[str, FaultCounter]:
        """The counter of bad samples of each split that was opened."""
        raise NotImplementedError

    @property
    def duplicates(self) -> Duplicates:
        """Images that occur more than once, as far as is known without reading them."""
        return Duplicates()

    def train_samples(self, *, rank: int = 0, start: int = 0) -> BatchDataset:
        """The training samples by position, for a rank that reads from ``start`` on."""
        raise NotImplementedError

    def eval_samples(self, split: str) -> SplitDataset:
        """A split in its own order."""
        raise NotImplementedError

    def samples(self, split: str, index_N: Tensor | None = None) -> Batch:
        """Samples of a split by number; all of them (mind the memory) without numbers."""
        raise NotImplementedError

    def labels(self, split: str) -> Tensor:
        """All labels of a split, int64 ``label_N``."""
        raise NotImplementedError

    def images(self, split: str, index_N: Tensor | None = None) -> Tensor:
        """Images of a split by number, uint8 ``img_N3HW``; all of them without numbers."""
        return self.samples(split, index_N).img_u8_B3HW

    def train_loader(self, start: int, stop: int, rank: int, world: int) -> DataLoader[Batch]:
        """This rank's shares of the global batches from position ``start`` until at least ``stop``; it has a length.

        Raises:
            VarlabError: ``world`` does not divide the batch, or ``start`` lies inside a batch.
        """
        batches = TrainBatches(start=start, stop=stop, batch=self.batch, rank=rank, world=world)
        return self._loader("train", self.train_samples(rank=rank, start=start), batches)

    def eval_loader(self, split: str, rank: int, world: int, batch: int | None = None) -> DataLoader[Batch]:
        """This rank's shares of a split, in its order: every sample once over all ranks, equal shapes on all ranks.

        The few samples that fill up the last batch are masked by ``valid_B``, as are bad ones. batch: global; ``eval_batch``
        if not given.

        Raises:
            VarlabError: ``world`` does not divide the batch.
        """
        samples = self.eval_samples(split)
        size = self.eval_batch if batch is None else batch
        return self._loader(split, samples, EvalBatches(n=len(samples), batch=size, rank=rank, world=world))

    def train_dataloader(self) -> Iterable[Batch]:
        """Lightning's hook: the batches of the trainer's ranks."""
        if self.stop is None:
            length = -(-self.info.counts["train"] // self.batch)
            return Passes(length, lambda: self._pass(length * self.batch))
        loader = self.train_loader(self.start, self.stop, *self._ranks())
        # If Lightning knew that there is no batch, it would not call on_train_start, where pending actions run.
        return loader if self.start < self.stop else iter(())

    def _pass(self, images: int) -> Iterable[Batch]:
        """An epoch of so many images, from the clock on; of a module without a clock, after the earlier epochs."""
        module = None if self.trainer is None else self.trainer.lightning_module
        epoch = 0 if self.trainer is None else self.trainer.current_epoch
        start = getattr(module, "images", epoch * images)
        return self.train_loader(start, start + images, *self._ranks())

    def val_dataloader(self) -> Iterable[Batch]:
        """Lightning's hook: the val split on the trainer's ranks, if there is one."""
        if not self.info.counts.get("val"):
            return []
        loader = self.eval_loader("val", *self._ranks())
        return Passes(len(loader), lambda: loader)

    def _ranks(self) -> tuple[int, int]:
        trainer = self.trainer
        return (0, 1) if trainer is None else (trainer.global_rank, trainer.world_size)

    def _loader(self, split: str, samples: BatchDataset, batches: Iterable[Sequence[int]]) -> DataLoader[Batch]:
        return Loader(samples, batches, workers=self._workers, watch=self.watches.get(split))
