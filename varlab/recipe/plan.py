"""A training, ready to run, and the call of Lightning's Trainer that runs it."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from lightning.pytorch import Callback
from lightning.pytorch.loggers import Logger
from lightning.pytorch.profilers import Profiler
from torch import Tensor, nn

from varlab.config import Config
from varlab.data import BaseDataModule
from varlab.files import require_room
from varlab.processor import multiplies_bfloat16
from varlab.recipe.objects import make
from varlab.recipe.preflight.named_runs import WEIGHTS
from varlab.recipe.preflight.requested_ranks import world_size
from varlab.recipe.preflight.train_checks import require_kind
from varlab.recipe.token_shards.token_cache import TokenCache
from varlab.recipe.trainer.settings import trainer_maker
from varlab.renames import current_targets
from varlab.rng import Rng
from varlab.run.directory import RunDirectory
from varlab.run.record import Parent
from varlab.tasks import Task, fit
from varlab.tasks.base import ENDLESS
from varlab.tasks.callbacks import BestWeights, Checkpointer, Resume

Scores = Callable[[], Mapping[str, float]]


@dataclass(kw_only=True)
class Plan:
    """A training, ready to run.

    build, parents, cost: what run.json stores. tokenizer_flops: spent on the tokenizer, by the number of trained images.
    draw, scores: make the pictures and the scores during training, if there are any. conclude: what the outcome says beside
    the costs, from the last value of each metric. cache: fills itself with the tokens to train from; None trains from the data.
    """

    task: Task
    build: Config
    parents: Mapping[str, Parent] = field(default_factory=dict)
    cost: Config
    tokenizer_flops: Callable[[int], int] = lambda images: 0
    draw: Callable[[], Mapping[str, Tensor]] | None = None
    scores: Scores | None = None
    conclude: Callable[[Mapping[str, float]], Config] = lambda values: {}
    cache: TokenCache | None = None

    def fit(
        self,
        data: BaseDataModule,
        folder: Path,
        *,
        images: int | None,
        trainer: Config,
        callbacks: Sequence[Callback],
        time_budget: Callable[..., Callback] | None = None,
        loggers: Sequence[Logger] = (),
        profiler: Profiler | None = None,
        checkpoint_every: int = 1 << 60,
        checkpoint_minutes: float | None = None,
        checkpoint_keep: Collection[int] = (),
        best: tuple[str, str] | None = None,
        config_hash: str = "",
        on_resume: Callable[[dict[str, int]], None] = lambda resumed: None,
    ) -> None:
        """Train in a folder, from its last checkpoint if there is one. Each batch is one ``update`` of the task.

        images: None if ``time_budget`` decides them, which is called with the checkpointer. trainer: ``conf/trainer``,
        checked. best: the score whose best weights are kept, and its best value (min or max). The others: see
        ``varlab.tasks.fit`` and the callbacks.
        """
        checkpointer = Checkpointer(
            path=folder / "last.ckpt",
            every=checkpoint_every,
            minutes=checkpoint_minutes,
            keep=checkpoint_keep,
            config_hash=config_hash,
            weights=folder,
            best=BestWeights(path=folder / WEIGHTS["best"], score=best[0], best=best[1]) if best else None,
        )
        resume = Resume(checkpointer=checkpointer, progress=folder / "progress", on_resume=on_resume)
        fit(
            self.task,
            data,
            images=ENDLESS if images is None else images,
            resume=resume,
            callbacks=[*([] if time_budget is None else [time_budget(checkpointer=checkpointer)]), *callbacks],
            checkpointer=checkpointer,
            trainer=trainer_maker({"default_root_dir": folder} | trainer),
            ranks=world_size(trainer),
            loggers=loggers,
            profiler=profiler,
            threads=trainer.get("threads"),
            shard=trainer.get("shard", False),
        )


def make_plan(config: Config, data: BaseDataModule, directory: RunDirectory) -> Plan:
    """Make the plan of a training, by the planner that its ``conf/task`` names."""
    config = current_targets(config)
    require_kind(config)
    planner: Callable[..., Plan] = make(config["planner"])
    plan = planner(config=config, data=data, rng=Rng(config["seed"]), directory=directory)
    if directory.rank == 0 and not directory.resuming:
        weights = sum(p.numel() * p.element_size() for p in plan.task.model.parameters())
        require_room(directory.path, 4 * weights)  # raw and averaged, in the checkpoint and at the end
    return plan


def parameters(module: nn.Module) -> int:
    """Count a module's trained numbers."""
    return sum(p.numel() for p in module.parameters())


def precision(asked: str, accelerator: str) -> str:
    """Resolve auto: bf16-mixed if the processor multiplies bf16 in hardware, else 32-true. Others stay as asked."""
    if asked != "auto":
        return asked
    if accelerator != "cpu" and torch.cuda.is_available():
        fast = torch.cuda.is_bf16_supported()
    else:
        fast = multiplies_bfloat16()
    return "bf16-mixed" if fast else "32-true"
