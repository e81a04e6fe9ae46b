"""``varlab encode`` and training from what it wrote: the same as training from the images."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import varlab
from tests import small
from varlab.cli.main import main
from varlab.data.token_module import TokenDataModule
from varlab.data.token_reader import TokenReader
from varlab.data.tokens import read_tokens
from varlab.files import sha256
from varlab.recipe.objects import make
from varlab.recipe.token_shards.token_writer import TokenWriter
from varlab.types import VarlabError, to_float

SEEN = ("data.augment.flip=true", "data.augment.noise=3.0", "crop@data.crop=random")  # each image in its own ways
TOKENS = ("order=next_scale", "data=tokens", "data.batch=32", "data.eval_batch=360")


@pytest.fixture(scope="module")
def sharded(world_folder: Path) -> Path:
    """The digits in seven shards."""
    with small.inside(world_folder):
        assert main(["pack", "source=digits", "out=runs/data/sharded", "shard_size=300"]) == 0
    return world_folder / "runs" / "data" / "sharded"


def encode(out: Path, *arguments: str) -> int:
    return main(["encode", "runs/multi", f"out={out}", "batch=100", *arguments])


def in_ways(shards: Path, views: int = 3) -> list[str]:
    return ["data=shards", f"data.path={shards}", "data.workers=0", *SEEN, f"views={views}", "views_seed=5"]


@pytest.fixture(scope="module")
def plain(world_folder: Path, sharded: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("encoded") / "plain"
    with small.inside(world_folder):
        assert encode(out, f"data.path={sharded}", "data=digits") == 0
    return out


@pytest.fixture(scope="module")
def ways(world_folder: Path, sharded: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("encoded") / "ways"
    with small.inside(world_folder):
        assert encode(out, *in_ways(sharded)) == 0
    return out


def test_every_image_of_every_split(plain: Path) -> None:
    tokens = read_tokens(plain)
    assert tokens.views == 1 and tokens.tokens == 30 and tokens.bad == {"train": 0, "val": 0}
    assert [len(tokens.splits[split]) for split in ("train", "val")] == [5, 2]
    for split, n in (("train", 1438), ("val", 359)):
        reader = TokenReader(tokens, split)
        idx_NP, valid_N = reader.read(torch.arange(n))
        assert len(reader) == n and idx_NP.shape == (n, 30) and bool(valid_N.all())
        assert int(idx_NP.min()) >= 0 and int(idx_NP.max()) < 32
        assert reader.label_N.unique().tolist() == list(range(10))
    assert small.record(plain)["outcome"]["images"] == {"train": 1438, "val": 359}


def test_they_are_what_the_tokenizer_says_of_those_images(plain: Path, lab: Path, sharded: Path) -> None:
    data, model = (
        make(small.record(lab / "multi")["config"]["data"] | {"path": str(sharded)}),
        varlab.load(lab / "multi"),
    )
    rows = torch.tensor([0, 99, 100, 358])
    maps = model.encode(to_float(data.images("val", rows)))
    reader = TokenReader(read_tokens(plain), "val")
    assert torch.equal(torch.cat(maps, 1).int(), reader.read(rows)[0])
    assert torch.equal(data.labels("val"), reader.label_N)


def test_their_origin_is_told(plain: Path, lab: Path) -> None:
    origin = read_tokens(plain).origin
    assert origin["tokenizer_sha256"] == sha256(lab / "multi" / "weights.safetensors")
    assert origin["scales"] == [[1, 1], [2, 2], [3, 3], [4, 4]]


def test_a_generator_encodes_with_the_tokenizer_it_carries(
    plain: Path, lab: Path, sharded: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    assert main(["encode", "runs/next_scale", f"out={out}", "data=digits", f"data.path={sharded}"]) == 0
    assert read_tokens(out).origin["tokenizer_sha256"] == read_tokens(plain).origin["tokenizer_sha256"]
    for split in ("train", "val"):
        one, other = (TokenReader(read_tokens(folder), split) for folder in (plain, out))
        every = torch.arange(len(one))
        differing = (one.read(every)[0] != other.read(every)[0]).float().mean()
        assert differing < 1e-3 and torch.equal(one.label_N, other.label_N)  # batches of another size: ties only


def losses(run: Path) -> list[float]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [line[key] for line in lines for key in ("train/loss", "val/loss") if key in line]


def test_training_from_tokens_is_training_on_the_same_views(
    ways: Path, lab: Path, sharded: Path, tmp_path: Path
) -> None:
    common = (*small.GENERATOR, "log.every=32", "seed=7")
    online = (
        *in_ways(sharded)[:3],
        *SEEN,
        "data.views=3",
        "data.views_seed=5",
        "order=next_scale",
        "data.eval_batch=360",
        "tokenizer_run=runs/multi",
    )
    assert small.train(tmp_path / "online", *common, *online) == 0
    assert small.train(tmp_path / "tokens", *common, *TOKENS, f"data.path={ways}") == 0
    one, other = losses(tmp_path / "online"), losses(tmp_path / "tokens")
    assert len(one) == len(other) > 8
    assert one == pytest.approx(other, rel=1e-5)
    beside = (*online[:3], "order=next_scale", "data.eval_batch=360", f"data.tokens={ways}")
    assert small.train(tmp_path / "beside", *common, *beside) == 0  # as an option of the shards: the same
    assert losses(tmp_path / "beside") == other
    cost = small.record(tmp_path / "tokens")
    assert cost["cost"]["encode_flops_per_image"] == 0
    each = small.record(tmp_path / "online")["cost"]["encode_flops_per_image"]
    stand = small.record(lab / "multi")["outcome"]["flops"]
    assert cost["outcome"]["tokenizer_flops"] == stand + (3 * 1438 + 359) * each
    assert main(["evaluate", str(tmp_path / "tokens"), "n=40", "batch=20", "extractor.run=runs/judge"]) == 0


def test_views_are_different_and_all_are_seen(ways: Path) -> None:
    reader = TokenReader(read_tokens(ways), "train")
    every = torch.arange(400)
    first, second = (reader.read(every, torch.full_like(every, view))[0] for view in (0, 1))
    assert (first != second).any(1).float().mean() > 0.9
    module = TokenDataModule(path=str(ways), batch=32, eval_batch=32, seed=1, workers=0)
    positions = torch.arange(1438 * 4)
    assert (next(iter(module.train_loader(0, 32, 0, 1))).tokens_BP.shape) == (32, 30)
    from varlab.data.read.epoch_order import EpochOrder

    order = EpochOrder(seed=1, shard_N=reader.shard_N, views=3)
    seen = {(int(i), int(v)) for i, v in zip(order.locate(positions), order.view(positions), strict=True)}
    assert len(seen) > 0.7 * 3 * 1438 and order.view(positions).bincount().min() > 1700


@pytest.mark.parametrize("damaged", [False, True])
def test_a_stopped_encoding_goes_on(
    damaged: bool, plain: Path, lab: Path, sharded: Path, tmp_path: Path, monkeypatch: Any
) -> None:
    """What was written is verified, and encoded again where it is not what was written."""
    out, plain_encode, done = tmp_path / "out", TokenWriter._encode, []

    def stops(*arguments: Any) -> Any:
        if len(done) == 3:
            raise KeyboardInterrupt
        done.append(arguments[1].file)
        return plain_encode(*arguments)

    monkeypatch.setattr(TokenWriter, "_encode", stops)
    arguments = (f"data.path={sharded}", "data=digits")
    assert encode(out, *arguments) != 0
    with pytest.raises(VarlabError, match=r"holds no tokens\.json"):
        read_tokens(out)
    first, *_ = files = sorted(out.glob("*.npy"))
    assert len(files) == 3
    if damaged:
        first.write_bytes(first.read_bytes()[:-1] + b"x")
        done.remove(first.name)
    monkeypatch.setattr(TokenWriter, "_encode", lambda *a: (done.append(a[1].file), plain_encode(*a))[1])
    assert encode(out, *arguments) == 0
    assert sorted(done) == sorted(shard.file for of in read_tokens(plain).splits.values() for shard in of)
    assert read_tokens(out).hash == read_tokens(plain).hash
    assert {file.name for file in out.iterdir()} == {file.name for file in plain.iterdir()}


def test_a_damaged_token_shard_is_mended_as_the_sentence_says(
    plain: Path, lab: Path, sharded: Path, tmp_path: Path, monkeypatch: Any
) -> None:
    out, plain_encode, done = tmp_path / "out", TokenWriter._encode, []
    shutil.copytree(plain, out)
    (out / "val-000001.npy").write_bytes(b"x")
    (out / "run.json").unlink()
    monkeypatch.setattr(TokenWriter, "_encode", lambda *a: (done.append(a[1].file), plain_encode(*a))[1])
    assert encode(out, f"data.path={sharded}", "data=digits") == 0
    assert done == ["val-000001.npy"] and read_tokens(out).hash == read_tokens(plain).hash
    assert (out / "val-000001.npy").read_bytes() == (plain / "val-000001.npy").read_bytes()


@pytest.mark.slow
def test_ranks_share_the_work(plain: Path, lab: Path, sharded: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert encode(out, f"data.path={sharded}", "data=digits", "trainer.devices=2", "device=cpu") == 0
    assert read_tokens(out).hash == read_tokens(plain).hash


def test_a_tokenizer_that_does_not_match_is_refused(
    ways: Path, lab: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = (*small.GENERATOR, *TOKENS[1:], "order=raster", f"data.path={ways}", "tokenizer_run=runs/single")
    assert small.train(tmp_path / "run", *asked) == 1
    assert (
        "holds tokens of the tokenizer runs/multi, not of runs/single with its present weights"
        in capsys.readouterr().err
    )
    assert not any((tmp_path / "run").glob("*.safetensors"))


def test_damaged_tokens_are_named(plain: Path, sharded: Path, lab: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(plain, tmp_path / "copy"))
    file = copy / "train-000001.npy"
    whole = file.read_bytes()
    file.write_bytes(whole[:-2] + b"xx")
    reader = TokenReader(read_tokens(copy), "train")
    reader.read(torch.tensor([0]))
    with pytest.raises(VarlabError, match=r"train-000001\.npy holds other bytes"):
        reader.read(torch.tensor([300]))
    file.unlink()
    with pytest.raises(VarlabError, match=r"train-000001\.npy is missing"):
        reader.read(torch.tensor([300]))
    told = json.loads((copy / "tokens.json").read_text())
    (copy / "tokens.json").write_text(json.dumps(told | {"version": 7}))
    with pytest.raises(VarlabError, match="has version 7"):
        read_tokens(copy)


@pytest.mark.parametrize("at", [-1, -400, 20, 70])
def test_a_flipped_bit_in_the_labels_is_named(at: int, plain: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(plain, tmp_path / "copy"))
    labels = bytearray((copy / "train.labels.npy").read_bytes())
    labels[at] ^= 1
    (copy / "train.labels.npy").write_bytes(labels)
    with pytest.raises(
        VarlabError, match=r"train\.labels\.npy holds other bytes .* run the same `varlab encode` again"
    ):
        TokenReader(read_tokens(copy), "train")


def test_other_labels_are_another_fingerprint(plain: Path) -> None:
    tokens = read_tokens(plain)
    changed = {"labels": tokens.labels | {"train": replace(tokens.labels["train"], check="0")}}
    assert replace(tokens, **changed).hash != tokens.hash


def test_tokens_without_digests_load_with_a_word(plain: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    copy, logger = Path(shutil.copytree(plain, tmp_path / "copy")), logging.getLogger("varlab.data.tokens")
    told = json.loads((copy / "tokens.json").read_text())
    (copy / "tokens.json").write_text(json.dumps({k: v for k, v in told.items() if k not in ("labels", "sha256")}))
    logger.addHandler(caplog.handler)
    try:
        with caplog.at_level("INFO", logger.name):
            old = TokenReader(read_tokens(copy), "train")
    finally:
        logger.removeHandler(caplog.handler)
    assert torch.equal(old.label_N, TokenReader(read_tokens(plain), "train").label_N)
    assert "has no digest of its train labels" in caplog.text


HOSTILE: dict[str, Callable[[dict[str, Any]], Any]] = {
    "count": lambda told: told["splits"]["train"][0].update(count=10**15),
    "path": lambda told: told["splits"]["train"][0].update(file="../x.npy"),
    "labels": lambda told: told["labels"]["train"].update(file="/etc/passwd"),
    "tokens": lambda told: told.update(tokens=15),
    "views": lambda told: told.update(views=-1),
    "vocabulary": lambda told: told.update(vocab_size=1 << 20),
    "splits": lambda told: told.update(splits=[1]),
    "images": lambda told: told.update(images="x"),
}


@pytest.mark.parametrize("what", HOSTILE)
def test_tokens_that_do_not_fit_their_description_are_one_sentence(what: str, plain: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(plain, tmp_path / "copy"))
    told = json.loads((copy / "tokens.json").read_text())
    del told["sha256"]
    HOSTILE[what](told)
    (copy / "tokens.json").write_text(json.dumps(told))
    with pytest.raises(VarlabError, match=r"(tokens\.json|\.npy)"):
        TokenReader(read_tokens(copy), "train").read(torch.arange(4))


@pytest.mark.parametrize("content", [b"[" * 200_000, b"\xff\xfe", b"5"])
def test_a_description_that_is_no_json_is_one_sentence(content: bytes, plain: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(plain, tmp_path / "copy"))
    (copy / "tokens.json").write_bytes(content)
    with pytest.raises(VarlabError, match=r"tokens\.json is damaged"):
        read_tokens(copy)


def test_tokens_do_not_say_where_a_cache_is_written(plain: Path, tmp_path: Path) -> None:
    told = read_tokens(plain)
    module = TokenDataModule(path=str(plain), batch=8, eval_batch=8, seed=1, workers=0)
    module.__dict__["tokens"] = replace(told, images={**told.images, "remote_cache": str(tmp_path / "planted")})
    assert module.shards._remote_cache != str(tmp_path / "planted")
    module = TokenDataModule(path=str(plain), batch=8, eval_batch=8, seed=1, workers=0)
    module.__dict__["tokens"] = replace(told, images={**told.images, "augment": {"_target_": "os.system"}})
    with pytest.raises(VarlabError, match="names its images in an unknown way"):
        _ = module.shards


def test_images_that_cannot_be_read_are_told_and_replaced(lab: Path, sharded: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(sharded, tmp_path / "copy"))
    shard = copy / "train-000002.tar"
    shard.write_bytes(shard.read_bytes().replace(b"IDAT", b"IDOT", 2))
    bad = (f"data.path={copy}", "data=digits", "data.max_bad=0.01", "data.cache_bytes=0")
    assert encode(tmp_path / "out", *bad) == 0
    tokens = read_tokens(tmp_path / "out")
    assert tokens.bad == {"train": 2, "val": 0}
    module = TokenDataModule(path=str(tmp_path / "out"), batch=1438, eval_batch=32, seed=1, workers=0)
    changes = {"path": str(copy), "max_bad": 0.01, "batch": 1438, "seed": 1}
    images = make({**small.record(lab / "multi")["config"]["data"], **changes})
    (batch,), (online,) = list(module.train_loader(0, 1438, 0, 1)), list(images.train_loader(0, 1438, 0, 1))
    assert bool(batch.valid_B.all()) and len(online.faults) == 2
    assert torch.equal(batch.label_B, online.label_B)
    assert np.iinfo(np.uint16).max not in batch.tokens_BP.unique().tolist()
