"""Datasets over a sequential stream, indexed by position so that DataLoader knows their length."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import get_worker_info

from varlab.data.image.augment import Augment
from varlab.data.image.crop import BoxOf, Centre, Crop, box_choices, draws
from varlab.data.image.decode import U8
from varlab.data.read.loader import BatchDataset, SplitDataset
from varlab.data.sequential.sample_stream import EncodedSample, SampleStream
from varlab.errors import VarlabError
from varlab.rng import Rng
from varlab.types import Batch, Fault

__all__ = ["HeldSplit", "StreamedSplit", "StreamedTraining", "hold_split"]

OpenStream = Callable[[], SampleStream]
_HELD_AT_ONCE = 256  # images to decode before faults are counted


class _Streamed(BatchDataset):
    """Reads a stream that each process opens for itself, and opens again when positions start again."""

    def __init__(self, open_stream: OpenStream, size: tuple[int, int]):
        self._open, self._size = open_stream, size
        self._running: tuple[SampleStream, Iterator[EncodedSample]] | None = None
        self._last = -1

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_running": None, "_last": -1}

    def _start(self, stream: SampleStream) -> Iterator[EncodedSample]:
        raise NotImplementedError

    def _stream_at(self, position_B: Tensor) -> tuple[SampleStream, Iterator[EncodedSample]]:
        if self._running is None or int(position_B[0]) <= self._last:
            stream = self._open()
            self._running = stream, self._start(stream)
        self._last = int(position_B[-1])
        return self._running


class StreamedTraining(_Streamed):
    """Training samples: each position takes the next good sample.

    The crop and the augmentation depend on (seed, position) alone; the order of samples on (seed, rank, worker, start).

    size: (H, W). crop: chooses the part of each image; None takes the centre. buffer: samples that webdataset shuffles.
    """

    def __init__(
        self,
        *,
        open_stream: OpenStream,
        size: tuple[int, int],
        crop: Crop | None,
        augment: Augment,
        seed: int,
        buffer: int,
        rank: int,
        start: int,
    ):
        super().__init__(open_stream, size)
        self._crop, self._augment, self._rng = crop or Centre(), augment, Rng(seed)
        self._buffer, self._rank, self._first = buffer, rank, start

    def _start(self, stream: SampleStream) -> Iterator[EncodedSample]:
        info = get_worker_info()
        worker = 0 if info is None else info.id
        return stream.endless(seed=self._rng.key(f"stream/{self._rank}/{worker}/{self._first}"), buffer=self._buffer)

    def at(self, position_B: Tensor) -> Batch:
        """The next samples, all of them valid."""
        stream, samples = self._stream_at(position_B)
        boxes_B = box_choices(self._crop, self._size, draws(self._rng.stream("crop", position_B)))
        img_BHW3 = np.empty((len(position_B), *self._size, 3), dtype=np.uint8)
        labels = _fill(img_BHW3, stream, samples, boxes_B)
        if len(labels) < len(position_B):
            raise VarlabError(f"{stream.name} gives no more samples: the error before this one says why.")
        batch = _batch(img_BHW3, labels, position_B, stream.take_faults())
        batch.img_u8_B3HW = self._augment(batch.img_u8_B3HW, position_B, self._rng)
        return batch


class StreamedSplit(_Streamed, SplitDataset):
    """The first ``n`` samples in order, the centre of each: position i is sample i. Bad samples are not valid.

    Positions must rise. Samples between them are skipped without decoding, so one process reads for its rank.

    Raises (on reading):
        VarlabError: there are fewer than ``n`` samples, although no shard is missing or broken.
    """

    most_workers = 1

    def __init__(self, *, open_stream: OpenStream, size: tuple[int, int], n: int):
        super().__init__(open_stream, size)
        self._n, self._centre = n, _centre(size)
        self._next = 0  # the position of the next sample

    def __len__(self) -> int:
        return self._n

    def _start(self, stream: SampleStream) -> Iterator[EncodedSample]:
        self._next = 0
        return stream.once()

    def at(self, position_B: Tensor) -> Batch:
        """The samples at those positions."""
        stream, samples = self._stream_at(position_B)
        img_BHW3 = np.zeros((len(position_B), *self._size, 3), dtype=np.uint8)
        labels = [
            self._decode(stream, samples, position, img_BHW3[row]) for row, position in enumerate(position_B.tolist())
        ]
        return _batch(img_BHW3, labels, position_B, stream.take_faults())

    def _decode(self, stream: SampleStream, samples: Iterator[EncodedSample], position: int, out_HW3: U8) -> int | None:
        """The label; None if the sample is bad, lost, or past the end."""
        if position >= self._n:
            return None
        for sample in samples:
            self._next += 1
            if self._next > position:
                return stream.decode(sample, self._centre, out_HW3)
        if not stream.any_broken:
            raise _too_few(stream, f"{self._next} samples", self._n)
        return None


class HeldSplit(SplitDataset):
    """Images and labels in memory."""

    most_workers = 0

    def __init__(self, img_N3HW: Tensor, label_N: Tensor):
        self._img_N3HW, self.label_N = img_N3HW, label_N

    def __len__(self) -> int:
        return len(self.label_N)

    def at(self, position_B: Tensor) -> Batch:
        """The samples at those positions; past the end, the last sample again."""
        index_B = position_B.clamp(max=len(self) - 1)
        return Batch(
            img_u8_B3HW=self._img_N3HW[index_B],
            label_B=self.label_N[index_B],
            position_B=position_B,
            valid_B=position_B < len(self),
        )


def hold_split(
    stream: SampleStream, *, size: tuple[int, int], n: int, note: Callable[[tuple[Fault, ...]], None]
) -> HeldSplit:
    """Decode the centres of the first ``n`` good samples at that (H, W). note: receives the faults of the others.

    Raises:
        VarlabError: there are fewer.
    """
    img_NHW3 = np.empty((n, *size, 3), dtype=np.uint8)
    labels: list[int] = []
    samples = stream.once()
    for first in range(0, n, _HELD_AT_ONCE):
        part_BHW3 = img_NHW3[first : first + _HELD_AT_ONCE]
        labels += _fill(part_BHW3, stream, samples, [_centre(size)] * len(part_BHW3))
        note(stream.take_faults())
        if len(labels) < first + len(part_BHW3):
            raise _too_few(stream, f"{len(labels)} whole samples", n)
    return HeldSplit(torch.from_numpy(img_NHW3).permute(0, 3, 1, 2), torch.tensor(labels, dtype=torch.int64))


def _fill(img_BHW3: U8, stream: SampleStream, samples: Iterator[EncodedSample], boxes_B: Sequence[BoxOf]) -> list[int]:
    """Write the next good samples into the rows of ``img_BHW3``; their labels, fewer than rows where samples end."""
    labels: list[int] = []
    for sample in samples:
        row = len(labels)
        label = stream.decode(sample, boxes_B[row], img_BHW3[row])
        if label is not None:
            labels.append(label)
        if len(labels) == len(boxes_B):
            break
    return labels


def _batch(img_BHW3: U8, labels: Sequence[int | None], position_B: Tensor, faults: tuple[Fault, ...]) -> Batch:
    """Rows without a label are not valid."""
    return Batch(
        img_u8_B3HW=torch.from_numpy(img_BHW3).permute(0, 3, 1, 2),
        label_B=torch.tensor([label or 0 for label in labels], dtype=torch.int64),
        position_B=position_B,
        valid_B=torch.tensor([label is not None for label in labels]),
        faults=faults,
    )


def _centre(size: tuple[int, int]) -> BoxOf:
    return box_choices(Centre(), size, [()])[0]


def _too_few(stream: SampleStream, have: str, n: int) -> VarlabError:
    return VarlabError(f"{stream.name} holds {have}, but {stream.name}_images is {n}: lower that.")
