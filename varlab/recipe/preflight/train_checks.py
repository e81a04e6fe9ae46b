"""What can be known of a training before it begins."""

from __future__ import annotations

import logging
from pathlib import Path

from varlab.config import Config
from varlab.data.limits import require_equal_shares
from varlab.errors import VarlabError
from varlab.info import DataInfo
from varlab.recipe.preflight.best_score import best_score
from varlab.recipe.preflight.budget_amount import asked_budget
from varlab.recipe.preflight.command_numbers import require_trainer
from varlab.recipe.preflight.data_facts import (
    data_info,
    require_several_classes,
    require_train,
    require_val,
    require_val_for_scores,
)
from varlab.recipe.preflight.named_runs import (
    read_init,
    read_tokenizer,
    require_classes_of,
    require_network,
)
from varlab.recipe.preflight.requested_ranks import names_all_gpus, world_size
from varlab.recipe.preflight.size_fit import require_fitting_size, tokenizer_grid
from varlab.recipe.run_search import no_tokenizer, tokenizers_of
from varlab.renames import current_name, current_targets
from varlab.run.directory import RunDirectory

logger = logging.getLogger(__name__)


def check(config: Config, directory: RunDirectory) -> None:
    """Raise VarlabError for a training that cannot begin. A resumed one has parents of its own, which are not checked."""
    asked_budget(config["budget"])
    require_trainer(config)
    best_score(config)
    config = current_targets(config)
    require_kind(config)
    info = data_info(config["data"])
    _require_shares(config)
    if info is None:
        return
    require_val(config, info)
    require_train(info, config["data"]["batch"])
    of_kind = {
        "classifier_plan.plan": _classifier,
        "tokenizer_plan.plan": _tokenizer,
        "generator_plan.plan": _generator,
    }
    kind = _planner(config)
    if kind in of_kind and not directory.resuming:
        of_kind[kind](config, info, directory.path)


def require_kind(config: Config) -> None:
    """Raise VarlabError if the file of ``task=`` does not say what is trained and by which planner."""
    if missing := [key for key in ("kind", "planner") if key not in config]:
        raise VarlabError(
            f"The file of task= sets no {missing[0]}: begin it with '# @package _global_', and see docs/extending.md."
        )


def _planner(config: Config) -> str:
    return current_name(str(config["planner"].get("_target_"))).removeprefix("varlab.recipe.plans.")


def _require_shares(config: Config) -> None:
    """Raise VarlabError if the ranks cannot share a batch, or the weights.

    How many ranks ``trainer.devices=auto`` means is known later, on the machine where they start.
    """
    trainer, batch = config["trainer"], config["data"].get("batch")
    if isinstance(batch, int) and not names_all_gpus(trainer):
        require_equal_shares(batch, world_size(trainer))
    if trainer.get("shard") and _planner(config) in ("classifier_plan.plan", "tokenizer_plan.plan"):
        raise VarlabError(
            f"trainer.shard=true shards a generator's transformer over the ranks, not what task={config['kind']} trains: "
            "use trainer=ddp, where each rank holds the whole model."
        )


def _classifier(config: Config, info: DataInfo, near: Path) -> None:
    if "target" not in config["task"]:
        require_several_classes(info, info.num_classes)


def _tokenizer(config: Config, info: DataInfo, near: Path) -> None:
    key, architecture = "tokenizer.scales", config["tokenizer"]
    if config.get("init"):
        architecture = read_init(Path(config["init"]), "tokenizer").build["tokenizer"]
        key = "tokenizer_scales"
    scales = config.get("tokenizer_scales") if config.get("init") else None
    _require_size(architecture, scales, info, key)
    if config["scores"]["every"] is not None:
        require_val_for_scores(info)
        require_network(config["extractor"], info, near)
    require_network(config.get("perceptual"), info, near)


def _generator(config: Config, info: DataInfo, near: Path) -> None:
    _require_null_class(config, info)
    if config["task"].get("stages") and config["budget"]["seconds"] is not None:
        raise VarlabError(
            "task.stages makes later updates cost more than the first, whose pace budget.seconds measures: give "
            "budget.flops=F budget.seconds=null."
        )
    setting = config["tokenizer_run"]
    if config.get("init"):
        require_classes_of(config["init"], read_init(Path(config["init"]), "generator"), info)
        setting = config["init"] if setting == "auto" else setting
    if setting != "auto":
        build = read_tokenizer("tokenizer_run", Path(setting)).build
        _require_size(build["tokenizer"], config.get("tokenizer_scales"), info, "tokenizer_scales")
    elif info.tokens is None and not tokenizers_of(near, info, warn=logger.debug):
        raise no_tokenizer(info, config["order"]["_target_"])
    if config["scores"]["every"] is not None:
        require_network(config["extractor"], info, near)


def _require_size(tokenizer: object, scales: list[list[int]] | None, info: DataInfo, key: str) -> None:
    """Raise VarlabError if a tokenizer that is described in plain configuration is for images of another size."""
    grid = tokenizer_grid(
        {**tokenizer, **({"scales": scales} if scales else {})} if isinstance(tokenizer, dict) else None
    )
    if grid is not None:
        require_fitting_size(*grid, image_size=info.image_size, where=info.path, key=key)


def _require_null_class(config: Config, info: DataInfo) -> None:
    """Raise VarlabError for dropped labels without a class for them, as the task does later for any transformer."""
    drop, tied = config["task"].get("label_drop"), (config.get("transformer") or {}).get("tied")
    if drop and tied and info.num_classes > 1 and not config.get("init"):
        raise VarlabError(
            f"task.label_drop={drop} trains the null class, which transformer.tied=true does not have: set "
            "task.label_drop=0 (and sample without guidance), or transformer.tied=false."
        )
