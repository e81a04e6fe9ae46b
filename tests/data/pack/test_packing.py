"""Packing: plain WebDataset shards, equal bytes every time, all of them or nothing."""

from __future__ import annotations

import errno
import io
import json
import multiprocessing
import shutil
import tarfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import webdataset
from PIL import Image

from varlab.data.format.index import read_index
from varlab.data.format.writer import ShardWriter
from varlab.data.pack.packer import pack
from varlab.data.pack.sources.base import Skipped, SourceSample
from varlab.data.pack.sources.digits import Digits
from varlab.data.read.reader import ShardReader
from varlab.types import VarlabError

Contents = Callable[[Path], dict[str, bytes]]


def test_webdataset_reads_the_same_samples(made_set: Path) -> None:
    index = read_index(made_set)
    reader = ShardReader(index=index, split="train", cache_bytes=0, most_pixels=1 << 20)
    urls = [str(made_set / s.file) for s in index.splits["train"]]
    theirs = list(webdataset.WebDataset(urls, shardshuffle=False).decode("pil").to_tuple("png", "cls", "__key__"))
    assert len(theirs) == len(reader) == 37
    ours_N3HW = reader.images(torch.arange(37))
    for i, (image, label, key) in enumerate(theirs):
        assert np.array_equal(np.asarray(image).transpose(2, 0, 1), ours_N3HW[i].numpy())
        assert label == reader.label_N[i]
        assert key == f"{i:04d}"


def test_packing_twice_gives_equal_bytes(
    tmp_path: Path, make_digits: Callable[..., Digits], contents: Contents
) -> None:
    for name in "ab":
        pack(make_digits(), tmp_path / name, shard_size=700)
    assert contents(tmp_path / "a") == contents(tmp_path / "b")
    shards = [f"train-{i:06d}.tar" for i in range(3)]
    assert list(contents(tmp_path / "a")) == [
        "index.json",
        *shards,
        "train.samples.npy",
        "val-000000.tar",
        "val.samples.npy",
    ]


def test_hash_follows_the_bytes(tmp_path: Path, make_digits: Callable[..., Digits]) -> None:
    hashes = [
        pack(make_digits(seed=seed), tmp_path / str(i), shard_size=700)["hash"] for i, seed in enumerate((0, 0, 1))
    ]
    assert hashes[0] == hashes[1] != hashes[2]
    assert read_index(tmp_path / "0").info.hash == hashes[0]


def test_summary_and_info_agree(tmp_path: Path, make_images: Any) -> None:
    reported: list[tuple[int, int]] = []
    summary = pack(
        make_images(train=7, val=4), tmp_path, shard_size=3, progress=lambda *progress: reported.append(progress)
    )
    assert summary["images"] == read_index(tmp_path).info.counts == {"train": 7, "val": 4}
    assert summary["counts"]["train"] == {"a": 3, "b": 2, "c": 2}
    assert summary["shards"] == 5 and summary["skipped"] == []
    assert reported[-1] == (11, 11)
    info = read_index(tmp_path).info
    assert (info.classes, info.image_size, info.source) == (("a", "b", "c"), (8, 8), "made(train=7, val=4)")
    json.dumps(summary)


@pytest.mark.parametrize("survivors", [0, 3, 25])
def test_a_full_disk_leaves_nothing_behind(
    tmp_path: Path, make_images: Any, contents: Contents, monkeypatch: pytest.MonkeyPatch, survivors: int
) -> None:
    pack(make_images(train=4, val=2), tmp_path, shard_size=2)
    before, written, add = contents(tmp_path), [], ShardWriter.add

    def fills_up(writer: ShardWriter, *args: Any, **settings: Any) -> None:
        written.append(args)
        if len(written) > survivors:
            raise OSError(errno.ENOSPC, "No space left on device")
        add(writer, *args, **settings)

    monkeypatch.setattr(ShardWriter, "add", fills_up)
    with pytest.raises(VarlabError, match=r"Could not write .*train-00000\d\.tar: the disk is full"):
        pack(make_images(train=40, val=2), tmp_path, shard_size=5)
    shutil.copytree(tmp_path, tmp_path / "seen", ignore=shutil.ignore_patterns(".packing"))
    assert contents(tmp_path / "seen") == before  # the shard set that was there is intact
    shutil.rmtree(tmp_path / "seen")
    monkeypatch.undo()
    monkeypatch.setattr(ShardWriter, "add", lambda *args, **settings: (written.append(args), add(*args, **settings))[1])
    written.clear()
    pack(make_images(train=40, val=2), tmp_path, shard_size=5)
    assert len(written) == 42 - survivors // 5 * 5  # whole shards are not packed again
    pack(make_images(train=40, val=2), tmp_path.with_name("new"), shard_size=5)
    assert contents(tmp_path) == contents(tmp_path.with_name("new"))


def test_packing_again_replaces_the_set(tmp_path: Path, make_images: Any) -> None:
    pack(make_images(train=9, val=2), tmp_path, shard_size=3)
    pack(make_images(train=4, val=3), tmp_path, shard_size=9)
    index = read_index(tmp_path)
    assert index.info.counts == {"train": 4, "val": 3}
    assert len(ShardReader(index=index, split="train", cache_bytes=0, most_pixels=1 << 20)) == 4


class Odd:
    """A source of the given items."""

    classes = ("a", "b")
    image_size = (8, 8)

    def __init__(self, *items: SourceSample | Skipped):
        self._items = items

    def describe(self) -> dict[str, Any]:
        return {"name": "odd"}

    def entries(self, split: str) -> range:
        return range(len(self._items) if split == "train" else 0)

    def load(self, split: str, entry: int) -> SourceSample | Skipped:
        return self._items[entry]


GREY = Image.new("L", (8, 8))


@pytest.mark.parametrize(
    ("items", "message"),
    [
        ((SourceSample("k", 2, GREY),), "Sample k has label 2"),
        ((SourceSample("k", -1, GREY),), "Sample k has label -1"),
        ((SourceSample("k", 0, Image.new("L", (8, 9))),), "Sample k is 8×9"),
        ((SourceSample("k", 0, GREY), SourceSample("k", 1, GREY)), "key 'k' must be unique"),
        ((SourceSample("k.x", 0, GREY),), "without dots"),
        ((SourceSample("k", 0, b"GIF89a nonsense"),), "Sample k is none of PNG, JPEG, WEBP"),
        ((Skipped("broken.png", "why"),), r"no training image \(1 skipped\)"),
    ],
)
def test_impossible_samples_are_named(tmp_path: Path, contents: Contents, items: Any, message: str) -> None:
    with pytest.raises(VarlabError, match=message):
        pack(Odd(*items), tmp_path, shard_size=5)
    assert contents(tmp_path) == {}


def test_a_failing_source_is_not_reported_as_a_full_disk(tmp_path: Path, contents: Contents) -> None:
    class Unplugged(Odd):
        def load(self, split: str, entry: int) -> SourceSample | Skipped:
            raise OSError(errno.EIO, "Input/output error")

    with pytest.raises(VarlabError, match=r"train images cannot be read \(.*Input/output error"):
        pack(Unplugged(SourceSample("k", 0, GREY)), tmp_path, shard_size=5)
    assert contents(tmp_path) == {}


def test_encoded_bytes_are_stored_unchanged_and_skips_are_listed(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    GREY.save(buffer, format="JPEG")
    summary = pack(Odd(Skipped("x.png", "torn"), SourceSample("k", 1, buffer.getvalue())), tmp_path, shard_size=5)
    assert summary["skipped"] == [{"name": "x.png", "reason": "torn"}]
    with tarfile.open(tmp_path / "train-000000.tar") as tar:
        assert tar.getnames() == ["k.jpg", "k.cls"]
        stored = tar.extractfile("k.jpg")
        assert stored is not None and stored.read() == buffer.getvalue()
        assert {m.mtime for m in tar.getmembers()} == {0}


def test_no_worker_writes_after_a_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own, started = ShardWriter.add, multiprocessing.get_context("fork").Event()

    def add(writer: ShardWriter, key: str, *args: Any, **settings: Any) -> None:
        if key.startswith("slow"):
            started.set()
            time.sleep(0.2)
            own(writer, key, *args, **settings)
        else:
            started.wait(60)
            raise OSError(errno.ENOSPC, "No space left on device")

    class Uneven(Odd):
        def entries(self, split: str) -> range:
            return range(2)

        def load(self, split: str, entry: int) -> SourceSample | Skipped:
            return SourceSample(f"{'quick' if split == 'train' else 'slow'}{entry}", 0, GREY)

    monkeypatch.setattr(ShardWriter, "add", add)
    with pytest.raises(VarlabError, match="the disk is full") as raised:
        pack(Uneven(), tmp_path, shard_size=2, workers=2)
    assert not multiprocessing.active_children(), raised
    assert not list(tmp_path.rglob(".*.tmp"))
