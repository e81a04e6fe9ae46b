"""The data module: what Lightning and the other rooms ask of it, and its YAML."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf

from varlab.data.pack.packer import pack
from varlab.data.shard_module import ShardDataModule
from varlab.tasks import TrainerData
from varlab.types import VarlabError

CONF = Path(__file__).parents[2] / "conf"
Make = Callable[..., ShardDataModule]


def test_lightning_hooks_use_the_trainers_ranks(made_set: Path, make_module: Make) -> None:
    data: Any = TrainerData(make_module(made_set), stop=24)
    data.trainer = SimpleNamespace(global_rank=1, world_size=2)
    data.start = 8
    loader = data.train_dataloader()
    assert len(loader) == 2
    assert next(iter(loader)).position_B.tolist() == [12, 13, 14, 15]
    assert len(next(iter(data.val_dataloader()))) == 4


@pytest.mark.parametrize("workers", [0, 2])
def test_loading_leaves_the_global_generator_alone(made_set: Path, make_module: Make, workers: int) -> None:
    before = torch.get_rng_state()
    data = make_module(made_set, workers=workers)
    list(data.train_loader(0, 16, 0, 1))
    list(data.eval_loader("val", 0, 1))
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("workers", [0, 2])
def test_an_error_in_loading_is_one_sentence(made_set: Path, make_module: Make, tmp_path: Path, workers: int) -> None:
    copy = Path(shutil.copytree(made_set, tmp_path / "copy"))
    shard = copy / "train-000001.tar"
    shard.write_bytes(shard.read_bytes().replace(b"IDAT", b"NOPE"))  # images damaged, headers and sizes whole
    loader = make_module(copy, workers=workers, batch=37).train_loader(0, 37, 0, 1)
    with pytest.raises(VarlabError, match=r"^10 of 37 train .*data\.max_bad=0 \(10 changed: .* lists all\)\.$"):
        list(loader)


def test_settings_and_folder_are_checked(made_set: Path, make_module: Make, tmp_path: Path) -> None:
    with pytest.raises(VarlabError, match="There is no shard folder"):
        make_module(tmp_path / "nowhere", workers=2).train_loader(0, 8, 0, 1)
    with pytest.raises(VarlabError, match=r"data\.batch is 0"):
        make_module(made_set, batch=0)


def test_digits_look_like_digits(digits_set: Path, make_module: Make) -> None:
    data = make_module(digits_set, cache_bytes=1 << 24)
    assert data.info.num_classes == 10 and data.info.image_size == (16, 16)
    train, val = (data.images(s).float().flatten(1) for s in ("train", "val"))
    nearest_N = torch.cdist(val, train).argmin(1)
    assert (data.labels("train")[nearest_N] == data.labels("val")).float().mean() > 0.97  # labels fit their images
    picked = torch.tensor([3, 1])
    assert torch.equal(data.images("val", picked), data.images("val")[picked])


@pytest.mark.parametrize("name", ["digits", "photos"])
def test_every_source_yaml_packs(name: str, tmp_path: Path) -> None:
    config = OmegaConf.load(CONF / "source" / f"{name}.yaml")
    if name == "photos":
        config.update(photos=["coins", "microaneurysms", "rocket"], train_crops=4, val_crops=2)
    summary = pack(source=instantiate(config), out=tmp_path, shard_size=1000)
    assert summary["images"] == ({"train": 1438, "val": 359} if name == "digits" else {"train": 8, "val": 4})
    assert [s["name"] for s in summary["skipped"]] == ([] if name == "digits" else ["microaneurysms"])


def test_folder_yaml_packs(tmp_path: Path) -> None:
    from PIL import Image

    for name in ("x", "y"):
        (tmp_path / "images" / name).mkdir(parents=True)
        for i in range(2):
            Image.new("RGB", (40, 30), (i * 99, 0, 0)).save(tmp_path / "images" / name / f"{i}.jpg")
    config = OmegaConf.load(CONF / "source" / "folder.yaml").source
    config.path, config.size, config.check = str(tmp_path / "images"), 16, "decode"
    summary = pack(source=instantiate(config), out=tmp_path / "shards", shard_size=10)
    assert summary["images"] == {"train": 2, "val": 2}
