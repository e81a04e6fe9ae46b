"""With an optimizer that can skip a step on the device, the host reads a step's numbers one step later: the same bits."""

from __future__ import annotations

import json
import traceback
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_tasks import BATCH, batch_at, classifier_task, generator_task, same_state, train
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from varlab.tasks import Task
from varlab.tasks.update.counters import DivergedError

TASKS = [classifier_task, generator_task]
ADAMW = partial(torch.optim.AdamW, lr=1e-2)


def poisoned(make: Any, bad: set[int], *, waits: bool = False) -> Task:
    """A task with gradients of NaN in some updates. waits: it reads the numbers at once."""
    task: Task = make(optimizer=ADAMW)
    if waits:
        task.postpone = lambda *_: False  # type: ignore[method-assign]
    poison = next(p for p in task.model.parameters() if p.requires_grad)
    poison.register_hook(lambda grad: grad * float("nan") if task.images // BATCH in bad else grad)
    return task


@pytest.mark.parametrize("make", TASKS)
@pytest.mark.parametrize("bad", [set(), {1}, {2, 3}, {0, 2, 5}, {8}])
def test_the_bits_of_a_task_that_waits(make: Any, bad: set[int], tmp_path: Path) -> None:
    """Weights, averages, checkpoints and every logged number, with skipped updates and without."""
    tasks = [train(poisoned(make, bad, waits=w), tmp_path / str(w), images=72, log_every=16) for w in (True, False)]
    (a, b) = (task.state() for task in tasks)
    assert same_state(a["modules"]["model"], b["modules"]["model"]) and a["faults"] == b["faults"]
    assert a["faults"]["total"] == len(bad) and a["means"] == b["means"]
    assert a["ema"]["updates"] == b["ema"]["updates"] and same_state(a["ema"]["weights"], b["ema"]["weights"])
    lines = [(tmp_path / str(w) / "metrics.jsonl").read_text().splitlines() for w in (True, False)]
    for one, other in zip(*(map(json.loads, part) for part in lines), strict=True):
        clocked = {"seconds", "train/images_per_second", "train/eta_seconds"}
        assert {k: v for k, v in one.items() if k not in clocked} == {
            k: v for k, v in other.items() if k not in clocked
        }


@pytest.mark.parametrize("make", TASKS)
def test_a_diverged_run_ends_at_the_same_update_and_saves_the_same_state(make: Any, tmp_path: Path) -> None:
    said = []
    for waits in (True, False):
        with pytest.raises(DivergedError) as caught:
            train(poisoned(make, {4, 5, 6}, waits=waits), tmp_path / str(waits), images=72)
        said.append(str(caught.value))
    assert said[0] == said[1] and "after 48 images" in said[0]
    for file in ("last.ckpt", "nan.ckpt"):
        a, b = (torch.load(tmp_path / str(w) / file, weights_only=True) for w in (True, False))
        a, b = (state.get("state", state) for state in (a, b))
        assert same_state(a["modules"]["model"], b["modules"]["model"]) and a["images"] == b["images"]
        assert all(torch.isfinite(tensor).all() for tensor in b["modules"]["model"].values())


@pytest.mark.parametrize("make", TASKS)
def test_the_host_reads_nothing_that_its_own_step_computed(make: Any) -> None:
    task = make(optimizer=ADAMW)
    task.total_images = 1000
    for number in range(4):
        batch = batch_at(list(range(BATCH * number, BATCH * number + BATCH)))
        with _Reads() as reads:
            task.training_step(batch, number)
        assert reads.early == 0


class _Reads(TorchDispatchMode):
    """Counts reads of what was computed inside the block, but for the transformer's of steps, which are on the CPU."""

    def __init__(self) -> None:
        super().__init__()
        self.early = 0
        self._made: list[torch.Tensor] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if func is torch.ops.aten._local_scalar_dense.default:
            files = [frame.filename for frame in traceback.extract_stack()]
            of_steps = any("varlab/transformer" in file for file in files)
            self.early += not of_steps and any(args[0].data_ptr() == t.data_ptr() for t in self._made)
        self._made += [t for t in tree_leaves(out) if isinstance(t, torch.Tensor)]
        return out
