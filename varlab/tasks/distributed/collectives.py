"""Averages, sums and gathers over the ranks, which do nothing in a single process."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from varlab.types import Batch, VarlabError

_BUCKET = 1 << 24  # elements sent at once: 64 MiB of float32
T = TypeVar("T")
S = TypeVar("S", bound=Tensor)


def world_size() -> int:
    """The number of ranks."""
    return dist.get_world_size() if _grouped() else 1


def rank() -> int:
    """The number of this rank."""
    return dist.get_rank() if _grouped() else 0


def share(n: int, batch: int) -> list[range]:
    """This rank's part of 0 … n - 1, in batches: at least one, which is empty if there are fewer numbers than ranks.

    Where there is a whole batch for each rank, the batches are the same ones on any number of ranks.
    """
    here, world = rank(), world_size()
    if n < batch * world:
        return [range(n * here // world, n * (here + 1) // world)]
    return [range(first, min(first + batch, n)) for first in range(0, n, batch)][here::world]


def _grouped() -> bool:
    return dist.is_available() and dist.is_initialized()


@torch.no_grad()
def average(tensors: Sequence[Tensor]) -> None:
    """Replace each tensor by its mean over the ranks, in place: the ranks' shares of a batch are equally large."""
    if world_size() > 1:
        for bucket in buckets(tensors, first=_BUCKET, rest=_BUCKET):
            Averaging(bucket).finish()


class Averaging:
    """The averages of some tensors of one type, which are on their way. ``finish`` puts them in place of the tensors."""

    @torch.no_grad()
    def __init__(self, tensors: Sequence[Tensor]):
        self._tensors = tensors
        self._flat = torch.cat([t.reshape(-1) for t in tensors])
        self._work = dist.all_reduce(self._flat, async_op=True)

    @torch.no_grad()
    def finish(self) -> None:
        """Wait for the sum, and divide it. On a GPU its stream waits, not the host."""
        assert self._work is not None
        self._work.wait()
        means = self._flat.div_(world_size()).split([t.numel() for t in self._tensors])
        for tensor, mean in zip(self._tensors, means, strict=True):
            tensor.copy_(mean.view_as(tensor))


def buckets(tensors: Sequence[S], *, first: int, rest: int) -> list[list[S]]:
    """Consecutive tensors of one type, together until a bucket is full. first, rest: the elements of a full bucket."""
    made: list[list[S]] = []
    size = 0
    for tensor in tensors:
        full = first if len(made) < 2 else rest
        if not made or made[-1][0].dtype != tensor.dtype or size + tensor.numel() > full:
            made.append([])
            size = 0
        made[-1].append(tensor)
        size += tensor.numel()
    return made


def sum_over_ranks(tensor: Tensor) -> Tensor:
    """The sum over the ranks, in place."""
    if world_size() > 1:
        dist.all_reduce(tensor)
    return tensor


def gather_rows(tensor_NC: Tensor) -> Tensor:
    """The rows of all ranks in the order of ranks; each rank has the same number."""
    if world_size() == 1:
        return tensor_NC
    parts = [torch.empty_like(tensor_NC) for _ in range(world_size())]
    dist.all_gather(parts, tensor_NC.contiguous())
    return torch.cat(parts)


def gather_uneven(rows: Tensor) -> Tensor:
    """The rows of all ranks in the order of ranks, of which each has a number of its own."""
    if world_size() == 1:
        return rows
    from torchmetrics.utilities.distributed import gather_all_tensors  # slow to import, and only scores need it

    return torch.cat(gather_all_tensors(rows))


def gather_objects(value: T) -> list[T]:
    """One small value of each rank, in the order of ranks."""
    if world_size() == 1:
        return [value]
    gathered: list[T] = [value] * world_size()
    dist.all_gather_object(gathered, value)
    return gathered


class SumScores:
    """Scores that follow from sums over the images of all ranks.

    sums: of a batch, by name. scores: of the totals, which are float64 on the CPU.
    """

    def __init__(
        self,
        sums: Callable[[Batch], Mapping[str, Tensor]],
        scores: Callable[[Mapping[str, Tensor]], Mapping[str, Tensor]],
    ):
        self._sums, self._scores = sums, scores
        self._own: dict[str, Tensor] = {}

    @torch.no_grad()
    def update(self, batch: Batch) -> None:
        """Add a batch of this rank."""
        self._own = add_by_name([self._own, self._sums(batch)])

    def over(self, batches: Iterable[Batch]) -> dict[str, float]:
        """The scores of this rank's batches, without padding, and those of the other ranks."""
        for batch in batches:
            self.update(batch)
        return self.compute()

    def compute(self) -> dict[str, float]:
        """The scores. All ranks call it together; a rank may have no batch, VarlabError on all if none has any."""
        total = add_by_name(gather_objects({name: value.cpu() for name, value in self._own.items()}))
        if not total:
            raise VarlabError("There is no image to validate on: the split is empty.")
        return {name: float(value) for name, value in self._scores(total).items()}


def add_by_name(parts: Iterable[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Sums of tensors by name, in float64 on their device."""
    total: dict[str, Tensor] = {}
    for part in parts:
        for name, value in part.items():
            total[name] = total[name] + value.double() if name in total else value.double()
    return total
