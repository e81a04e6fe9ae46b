"""What training, evaluation and pictures ask of data, whatever it is read from."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from torch import Tensor
from torch.utils.data import DataLoader

from varlab.data.faults import FaultCounter
from varlab.data.format.duplicates import Duplicates
from varlab.data.limits import require_at_least
from varlab.data.read.loader import BatchDataset, EvalBatches, Loader, SplitDataset, TrainBatches
from varlab.errors import VarlabError
from varlab.types import Batch, DataInfo

__all__ = ["BaseDataModule"]


class BaseDataModule:
    """Global batches of images and labels. Nothing is read before it is needed.

    Lightning's Trainer reads it through ``varlab.tasks.TrainerData``.

    Args:
        path: names the data in logs and errors. batch: images in a training batch, over all ranks. eval_batch: the same in
            evaluation. seed: of the order and of the augmentation. workers: loader processes per rank; 0 reads in the
            trainer's process.

    Raises:
        VarlabError: a number is too small.
    """

    def __init__(self, *, path: str, batch: int, eval_batch: int, seed: int, workers: int):
        require_at_least(1, batch=batch, eval_batch=eval_batch)
        require_at_least(0, workers=workers)
        self.path, self.batch, self.eval_batch, self._seed, self._workers = path, batch, eval_batch, seed, workers

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

    @property
    def on_exception(self) -> None:
        """Lightning's Trainer asks for this when it cannot use what it was given as a LightningDataModule."""
        raise VarlabError(
            "Lightning's Trainer reads varlab's data through TrainerData: fit(task, datamodule=TrainerData(data))."
        )

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

    def _loader(self, split: str, samples: BatchDataset, batches: Iterable[Sequence[int]]) -> DataLoader[Batch]:
        return Loader(samples, batches, workers=self._workers, watch=self.watches.get(split))
