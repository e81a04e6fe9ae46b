"""What a generator stands on and carries with it: its tokenizer and its condition, copied into its directory."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from varlab import flops
from varlab.config import Config
from varlab.data import BaseDataModule, TokenDataModule
from varlab.files import atomic_write, sha256
from varlab.recipe import parents
from varlab.recipe.assembly import build_condition, check_image_size
from varlab.run.directory import RunDirectory, read_run
from varlab.tokenizer import VQTokenizer
from varlab.tokenizer.condition import Condition, SpatialCondition
from varlab.types import DataInfo, VarlabError


def tokenizer_of(config: Config, data: BaseDataModule, directory: RunDirectory) -> tuple[Config, VQTokenizer]:
    """The parent's record and the frozen tokenizer, from the copy in this directory once there is one."""
    setting, near = config["tokenizer_run"], directory.path
    if setting == "auto" and config.get("init"):
        setting = config["init"]
    if setting == "auto" and isinstance(data, TokenDataModule):  # whose tokens they are
        setting = data.tokens.origin["tokenizer_run"]
    return _own(
        "tokenizer",
        directory,
        lambda: parents.find_tokenizer(setting, order=config["order"], info=data.info, near=near),
        config.get("tokenizer_scales"),
    )


def _own(
    role: str, directory: RunDirectory, find: Callable[[], Path], scales: Any = None
) -> tuple[Config, VQTokenizer]:
    """A tokenizer that this run stands on, from the copy in its directory once there is one; found at first."""
    copy = directory.path / f"{role}.safetensors"
    stand = directory.read()["parents"].get(role)
    if stand is None or not _is_copy(copy, stand):
        stand = _describe(find(), scales)
        return stand, parents.load_tokenizer(Path(stand["file"]), stand["config"])
    return stand, parents.load_tokenizer(copy, stand["config"])


def condition_of(
    config: Config, data: BaseDataModule, tokenizer: VQTokenizer, directory: RunDirectory
) -> tuple[Condition | None, Config | None, Config | None]:
    """The condition, what run.json builds it from, and the record of the run that it stands on."""
    asked: Config | None = config.get("condition")
    if asked is None:
        return None, None, None
    if "kind" not in asked:
        raise VarlabError("This condition is for packing: train with condition=spatial on shards packed with it.")
    if asked["kind"] != "spatial":
        condition = build_condition(asked, tokenizer=tokenizer)
        assert condition is not None
        condition.check(data.info)
        return condition, asked, None
    stand, own = _own(
        "condition",
        directory,
        lambda: parents.find_condition_tokenizer(asked["tokenizer_run"], info=data.info, near=directory.path),
    )
    spatial = SpatialCondition(tokenizer=own)
    spatial.check(data.info)
    check_image_size(own, data.info.image_size, data.info.path)
    return spatial, {"kind": "spatial", "tokenizer": stand["config"]}, stand


def check_tokens(data: BaseDataModule, stand: Config, tokenizer: VQTokenizer, *, conditioned: bool) -> None:
    """Raises VarlabError where data brings tokens that another tokenizer has made, or that cannot be trained from."""
    if not isinstance(data, TokenDataModule):
        return
    origin = data.tokens.origin
    if origin["tokenizer_sha256"] != stand["weights_sha256"]:
        raise VarlabError(
            f"{data.path} holds tokens of the tokenizer {origin['tokenizer_run']}, not of {stand['run']} as it is now: encode "
            "the images anew with it, or set tokenizer_run to the one that made them."
        )
    if [list(scale) for scale in tokenizer.scales] != origin["scales"]:
        raise VarlabError(f"{data.path} holds token maps of {origin['scales']}, not of {list(tokenizer.scales)}.")
    if conditioned:
        raise VarlabError(f"{data.path} holds no conditions: train with a condition from images (data=shards).")


def condition_flops(condition: Condition | None, info: DataInfo) -> int:
    """Tokenizing one condition."""
    return flops.encode_flops(condition.tokenizer, info.image_size) if isinstance(condition, SpatialCondition) else 0


def _describe(run: Path, scales: Any) -> Config:
    """scales: others than the tokenizer was trained with (its networks know no resolution)."""
    record, inside = read_run(run), run / "tokenizer.safetensors"
    file = inside if inside.is_file() else run / "weights.safetensors"  # a generator carries its own
    return {
        "run": str(run),
        "file": str(file),
        "weights_sha256": sha256(file),
        "config": record["build"]["tokenizer"] | ({"scales": scales} if scales else {}),
        "flops": record["outcome"].get("flops", 0),
        "images": record["outcome"].get("images", 0),
    }


def carry(stand: Config, directory: RunDirectory, role: str) -> None:
    """Copy a tokenizer's weights into the generator's directory, which then needs nothing else."""
    copy = directory.path / f"{role}.safetensors"
    if directory.rank == 0 and not _is_copy(copy, stand):
        with atomic_write(copy) as file:
            file.write(Path(stand["file"]).read_bytes())


def _is_copy(copy: Path, stand: Config) -> bool:
    """Whether a file holds the parent's weights, and not those of an earlier attempt with another parent."""
    return copy.exists() and sha256(copy) == stand["weights_sha256"]
