"""``varlab encode``: write the token maps of every image, for generators to train from."""

from __future__ import annotations

import logging
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from varlab.cli.progress_bar import progress_bar
from varlab.config import Config
from varlab.data import ShardDataModule
from varlab.data.format.foreign import map_array
from varlab.data.tokens import TokenSet, TokenShard, dtype_for, fingerprint, read_tokens, write_array, write_tokens
from varlab.files import digest, read_bytes, sha256, write_text
from varlab.flops import FlopCounter
from varlab.json_file import is_sealed, read_json, write_sealed_json
from varlab.launch.environment import global_rank, local_rank, started_ranks
from varlab.model import Model
from varlab.recipe.finished_run import FinishedRun
from varlab.renames import current_name
from varlab.run.directory import RunDirectory
from varlab.run.record import Parent
from varlab.types import VarlabError, to_float

__all__ = ["run"]

logger = logging.getLogger(__name__)

_MARK = "encoding.json"  # says whose token shards are here, finished or not
_NOTE = ".xxh3"  # the digest of a token shard, until tokens.json has it
_LONGEST_NOTE = 100  # bytes
_POLL = 0.2  # seconds between checks of what other ranks have done


@dataclass(frozen=True)
class _Part:
    """The images of one image shard: numbers first to last (not included) of a split."""

    split: str
    first: int
    last: int
    file: str


def run(config: Config, directory: RunDirectory) -> Config:
    """Write the token shards of every split, each on one of the ranks, and then ``tokens.json``."""
    run = FinishedRun(config | {"device": _device(config["device"])})
    shards = _data_config(config, run)
    data = run.data(shards)
    origin = _origin(config, run, data, shards)
    rank, world = global_rank(), started_ranks() or 1
    _clear(directory, origin)
    parts = _parts(data)
    mine = parts[rank::world]
    todo = _unfinished(directory.path, mine, origin, run.model)
    if len(todo) < len(mine):
        logger.info("%d of %d token shards exist already", len(mine) - len(todo), len(mine))
    with progress_bar("encoding") as progress:
        done, total = 0, sum(part.last - part.first for part in todo)
        for part in todo:
            path = directory.path / part.file
            _note(path, write_array(path, _encode(run.model, data, part, config["batch"])))
            done += part.last - part.first
            if rank == 0:
                progress(done, total)
    if rank != 0:
        return {}
    for part in parts:
        while not _noted(directory.path / part.file):
            directory.check_still_here()
            time.sleep(_POLL)  # if another rank dies, the process that started the ranks ends this one, too
    tokens = _finish(directory.path, origin, parts, data, run.model)
    directory.update(parents={"tokenizer": Parent(run=config["run"], weights_sha256=origin["tokenizer_sha256"])})
    counts = {split: sum(shard.count for shard in of) for split, of in tokens.splits.items()}
    logger.info("encoded %s: %s", ", ".join(f"{n} {split}" for split, n in counts.items()), directory.path)
    encoded = counts.get("train", 0) * tokens.views + sum(n for split, n in counts.items() if split != "train")
    cost = FlopCounter().encode(run.model.tokenizer, data.info.image_size)
    return {"images": counts, "views": tokens.views, "tokens_per_image": tokens.tokens, "flops": encoded * cost}


def _device(asked: str) -> str:
    """The rank's own GPU if there are enough."""
    rank = local_rank()
    return f"cuda:{rank}" if asked == "auto" and rank is not None and torch.cuda.device_count() > rank else asked


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


def _origin(config: Config, run: FinishedRun, data: ShardDataModule, shards: Config) -> Config:
    """Everything that the tokens depend on."""
    inside = run.path / "tokenizer.safetensors"
    raw = "weights_raw.safetensors" if config["weights"] == "raw" else "weights.safetensors"
    return {
        "tokenizer_sha256": sha256(inside if inside.is_file() else run.path / raw),
        "tokenizer_run": str(run.path),
        "scales": [list(scale) for scale in run.model.tokenizer.scales],
        "data_hash": data.info.hash,
        "image_size": list(data.info.image_size),
        "view": data.info.view,
        "views": config["views"],
        "views_seed": config["views_seed"],
        "look": {name: shards.get(name) for name in ("augment", "crop")} if config["views"] else None,
    }


def _clear(directory: RunDirectory, origin: Config) -> None:
    """Keep the token shards of this encoding, remove those of another. Other ranks wait for rank 0."""
    mark, wanted = directory.path / _MARK, digest(origin)
    if directory.rank != 0:
        while _marked(mark) != wanted:
            time.sleep(_POLL)
        return
    if _marked(mark) != wanted:
        for old in [*directory.path.glob("*.npy"), *directory.path.glob(f"*{_NOTE}")]:
            old.unlink()
    elif not is_sealed(mark):  # of an earlier version, which wrote no digests
        for shard in filter(Path.is_file, directory.path.glob("*.npy")):
            _note(shard, fingerprint(shard))
    write_sealed_json(mark, {"origin_sha256": wanted, "origin": origin})


def _marked(mark: Path) -> object:
    with suppress(FileNotFoundError, VarlabError):
        marked = read_json(mark)
        return marked.get("origin_sha256") if isinstance(marked, dict) else None
    return None


def _unfinished(folder: Path, parts: list[_Part], origin: Config, model: Model) -> list[_Part]:
    """The parts whose token shard is not there as it was written. A finished set, to be mended, has the digests."""
    known: dict[str, str] = {}
    with suppress(VarlabError):
        if digest((tokens := read_tokens(folder)).origin) == digest(origin):
            known = {shard.file: shard.check for of in tokens.splits.values() for shard in of}
    for part in parts:
        if part.file in known and not (path := folder / part.file).with_suffix(_NOTE).exists():
            _note(path, known[part.file])
    return [part for part in parts if not (_noted(folder / part.file) and _fits(folder / part.file, part, model))]


def _fits(path: Path, part: _Part, model: Model) -> bool:
    """Whether a file holds tokens of as many images as the part has: a digest may be of what lay there before."""
    tokens = sum(h * w for h, w in model.tokenizer.scales)
    with suppress(OSError, ValueError):
        map_array(path, shape=(part.last - part.first, None, tokens), dtype=dtype_for(model.tokenizer.vocab_size))
        return True
    return False


def _note(shard: Path, check: str) -> None:
    """Write the digest of a token shard beside it, where it lies until the set is finished."""
    write_text(shard.with_suffix(_NOTE), check)


def _noted(shard: Path) -> str:
    """The digest of a token shard; empty where the shard is not the one that was written."""
    with suppress(OSError, ValueError, VarlabError):
        check = read_bytes(shard.with_suffix(_NOTE), _LONGEST_NOTE).decode()
        return check if fingerprint(shard) == check else ""
    return ""


def _parts(data: ShardDataModule) -> list[_Part]:
    parts = []
    for split in data.info.counts:
        first = 0
        for number, shard in enumerate(data.index.splits[split]):
            parts.append(_Part(split, first, first + shard.count, f"{split}-{number:06d}.npy"))
            first += shard.count
    return [part for part in parts if part.last > part.first]


def _encode(model: Model, data: ShardDataModule, part: _Part, batch: int) -> NDArray[np.integer]:
    """Tokens [N, views, P] of the part's images; the largest number for an image that cannot be read."""
    dtype = dtype_for(model.tokenizer.vocab_size)
    rows = []
    for images in data.in_order(part.split, part.first, part.last, batch):
        maps = model.encode(to_float(images.img_u8_B3HW))
        idx_BP = torch.cat(maps, 1).cpu().numpy().astype(dtype)
        idx_BP[~images.valid_B.numpy()] = np.iinfo(dtype).max
        rows.append(idx_BP)
    idx_NP = np.concatenate(rows)
    return idx_NP.reshape(part.last - part.first, -1, idx_NP.shape[1])


def _finish(folder: Path, origin: Config, parts: list[_Part], data: ShardDataModule, model: Model) -> TokenSet:
    """Write the labels and ``tokens.json``."""
    splits: dict[str, list[TokenShard]] = {split: [] for split in data.info.counts}
    bad = dict.fromkeys(splits, 0)
    for part in parts:
        path = folder / part.file
        splits[part.split].append(TokenShard(part.file, part.last - part.first, path.with_suffix(_NOTE).read_text()))
        first_N = np.load(path, mmap_mode="r", allow_pickle=False)[:, 0, 0]
        bad[part.split] += int((first_N == np.iinfo(first_N.dtype).max).sum())
    labels = {split: _write_labels(folder, split, data) for split, of in splits.items() if of}
    tokens = TokenSet(
        folder=folder,
        origin=origin,
        images=data.reading_arguments,
        views=max(data.views, 1),
        tokens=sum(h * w for h, w in model.tokenizer.scales),
        vocab_size=model.tokenizer.vocab_size,
        splits={split: tuple(of) for split, of in splits.items() if of},
        bad=bad,
        labels=labels,
    )
    write_tokens(tokens)
    for part in parts:
        (folder / part.file).with_suffix(_NOTE).unlink()
    return tokens


def _write_labels(folder: Path, split: str, data: ShardDataModule) -> TokenShard:
    label_N = data.labels(split).numpy().astype(np.int32)
    path = folder / f"{split}.labels.npy"
    return TokenShard(path.name, len(label_N), write_array(path, label_N))
