"""Trainings that encode their images once give what trainings give that encode each batch, to the bit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests import small
from varlab.recipe.token_shards.token_writer import TokenWriter

SIZE = ("order=next_scale", "tokenizer_run=runs/multi", "data.batch=128", "data.eval_batch=360", "task.pkeep=0.9")
WIDTH = (
    "transformer.width=16",
    "transformer.depth=1",
    "transformer.heads=2",
    "pictures.every=100000",
    "pictures.count=10",
)
LENGTH = ("budget.images=2304", "log.every=128", "val.every=1152")
COMMON = ("task=generator", *small.FAST[:2], *SIZE, *WIDTH, *LENGTH)


def test_each_image_is_encoded_once_with_the_same_result(lab: Path, tmp_path: Path, monkeypatch: Any) -> None:
    """Mirrored images and micro-batches, too; the next run reads what the first one wrote."""
    done, encode = [], TokenWriter._encode
    monkeypatch.setattr(TokenWriter, "_encode", lambda *a: (done.append(a[1].file), encode(*a))[1])
    ways = (*COMMON, "data.augment.flip=true", "trainer.micro_batch=48", "encode_once=true")
    for name, more in {"once": (), "again": ("checkpoint.every=512",), "online": ("encode_once=false",)}.items():
        assert small.train(tmp_path / name, *ways, *more) == 0
    assert done == ["train-000000.npy"]
    once, again, online = (tmp_path / name for name in ("once", "again", "online"))
    assert small.lines(once) == small.lines(again) == small.lines(online)
    assert small.weights(once) == small.weights(again) == small.weights(online)
    each = small.record(online)["cost"]["encode_flops_per_image"]
    before = small.record(lab / "multi")["outcome"]["flops"]
    records = [small.record(run) for run in (once, again, online)]
    assert [record["cost"]["encoded_images"] for record in records] == [2 * 1438, 2 * 1438, 0]
    spent = [record["outcome"]["tokenizer_flops"] for record in records]
    assert spent == [before + 2 * 1438 * each, before + 2 * 1438 * each, before + 2304 * each]
    assert len({record["outcome"]["flops"] for record in records}) == 1
    assert all(record["data"]["tokens"] is None for record in records)
