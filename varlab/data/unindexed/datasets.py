"""Batches of samples that are read as they come, as torch's loader asks for them: by positions, so that it has a length."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, get_worker_info

from varlab.data.image.augment import Augment
from varlab.data.image.crop import Centre, Crop, Draws, draws
from varlab.data.image.decode import U8, BoxOf
from varlab.data.unindexed.samples import Flow, Opened, Sample
from varlab.errors import VarlabError
from varlab.rng import Rng
from varlab.types import Batch, Fault

__all__ = ["Endless", "Held", "InOrder", "hold"]

MakeFlow = Callable[[], Flow]


class _Flowing(Dataset[Batch]):
    """Samples of a flow that is opened in whichever process reads, and anew where positions begin anew."""

    def __init__(self, flow: MakeFlow, opened: Opened, size: tuple[int, int]):
        self._make, self._opened, self._size = flow, opened, size
        self._running: tuple[Flow, Iterator[Sample]] | None = None
        self._last = -1

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_running": None, "_last": -1}

    def __getitem__(self, position: int) -> Batch:
        return self.__getitems__([position])

    def __getitems__(self, positions: Sequence[int]) -> Batch:
        raise NotImplementedError

    def _samples(self, flow: Flow) -> Iterator[Sample]:
        raise NotImplementedError

    def _flow_at(self, positions: Sequence[int]) -> tuple[Flow, Iterator[Sample]]:
        if self._running is None or positions[0] <= self._last:
            flow = self._make()
            self._running = flow, self._samples(flow)
        self._last = positions[-1]
        return self._running

    def _batch(self, img_BHW3: U8, labels: Sequence[int], position_B: Tensor) -> Batch:
        return Batch(
            img_u8_B3HW=torch.from_numpy(img_BHW3).permute(0, 3, 1, 2),
            label_B=torch.tensor(labels, dtype=torch.int64),
            position_B=position_B,
            valid_B=torch.ones_like(position_B, dtype=torch.bool),
        )


class Endless(_Flowing):
    """Training: each position takes the next sample that is whole; how it is cropped and augmented is a function of (seed,
    position). Which samples come is one of (seed, rank, worker, start).

    size: (H, W). crop: chooses what is cut out, None for the middle. buffer: samples that webdataset mixes.
    """

    def __init__(
        self,
        *,
        flow: MakeFlow,
        opened: Opened,
        size: tuple[int, int],
        crop: Crop | None,
        augment: Augment,
        seed: int,
        buffer: int,
        rank: int,
        start: int,
    ):
        super().__init__(flow, opened, size)
        self._crop, self._augment, self._rng = crop or Centre(), augment, Rng(seed)
        self._buffer, self._rank, self._start = buffer, rank, start

    def _samples(self, flow: Flow) -> Iterator[Sample]:
        info = get_worker_info()
        worker = 0 if info is None else info.id
        seed = self._rng.key(f"stream/{self._rank}/{worker}/{self._start}")
        return flow.endless(seed=seed, buffer=self._buffer)

    def __getitems__(self, positions: Sequence[int]) -> Batch:
        flow, samples = self._flow_at(positions)
        position_B = torch.as_tensor(positions, dtype=torch.int64)
        drawn_B = draws(self._rng.stream("crop", position_B))
        img_BHW3 = np.empty((len(position_B), *self._size, 3), dtype=np.uint8)
        labels: list[int] = []
        for sample in samples:
            row = len(labels)
            label = flow.open(sample, self._opened, self._box_of(drawn_B[row]), img_BHW3[row])
            if label is not None:
                labels.append(label)
            if len(labels) == len(position_B):
                break
        else:  # an error ended it, and somebody asks again
            raise VarlabError(f"{flow.name} gives no more samples: the error before this one tells why.")
        batch = self._batch(img_BHW3, labels, position_B)
        batch.img_u8_B3HW = self._augment(batch.img_u8_B3HW, position_B, self._rng)
        batch.faults = flow.take()
        return batch

    def _box_of(self, u_N: Draws) -> BoxOf:
        aspect = self._size[1] / self._size[0]
        return lambda height, width: self._crop.box(height, width, aspect, u_N)


class InOrder(_Flowing):
    """The first ``n`` samples in their order, the middle of each: position i is the i-th. Bad ones are not valid, nor are
    positions past the end. Positions must rise; those between are passed over without being decoded.

    Raises (on reading):
        VarlabError: fewer samples than ``n``, and no shard that is missing or cut.
    """

    def __init__(self, *, flow: MakeFlow, opened: Opened, size: tuple[int, int], n: int):
        super().__init__(flow, opened, size)
        self._n = n
        self._next = 0  # position of the sample that comes next

    def _samples(self, flow: Flow) -> Iterator[Sample]:
        self._next = 0
        return flow.once()

    def __getitems__(self, positions: Sequence[int]) -> Batch:
        flow, samples = self._flow_at(positions)
        position_B = torch.as_tensor(positions, dtype=torch.int64)
        img_BHW3 = np.zeros((len(position_B), *self._size, 3), dtype=np.uint8)
        labels = [self._take(flow, samples, position, img_BHW3[row]) for row, position in enumerate(positions)]
        batch = self._batch(img_BHW3, [label or 0 for label in labels], position_B)
        batch.valid_B = torch.tensor([label is not None for label in labels])
        batch.faults = flow.take()
        return batch

    def _take(self, flow: Flow, samples: Iterator[Sample], position: int, out_HW3: U8) -> int | None:
        if position >= self._n:
            return None
        for sample in samples:
            self._next += 1
            if self._next > position:
                return flow.open(sample, self._opened, middle(self._size), out_HW3)
        if not flow.broken:
            raise VarlabError(too_few(flow, f"{self._next} samples", self._n))
        return None


class Held(Dataset[Batch]):
    """Images and labels in memory. Positions past the end give the last sample again, with ``valid_B`` False."""

    def __init__(self, img_N3HW: Tensor, label_N: Tensor):
        self.img_N3HW, self.label_N = img_N3HW, label_N

    def __len__(self) -> int:
        return len(self.label_N)

    def __getitem__(self, position: int) -> Batch:
        return self.__getitems__([position])

    def __getitems__(self, positions: Sequence[int]) -> Batch:
        position_B = torch.as_tensor(positions, dtype=torch.int64)
        batch = self.at(position_B.clamp(max=len(self) - 1))
        batch.position_B, batch.valid_B = position_B, position_B < len(self)
        return batch

    def at(self, index_B: Tensor) -> Batch:
        """Samples by number, which is their position."""
        return Batch(
            img_u8_B3HW=self.img_N3HW[index_B],
            label_B=self.label_N[index_B],
            position_B=index_B,
            valid_B=torch.ones_like(index_B, dtype=torch.bool),
        )


def hold(flow: Flow, opened: Opened, size: tuple[int, int], n: int, note: Callable[[tuple[Fault, ...]], None]) -> Held:
    """The first ``n`` whole samples, the middle of each brought to ``size`` (H, W). ``note`` is told of the others.

    Raises:
        VarlabError: there are fewer.
    """
    img_NHW3 = np.empty((n, *size, 3), dtype=np.uint8)
    labels: list[int] = []
    for sample in flow.once():
        label = flow.open(sample, opened, middle(size), img_NHW3[len(labels)])
        if label is not None:
            labels.append(label)
        note(flow.take())
        if len(labels) == n:
            return Held(torch.from_numpy(img_NHW3).permute(0, 3, 1, 2), torch.tensor(labels, dtype=torch.int64))
    note(flow.take())
    raise VarlabError(too_few(flow, f"{len(labels)} whole samples", n))


def middle(size: tuple[int, int]) -> BoxOf:
    """The largest box of that aspect in the middle of an image of (height, width)."""
    return lambda height, width: Centre().box(height, width, size[1] / size[0])


def too_few(flow: Flow, found: str, wanted: int) -> str:
    """What there is and what was asked for."""
    return f"{flow.name} holds {found}, but {flow.name}_images is {wanted}: lower that."
