"""Sampling from a transformer whose weights are sharded, gathered for it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from tests.tasks import tiny_tasks as tiny
from varlab.rng import Rng
from varlab.sample import Sampler
from varlab.tasks import GeneratorTask
from varlab.tasks.distributed import fsdp
from varlab.types import Maps


@pytest.fixture(autouse=True)
def group(tmp_path: Path) -> Iterator[None]:
    """A group of this process alone."""
    dist.init_process_group("gloo", init_method=f"file://{tmp_path / 'group'}", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def samples(task: GeneratorTask, bfloat16: bool) -> Maps:
    sampler = Sampler(cfg=1.0, ramp="linear", temperature=1.0, top_k=6, top_p=0.9)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=bfloat16):
        return sampler(
            transformer=task.model, order=task.order, tokenizer=task.tokenizer, label_B=torch.arange(3),
            ids_B=torch.arange(3), rng=Rng(0),
        )  # fmt: skip


@pytest.mark.parametrize("bfloat16", [False, True])
def test_sharded_weights_sample_the_same(bfloat16: bool) -> None:
    """Pictures and scores during a sharded training are those of the whole weights."""
    task = tiny.generator_task()
    task.model.eval()
    whole = samples(task, bfloat16)
    task.shard()
    with fsdp.gathered(task.model):
        sharded = samples(task, bfloat16)
    assert all(torch.equal(a, b) for a, b in zip(whole, sharded, strict=True))
    assert len({tuple(idx.flatten().tolist()) for idx in whole}) > 1
