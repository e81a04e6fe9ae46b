"""The length of a training in images, where the configuration decides it."""

from __future__ import annotations

import math
from bisect import bisect_left

from varlab.config import Config
from varlab.errors import VarlabError
from varlab.recipe.preflight.budget_amount import asked_budget
from varlab.tasks import Task

__all__ = ["budget_images"]


def budget_images(budget: Config, task: Task, batch: int, *, known: int | None = None, updates: int = 0) -> int | None:
    """Convert ``conf/train.yaml``'s budget into images, rounded up to whole batches.

    known: the images of an earlier attempt, which a budget of seconds keeps; without them it returns None. updates: how many
    at most; 0 for any number.
    """
    name, value = asked_budget(budget)
    if name == "flops" and not task.flops_at(batch):
        raise VarlabError(
            "budget.flops cannot be kept: no operation of this model can be counted. Use budget.images=N."
        )
    if name == "flops":
        batches = bisect_left(range(1 << 62), value, lo=1, key=lambda batches: task.flops_at(batches * batch))
    elif images := value if name == "images" else known:
        batches = math.ceil(images / batch)
    elif updates:
        batches = updates
    else:
        return None
    return (min(batches, updates) if updates else batches) * batch
