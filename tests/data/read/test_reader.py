"""Reading: nothing missing, cut, changed or mislabelled goes unnoticed, and nothing is unpickled."""

from __future__ import annotations

import io
import json
import os
import pickle
import shutil
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import webdataset
from PIL import Image

from varlab.data.format.index import Index, read_index
from varlab.data.format.index_builder import build_index
from varlab.data.format.index_writer import write_index
from varlab.data.format.scan import ScanSettings
from varlab.data.read.reader import ShardReader
from varlab.data.storage.local_folder import LocalFolder
from varlab.types import VarlabError


def reader(path: Path, cache_bytes: int = 0, **settings: Any) -> ShardReader:
    return ShardReader(index=read_index(path), split="train", cache_bytes=cache_bytes, most_pixels=1 << 20, **settings)


@pytest.fixture
def made_copy(made_set: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made_set, tmp_path / "copy"))


def png(height: int = 8, width: int = 8) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (width, height), "red").save(buffer, format="PNG")
    return buffer.getvalue()


def jpeg(height: int, width: int, mode: str = "RGB") -> bytes:
    ramp = np.linspace(0, 255, height * width).reshape(height, width).astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(ramp).convert(mode).save(buffer, format="JPEG", quality=95)
    return buffer.getvalue()


def by_hand(folder: Path, members: dict[str, bytes], form: int = tarfile.USTAR_FORMAT, **settings: Any) -> Path:
    """A shard set of one training shard with any members, indexed as one that others wrote."""
    path = folder / "train-000000.tar"
    with tarfile.open(path, "w", format=form) as tar:
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    own = {"label": "auto", "classes": ("a", "b"), "decode": False, "most_pixels": 1 << 20, "size": None, **settings}
    build_index(
        folder,
        splits={"train": [path.name], "val": []},
        settings=ScanSettings(**own),
        source={"name": "hand"},
        val_fraction=0.0,
        seed=0,
        max_bad=1.0,
        workers=0,
    )
    return folder


def test_folder_without_shards_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(VarlabError, match="There is no shard folder"):
        read_index(tmp_path / "nowhere")
    with pytest.raises(VarlabError, match="is empty"):
        read_index(tmp_path)
    (tmp_path / "train-000000.tar").touch()
    with pytest.raises(VarlabError, match=r"no index\.json"):
        read_index(tmp_path)
    for text in ("{", "[]", '{"version": 2}', '{"version": 1}', '{"version": 99}'):
        (tmp_path / "index.json").write_text(text)
        with pytest.raises(VarlabError, match=r"index\.json (is damaged|has version (1|99))"):
            read_index(tmp_path)


def test_index_survives_the_file(made_set: Path, tmp_path: Path) -> None:
    index = read_index(made_set)
    there = Index(LocalFolder(tmp_path), index.source, index.classes, index.image_size, index.splits, {})
    write_index(there, {split: index.table(split) for split in index.splits})
    assert read_index(tmp_path).content == index.content
    for file in ("index.json", "train.samples.npy"):
        assert (tmp_path / file).read_bytes() == (made_set / file).read_bytes()


def test_a_table_that_is_not_the_indexs_is_refused(made_copy: Path) -> None:
    table = made_copy / "train.samples.npy"
    whole = table.read_bytes()
    table.write_bytes(whole[:-1] + b"x")
    with pytest.raises(VarlabError, match=r"train\.samples\.npy is not the one"):
        reader(made_copy)
    table.unlink()
    with pytest.raises(VarlabError, match=r"train\.samples\.npy cannot be read"):
        reader(made_copy)


def test_missing_and_cut_shards_are_named(made_copy: Path) -> None:
    shard = made_copy / "train-000002.tar"
    whole = shard.read_bytes()
    shard.write_bytes(whole[:2048])  # a cut at a header, which streaming readers do not notice
    (fault,) = reader(made_copy).survey()
    assert (fault.kind, fault.shard, fault.samples) == ("cut", "train-000002.tar", 9)
    shard.write_bytes(b"")
    assert [(f.kind, f.samples) for f in reader(made_copy).survey()] == [("empty", 10)]
    shard.unlink()
    assert [(f.kind, f.samples) for f in reader(made_copy).survey()] == [("missing", 10)]
    faults = reader(made_copy).read(torch.arange(18, 22)).faults
    assert {row: f.kind for row, f in faults.items()} == {2: "missing", 3: "missing"}
    shard.write_bytes(bytes(len(whole)))
    assert reader(made_copy).survey() == []
    assert {f.kind for f in reader(made_copy).read(torch.arange(20, 30)).faults.values()} == {"changed"}
    with pytest.raises(VarlabError, match=r"changed: sample 0020 in train-000002\.tar"):
        reader(made_copy).images(torch.tensor([20]))


@pytest.mark.parametrize(
    ("label", "kind"),
    [(b"2", "bad_label"), (b"-2", "bad_label"), (b"-1", "no_label"), (b"cat", "bad_label"), (b"", "bad_label")],
)
def test_label_outside_the_classes_is_named(tmp_path: Path, label: bytes, kind: str) -> None:
    by_hand(tmp_path, {"fine.png": png(), "fine.cls": b"1", "odd.png": png(), "odd.cls": label})
    assert read_index(tmp_path).faults == {kind: 1}
    assert reader(tmp_path).label_N.tolist() == [1]


@pytest.mark.parametrize(
    ("members", "kind"),
    [
        (("a.png",), "no_label"),
        (("a.cls",), "no_image"),
        (("a.png", "b.png", "a.cls", "b.cls"), "interleaved"),
        (("a.pkl", "a.cls"), "no_image"),
    ],
)
def test_incomplete_samples_are_named(tmp_path: Path, members: tuple[str, ...], kind: str) -> None:
    content = {"png": png(), "cls": b"0", "pkl": pickle.dumps(1)}
    by_hand(tmp_path, {"z.png": png(), "z.cls": b"1", **{m: content[m.split(".")[1]] for m in members}})
    index = read_index(tmp_path)
    assert set(index.faults) == {kind} and index.info.counts == {"train": 1}


def test_only_images_are_decoded(tmp_path: Path) -> None:
    class Bomb:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return os.mkdir, (str(tmp_path / "exploded"),)

    by_hand(tmp_path, {"a.pkl": pickle.dumps(Bomb()), "a.png": png(), "a.cls": b"0", "a.json": b"{}"})
    assert reader(tmp_path).images(torch.tensor([0]))[0, :, 0, 0].tolist() == [255, 0, 0]
    by_hand(tmp_path, {"a.png": pickle.dumps(Bomb()), "a.cls": b"0", "b.png": png(), "b.cls": b"0"})
    assert read_index(tmp_path).faults == {"corrupt": 1}
    assert not (tmp_path / "exploded").exists()


def test_absurdly_large_images_are_not_decoded(tmp_path: Path) -> None:
    by_hand(tmp_path, {"a.png": png(), "a.cls": b"0", "b.png": png(2000, 2000), "b.cls": b"0"})
    assert read_index(tmp_path).faults == {"too_large": 1}
    by_hand(tmp_path, {"a.png": png(), "a.cls": b"0", "b.png": png(800, 800), "b.cls": b"0"}, most_pixels=1 << 30)
    small = ShardReader(index=read_index(tmp_path), split="train", cache_bytes=0, most_pixels=1000, size=(8, 8))
    assert {row: f.kind for row, f in small.read(torch.arange(2)).faults.items()} == {1: "too_large"}


def test_images_of_various_sizes_are_brought_to_one(tmp_path: Path) -> None:
    members = {"a.jpg": jpeg(40, 30), "a.cls": b"0", "b.jpeg": jpeg(90, 120, "L"), "b.cls": b"1", "c.png": png(50, 10)}
    by_hand(tmp_path, members | {"c.cls": b"0", "d.jpg": jpeg(33, 34, "CMYK"), "d.cls": b"0"})
    assert read_index(tmp_path).image_size is None
    with pytest.raises(VarlabError, match=r"various sizes: set the size .*data\.size=256"):
        reader(tmp_path)
    read = reader(tmp_path, size=(16, 24)).read(torch.arange(4))
    assert not read.faults and read.img_B3HW.shape == (4, 3, 16, 24)
    assert read.img_B3HW[2, :, 0, 0].tolist() == [255, 0, 0]
    assert (read.img_B3HW[1].float().mean() - 127).abs() < 3  # the middle of a ramp


def test_wrong_size_is_named(made_copy: Path) -> None:
    index = read_index(made_copy)
    wrong = Index(index.storage, index.source, index.classes, (8, 9), index.splits, {})
    write_index(wrong, {"train": index.table("train")})
    assert {f.kind for f in reader(made_copy).read(torch.arange(3)).faults.values()} == {"wrong_size"}


def test_shards_written_by_webdataset_are_read(tmp_path: Path) -> None:
    with webdataset.TarWriter(str(tmp_path / "train-000000.tar")) as sink:
        for i in range(3):
            sink.write({"__key__": f"deep/er/{i}", "png": Image.new("RGB", (8, 8), (i, 0, 0)), "cls": i % 2})
    build_index(
        tmp_path,
        splits={"train": ["train-000000.tar"]},
        settings=ScanSettings(label="auto", classes=None, decode=True, most_pixels=100, size=(8, 8)),
        source={"name": "theirs"},
        val_fraction=0.0,
        seed=0,
        max_bad=0.0,
        workers=0,
    )
    read = reader(tmp_path)
    assert read_index(tmp_path).classes == ("0", "1")
    assert read.label_N.tolist() == [0, 1, 0]
    assert read.images(torch.arange(3))[:, 0, 0, 0].tolist() == [0, 1, 2]


def test_names_too_long_for_a_header_are_read(tmp_path: Path) -> None:
    for form in (tarfile.PAX_FORMAT, tarfile.GNU_FORMAT):
        by_hand(tmp_path, {"k" * 150 + ".png": png(), "k" * 150 + ".cls": b"0"}, form)
        assert reader(tmp_path).key(0) == "k" * 150
        assert read_index(tmp_path).faults == {}


def test_labels_may_be_names_in_a_json_or_none_at_all(tmp_path: Path) -> None:
    members = {
        f"{i}.{e}": c
        for i, n in enumerate(["cat", "dog", "cat"])
        for e, c in (("jpg", jpeg(8, 8)), ("json", json.dumps({"label": n, "caption": "x"}).encode()))
    }
    by_hand(tmp_path, members, classes=None)
    assert read_index(tmp_path).classes == ("cat", "dog") and reader(tmp_path).label_N.tolist() == [0, 1, 0]
    by_hand(tmp_path, members, classes=("dog", "cat"))
    assert reader(tmp_path).label_N.tolist() == [1, 0, 1]
    captions = {f"{i}.{e}": c for i in range(3) for e, c in (("jpg", jpeg(8, 8)), ("txt", b"a caption"))}
    by_hand(tmp_path, captions, classes=None)
    assert read_index(tmp_path).classes == ("image",) and reader(tmp_path).label_N.tolist() == [0, 0, 0]


def test_cache_changes_nothing(made_set: Path) -> None:
    cached, plain = reader(made_set, 1 << 20), reader(made_set)
    for index_B in (torch.tensor([5, 5, 36, 0]), torch.tensor([0, 1, 5]), torch.arange(37)):
        first = cached.images(index_B)
        assert torch.equal(first, plain.images(index_B))
        first.zero_()  # what the caller does to its batch is the caller's business
        assert torch.equal(cached.images(index_B), plain.images(index_B))


def test_what_is_bad_is_not_kept(made_copy: Path) -> None:
    shard = made_copy / "train-000000.tar"
    whole = shard.read_bytes()
    shard.write_bytes(whole.replace(b"IEND", b"IENX", 1))
    cached = reader(made_copy, 1 << 20)
    for _ in range(2):
        assert [(row, f.kind, f.key) for row, f in cached.read(torch.tensor([3, 0])).faults.items()] == [
            (1, "changed", "0000")
        ]
    shard.write_bytes(whole)
    assert not reader(made_copy, 1 << 20).read(torch.tensor([3, 0])).faults


def test_reader_travels_to_other_processes(made_set: Path) -> None:
    here = reader(made_set, 1 << 20)
    expected = here.images(torch.arange(37))
    assert torch.equal(pickle.loads(pickle.dumps(here)).images(torch.arange(37)), expected)


def test_split_that_is_not_there(tmp_path: Path) -> None:
    by_hand(tmp_path, {"a.png": png(), "a.cls": b"0"})
    with pytest.raises(VarlabError, match="holds no val images"):
        ShardReader(index=read_index(tmp_path), split="val", cache_bytes=0, most_pixels=100)
    empty = json.loads((tmp_path / "index.json").read_text()) | {"tables": {}}
    (tmp_path / "index.json").write_text(json.dumps(empty))
    with pytest.raises(VarlabError, match="holds no images"):
        read_index(tmp_path)
