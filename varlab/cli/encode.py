"""``varlab encode``: the token maps of every image, by a trained tokenizer."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf
from torch import Tensor

from varlab.checkpoint import save_weights, sha256
from varlab.cli.rundir import RunDirectory
from varlab.cli.trained import shards, trained
from varlab.data import ShardDataModule
from varlab.model import Model
from varlab.types import to_float

__all__ = ["run"]

logger = logging.getLogger(__name__)


def run(cfg: DictConfig, directory: RunDirectory) -> dict[str, Any]:
    """Write <split>.safetensors (idx_NP int32, all scales in a row, and label_N) for each split of the shards."""
    config: dict[str, Any] = OmegaConf.to_container(cfg)  # type: ignore[assignment]
    model, record = trained(config)
    data = shards(config, record)
    weights = Path(config["run"]) / ("weights.safetensors" if model.transformer is None else "tokenizer.safetensors")
    origin = {
        "tokenizer_sha256": sha256(weights),
        "data_hash": data.info.hash,
        "scales": str([list(scale) for scale in model.tokenizer.scales]),
    }
    counts = {}
    for split in data.info.counts:
        tokens = _encode(model, data, split, config["batch"])
        save_weights(directory.path / f"{split}.safetensors", tokens, origin)
        counts[split] = len(tokens["label_N"])
    directory.update(parents={"tokenizer": {"run": config["run"], "weights_sha256": origin["tokenizer_sha256"]}})
    logger.info("encoded %s: %s", ", ".join(f"{n} {split}" for split, n in counts.items()), directory.path)
    return {"images": counts, "tokens_per_image": sum(h * w for h, w in model.tokenizer.scales)}


def _encode(model: Model, data: ShardDataModule, split: str, batch: int) -> dict[str, Tensor]:
    tokens, labels = [], []
    for part in data.eval_loader(split, 0, 1, batch):
        maps = model.encode(to_float(part.img_u8_B3HW))
        tokens.append(torch.cat(maps, 1).int().cpu())
        labels.append(part.label_B)
    return {"idx_NP": torch.cat(tokens), "label_N": torch.cat(labels)}
