"""``varlab encode``: the token maps of every image, by a trained tokenizer, for generators to train from."""

from __future__ import annotations

import hashlib
import json
import logging
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from omegaconf import DictConfig, OmegaConf

from varlab import flops
from varlab.cli.progress_bar import progress_bar
from varlab.config import Config
from varlab.data import ShardDataModule
from varlab.data.tokens import TokenSet, TokenShard, dtype_for, fingerprint, write_array, write_tokens
from varlab.files import sha256, write_json
from varlab.launch.environment import global_rank, local_rank, started_ranks
from varlab.model import Model
from varlab.moved import current_name
from varlab.recipe.finished_run import shards, trained
from varlab.run.directory import RunDirectory
from varlab.types import VarlabError, to_float

__all__ = ["run"]

logger = logging.getLogger(__name__)

_MARK = "encoding.json"  # whose token shards lie here, finished or not
_POLL = 0.2  # seconds between looks at what the other ranks have done


@dataclass(frozen=True)
class _Part:
    """The images of one image shard: numbers first to last (not included) of a split."""

    split: str
    first: int
    last: int
    file: str


def run(cfg: DictConfig, directory: RunDirectory) -> Config:
    """Write the token shards of every split, each once by one of the ranks, and at last ``tokens.json``."""
    config: Config = OmegaConf.to_container(cfg)  # type: ignore[assignment]
    model, record = trained(_on_own_device(config))
    own = _data_config(config, record)
    data = shards(config | {"data": own}, record)
    origin = _origin(config, model, data, own)
    rank, world = global_rank(), started_ranks() or 1
    _take_up(directory, origin)
    parts = _parts(data)
    mine = [part for part in parts[rank::world] if not (directory.path / part.file).is_file()]
    if len(mine) < len(parts[rank::world]):
        logger.info(
            "%d of %d token shards are there already", len(parts[rank::world]) - len(mine), len(parts[rank::world])
        )
    with progress_bar("encoding") as progress:
        done, total = 0, sum(part.last - part.first for part in mine)
        for part in mine:
            write_array(directory.path / part.file, _encode(model, data, part, config["batch"]))
            done += part.last - part.first
            if rank == 0:
                progress(done, total)
    if rank != 0:
        return {}
    _wait([directory.path / part.file for part in parts])
    tokens = _finish(directory.path, origin, parts, data, model)
    directory.update(parents={"tokenizer": {"run": config["run"], "weights_sha256": origin["tokenizer_sha256"]}})
    counts = {split: sum(shard.count for shard in of) for split, of in tokens.splits.items()}
    logger.info("encoded %s: %s", ", ".join(f"{n} {split}" for split, n in counts.items()), directory.path)
    encoded = counts.get("train", 0) * tokens.views + sum(n for split, n in counts.items() if split != "train")
    cost = flops.encode_flops(model.tokenizer, data.info.image_size)
    return {"images": counts, "views": tokens.views, "tokens_per_image": tokens.tokens, "flops": encoded * cost}


def _on_own_device(config: Config) -> Config:
    """Each rank of a machine has a GPU of its own, where there are some."""
    device = local_rank()
    if config["device"] == "auto" and device is not None and torch.cuda.device_count() > device:
        return config | {"device": f"cuda:{device}"}
    return config


def _data_config(config: Config, record: Config) -> Config:
    """Of the shards, their training images seen in as many ways as asked."""
    own = dict(config.get("data") or record["config"].get("data") or {})
    target = current_name(own.get("_target_", ""))
    if target.endswith("TokenDataModule"):
        raise VarlabError(f"{config['run']} was trained on tokens: give the images, with data=shards data.path=DIR.")
    if target.endswith("StreamDataModule"):
        raise VarlabError(
            f"{config['run']} was trained on a stream, whose samples have no numbers: varlab index the shards, and give "
            "data=shards data.path=DIR."
        )
    own |= {"views": config["views"], "views_seed": config["views_seed"]} | (
        {"tokens": None} if "tokens" in own else {}
    )
    return own if config["workers"] is None else own | {"workers": config["workers"]}


def _origin(config: Config, model: Model, data: ShardDataModule, own: Config) -> Config:
    """What decides the tokens."""
    run = Path(config["run"])
    inside = run / "tokenizer.safetensors"
    raw = "weights_raw.safetensors" if config["weights"] == "raw" else "weights.safetensors"
    looks = {name: own.get(name) for name in ("augment", "crop")} if config["views"] else None
    return {
        "tokenizer_sha256": sha256(inside if inside.is_file() else run / raw),
        "tokenizer_run": str(run),
        "scales": [list(scale) for scale in model.tokenizer.scales],
        "data_hash": data.info.hash,
        "image_size": list(data.info.image_size),
        "view": data.info.view,
        "views": config["views"],
        "views_seed": config["views_seed"],
        "look": looks,
    }


def _take_up(directory: RunDirectory, origin: Config) -> None:
    """Keep the token shards of this very encoding, remove those of another."""
    mark = directory.path / _MARK
    wanted = hashlib.sha256(json.dumps(origin, sort_keys=True).encode()).hexdigest()
    if directory.rank != 0:
        while _marked(mark) != wanted:
            time.sleep(_POLL)
        return
    if _marked(mark) != wanted:
        for old in directory.path.glob("*.npy"):
            old.unlink()
    write_json(mark, {"origin_sha256": wanted, "origin": origin})


def _marked(mark: Path) -> str | None:
    return str(json.loads(mark.read_text())["origin_sha256"]) if mark.is_file() else None


def _parts(data: ShardDataModule) -> list[_Part]:
    parts = []
    for split in data.info.counts:
        first = 0
        for number, shard in enumerate(data.index.splits[split]):
            parts.append(_Part(split, first, first + shard.count, f"{split}-{number:06d}.npy"))
            first += shard.count
    return [part for part in parts if part.last > part.first]


def _encode(model: Model, data: ShardDataModule, part: _Part, batch: int) -> NDArray[Any]:
    """Tokens [N, views, P] of those images; the largest number where one could not be read."""
    dtype = dtype_for(model.tokenizer.vocab_size)
    rows = []
    for images in data.in_order(part.split, part.first, part.last, batch):
        maps = model.encode(to_float(images.img_u8_B3HW))
        idx_BP = torch.cat(maps, 1).cpu().numpy().astype(dtype)
        idx_BP[~images.valid_B.numpy()] = np.iinfo(dtype).max
        rows.append(idx_BP)
    idx_NP = np.concatenate(rows)
    return idx_NP.reshape(part.last - part.first, -1, idx_NP.shape[1])


def _wait(files: list[Path]) -> None:
    """Until the other ranks have written theirs; if one dies, whoever started the ranks ends this one too."""
    while not all(file.is_file() for file in files):
        time.sleep(_POLL)


def _finish(folder: Path, origin: Config, parts: list[_Part], data: ShardDataModule, model: Model) -> TokenSet:
    """The labels, and what is told of it all."""
    splits: dict[str, list[TokenShard]] = {split: [] for split in data.info.counts}
    bad = dict.fromkeys(splits, 0)
    for part in parts:
        path = folder / part.file
        splits[part.split].append(TokenShard(part.file, part.last - part.first, fingerprint(path)))
        first_N = np.load(path, mmap_mode="r", allow_pickle=False)[:, 0, 0]
        bad[part.split] += int((first_N == np.iinfo(first_N.dtype).max).sum())
    for split in splits:
        write_array(folder / f"{split}.labels.npy", data.labels(split).numpy().astype(np.int32))
    tokens = TokenSet(
        folder=folder,
        origin=origin,
        images=data.reading_arguments,
        views=max(data.views, 1),
        tokens=sum(h * w for h, w in model.tokenizer.scales),
        vocab_size=model.tokenizer.vocab_size,
        splits={split: tuple(of) for split, of in splits.items() if of},
        bad=bad,
    )
    write_tokens(tokens)
    return tokens
