"""The streaming reader: no index, the same number of batches on every rank, every fault named, and never a hang."""

from __future__ import annotations

import io
import json
import logging
import multiprocessing
import os
import pickle
import tarfile
import threading
from collections.abc import Callable, Iterator
from functools import partial
from http.server import BaseHTTPRequestHandler, SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from varlab.data.image.augment import Augment
from varlab.data.image.crop import RandomCrop
from varlab.data.shard_module import ShardDataModule
from varlab.data.stream_module import StreamDataModule
from varlab.rng import Rng
from varlab.tasks import TrainerData
from varlab.types import Batch, VarlabError

PLAIN = Augment(flip=False, crop=1.0, noise=0.0)
MakeIndexed = Callable[..., ShardDataModule]


def stream(folder: Path | str, **changes: Any) -> StreamDataModule:
    """Of made_set, or one like it."""
    settings: dict[str, Any] = {
        "train": f"{folder}/train-{{000000..000003}}.tar",
        "val": f"{folder}/val-00000{{0,1,2}}.tar",
        "classes": ["a", "b", "c"],
        "size": 8,
        "train_images": 37,
        "val_images": 21,
        "batch": 8,
        "eval_batch": 8,
        "seed": 3,
        "workers": 0,
        "shuffle": 20,
        "augment": PLAIN,
    }
    return StreamDataModule(**{**settings, **changes})


def shard(path: Path, members: dict[str, bytes]) -> str:
    with tarfile.open(path, "w") as tar:
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return str(path)


def encoded(form: str = "PNG", height: int = 8, width: int = 8, seed: int = 0) -> bytes:
    noise = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(noise).save(buffer, format=form)
    return buffer.getvalue()


def samples(n: int, first: int = 0) -> dict[str, bytes]:
    """Members of n whole samples of class 0, 1, 2, 0 …"""
    numbers = range(first, first + n)
    return {f"{i:04d}.{e}": c for i in numbers for e, c in (("cls", b"%d" % (i % 3)), ("png", encoded(seed=i)))}


def pairs(batches: list[Batch]) -> set[tuple[bytes, int]]:
    """What came: pixels and label of each image."""
    return {
        (img_3HW.numpy().tobytes(), int(label))
        for batch in batches
        for img_3HW, label in zip(batch.img_u8_B3HW.contiguous(), batch.label_B, strict=True)
    }


def cat(batches: list[Batch], name: str) -> Tensor:
    return torch.cat([getattr(batch, name) for batch in batches])


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def served() -> Iterator[Callable[..., str]]:
    """Starts a server with a handler, or for a folder; the URL of its root."""
    servers = []

    def serve(handler: Any) -> str:
        made = partial(_Quiet, directory=str(handler)) if isinstance(handler, Path) else handler
        server = ThreadingHTTPServer(("127.0.0.1", 0), made)
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        servers.append(server)
        return f"http://127.0.0.1:{server.server_port}"

    yield serve
    for server in servers:
        server.shutdown()
        server.server_close()


@pytest.fixture
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("varlab.data.patience.Patience.pause", lambda self, attempt: None)


# -- what comes --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize(("shards", "world"), [("00000{0..2}", 1), ("00000{0..2}", 2), ("000000", 4)])
def test_every_rank_has_the_same_number_of_batches(made_set: Path, shards: str, world: int, workers: int) -> None:
    data = stream(made_set, train=f"{made_set}/train-{shards}.tar", workers=workers)
    loaders = [data.train_loader(16, 56, rank, world) for rank in range(world)]
    ranks = [list(loader) for loader in loaders]
    assert [len(loader) for loader in loaders] == [len(batches) for batches in ranks] == [5] * world
    assert {len(batch) for batches in ranks for batch in batches} == {8 // world}
    everywhere = torch.cat([batch.position_B for batches in ranks for batch in batches])
    assert torch.equal(everywhere.sort().values, torch.arange(16, 56))
    assert len({frozenset(pairs(batches)) for batches in ranks}) == world  # ranks see samples of their own
    assert all(bool(batch.valid_B.all()) for batches in ranks for batch in batches)


@pytest.mark.parametrize("how", ["{}", "pipe:cat {}", "file://{}", "http"])
def test_samples_are_the_indexed_readers(
    made_set: Path, make_module: MakeIndexed, served: Callable[..., str], how: str
) -> None:
    root = served(made_set) if how == "http" else how.format(made_set)
    data, indexed = stream(root), make_module(made_set, augment=PLAIN)
    everything = pairs([indexed.samples("train")])
    assert pairs(list(data.train_loader(0, 160, 0, 1))) == everything and len(everything) == 37
    for split in ("train", "val"):
        ours, theirs = (list(d.eval_loader(split, 0, 1)) for d in (data, indexed))
        for name in ("img_u8_B3HW", "label_B", "position_B", "valid_B"):
            assert torch.equal(cat(ours, name), cat(theirs, name))


def test_other_sizes_are_cut_as_the_indexed_reader_cuts(digits_set: Path, make_module: MakeIndexed) -> None:
    where = {"train": f"{digits_set}/train-000000.tar", "val": f"{digits_set}/val-000000.tar", "classes": 10}
    data, indexed = stream("", **where, size=[6, 5], val_images=50), make_module(digits_set, size=[6, 5])
    assert data.info.image_size == (6, 5) and data.info.num_classes == 10
    assert torch.equal(data.images("val"), indexed.images("val", torch.arange(50)))


def test_crop_and_augmentation_are_functions_of_the_position(made_set: Path) -> None:
    settings = {"crop": RandomCrop(enlarge=1.3), "size": 6, "batch": 12}
    plain, seen = (
        list(stream(made_set, **settings, augment=augment).train_loader(24, 48, 0, 1))
        for augment in (PLAIN, Augment(flip=True, crop=1.25, noise=2.0))
    )
    for before, after in zip(plain, seen, strict=True):
        augment = Augment(flip=True, crop=1.25, noise=2.0)
        assert torch.equal(after.img_u8_B3HW, augment(before.img_u8_B3HW, before.position_B, Rng(3)))
        assert not torch.equal(after.img_u8_B3HW, before.img_u8_B3HW)


@pytest.mark.parametrize("workers", [0, 2])
def test_another_start_gives_other_samples_and_the_same_start_the_same(made_set: Path, workers: int) -> None:
    data = stream(made_set, workers=workers)
    loader = data.train_loader(0, 24, 0, 1)
    first, again = list(loader), list(loader)
    resumed, uninterrupted = list(data.train_loader(24, 48, 0, 1)), list(data.train_loader(0, 48, 0, 1))[3:]
    assert torch.equal(cat(first, "img_u8_B3HW"), cat(again, "img_u8_B3HW"))
    for others in (first, uninterrupted):
        assert not torch.equal(cat(resumed, "img_u8_B3HW"), cat(others, "img_u8_B3HW"))
    assert torch.equal(cat(resumed, "position_B"), cat(uninterrupted, "position_B"))


def test_it_says_once_that_it_is_not_exact(made_set: Path, caplog: pytest.LogCaptureFixture) -> None:
    data = stream(made_set)
    with caplog.at_level(logging.INFO):
        for rank in (1, 0, 0):
            data.train_loader(0, 8, rank, 2)
    assert [
        r.message for r in caplog.records if "statistically, not exactly" in r.message and "varlab index" in r.message
    ]
    assert len(caplog.records) == 1


@pytest.mark.parametrize("world", [1, 2, 4])
@pytest.mark.parametrize("split", ["train", "val"])
def test_every_sample_is_evaluated_once(made_set: Path, make_module: MakeIndexed, split: str, world: int) -> None:
    data = stream(made_set, workers=2)
    ranks = [list(data.eval_loader(split, rank, world)) for rank in range(world)]
    batches = [batch.only(batch.valid_B) for of in ranks for batch in of]
    n = data.info.counts[split]
    assert torch.equal(cat(batches, "position_B").sort().values, torch.arange(n))
    assert pairs(batches) == pairs([make_module(made_set).samples(split)])
    assert {tuple(map(len, of)) for of in ranks} == {tuple(map(len, ranks[0]))}


def test_val_is_the_first_so_many(made_set: Path, make_module: MakeIndexed) -> None:
    data, indexed = stream(made_set, val_images=12), make_module(made_set)
    assert torch.equal(data.images("val"), indexed.images("val", torch.arange(12)))
    assert torch.equal(data.labels("val"), indexed.labels("val")[:12])
    picked = data.samples("val", torch.tensor([5, 0, 5]))
    assert torch.equal(picked.img_u8_B3HW, data.images("val")[[5, 0, 5]]) and picked.position_B.tolist() == [5, 0, 5]
    with pytest.raises(VarlabError, match="have no numbers: use val, or data=shards"):
        data.samples("train")


def test_lightning_hooks_use_the_trainers_ranks(made_set: Path) -> None:
    data: Any = TrainerData(stream(made_set), stop=24)
    data.trainer = SimpleNamespace(global_rank=1, world_size=2)
    data.start = 8
    assert next(iter(data.train_dataloader())).position_B.tolist() == [12, 13, 14, 15]
    assert next(iter(data.val_dataloader())).position_B.tolist() == [4, 5, 6, 7]


def test_labels_are_told_as_asked(tmp_path: Path) -> None:
    told = {"a.png": encoded(seed=1), "a.json": json.dumps({"kind": "dog", "label": 1}).encode(), "a.cls": b"2"}
    settings = {"train": "x.tar", "val": shard(tmp_path / "v.tar", told), "classes": ["cat", "bird", "dog"]}
    for label, number in {"json:kind": 2, "json:label": 1, "cls": 2, "auto": 2, "none": 0}.items():
        assert stream("", **settings, val_images=1, label=label).labels("val").tolist() == [number]


# -- what is wrong -----------------------------------------------------------------------------------------------------


def wrong(tmp_path: Path) -> dict[str, str]:
    """A shard with samples of each kind of fault among 20 whole ones: kind by key."""
    members = samples(10) | {
        "no_image.cls": b"0",
        "no_label.png": encoded(),
        "bad_label.cls": b"3",
        "bad_label.png": encoded(),
        "corrupt.cls": b"0",
        "corrupt.png": encoded()[:60],
        "corrupt_too.cls": b"0",
        "corrupt_too.png": encoded()[:16] + bytes(8) + encoded()[24:],  # of 0×0 pixels
        "too_large.cls": b"0",
        "too_large.jpg": encoded("JPEG", 40, 40),
    }
    path = tmp_path / "wrong.tar"
    shard(path, members | samples(10, first=10))
    with tarfile.open(path, "a") as tar:
        for content in (b"1", b"2"):
            member = tarfile.TarInfo("duplicate.cls")
            member.size = 1
            tar.addfile(member, io.BytesIO(content))
        image = tarfile.TarInfo("duplicate.png")
        image.size = len(encoded(seed=99))
        tar.addfile(image, io.BytesIO(encoded(seed=99)))
    kinds = ("no_image", "no_label", "bad_label", "corrupt", "too_large", "duplicate")
    return {kind: kind for kind in kinds} | {"corrupt_too": "corrupt"}


@pytest.mark.parametrize("workers", [0, 2])
def test_bad_samples_are_counted_named_and_replaced(tmp_path: Path, workers: int) -> None:
    expected, path = wrong(tmp_path), str(tmp_path / "wrong.tar")
    data = stream("", train=path, val=path, most_pixels=1000, max_bad=0.4, workers=workers)
    batches = list(data.train_loader(0, 160, 0, 1))
    watch = data.watches["train"]
    assert {key: fault.kind for (_, key), fault in watch.faults.items()} == expected and watch.lost == 7
    assert {fault.shard for fault in watch.faults.values()} == {path}
    assert len(pairs(batches)) == 21 and cat(batches, "label_B").max() == 2
    assert data.labels("val").tolist() == [i % 3 for i in range(20)] + [1]  # the first of two members counts
    assert {key: fault.kind for (_, key), fault in data.watches["val"].faults.items()} == expected
    masked = list(
        stream("", train=path, val=path, most_pixels=1000, train_images=27, max_bad=0.4).eval_loader("train", 0, 1)
    )
    assert [int(batch.valid_B.sum()) for batch in masked] == [8, 2, 8, 3]


def test_too_many_bad_samples_are_one_sentence(tmp_path: Path) -> None:
    wrong(tmp_path)
    path = str(tmp_path / "wrong.tar")
    for split in ("train", "val"):
        data = stream("", train=path, val=path, most_pixels=1000, max_bad=0.1)
        with pytest.raises(
            VarlabError, match=rf"^\d of \d+ {split} samples .* are bad, over data\.max_bad=0\.1 .*max_bad\.$"
        ):
            list(data.train_loader(0, 80, 0, 1) if split == "train" else data.eval_loader("val", 0, 1))


def test_nothing_but_bad_samples_is_one_sentence(tmp_path: Path) -> None:
    path = shard(tmp_path / "bad.tar", {f"{i}.{e}": b"0" for i in range(100) for e in ("cls", "png")})
    data = stream("", train=path, val=path, max_bad=1.0)
    with pytest.raises(
        VarlabError, match=r"1000 samples in a row of data\.train are bad \(100 corrupt: .*: repair them\.$"
    ) as raised:
        list(data.train_loader(0, 8, 0, 1))
    assert "0x" not in str(raised.value)  # no address: the same fault reads the same each time


SAMPLE = 2048  # bytes of one in a tar: two members, a header and a block or less each


@pytest.mark.parametrize(
    ("broken", "kind", "came", "lost"),
    [
        (lambda whole: whole[: 4 * SAMPLE], "cut", 4, 6),  # at a header, which tarfile does not notice
        (lambda whole: whole[: 4 * SAMPLE + 100], "cut", 4, 6),  # in a header
        (lambda whole: whole[: 4 * SAMPLE + 1600], "cut", 4, 5),  # in an image
        (lambda whole: whole[: 10 * SAMPLE], "cut", 10, 1),  # before the end mark
        (lambda whole: whole[: 4 * SAMPLE] + b"?" * SAMPLE + whole[5 * SAMPLE :], "damaged", 9, 1),
        (lambda whole: b"", "empty", 0, 10),
        (lambda whole: b"<html>no such page</html>" * 100, "damaged", 0, 10),
    ],
    ids=["header", "in-header", "in-image", "end-mark", "overwritten", "empty", "no-tar"],
)
def test_shards_that_break_off_are_named(
    tmp_path: Path, broken: Callable[[bytes], bytes], kind: str, came: int, lost: int
) -> None:
    good, bad = shard(tmp_path / "good.tar", samples(10, first=10)), shard(tmp_path / "bad.tar", samples(10))
    Path(bad).write_bytes(broken(Path(bad).read_bytes()))
    data = stream("", train=[bad, good], val=good, train_images=20, max_bad=1.0)
    batches, watch = list(data.train_loader(0, 80, 0, 1)), data.watches["train"]
    assert {at: fault.kind for at, fault in watch.faults.items()} == {(bad, ""): kind} and watch.lost == lost
    assert len(pairs(batches)) == 10 + came


@pytest.mark.parametrize("compression", ["gz", "xz", "bz2"])
def test_packed_shards_are_read_and_their_ends_noticed(tmp_path: Path, compression: str) -> None:
    path, good = tmp_path / f"a.tar.{compression}", shard(tmp_path / "good.tar", samples(10))
    with tarfile.open(path, f"w:{compression}") as packed, tarfile.open(good) as tar:  # type: ignore[call-overload]
        for member in tar:
            packed.addfile(member, tar.extractfile(member))
    data = stream("", train=str(path), val=str(path), val_images=10)
    assert torch.equal(data.images("val"), stream("", train=good, val=good, val_images=10).images("val"))
    path.write_bytes(path.read_bytes()[:-400])
    data = stream("", train=[str(path), good], val=str(path), train_images=20, max_bad=1.0)
    list(data.train_loader(0, 40, 0, 1))
    assert [fault.kind for fault in data.watches["train"].faults.values()] == ["cut"]


def test_a_missing_shard_is_named_and_the_others_read(made_set: Path, served: Callable[..., str]) -> None:
    root = served(made_set)
    missing = {f"{root}/no.tar": "HTTP 404", "pipe:cat /no/where.tar": "exit code 1", "/no/where.tar": "No such file"}
    for url, why in missing.items():
        urls = [f"{root}/train-00000{{0,1}}.tar", url]
        data = stream(root, train=urls, train_images=30, max_bad=0.5)
        assert len(pairs(list(data.train_loader(0, 80, 0, 1)))) == 20
        (fault,) = data.watches["train"].faults.values()
        assert (fault.kind, fault.shard, fault.samples) == ("missing", url, 10) and why in fault.detail
        with pytest.raises(VarlabError, match=r"10 of 30 train samples .* are bad, over data\.max_bad=0\.1"):
            list(stream(root, train=urls, train_images=30, max_bad=0.1).train_loader(0, 80, 0, 1))


@pytest.mark.parametrize("url", ["http", "http://127.0.0.1:9/x.tar", "pipe:cat /no/where", "/no/where", "pipe:true"])
def test_where_nothing_can_be_read_is_one_sentence(
    made_set: Path, served: Callable[..., str], no_pauses: None, url: str
) -> None:
    url = f"{served(made_set)}/nothing.tar" if url == "http" else url
    data = stream("", train=url, val=url, max_bad=1.0)
    with pytest.raises(
        VarlabError, match=r"^3 shards in a row of data\.train hold no samples \(1 (missing|empty): [^;]*\.$"
    ):
        list(data.train_loader(0, 8, 0, 1))
    with pytest.raises(
        VarlabError, match=r"^data\.val holds 0 whole samples, but data\.val_images is 21: lower that\.$"
    ):
        data.labels("val")
    with pytest.raises(VarlabError, match=r"^21 of 21 val samples .* bad, over data\.max_bad=0 "):
        stream("", train=url, val=url).labels("val")


def test_a_sentence_comes_whole_out_of_a_worker(tmp_path: Path) -> None:
    data = stream("", train=f"{tmp_path}/no.tar", val="x.tar", max_bad=1.0, workers=1)
    before = multiprocessing.active_children()
    with pytest.raises(VarlabError, match=r"^3 shards in a row of data\.train .*: correct it\.$") as raised:
        list(data.train_loader(0, 8, 0, 1))
    assert raised.value.__cause__ and multiprocessing.active_children() == before, (
        "the error holds the loader, but no worker"
    )


def test_shards_without_samples_end(tmp_path: Path) -> None:
    path = shard(tmp_path / "a.tar", {"README": b"nothing", "__meta__/a.png": encoded()})
    with pytest.raises(VarlabError, match=r"^3 shards in a row of data\.train hold no samples: correct it\.$"):
        list(stream("", train=path, val=path, max_bad=1.0).train_loader(0, 8, 0, 1))


def test_fewer_samples_than_asked_for_are_one_sentence(made_set: Path) -> None:
    with pytest.raises(VarlabError, match=r"data\.val holds 21 whole samples, but data\.val_images is 22"):
        stream(made_set, val_images=22).images("val")
    with pytest.raises(VarlabError, match=r"data\.train holds 37 samples, but data\.train_images is 50"):
        list(stream(made_set, train_images=50).eval_loader("train", 0, 1))


def test_nothing_is_unpickled(tmp_path: Path) -> None:
    class Bomb:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return os.mkdir, (str(tmp_path / "exploded"),)

    bomb = pickle.dumps(Bomb())
    members = {"a.pkl": bomb, "a.pyd": bomb, "a.png": encoded(), "a.cls": b"0", "b.png": bomb, "b.cls": b"0"}
    path = shard(tmp_path / "a.tar", members)
    data = stream("", train=path, val=path, val_images=1, max_bad=1.0)
    assert len(pairs(list(data.train_loader(0, 16, 0, 1)))) == len(data.labels("val")) == 1
    assert [fault.kind for fault in data.watches["train"].faults.values()] == ["corrupt"]
    assert not (tmp_path / "exploded").exists()


# -- connections -------------------------------------------------------------------------------------------------------


def breaking(whole: bytes, *, ranges: bool, good: int) -> type[BaseHTTPRequestHandler]:
    """Every answer breaks off after so many bytes, and the first is a refusal."""

    class Breaking(BaseHTTPRequestHandler):
        asked = 0

        def do_GET(self) -> None:
            Breaking.asked += 1
            if Breaking.asked == 1:
                self.send_error(503)
                return
            told = self.headers.get("Range", "bytes=0-") if ranges else "bytes=0-"
            first = int(told.removeprefix("bytes=").removesuffix("-"))
            self.send_response(206 if first else 200)
            self.send_header("Content-Length", str(len(whole) - first))
            self.end_headers()
            self.wfile.write(whole[first : first + (good if ranges else good * Breaking.asked)])

        def log_message(self, *_: Any) -> None:
            pass

    return Breaking


@pytest.mark.parametrize("ranges", [True, False])
def test_a_connection_that_breaks_is_taken_up(
    tmp_path: Path, served: Callable[..., str], no_pauses: None, ranges: bool
) -> None:
    path = shard(tmp_path / "a.tar", samples(10))
    root = served(breaking(Path(path).read_bytes(), ranges=ranges, good=7000))
    data = stream("", train="x.tar", val=f"{root}/a.tar", val_images=10)
    assert torch.equal(data.images("val"), stream("", train=path, val=path, val_images=10).images("val"))
    assert not data.watches["val"].faults


def test_a_connection_that_stays_broken_is_a_fault(tmp_path: Path, served: Callable[..., str], no_pauses: None) -> None:
    whole = Path(shard(tmp_path / "a.tar", samples(10))).read_bytes()
    for handler, sentence in {
        breaking(whole, ranges=False, good=0): "1 missing: missing: http.*ended at byte 0 of",
        breaking(whole[:6000], ranges=True, good=6000): "1 cut: cut: http.*after 3 samples of about 10",
    }.items():
        with pytest.raises(VarlabError, match=sentence):
            stream("", train="x.tar", val=f"{served(handler)}/a.tar", val_images=10).images("val")


# -- settings ----------------------------------------------------------------------------------------------------------


def test_info_is_what_was_set(made_set: Path) -> None:
    info = stream(made_set).info
    assert info.classes == ("a", "b", "c") and info.image_size == (8, 8) and info.counts == {"train": 37, "val": 21}
    assert info.source.startswith("stream(train=") and info.path == f"{made_set}/train-{{000000..000003}}.tar"
    spelled = [f"{made_set}/train-00000{i}.tar" for i in range(4)]
    assert stream(made_set, train=spelled, seed=9, batch=16).info.hash == info.hash
    others = ({"train": spelled[:3]}, {"val_images": 9}, {"size": 6}, {"classes": 3}, {"label": "cls"})
    assert len({info.hash, *(stream(made_set, **other).info.hash for other in others)}) == 6


@pytest.mark.parametrize(
    ("setting", "sentence"),
    [
        ({"batch": 0}, r"data\.batch is 0, but must be at least 1"),
        ({"val_images": 0}, r"data\.val_images is 0"),
        ({"max_bad": 2.0}, r"data\.max_bad is 2\.0"),
        ({"size": 0}, r"data\.size is 0"),
        ({"classes": 0}, r"data\.classes=0 must be"),
        ({"classes": ["a", "a"]}, r"data\.classes=.* must be"),
        ({"label": "json:"}, r"data\.label=json: is unknown"),
        ({"train": []}, r"data\.train names no shards"),
        ({"val": ""}, r"data\.val names no shards"),
        ({"train": "a-{0..3.tar"}, r"data\.train cannot be expanded"),
        ({"train": "s3://bucket/a.tar"}, r"data\.train has s3://bucket/a\.tar, which cannot be opened"),
    ],
)
def test_settings_are_checked(setting: dict[str, Any], sentence: str) -> None:
    with pytest.raises(VarlabError, match=sentence):
        stream("", **setting)
