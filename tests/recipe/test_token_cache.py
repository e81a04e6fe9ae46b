"""Trainings that encode their images once give what trainings give that encode each batch, to the bit."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import varlab
from tests import small
from varlab.cli.main import main
from varlab.data import BaseDataModule
from varlab.errors import VarlabError
from varlab.recipe.objects import make
from varlab.recipe.token_shards.token_cache import TokenCache, token_cache
from varlab.recipe.token_shards.token_writer import TokenWriter
from varlab.run.directory import RunDirectory
from varlab.run.record import Parent, RunRecord, write_record

SMALL = ("transformer.width=16", "transformer.depth=1", "transformer.heads=2", "pictures.count=10")
COMMON = ("task=generator", *small.FAST[:2], *SMALL, "order=next_scale", "tokenizer_run=runs/multi", "task.pkeep=0.9")
LENGTH = ("data.batch=128", "data.eval_batch=360", "budget.images=640", "log.every=128")


@pytest.fixture
def encoded(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The token shards that are encoded, as they come."""
    done: list[str] = []
    encode = TokenWriter._encode
    monkeypatch.setattr(TokenWriter, "_encode", lambda *a: (done.append(a[1].file), encode(*a))[1])
    return done


def test_each_image_is_encoded_once_with_the_same_result(lab: Path, tmp_path: Path, encoded: list[str]) -> None:
    """Mirrored images and micro-batches, too."""
    ways = (*COMMON, *LENGTH, "budget.images=384", "data.augment.flip=true", "trainer.micro_batch=48", "val.skip=true")
    once, online = tmp_path / "true", tmp_path / "false"
    for out in (once, online):
        assert small.train(out, *ways, f"encode_once={out.name}") == 0
    assert encoded == ["train-000000.npy"]
    assert small.lines(once) == small.lines(online) and small.weights(once) == small.weights(online)
    records = [small.record(run) for run in (once, online)]
    each, before = records[1]["cost"]["encode_flops_per_image"], small.record(lab / "multi")["outcome"]["flops"]
    assert [record["cost"]["encoded_images"] for record in records] == [2 * 1438, 0]
    spent = [record["outcome"]["tokenizer_flops"] - before for record in records]
    assert spent == [2 * 1438 * each, 384 * each]
    assert len({record["outcome"]["flops"] for record in records}) == 1
    assert all(record["data"]["tokens"] is None for record in records)


@pytest.mark.slow
def test_a_stopped_encoding_goes_on_and_a_damaged_shard_is_encoded_again(
    lab: Path, tmp_path: Path, encoded: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert main(["pack", "source=digits", f"out={tmp_path / 'sharded'}", "shard_size=300"]) == 0
    ways = (*COMMON, *LENGTH, f"data.path={tmp_path / 'sharded'}", "encode_once=true")
    encode, files = TokenWriter._encode, [f"train-00000{i}.npy" for i in range(5)]

    def stops(*arguments: Any) -> Any:
        if len(encoded) == 2:
            raise KeyboardInterrupt
        return encode(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(TokenWriter, "_encode", stops)
        assert small.train(tmp_path / "run", *ways) != 0
    assert encoded == files[:2] and small.record(tmp_path / "run")["outcome"]["state"] == "stopped"
    assert small.train(tmp_path / "run", *ways) == 0
    assert encoded == files
    (tokens,) = (tmp_path / ".tokens").iterdir()
    (tokens / files[3]).write_bytes(b"x")
    assert small.train(tmp_path / "other", *ways, "data.workers=1") == 0
    assert encoded == [*files, files[3]]
    costs = [small.record(tmp_path / run)["outcome"]["tokenizer_flops"] for run in ("run", "other")]
    assert costs[0] == costs[1]
    assert small.train(tmp_path / "online", *ways, "encode_once=false") == 0
    assert small.weights(tmp_path / "run") == small.weights(tmp_path / "other") == small.weights(tmp_path / "online")


@pytest.mark.slow
def test_ranks_and_jobs_share_one_encoding(lab: Path, tmp_path: Path) -> None:
    once, online = tmp_path / "true", tmp_path / "false"
    for out in (once, online):
        assert small.train(out, *COMMON, *LENGTH, "trainer.devices=2", f"encode_once={out.name}") == 0
    assert small.lines(once) == small.lines(online) and small.weights(once) == small.weights(online)
    jobs = (*COMMON, *LENGTH, "launch=joblib", "seed=0,1", "encode_once=true")
    assert main(["train", "-m", f"out={tmp_path / 'jobs'}", *jobs]) == 0
    assert len(list((tmp_path / "jobs" / ".tokens").iterdir())) == 1


def decide(
    lab: Path, tmp_path: Path, *, images: int | None, asked: object = "auto", cost: Any = None, **changes: Any
) -> TokenCache | None:
    """The decision for a new run (cost: for one that began before) on the digits."""
    config = {
        "encode_once": asked,
        "data": small.record(lab / "multi")["config"]["data"] | changes,
        "trainer": {"precision": "32-true", "accelerator": "cpu"},
    }
    (tmp_path / "run").mkdir(exist_ok=True)
    write_record(tmp_path / "run", RunRecord(cost=cost or {}))
    data: BaseDataModule = make(config["data"])
    parent = Parent(run="runs/multi", weights_sha256="0")
    directory = RunDirectory(tmp_path / "run")
    return token_cache(config, data, varlab.load(lab / "multi"), parent, directory, images=images, batch=32)


RANDOM = {"_target_": "varlab.data.image.crop.RandomCrop", "enlarge": 1.125}
NOISE = {"_target_": "varlab.data.image.augment.Augment", "flip": False, "crop": 1.0, "noise": 2.0}
FLIP = NOISE | {"flip": True, "noise": 0.0}
OLD = {"parameters": 5}


@pytest.mark.parametrize(
    ("images", "changes", "encoded"),
    [
        (2157, {}, 1438),
        (2156, {}, 0),
        (None, {}, 0),
        (4314, {"augment": FLIP}, 2876),
        (4313, {"augment": FLIP}, 0),
        (10**6, {"crop": RANDOM}, 0),
        (10**6, {"augment": NOISE}, 0),
        (10**6, {"crop": RANDOM, "augment": NOISE, "views": 3}, 3 * 1438),
        (10**6, {"asked": False}, 0),
        (64, {"asked": True}, 1438),
        (10**6, {"cost": OLD}, 0),
        (10**6, {"cost": OLD, "asked": True}, 0),
        (64, {"cost": OLD | {"encoded_images": 1438}}, 1438),
    ],
)
def test_images_are_encoded_once_where_it_pays(
    images: int | None, changes: dict[str, Any], encoded: int, lab: Path, tmp_path: Path
) -> None:
    cache = decide(lab, tmp_path, images=images, **changes)
    assert (cache.images if cache else 0) == encoded


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"crop": RANDOM}, r"encode_once=true cannot be kept: data\.crop or data\.augment changes"),
        ({"images": None}, r"encode_once=true cannot be kept: budget\.seconds counts"),
        ({"asked": "maybe"}, "encode_once=maybe is unknown: use auto, true or false"),
    ],
)
def test_what_cannot_be_is_refused(changes: dict[str, Any], why: str, lab: Path, tmp_path: Path) -> None:
    with pytest.raises(VarlabError, match=why):
        decide(lab, tmp_path, **{"images": 64, "asked": True} | changes)


def test_tokens_go_where_there_is_room_and_where_the_user_may_write(
    lab: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = decide(lab, tmp_path, images=64, asked=True)
    assert cache is not None and cache.folder.parents[1] == tmp_path
    with monkeypatch.context() as patch:
        patch.setattr(os, "access", lambda path, mode: path != tmp_path)
        assert cache.folder.parents[1] == tmp_path / "run"
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=1000))
    with pytest.raises(VarlabError, match=r"needs 0\.1 MB or more.*, or use encode_once=false\.$"):
        cache.fill(world=1, device="cpu", threads=1, progress=lambda done, total: None)
