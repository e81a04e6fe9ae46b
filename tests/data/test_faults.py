"""Damage: each kind is named and counted, nothing hangs, and no damaged image is used."""

from __future__ import annotations

import io
import json
import shutil
import struct
import tarfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from varlab.cli.main import main
from varlab.data.faults import KINDS
from varlab.data.format.index import read_index
from varlab.data.format.tar import scan_tar
from varlab.data.pack.packer import pack
from varlab.data.shard_module import ShardDataModule
from varlab.types import VarlabError

Make = Callable[..., ShardDataModule]
Members = list[tuple[str, bytes]]


def png(seed: int, side: int = 8) -> bytes:
    noise = np.random.default_rng(seed).integers(0, 256, (side, side, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(noise).save(buffer, format="PNG")
    return buffer.getvalue()


def huge_png() -> bytes:
    """A header that promises 60,000 × 60,000 pixels."""
    body = b"IHDR" + struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    data = b"IDAT" + zlib.compress(bytes(64))
    chunks = [struct.pack(">I", len(c) - 4) + c + struct.pack(">I", zlib.crc32(c)) for c in (body, data, b"IEND")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


def sample(key: str, seed: int, image: bytes | None = None, label: bytes | None = b"1") -> Members:
    members = [(f"{key}.png", png(seed) if image is None else image)]
    return members + ([(f"{key}.cls", label)] if label is not None else [])


def tar(members: Members) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        for name, content in members:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


def whole(shard: int, n: int = 20) -> Members:
    return [member for i in range(n) for member in sample(f"{shard}-{i:02d}", 100 * shard + i)]


def damaged_header(content: bytes) -> bytes:
    at = content.index(b"04-4-07.png")
    return content[: at + 130] + b"?" + content[at + 131 :]


DAMAGED: dict[str, tuple[str, Callable[[], bytes]]] = {
    "01-cut": ("cut", lambda: tar(whole(1))[: 20 * 1024 + 700]),
    "02-cut-at-header": ("cut", lambda: tar(whole(2))[: 1024 * 12]),
    "03-empty": ("empty", lambda: b""),
    "04-header": ("damaged", lambda: damaged_header(tar([(f"04-{n}", c) for n, c in whole(4)]))),
    "05-corrupt": ("corrupt", lambda: tar([*whole(5), *sample("5-x", 1, png(1)[:90])])),
    "06-huge": ("too_large", lambda: tar([*whole(6), *sample("6-x", 1, huge_png())])),
    "07-no-label": ("no_label", lambda: tar([*whole(7), *sample("7-x", 1, label=None)])),
    "08-bad-label": ("bad_label", lambda: tar([*whole(8), *sample("8-x", 1, label=b"cat")])),
    "09-no-image": ("no_image", lambda: tar([*whole(9), ("9-x.cls", b"1"), ("9-x.pkl", b"\x80\x04.")])),
    "10-interleaved": (
        "interleaved",
        lambda: tar([*whole(10), ("x.png", png(1)), ("y.png", png(2)), ("x.cls", b"1"), ("y.cls", b"0")]),
    ),
    "11-duplicate": ("duplicate", lambda: tar([*whole(11), *sample("11-00", 5)])),
    "12-size": ("wrong_size", lambda: tar([*whole(12), *sample("12-x", 1, png(1, side=9))])),
    "13-not-a-tar": ("damaged", lambda: b"This is no archive at all. " * 400),
    "14-whole": ("", lambda: tar(whole(14))),
}


@pytest.fixture
def rotten(tmp_path: Path) -> Path:
    folder = tmp_path / "rotten"
    folder.mkdir()
    for name, (_, make) in DAMAGED.items():
        (folder / f"{name}.tar").write_bytes(make())
    return folder


def test_each_kind_of_damage_is_named_and_counted(
    rotten: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], make_module: Make
) -> None:
    assert main(["index", str(rotten), "size=[8,8]"]) == 1
    output = capsys.readouterr().err
    assert "are bad, over max_bad=0.001" in output and not (rotten / "index.json").exists()
    assert main(["index", str(rotten), "size=[8,8]", "max_bad=0.2", "val_fraction=0.05"]) == 0
    output = capsys.readouterr().err
    for name, (kind, _) in DAMAGED.items():
        named = [line for line in output.splitlines() if f"{name}.tar" in line and "left out" in line]
        assert any(f": {kind}:" in line for line in named) if kind else not named, (name, named)
    counts = read_index(rotten).faults
    assert set(counts) == {kind for kind, _ in DAMAGED.values() if kind}
    assert counts["cut"] >= 2 and counts["interleaved"] == 2 and counts["corrupt"] == 1
    assert main(["index", str(rotten), "check=true", f"out={tmp_path / 'check'}"]) == 0
    data = make_module(rotten, batch=20, cache_bytes=0)
    seen = list(data.train_loader(0, 20 * 12, 0, 1))
    assert not any(batch.faults for batch in seen)


def test_a_check_reports_damage_after_indexing(
    tmp_path: Path, make_images: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "set"
    pack(make_images(train=60, val=10), folder, shard_size=10)
    assert main(["index", str(folder), "check=true", f"out={tmp_path / 'first'}"]) == 0
    shards = [folder / f"train-00000{i}.tar" for i in range(6)]
    shards[0].unlink()
    shards[1].write_bytes(b"")
    shards[2].write_bytes(shards[2].read_bytes()[:3000])
    flipped = bytearray(shards[3].read_bytes())
    flipped[700] ^= 4
    shards[3].write_bytes(flipped)
    shards[4].write_bytes(shards[5].read_bytes())
    assert main(["index", str(folder), "check=true", f"out={tmp_path / 'second'}"]) == 1
    capsys.readouterr()
    faults = json.loads((tmp_path / "second" / "check.json").read_text())["faults"]
    kinds = {(fault["shard"], fault["kind"]) for fault in faults}
    assert ("train-000000.tar", "missing") in kinds and ("train-000001.tar", "empty") in kinds
    assert ("train-000002.tar", "cut") in kinds
    assert {kind for shard, kind in kinds if shard == "train-000003.tar"} <= {"changed", "corrupt"} != set()
    assert sum(f["shard"] == "train-000004.tar" and f["kind"] == "changed" for f in faults) == 10
    assert not any(shard in ("train-000005.tar", "val-000000.tar") for shard, _ in kinds)


def bad_shard(folder: Path, n: int = 1) -> None:
    """The first n images of the second shard are no images any more."""
    shard = folder / "train-000001.tar"
    shard.write_bytes(shard.read_bytes().replace(b"IDAT", b"IDOT", n))


def test_few_bad_samples_are_replaced_equally_everywhere(tmp_path: Path, make_images: Any, make_module: Make) -> None:
    pack(make_images(train=60, val=10), tmp_path, shard_size=10)
    whole_set = list(make_module(tmp_path).train_loader(0, 120, 0, 1))
    bad_shard(tmp_path, 2)
    alone = list(make_module(tmp_path, max_bad=0.05).train_loader(0, 120, 0, 1))
    for ranks, workers in ((1, 2), (2, 0), (4, 1)):
        modules = [make_module(tmp_path, max_bad=0.05, workers=workers, cache_bytes=0) for _ in range(ranks)]
        loaders = [list(data.train_loader(0, 120, rank, ranks)) for rank, data in enumerate(modules)]
        for i, batch in enumerate(alone):
            assert torch.equal(torch.cat([loader[i].img_u8_B3HW for loader in loaders]), batch.img_u8_B3HW)
            assert torch.equal(torch.cat([loader[i].label_B for loader in loaders]), batch.label_B)
    pairs = [(a.img_u8_B3HW, b.img_u8_B3HW) for a, b in zip(alone, whole_set, strict=True)]
    assert sum(int((a != b).flatten(1).any(1).sum()) for a, b in pairs) == 4  # two samples, two epochs
    assert {fault.key for batch in alone for fault in batch.faults} == {"0010", "0011"}
    assert all(bool(batch.valid_B.all()) for batch in alone)


def test_too_many_bad_samples_stop_training_with_the_list(tmp_path: Path, make_images: Any, make_module: Make) -> None:
    pack(make_images(train=60, val=10), tmp_path, shard_size=10)
    bad_shard(tmp_path, 4)
    for workers in (0, 2):
        data = make_module(tmp_path, max_bad=0.05, workers=workers)
        with pytest.raises(VarlabError, match=r"4 of 60 train .* over data\.max_bad=0\.05 \(4 changed: .*0010 in"):
            list(data.train_loader(0, 120, 0, 1))
        assert data.watches["train"].lost == 4


def test_bad_samples_are_left_out_of_evaluation(tmp_path: Path, make_images: Any, make_module: Make) -> None:
    pack(make_images(train=9, val=30), tmp_path, shard_size=10)
    shard = tmp_path / "val-000001.tar"
    shard.write_bytes(shard.read_bytes().replace(b"IDAT", b"IDOT", 1))
    data = make_module(tmp_path, max_bad=0.1, cache_bytes=0)
    batches = [batch for rank in range(2) for batch in data.eval_loader("val", rank, 2)]
    assert sum(int(batch.valid_B.sum()) for batch in batches) == 29
    assert sorted(p for b in batches for p in b.position_B[b.valid_B].tolist()) == [i for i in range(30) if i != 10]
    assert data.images("val").shape[0] == 30  # pictures take the next one


def test_counts_reach_the_log_and_tensorboard(lab: Path, tmp_path: Path) -> None:
    from tests import small

    shutil.copytree(lab / "data" / "source=digits", tmp_path / "shards")
    shard = tmp_path / "shards" / "train-000000.tar"
    shard.write_bytes(shard.read_bytes().replace(b"IDAT", b"IDOT", 3))
    where = (
        "data=digits",
        f"data.path={tmp_path / 'shards'}",
        "data.max_bad=0.01",
        "budget.images=1500",
        "tensorboard=true",
    )
    assert small.train(tmp_path / "run", *small.CLASSIFIER, "role=judge", *where) == 0
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [line["train/bad_samples"] for line in lines if "train/bad_samples" in line][-1] == 3
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(next((tmp_path / "run").rglob("events.*")).parent))
    events.Reload()
    assert events.Scalars("train/bad_samples")[-1].value == 3


# -- any damage --------------------------------------------------------------------------------------------------------


@st.composite
def damage(draw: st.DrawFn, content: bytes) -> bytes:
    """The bytes with some flipped, cut out, cut off or doubled."""
    for _ in range(draw(st.integers(1, 3))):
        at = draw(st.integers(0, max(len(content) - 1, 0)))
        length = draw(st.integers(1, 2000))
        kind = draw(st.sampled_from(["flip", "cut out", "cut off", "double", "blank"]))
        part = content[at : at + length]
        content = {
            "flip": content[:at]
            + bytes(b ^ draw(st.integers(1, 255)) for b in part[:4])
            + content[at + len(part[:4]) :],
            "cut out": content[:at] + content[at + length :],
            "cut off": content[:at],
            "double": content[: at + length] + part + content[at + length :],
            "blank": content[:at] + bytes(len(part)) + content[at + len(part) :],
        }[kind]
    return content


@pytest.fixture(scope="module")
def intact(make_images: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("intact")
    pack(make_images(train=24, val=2), folder, shard_size=12)
    return folder


@pytest.fixture
def copied(intact: Path, tmp_path: Path) -> Iterator[Path]:
    yield Path(shutil.copytree(intact, tmp_path / "copy"))


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_no_damage_hangs_or_is_used_as_an_image(
    intact: Path, copied: Path, make_module: Make, data: st.DataObject
) -> None:
    """Whatever happens to a shard: each sample is its own to the last bit, or replaced and named."""
    content = (intact / "train-000001.tar").read_bytes()
    broken = data.draw(damage(content))
    (copied / "train-000001.tar").write_bytes(broken)
    plain = {"augment": make_module(intact)._augment.__class__(flip=False, crop=1.0, noise=0.0), "batch": 24}
    true = next(iter(make_module(intact, **plain).train_loader(0, 24, 0, 1)))
    module = make_module(copied, max_bad=1.0, cache_bytes=0, **plain)
    read = next(iter(module.train_loader(0, 24, 0, 1)))
    equal_B = (read.img_u8_B3HW == true.img_u8_B3HW).flatten(1).all(1)
    assert int((~equal_B).sum()) <= len({fault.key for fault in read.faults})
    known = {image.numpy().tobytes() for image in true.img_u8_B3HW}
    assert all(image.contiguous().numpy().tobytes() in known for image in read.img_u8_B3HW)
    scan = scan_tar(copied, "train-000001.tar")  # headers alone: the scan ends and names only known kinds
    assert {fault.kind for fault in scan.faults} <= set(KINDS)
    if broken != content and len(broken) == len(content) and read.faults:
        assert {fault.kind for fault in read.faults} <= {"changed"}
