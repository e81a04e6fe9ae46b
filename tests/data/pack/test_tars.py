"""Existing tars as a source: equal pixels and labels, any split, and faults skipped by name."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from tests.data.pack.loading import load_samples as samples
from tests.data.pack.loading import load_skipped
from varlab.data.format.index import read_index
from varlab.data.format.index_builder import build_index
from varlab.data.format.scan import ScanSettings
from varlab.data.pack.packer import pack
from varlab.data.pack.sources.tars import Tars
from varlab.data.read.reader import ShardReader
from varlab.types import VarlabError

Contents = Callable[[Path], dict[str, bytes]]
Members = dict[str, bytes]


def tars(path: Path, **changes: Any) -> Tars:
    own: dict[str, Any] = {"size": None, "resample": "lanczos", "label": "auto", "classes": None, "seed": 0}
    return Tars(**{"path": str(path), **own, "split": {"val": None, "train": None}, "val_fraction": 0.0, **changes})


def encoded(number: int, form: str = "PNG", size: tuple[int, int] = (8, 8)) -> bytes:
    noise = np.random.default_rng(number).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(noise).save(buffer, format=form)
    return buffer.getvalue()


def write(path: Path, members: Members) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))


def shard(first: int, n: int, more: Callable[[int], Members] = lambda i: {"cls": b"%d" % (i % 2)}) -> Members:
    """n samples k000000, k000001 …, and what ``more`` adds to each."""
    members: Members = {}
    for i in range(first, first + n):
        members |= {f"k{i:06d}.png": encoded(i)} | {f"k{i:06d}.{ending}": text for ending, text in more(i).items()}
    return members


def skipped(source: Tars) -> list[tuple[str, str]]:
    return [(s.name, s.reason) for s in load_skipped(source)]


def read(folder: Path, split: str) -> ShardReader:
    return ShardReader(index=read_index(folder), split=split, cache_bytes=0, most_pixels=1 << 20)


def test_own_shards_packed_again_are_equal(made_set: Path, tmp_path: Path) -> None:
    summary = pack(tars(made_set), tmp_path, shard_size=16)
    assert summary["images"] == {"train": 37, "val": 21} and summary["skipped"] == []
    before, now = read_index(made_set), read_index(tmp_path)
    assert now.classes == before.classes == ("a", "b", "c")
    assert [s.count for s in now.splits["train"]] == [16, 16, 5]
    for split, n in summary["images"].items():
        assert now.table(split)["key"].tolist() == before.table(split)["key"].tolist()
        assert torch.equal(read(tmp_path, split).images(torch.arange(n)), read(made_set, split).images(torch.arange(n)))
        assert read(tmp_path, split).label_N.tolist() == read(made_set, split).label_N.tolist()


def test_images_are_resized(tmp_path: Path) -> None:
    wide = encoded(0, "JPEG", (24, 12))
    write(tmp_path / "old" / "a.tar", {"x.jpg": wide, "x.cls": b"0", "y.webp": encoded(1, "WEBP"), "y.cls": b"1"})
    source = tars(tmp_path / "old", size=8)
    assert source.image_size == (8, 8)
    assert [s.image.size if isinstance(s.image, Image.Image) else s.image for s in samples(source, "train")] == [
        (8, 8),
        encoded(1, "WEBP"),
    ]
    assert [s.image for s in samples(tars(tmp_path / "old"), "train")] == [wide, encoded(1, "WEBP")]


@pytest.mark.parametrize(
    ("members", "settings", "classes", "labels"),
    [
        (lambda i: {"cls": b"%d" % (i % 3)}, {}, ("0", "1", "2"), [0, 1, 2, 0]),
        (lambda i: {"json": json.dumps({"label": "ba"[i % 2]}).encode()}, {}, ("a", "b"), [1, 0, 1, 0]),
        (lambda i: {"json": json.dumps({"kind": i % 2}).encode()}, {"label": "json:kind"}, ("0", "1"), [0, 1, 0, 1]),
        (lambda i: {"cls": b"%d" % (i % 2)}, {"classes": ["cat", "dog"]}, ("cat", "dog"), [0, 1, 0, 1]),
        (lambda i: {"cls": b"%d" % (i % 2)}, {"label": "none"}, ("image",), [0, 0, 0, 0]),
        (lambda i: {"txt": b"a caption"}, {}, ("image",), [0, 0, 0, 0]),
    ],
    ids=["cls", "json", "field", "named", "none", "captions"],
)
def test_labels_of_every_kind(
    tmp_path: Path, members: Any, settings: dict[str, Any], classes: tuple[str, ...], labels: list[int]
) -> None:
    write(tmp_path / "a.tar", shard(0, 4, members))
    source = tars(tmp_path, **settings)
    assert source.classes == classes
    assert [s.label for s in samples(source, "train")] == labels


def test_class_names_from_a_file(tmp_path: Path) -> None:
    write(tmp_path / "a.tar", shard(0, 4))
    (tmp_path / "names.txt").write_text("cat\ndog\n")
    assert tars(tmp_path, classes=str(tmp_path / "names.txt")).classes == ("cat", "dog")
    (tmp_path / "device").symlink_to("/dev/zero")
    with pytest.raises(VarlabError, match=r"device cannot be read .it is no plain file"):
        tars(tmp_path, classes=str(tmp_path / "device"))


def test_the_split_follows_names_patterns_or_a_share(tmp_path: Path) -> None:
    for name, first in (("train/0", 0), ("train/1", 10), ("val/0", 20)):
        write(tmp_path / f"{name}.tar", shard(first, 10))

    def counts(**changes: Any) -> list[int]:
        source = tars(tmp_path, **changes)
        keys = [s.key for split in ("train", "val") for s in samples(source, split)]
        assert len(set(keys)) == 30
        return [len(source.entries(split)) for split in ("train", "val")]

    assert counts() == counts(val_fraction=0.5) == [20, 10]
    assert counts(split={"val": "*/0.tar", "train": None}) == [10, 20]
    assert counts(split={"val": "none", "train": None}, val_fraction=0.2) == [24, 6]
    with pytest.raises(VarlabError, match=r"train/1\.tar belongs to no split"):
        tars(tmp_path, split={"val": None, "train": "*0*"})
    one, other = (
        [s.key for s in samples(tars(tmp_path, split={"val": "none"}, val_fraction=0.2, seed=seed), "val")]
        for seed in (0, 1)
    )
    assert one == sorted(one) != other


def test_the_index_gives_the_split_and_the_classes(tmp_path: Path) -> None:
    write(tmp_path / "a.tar", shard(0, 20))
    own = ScanSettings(label="auto", classes=("cat", "dog"), decode=False, most_pixels=1 << 20, size=None)
    splits, rest = {"train": ["a.tar"], "val": []}, {"val_fraction": 0.25, "seed": 0, "max_bad": 0.0, "workers": 0}
    build_index(tmp_path, splits=splits, settings=own, source={"name": "hand"}, **rest)
    source, index = tars(tmp_path), read_index(tmp_path)
    assert source.classes == ("cat", "dog")
    for split in ("train", "val"):
        assert [s.key.encode() for s in samples(source, split)] == index.table(split)["key"].tolist()
    assert tars(tmp_path, classes=["Katze", "Hund"]).classes == ("Katze", "Hund")
    assert len(tars(tmp_path, split={"val": None, "train": "*"}).entries("train")) == 20  # both tables are in a.tar
    assert tars(tmp_path, label="none").classes == ("image",)  # the index is not asked
    with pytest.raises(VarlabError, match="has 2 classes, not 1"):
        tars(tmp_path, classes=["cat"])


def test_faults_are_skipped_and_named(tmp_path: Path) -> None:
    write(tmp_path / "whole.tar", shard(0, 2))
    write(tmp_path / "odd.tar", {**shard(2, 1), "a.cls": b"1", "b.png": encoded(3)[:50], "b.cls": b"0"})
    write(tmp_path / "labels.tar", {"c.png": encoded(4), "d.png": encoded(5), "d.cls": b"x", **shard(6, 1)})
    write(tmp_path / "torn.tar", shard(7, 2))
    (tmp_path / "torn.tar").write_bytes((tmp_path / "torn.tar").read_bytes()[:2100])
    (tmp_path / "void.tar").touch()
    source = tars(tmp_path)
    faults = {name: reason.split(":")[0] for name, reason in skipped(source)}
    assert faults == {
        "odd.tar a": "no_image",
        "odd.tar b": "corrupt",
        "labels.tar c": "no_label",
        "labels.tar d": "bad_label",
        "torn.tar": "cut",
        "void.tar": "empty",
    }
    assert [s.key for s in samples(source, "train")] == [f"k{i:06d}" for i in (6, 2, 7, 0, 1)]
    summary = pack(source, tmp_path / "new", shard_size=3)
    assert summary["images"]["train"] == 5 and len(summary["skipped"]) == 6


def test_shards_that_differ_from_their_index(made_copy: Path) -> None:
    changed = made_copy / "train-000001.tar"
    content = bytearray(changed.read_bytes())
    offset = int(read_index(made_copy).table("train")[10]["offset"])
    content[offset + 60] ^= 1
    changed.write_bytes(content)
    (made_copy / "train-000003.tar").unlink()
    (made_copy / "val-000002.tar").write_bytes(b"")
    faults = [(name, reason.split(":")[0]) for name, reason in skipped(tars(made_copy))]
    assert faults == [
        ("train-000001.tar 0010", "changed"),
        *((f"train-000003.tar {i:04d}", "missing") for i in range(30, 37)),
        ("val-000002.tar 0020", "cut"),
    ]


@pytest.fixture
def made_copy(made_set: Path, tmp_path: Path) -> Path:
    for file in made_set.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    return tmp_path


def test_invalid_keys_are_numbered(tmp_path: Path) -> None:
    for name in "ab":
        write(tmp_path / "twice" / f"{name}.tar", shard(0, 2))
    assert [s.key for s in samples(tars(tmp_path / "twice"), "train")] == [
        f"0000000{i}-k00000{i % 2}" for i in range(4)
    ]
    write(tmp_path / "odd" / "a.tar", {"v1.0/bär.png": encoded(0), "x/y.png": encoded(1)})
    assert [s.key for s in samples(tars(tmp_path / "odd"), "train")] == ["00000000-v1_0_b_r", "00000001-x_y"]
    write(tmp_path / "fit" / "a.tar", {"u/v.png": encoded(0), "x/y.png": encoded(1)})
    assert [s.key for s in samples(tars(tmp_path / "fit"), "train")] == ["u/v", "x/y"]
    pack(tars(tmp_path / "fit"), tmp_path / "new", shard_size=5)
    assert read_index(tmp_path / "new").table("train")["key"].tolist() == [b"u/v", b"x/y"]


def test_any_number_of_workers_gives_the_same_bytes(made_copy: Path, contents: Contents, tmp_path: Path) -> None:
    (made_copy / "train-000002.tar").unlink()
    for workers in (0, 2):
        pack(tars(made_copy, size=6), tmp_path / f"by{workers}", shard_size=4, workers=workers)
    assert contents(tmp_path / "by0") == contents(tmp_path / "by2")


def test_old_shards_are_not_overwritten(made_copy: Path, contents: Contents) -> None:
    before = contents(made_copy)
    with pytest.raises(VarlabError, match="is where the source lies: pack into another folder"):
        pack(tars(made_copy), made_copy, shard_size=5)
    assert contents(made_copy) == before


def test_errors_are_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(VarlabError, match="There is no folder of shards"):
        tars(tmp_path / "nowhere")
    with pytest.raises(VarlabError, match=r"holds no \*\.tar"):
        tars(tmp_path)
    write(tmp_path / "a.tar", {"a.txt": b"no image"})
    with pytest.raises(VarlabError, match=r"no sample that can be read: 1 no_image: no_image: sample a in a\.tar"):
        tars(tmp_path)
    write(tmp_path / "a.tar", shard(0, 2, lambda i: {"cls": b"123456789"}))
    with pytest.raises(VarlabError, match="A label is 123456789"):
        tars(tmp_path)
    (tmp_path / "index.json").write_text('{"version": 1}')
    with pytest.raises(VarlabError, match=r"has version 1, not 2: run `varlab index"):
        tars(tmp_path)
