"""Every ``conf/what/*.yaml`` measures real work: its parts are all there and add up, and its line says all it must."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from PIL import Image

from varlab.bench.clock import measure
from varlab.bench.device import settings_of
from varlab.bench.line import measured_lines
from varlab.bench.work import REST, Works
from varlab.cli.app import conf_dir
from varlab.cli.main import main
from varlab.data.read import reader as shard_reader
from varlab.recipe.objects import make

CPU = torch.device("cpu")
KINDS = sorted(file.stem for file in (conf_dir() / "what").glob("*.yaml"))
TINY = ("batch=2", "rounds=2", "seconds=0.001", "product.cpu=32")
FIELDS = {
    "what", "work", "images", "rounds", "turns", "seconds", "cpu_seconds", "images_per_second", "peak_memory", "parts",
    "device", "device_type", "threads", "cores", "load", "torch", "version", "commit", "changed", "time", "precision",
    "memory_before", "facts", "settings",
}  # fmt: skip
COUNTED = {"flops_per_image", "tflops_per_second", "product_tflops_per_second", "share_of_product", "mfu"}


@pytest.fixture(scope="session")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A few noisy pictures, packed."""
    folder = tmp_path_factory.mktemp("bench")
    for i in range(8):
        path = folder / "pictures" / "ab"[i % 2] / f"{i}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.random.default_rng(i).integers(0, 256, (20, 24, 3), dtype=np.uint8)).save(path)
    pack = ("pack", "source=folder", f"path={folder / 'pictures'}", "source.size=16", f"out={folder / 'shards'}")
    assert main([*pack, "workers=0"]) == 0
    return folder / "shards"


def config_of(kind: str, *overrides: str, shards: Path | None = None) -> dict[str, Any]:
    data = [f"data.path={shards}"] if kind == "data" else []
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        composed = compose("bench", [f"what={kind}", *TINY, *data, *overrides])
    config: dict[str, Any] = OmegaConf.to_container(composed, resolve=True)  # type: ignore[assignment]
    return config | {"precision": "32-true"}


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_measures_what_it_names(kind: str, shards: Path) -> None:
    config = config_of(kind, shards=shards)
    with settings_of(config, CPU):
        works: Works = make(config["works"])(config=config, device=CPU)
        before = [vars(part.owner).get(part.method) for work in works.works for part in work.parts]
        lines = measured_lines(config, works, CPU, before=0)
    lines = [json.loads(json.dumps(line, allow_nan=False)) for line in lines]
    assert any(work.parts for work in works.works)
    for work, line in zip(works.works, lines, strict=True):
        assert line.keys() - COUNTED == FIELDS and (line.keys() >= COUNTED) == (work.flops_per_image is not None)
        assert line["parts"].keys() == {REST, *(part.name for part in work.parts)}, "a part's method was never called"
        for clock in ("seconds", "cpu_seconds"):
            whole = line[clock]
            assert 0 < whole["min"] <= whole["median"] <= whole["max"]
            parts = [part[clock] for part in line["parts"].values()]
            assert min(parts) >= 0 and math.isclose(sum(parts), whole["median"], rel_tol=1e-3)
        assert line["images_per_second"] > 0 and line["peak_memory"] > 1 << 20
    after = [vars(part.owner).get(part.method) for work in works.works for part in work.parts]
    assert all(one is other for one, other in zip(before, after, strict=True)), "a method is still watched"


def test_every_batch_is_decoded(shards: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Batches of a second epoch cost what those of the first do: no image is kept decoded."""
    config = config_of("data", "pipeline=false", shards=shards)
    assert config["data"]["cache_bytes"] > 0
    works: Works = make(config["works"])(config=config, device=CPU)
    decoded: list[int] = []
    for name in ("decode", "decode_into"):
        real = vars(shard_reader)[name]
        monkeypatch.setattr(shard_reader, name, lambda *args, real=real: (decoded.append(1), real(*args))[1])
    together = works.works[-1].turn
    assert sum(together() for _ in range(9)) == len(decoded) == 18


@pytest.mark.parametrize(
    ("kind", "overrides"),
    [
        ("train", ("tokens=false", "tokenizer=single", "order=raster", "transformer=tiny_gpt2")),
        ("train", ("condition=spatial", "tokens=false", "task.micro_batch=1")),
        ("train", ("condition=coordinates", "order=random", "tokenizer=single")),
        ("sample", ("condition=spatial", "order=raster", "tokenizer=single", "transformer=tiny_llama", "sampler=var")),
        ("tokenizer_train", ("perceptual=none", "discriminator=none", "loss=vqgan")),
        ("tokenizer_train", ("discriminator=patchgan_actnorm", "discriminator.layers=1", "task.micro_batch=1")),
    ],
)
def test_presets_can_be_measured(kind: str, overrides: tuple[str, ...]) -> None:
    config = config_of(kind, "rounds=1", *overrides)
    with settings_of(config, CPU):
        works: Works = make(config["works"])(config=config, device=CPU)
        assert works.works[0].turn() == 2 and works.works[0].flops_per_image


def test_an_update_is_the_tasks_own() -> None:
    """Weights, moments and averages move, and the clock of images with them."""
    config = config_of("train", "task.ema_decay=0.5")
    works: Works = make(config["works"])(config=config, device=CPU)
    owners = {part.name: part.owner for part in works.works[0].parts}
    task, before = owners["loss"], owners["head"].weight.clone()  # type: ignore[attr-defined]
    measure(works.works, device=CPU, rounds=1, seconds=0)
    assert task.images == 3 * 2 and task.ema.updates == 3  # type: ignore[attr-defined]
    assert not torch.equal(before, owners["head"].weight)  # type: ignore[attr-defined]


def test_the_flops_are_those_of_a_budget() -> None:
    """From images, an update also encodes, which the budget of a training does not count."""
    tokens, images = (
        make((config := config_of("train", f"tokens={tokens}"))["works"])(config=config, device=CPU)
        for tokens in ("true", "false")
    )
    assert tokens.works[0].flops_per_image == tokens.facts["train_flops_per_image"] > 0
    encode = images.facts["encode_flops_per_image"]
    assert images.works[0].flops_per_image == tokens.works[0].flops_per_image + encode > 0


def test_an_update_trains_all_scales() -> None:
    """With stages, too: the FLOPs are those of all tokens, and so must be the time."""
    config = config_of("train", "task.stages={_target_:varlab.tasks.ScaleStages,until:0.8,first:0,warmup:0.01}")
    works: Works = make(config["works"])(config=config, device=CPU)
    task = next(part.owner for part in works.works[0].parts if part.name == "loss")
    real, tokens = task.predict, []  # type: ignore[attr-defined]
    task.predict = lambda batch: [made := real(batch), tokens.append(made[1].shape[1])][0]  # type: ignore[attr-defined]
    works.works[0].turn()
    assert tokens == [works.facts["tokens_per_image"]] and tokens[0] > 1
    whole: Works = make((plain := config_of("train"))["works"])(config=plain, device=CPU)
    assert works.works[0].flops_per_image == whole.works[0].flops_per_image
