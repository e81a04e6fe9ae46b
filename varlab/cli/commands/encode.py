"""``varlab encode``: write the token maps of every image, for generators to train from."""

from __future__ import annotations

import logging

from varlab.cli.progress_bar import progress_bar
from varlab.config import Config
from varlab.files import sha256
from varlab.launch.environment import rank_device, started_ranks
from varlab.recipe.finished_run import FinishedRun
from varlab.recipe.flops import FlopCounter
from varlab.recipe.preflight.named_runs import WEIGHTS
from varlab.recipe.token_shards.token_writer import TokenWriter, origin_of
from varlab.renames import current_name
from varlab.run.directory import RunDirectory
from varlab.run.record import Parent
from varlab.types import VarlabError

__all__ = ["run"]

logger = logging.getLogger(__name__)


def run(config: Config, directory: RunDirectory) -> Config:
    """Write the token shards of every split, each on one of the ranks, and then ``tokens.json``."""
    run = FinishedRun(config | {"device": rank_device(config["device"])})
    shards = _data_config(config, run)
    data = run.data(shards)
    inside = run.path / "tokenizer.safetensors"
    weights_sha256 = sha256(inside if inside.is_file() else run.path / WEIGHTS[config["weights"]])
    origin = origin_of(data, shards, run.model.tokenizer, run=str(run.path), weights_sha256=weights_sha256)
    writer = TokenWriter(
        directory=directory,
        tokenizer=run.model.tokenizer,
        data=data,
        origin=origin,
        batch=config["batch"],
        run=directory,
    )
    with progress_bar("encoding") as progress:
        tokens = writer.write(world=started_ranks() or 1, progress=progress)
    if directory.rank != 0:
        return {}
    directory.update(parents={"tokenizer": Parent(run=config["run"], weights_sha256=weights_sha256)})
    counts = {split: sum(shard.count for shard in of) for split, of in tokens.splits.items()}
    logger.info("encoded %s: %s", ", ".join(f"{n} {split}" for split, n in counts.items()), directory.path)
    encoded = counts.get("train", 0) * tokens.views + sum(n for split, n in counts.items() if split != "train")
    cost = FlopCounter().encode(run.model.tokenizer, data.info.image_size)
    return {"images": counts, "views": tokens.views, "tokens_per_image": tokens.tokens, "flops": encoded * cost}


def _data_config(config: Config, run: FinishedRun) -> Config:
    """The configuration of the shards, their training images seen in as many ways as asked."""
    shards = dict(run.data_config or {})
    target = current_name(shards.get("_target_", ""))
    if target.endswith("TokenDataModule"):
        raise VarlabError(f"{run.path} was trained on tokens: give the images, with data=shards data.path=DIR.")
    if target.endswith("StreamDataModule"):
        raise VarlabError(
            f"{run.path} was trained on a stream, whose samples have no numbers: run varlab index on the shards, and give "
            "data=shards data.path=DIR."
        )
    shards |= {"views": config["views"], "views_seed": config["views_seed"]}
    shards |= {"tokens": None} if "tokens" in shards else {}
    return shards if config["workers"] is None else shards | {"workers": config["workers"]}
