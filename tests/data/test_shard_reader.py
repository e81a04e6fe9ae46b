"""Reading: nothing missing, cut or mislabelled goes unnoticed, and nothing is unpickled."""

from __future__ import annotations

import hashlib
import io
import json
import os
import pickle
import shutil
import tarfile
from pathlib import Path

import pytest
import torch
import webdataset
from PIL import Image

from varlab.data.index import Index, Shard, read_index, write_index
from varlab.data.reader import ShardReader
from varlab.types import VarlabError


def reader(path: Path, cache_bytes: int = 0) -> ShardReader:
    return ShardReader(index=read_index(path), split="train", cache_bytes=cache_bytes)


@pytest.fixture
def made_copy(made_set: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made_set, tmp_path / "copy"))


def png(side: int = 8) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (side, side), "red").save(buffer, format="PNG")
    return buffer.getvalue()


def by_hand(folder: Path, members: dict[str, bytes], count: int, form: int = tarfile.USTAR_FORMAT) -> Path:
    """A shard set of one training shard with any members."""
    path = folder / "train-000000.tar"
    with tarfile.open(path, "w", format=form) as tar:
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    shard = Shard(path.name, count, path.stat().st_size, hashlib.sha256(path.read_bytes()).hexdigest())
    write_index(Index(folder, {"name": "hand"}, ("a", "b"), (8, 8), {"train": (shard,)}))
    return folder


def test_folder_without_shards_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(VarlabError, match="There is no shard folder"):
        read_index(tmp_path / "nowhere")
    with pytest.raises(VarlabError, match="is empty"):
        read_index(tmp_path)
    (tmp_path / "train-000000.tar").touch()
    with pytest.raises(VarlabError, match=r"no index\.json"):
        read_index(tmp_path)
    for text in ("{", "[]", '{"version": 1}', '{"version": 99}'):
        (tmp_path / "index.json").write_text(text)
        with pytest.raises(VarlabError, match=r"index\.json (is damaged|has version 99)"):
            read_index(tmp_path)


def test_index_survives_the_file(made_set: Path, tmp_path: Path) -> None:
    index = read_index(made_set)
    write_index(Index(tmp_path, index.source, index.classes, index.image_size, index.splits))
    assert read_index(tmp_path).content == index.content
    assert (tmp_path / "index.json").read_bytes() == (made_set / "index.json").read_bytes()


def test_missing_and_cut_shards_are_named(made_copy: Path) -> None:
    shard = made_copy / "train-000002.tar"
    whole = shard.read_bytes()
    shard.write_bytes(whole[:1024])  # a cut at a header, which streaming readers do not notice
    with pytest.raises(VarlabError, match=r"train-000002\.tar has 1024 bytes"):
        reader(made_copy)
    shard.write_bytes(bytes(len(whole)))
    with pytest.raises(VarlabError, match=r"train-000002\.tar has 0 images, its index 10"):
        reader(made_copy)
    shard.write_bytes(whole[:1024] + b"x" * (len(whole) - 1024))
    with pytest.raises(VarlabError, match=r"train-000002\.tar is damaged at byte 1024"):
        reader(made_copy)
    shard.unlink()
    with pytest.raises(VarlabError, match=r"train-000002\.tar is missing"):
        reader(made_copy)


@pytest.mark.parametrize("label", [b"2", b"-1", b"cat", b""])
def test_label_outside_the_classes_is_named(tmp_path: Path, label: bytes) -> None:
    by_hand(tmp_path, {"fine.png": png(), "fine.cls": b"1", "odd.png": png(), "odd.cls": label}, 2)
    with pytest.raises(VarlabError, match=r"Sample odd in .*train-000000\.tar has the label"):
        reader(tmp_path)


@pytest.mark.parametrize("members", [("a.png",), ("a.cls",), ("a.png", "b.png", "a.cls", "b.cls"), ("a.pkl", "a.cls")])
def test_incomplete_samples_are_named(tmp_path: Path, members: tuple[str, ...]) -> None:
    content = {"png": png(), "cls": b"0", "pkl": pickle.dumps(1)}
    by_hand(tmp_path, {m: content[m.split(".")[1]] for m in members}, 1)
    with pytest.raises(VarlabError, match=r"Sample a in .* lacks"):
        reader(tmp_path)


def test_only_images_are_decoded(tmp_path: Path) -> None:
    class Bomb:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return os.mkdir, (str(tmp_path / "exploded"),)

    by_hand(tmp_path, {"a.pkl": pickle.dumps(Bomb()), "a.png": png(), "a.cls": b"0", "a.json": b"{}"}, 1)
    assert reader(tmp_path).images(torch.tensor([0]))[0, :, 0, 0].tolist() == [255, 0, 0]
    by_hand(tmp_path, {"a.png": pickle.dumps(Bomb()), "a.cls": b"0"}, 1)
    with pytest.raises(VarlabError, match=r"Sample a\.png in .* cannot be decoded"):
        reader(tmp_path).images(torch.tensor([0]))
    assert not (tmp_path / "exploded").exists()


def test_wrong_size_is_named(tmp_path: Path) -> None:
    by_hand(tmp_path, {"a.png": png(9), "a.cls": b"0"}, 1)
    with pytest.raises(VarlabError, match=r"Sample a\.png in .* is \(9, 9\)"):
        reader(tmp_path).images(torch.tensor([0]))


def test_shards_written_by_webdataset_are_read(tmp_path: Path) -> None:
    with webdataset.TarWriter(str(tmp_path / "train-000000.tar")) as sink:
        for i in range(3):
            sink.write({"__key__": f"deep/er/{i}", "png": Image.new("RGB", (8, 8), (i, 0, 0)), "cls": i % 2})
    path = tmp_path / "train-000000.tar"
    shard = Shard(path.name, 3, path.stat().st_size, "")
    write_index(Index(tmp_path, {"name": "theirs"}, ("a", "b"), (8, 8), {"train": (shard,)}))
    read = reader(tmp_path)
    assert read.label_N.tolist() == [0, 1, 0]
    assert read.images(torch.arange(3))[:, 0, 0, 0].tolist() == [0, 1, 2]


def test_names_too_long_for_a_header_are_refused(tmp_path: Path) -> None:
    for form in (tarfile.PAX_FORMAT, tarfile.GNU_FORMAT):
        by_hand(tmp_path, {"k" * 150 + ".png": png(), "k" * 150 + ".cls": b"0"}, 1, form)
        with pytest.raises(VarlabError, match="over 100 characters"):
            reader(tmp_path)


def test_cache_changes_nothing(made_set: Path) -> None:
    cached, plain = reader(made_set, 1 << 20), reader(made_set)
    for index_B in (torch.tensor([5, 5, 36, 0]), torch.tensor([0, 1, 5]), torch.arange(37)):
        first = cached.images(index_B)
        assert torch.equal(first, plain.images(index_B))
        first.zero_()  # what the caller does to its batch is the caller's business
        assert torch.equal(cached.images(index_B), plain.images(index_B))


def test_reader_travels_to_other_processes(made_set: Path) -> None:
    here = reader(made_set, 1 << 20)
    expected = here.images(torch.arange(37))
    assert torch.equal(pickle.loads(pickle.dumps(here)).images(torch.arange(37)), expected)


def test_split_that_is_not_there(tmp_path: Path) -> None:
    by_hand(tmp_path, {"a.png": png(), "a.cls": b"0"}, 1)
    with pytest.raises(VarlabError, match="holds no val images"):
        ShardReader(index=read_index(tmp_path), split="val", cache_bytes=0)
    empty = json.loads((tmp_path / "index.json").read_text()) | {"splits": {"train": []}}
    (tmp_path / "index.json").write_text(json.dumps(empty))
    with pytest.raises(VarlabError, match="holds no images"):
        read_index(tmp_path)
