"""Reading samples from shards, part by part and all together, and webdataset's own pipeline on the same files."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

import cv2
import numpy as np
import torch
import webdataset
from torch import Tensor
from torchvision import transforms

from varlab.bench.work import Part, Work, Works
from varlab.config import Config
from varlab.data import ShardDataModule, TokenDataModule
from varlab.data.image.crop import Centre, RandomResizedCrop, box_choices
from varlab.data.image.decode import crop_into, decode
from varlab.data.image.picture import PixelRules
from varlab.data.read import reader as shard_reader
from varlab.data.read.epoch_order import EpochOrder
from varlab.data.read.stream import TrainStream
from varlab.data.storage.open_files import OpenFiles
from varlab.recipe.objects import make

Turn = Callable[[], int]
"""Do a piece of work; return how many images it was."""

T = TypeVar("T")

_RULES = PixelRules(most_pixels=1 << 30)


def works(config: Config, device: torch.device) -> Works:
    """The parts of reading the training split of ``data``, and all of them together."""
    cv2.setNumThreads(0)
    # images that were kept decoded would not be read and decoded a second time
    uncached = {"cache_bytes": 0} if "cache_bytes" in config["data"] else {}
    data: ShardDataModule | TokenDataModule = make(config["data"] | {"batch": config["batch"], "workers": 0} | uncached)
    if isinstance(data, TokenDataModule):
        turns = {"tokens, all together": _loader(data)}
    else:
        turns = _image_turns(data, images=config["images"], batch=config["batch"])
        _warm(data, config["warm_bytes"])
    if isinstance(data, ShardDataModule) and config["pipeline"]:
        turns |= {"webdataset, Pillow, torchvision": _plain(data, batch=config["batch"])}
    together = {"all together": _PARTS}
    return Works(
        title=data.info.source,
        works=[Work(name=name, turn=turn, parts=together.get(name, ())) for name, turn in turns.items()],
        facts={"path": data.path, "hash": data.info.hash},
    )


_PARTS = (
    Part(name="which sample is next", owner=EpochOrder, method="locate"),
    Part(name="read and verify", owner=OpenFiles, method="read"),
    Part(name="decode and crop", owner=shard_reader, method="decode_into"),
    Part(name="decode and crop", owner=shard_reader, method="decode"),
    Part(name="augment", owner=TrainStream, method="augmented"),
)


def _warm(data: ShardDataModule, most_bytes: int) -> None:
    """Read the samples once, up to ``most_bytes``, so that the disk is not measured."""
    reader = data.reader("train")
    for i in range(len(reader)):
        most_bytes -= len(reader.encoded(i))
        if most_bytes < 0:
            return


def _image_turns(data: ShardDataModule, *, images: int, batch: int) -> dict[str, Turn]:
    """Return the parts of reading the training split, one by one, and all together.

    images: how many are kept in memory, for the parts that read nothing. batch: images of one piece of work.
    """
    reader, stream = data.reader("train"), data.train_samples()
    position_N = torch.arange(min(images, len(reader)))
    order = stream.order.locate(position_N).tolist()
    encoded = [reader.encoded(i) for i in order]
    decoded = [decode(one, _RULES) for one in encoded]
    out_BHW3 = np.zeros((batch, *reader.size, 3), dtype=np.uint8)

    choices = stream.boxes(position_N) or box_choices(Centre(), (1, 1), [()] * len(position_N))
    boxes = [choose(*img.shape[:2]) for choose, img in zip(choices, decoded, strict=True)]

    def rest() -> int:
        """Everything but images: which sample is next, crops and flips drawn, flipped, labels, tensors."""
        position_B = torch.arange(batch)
        index_B = stream.order.locate(position_B)
        stream.boxes(position_B)
        stream.augmented(torch.from_numpy(out_BHW3).permute(0, 3, 1, 2), position_B)
        _ = reader.label_N[index_B]
        return batch

    def each(part: Callable[[int, int], object]) -> Turn:
        """Work on the next images in memory. part: called with the row of an image, and its place in the batch."""
        firsts = _endless(lambda: range(0, max(len(order) - batch + 1, 1), batch))

        def work() -> int:
            first = next(firsts)
            rows = range(first, min(first + batch, len(order)))
            for place, row in enumerate(rows):
                part(row, place)
            return len(rows)

        return work

    return {
        "read and verify": each(lambda row, place: reader.encoded(order[row])),
        "decode": each(lambda row, place: decode(encoded[row], _RULES)),
        "crop": each(lambda row, place: crop_into(out_BHW3[place], decoded[row], boxes[row])),
        "decode and crop": each(
            lambda row, place: crop_into(out_BHW3[place], decode(encoded[row], _RULES), boxes[row])
        ),
        "batch and augment": rest,
        "all together": _loader(data),
    }


def _loader(data: ShardDataModule | TokenDataModule) -> Turn:
    """Load the next training batch."""
    batches = _endless(lambda: data.train_loader(0, 1 << 40, 0, 1))
    return lambda: len(next(batches))


def _plain(data: ShardDataModule, *, batch: int) -> Turn:
    """Load the next batch (img_B3HW uint8, label_B) of the training shards as webdataset's documentation does it.

    It decodes with Pillow, crops with torchvision, and shuffles each epoch, on one core.
    """
    index, size, crop = data.index, data.reader("train").size, data.crop
    scale, ratio = (crop.scale, crop.ratio) if isinstance(crop, RandomResizedCrop) else ((1.0, 1.0), (1.0, 1.0))
    steps = [transforms.RandomResizedCrop(size, scale=scale, ratio=ratio), transforms.PILToTensor()]
    urls = [str(index.shard_storage.local(shard.file, shard.bytes)) for shard in index.splits["train"]]
    shards = webdataset.WebDataset(urls, shardshuffle=len(urls), empty_check=False)
    samples = shards.shuffle(1000).decode("pilrgb").to_tuple("jpg;png;jpeg;webp", "cls")
    pipeline = samples.map_tuple(transforms.Compose(steps), int).batched(batch, collation_fn=_collate)
    batches = _endless(lambda: pipeline)
    return lambda: len(next(batches)[0])


def _endless(epoch: Callable[[], Iterable[T]]) -> Iterator[T]:
    """The items of one epoch after another."""
    while True:
        yield from epoch()


def _collate(samples: list[tuple[Tensor, int]]) -> tuple[Tensor, Tensor]:
    images, labels = zip(*samples, strict=True)
    return torch.stack(images), torch.tensor(labels)
