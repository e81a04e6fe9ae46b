"""Weights sharded over two ranks train to the same bits as full weights on each rank, unless gradients are clipped."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from sharded_ranks import VARIANTS
from test_ranks import FOLDER, start
from tiny_tasks import classifier_task, tokenizer_task, train

from varlab.checkpoint import load_checkpoint
from varlab.types import VarlabError

CLOCKED = {"seconds", "train/images_per_second", "train/eta_seconds"}
EXACT = [name for name in VARIANTS if name != "clipped"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sharded")
    start(FOLDER / "sharded_ranks.py", 2, str(folder))
    return folder


def numbers(folder: Path) -> list[dict[str, float]]:
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if k not in CLOCKED} for line in lines]


def flat(state: Any, prefix: str = "") -> dict[str, Any]:
    """Leaves by their path."""
    items = state.items() if isinstance(state, dict) else enumerate(state) if isinstance(state, list | tuple) else None
    if items is None:
        return {prefix: state}
    return {key: leaf for name, value in items for key, leaf in flat(value, f"{prefix}/{name}").items()}


def same(a: Any, b: Any) -> bool:
    return torch.equal(a, b) and a.dtype == b.dtype if isinstance(a, torch.Tensor) else a == b


@pytest.mark.slow
@pytest.mark.parametrize("name", EXACT)
def test_the_same_bits(name: str, trained: Path) -> None:
    """Exported weights, averages, checkpoint and metrics but the norm, whose squares are added in another order."""
    full, sharded = (trained / f"{name}-{shard}" for shard in (False, True))
    for file in ("weights.safetensors", "weights_raw.safetensors"):
        assert (full / file).read_bytes() == (sharded / file).read_bytes(), file
    a, b = (flat(load_checkpoint(folder / "last.ckpt")) for folder in (full, sharded))
    assert a.keys() == b.keys()
    assert [key for key in a if not same(a[key], b[key]) and "norm" not in key and key != "/seconds"] == []
    for one, other in zip(numbers(full), numbers(sharded), strict=True):
        assert one.pop("train/grad_norm", 0) == pytest.approx(other.pop("train/grad_norm", 0), rel=1e-5)
        assert one == other


@pytest.mark.slow
def test_clipping_by_the_norm_of_all(trained: Path) -> None:
    full, sharded = (load_file(trained / f"clipped-{s}" / "weights_raw.safetensors") for s in (False, True))
    for name, weight in full.items():
        torch.testing.assert_close(sharded[name], weight, atol=1e-5, rtol=1e-4)
    assert max(line.get("train/grad_norm", 0) for line in numbers(trained / "clipped-True")) > 0.05


@pytest.mark.slow
@pytest.mark.parametrize("first", [False, True])
def test_a_run_may_go_on_in_the_other_way(first: bool, trained: Path) -> None:
    whole, resumed = trained / "micro_batches-False", trained / f"resumed-{first}"
    for file in ("weights.safetensors", "weights_raw.safetensors"):
        assert (whole / file).read_bytes() == (resumed / file).read_bytes(), file


def reported(trained: Path, what: str) -> list[Any]:
    """What each rank wrote down."""
    return [json.loads((trained / f"rank{rank}.json").read_text())[what] for rank in range(2)]


@pytest.mark.slow
@pytest.mark.parametrize("shard", [False, True])
def test_asking_one_rank_stops_both_at_the_same_update(shard: bool, trained: Path) -> None:
    """The next update, with its pending actions: the resumed run has every line, and the same bits."""
    here, there = (sentences[shard] for sentences in reported(trained, "sentences"))
    assert here == there and here.startswith("Stopped by SIGUSR2 after 24 images"), here
    whole, resumed = (trained / f"{name}-{shard}" for name in ("micro_batches", "stopped"))
    for file in ("weights.safetensors", "weights_raw.safetensors"):
        assert (whole / file).read_bytes() == (resumed / file).read_bytes(), file
    assert numbers(whole) == numbers(resumed) and 24 in [line["images"] for line in numbers(whole)]


@pytest.mark.slow
def test_each_rank_holds_its_part(trained: Path) -> None:
    """Half, and a little for tensors that cannot be halved."""
    held = reported(trained, "held")
    for name in VARIANTS:
        (here, everything), (there, _) = (rank[name] for rank in held)
        assert here + there == everything and max(here, there) < 0.55 * everything, name


@pytest.mark.parametrize("make", [tokenizer_task, classifier_task])
def test_a_task_that_cannot_be_sharded_is_refused(make: Any, tmp_path: Path) -> None:
    with pytest.raises(VarlabError, match=r"trainer.shard=true .* use trainer=ddp"):
        train(make(), tmp_path, images=16, shard=True)
