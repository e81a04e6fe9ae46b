"""A training as composed for a cluster, built at its real size on the ``meta`` device, where nothing is allocated."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from omegaconf import OmegaConf
from torch import Tensor, nn

from varlab.cli.app import conf_dir
from varlab.losses.perceptual import VGG16Features
from varlab.order import BaseOrder
from varlab.recipe.assembly import build_order, build_tokenizer, check_inputs, example_slots
from varlab.recipe.flops import TRAINING, FlopCounter
from varlab.recipe.objects import make
from varlab.recipe.trainer.memory import Devices, LiveBytes, tensor_bytes, training_memory
from varlab.rng import Rng
from varlab.tasks import GeneratorTask, Task
from varlab.tokenizer import VQTokenizer
from varlab.types import Slots

Config = dict[str, Any]
IMAGENET = 1000  # classes
IMPORTED = {
    "runs/imagenet/var_tokenizer": "var",
    "runs/imagenet/var_tokenizer_512": "var_512",
    "runs/imagenet/vqgan_tokenizer": "vqgan_f16_1024",
    "runs/imagenet/vqgan_tokenizer_16384": "vqgan_f16_16384",
    "runs/imagenet/llamagen_tokenizer": "llamagen_f16",
}
"""The runs that ImageNet's recipes import, and what each of them holds: a name in ``conf/tokenizer``."""


@dataclass(frozen=True, kw_only=True)
class Preset:
    """A built training. slots: of one sample of a generator."""

    config: Config
    task: Task
    tokenizer: VQTokenizer
    order: BaseOrder | None = None
    slots: Slots | None = None
    discriminator: nn.Module | None = None

    @property
    def ranks(self) -> int:
        return int(self.config["trainer"]["devices"] * self.config["trainer"]["num_nodes"])

    @property
    def share(self) -> int:
        """Samples that go through the model at once on each device."""
        share = self.config["data"]["batch"] // self.ranks
        return min(self.task.micro_batch or share, share)


def composed(*words: str) -> Config:
    """The configuration of ``varlab train`` with these words."""
    if not GlobalHydra.instance().is_initialized():
        with initialize_config_dir(str(conf_dir()), version_base="1.3"):
            return composed(*words)
    return OmegaConf.to_container(compose("train", list(words)), resolve=True)  # type: ignore[return-value]


@cache
def _tokenizer_file(name: str) -> Config:
    return composed("task=tokenizer", f"tokenizer={name}")["tokenizer"]


def build(config: Config, folder: Path, runs: Mapping[str, Config] | None = None) -> Preset:
    """Build what is trained, its losses and its optimizers.

    folder: for stand-ins of published weights. runs: the tokenizers, as configurations, of runs that are not imported.
    """
    if config["kind"] == "tokenizer":
        return _tokenizer(config, folder)
    run = config["tokenizer_run"]
    return _generator(config, (runs or {}).get(run) or _tokenizer_file(IMPORTED[run]))


def _tokenizer(config: Config, folder: Path) -> Preset:
    config = published_weights(config, folder)
    with torch.device("meta"):
        tokenizer = build_tokenizer(config["tokenizer"], Rng(0))
        discriminator = make(config["discriminator"]) if config["discriminator"] else None
        perceptual = make(config["perceptual"])
        parts = {"tokenizer": tokenizer, "discriminator": discriminator, "perceptual": perceptual}
        task: Task = make(config["task"])(**parts, rng=Rng(0))
    return Preset(config=config, task=task, tokenizer=tokenizer, discriminator=discriminator)


def _generator(config: Config, tokenizer_config: Config) -> Preset:
    with torch.device("meta"):
        tokenizer = build_tokenizer(tokenizer_config, Rng(0))
    order = build_order(config["order"], tokenizer)
    shapes = _Shapes(tokenizer)
    live = dict(vocab_size=tokenizer.vocab_size, code_dim=tokenizer.code_dim, num_classes=IMAGENET)
    with torch.device("meta"):
        transformer = make(
            config["transformer"], **live, positions_P3=order.positions_P3, source_positions=not order.fixed
        )
    check_inputs(transformer, order, shapes)  # type: ignore[arg-type]
    task: GeneratorTask = make(config["task"])(transformer=transformer, order=order, tokenizer=tokenizer, rng=Rng(0))
    slots = example_slots(order, shapes)  # type: ignore[arg-type]
    return Preset(config=config, task=task, tokenizer=tokenizer, order=order, slots=slots)


class _Shapes:
    """What an order asks of a tokenizer, on the CPU, with zeros for all codes."""

    def __init__(self, tokenizer: VQTokenizer):
        self.scales, self.code_dim, self.vocab_size = tokenizer.scales, tokenizer.code_dim, tokenizer.vocab_size

    def blank(self, batch: int) -> Tensor:
        return torch.zeros(batch, self.code_dim, *self.scales[-1])

    def embed(self, idx_Bl: Tensor) -> Tensor:
        return torch.zeros(*idx_Bl.shape, self.code_dim)

    def accumulate(self, f_hat_BChw: Tensor, k: int, h_BlC: Tensor) -> Tensor:
        return f_hat_BChw


def published_weights(config: Config, folder: Path) -> Config:
    """The configuration with files of zeros, of a few bytes, in the place of DINO's, VGG's and LPIPS's weights."""
    if config["discriminator"] and "weights" in config["discriminator"]:
        file = _zeros(folder / "dino.pth", _vit_shapes(width=384, depth=12, grid=14))
        config = config | {"discriminator": config["discriminator"] | {"weights": file, "sha256": None}}
    with torch.device("meta"):
        vgg = {name: tuple(value.shape) for name, value in VGG16Features().state_dict().items()}
    lins = {f"lin{i}.model.1.weight": (1, width, 1, 1) for i, width in enumerate((64, 128, 256, 512, 512))}
    files = {"vgg": _zeros(folder / "vgg.pth", vgg), "lpips": _zeros(folder / "lpips.pth", lins)}
    return config | {"perceptual": config["perceptual"] | files | {"vgg_sha256": None, "lpips_sha256": None}}


def _zeros(file: Path, shapes: Mapping[str, Sequence[int]]) -> str:
    if not file.exists():
        torch.save({name: torch.zeros(1).expand(*shape) for name, shape in shapes.items()}, file)
    return str(file)


def _vit_shapes(*, width: int, depth: int, grid: int) -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {
        "cls_token": (1, 1, width),
        "pos_embed": (1, 1 + grid**2, width),
        "patch_embed.proj.weight": (width, 3, 16, 16),
        "patch_embed.proj.bias": (width,),
    }
    linear = {"attn.qkv": (3, 1), "attn.proj": (1, 1), "mlp.fc1": (4, 1), "mlp.fc2": (1, 4)}
    for name in [f"blocks.{i}.{part}" for i in range(depth) for part in ("norm1", "norm2")] + ["norm"]:
        shapes |= {f"{name}.weight": (width,), f"{name}.bias": (width,)}
    for i in range(depth):
        for part, (out, before) in linear.items():
            name = f"blocks.{i}.{part}"
            shapes |= {f"{name}.weight": (out * width, before * width), f"{name}.bias": (out * width,)}
    return shapes


# -- one update --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Planned:
    """Numbers of one update: parameters, those that decay, FLOPs of an image in training and encoding, bytes on a device."""

    parameters: int
    decayed: int
    train_flops: int
    encode_flops: int
    memory: int


def plan_update(preset: Preset) -> Planned:
    """Run one update's shapes: forward and backward, a gradient for every parameter of the optimizers."""
    model, groups = preset.task.model, preset.task.optims[0].param_groups
    grouped = [p for group in groups for p in group["params"]]
    trained = [p for p in model.parameters() if p.requires_grad]
    assert len(grouped) == len({id(p) for p in grouped}) == len(trained), "a parameter is in no group, or in two"
    count, size = FlopCounter(), preset.tokenizer.image_size
    of_kind = _plan_generator if preset.slots is not None else _plan_tokenizer
    flops, memory = of_kind(preset, count)
    assert not count.uncounted
    return Planned(
        parameters=sum(p.numel() for p in trained),
        decayed=sum(p.numel() for group in groups if group.get("weight_decay") for p in group["params"]),
        train_flops=flops,
        encode_flops=count.encode(preset.tokenizer, size),
        memory=memory,
    )


def _plan_generator(preset: Preset, count: FlopCounter) -> tuple[int, int]:
    task, trainer = preset.task, preset.config["trainer"]
    assert isinstance(task, GeneratorTask) and preset.slots is not None
    devices = Devices(
        world=preset.ranks,
        shard=trainer.get("shard", False),
        recompute=task.recompute,
        precision=str(trainer["precision"]),
        micro_batch=preset.share,
        whole=preset.share * preset.ranks == preset.config["data"]["batch"],
        average=task.ema.decay > 0,
    )
    memory = training_memory(task.model, preset.slots, devices)
    return TRAINING * count.transformer(task.model, preset.slots), memory.total


def _plan_tokenizer(preset: Preset, count: FlopCounter) -> tuple[int, int]:
    """Memory: activations in float32 of the tokenizer and of the discriminator, one after the other."""
    task, size, disc = preset.task, preset.tokenizer.image_size, preset.discriminator
    peaks = []
    for module in (task.model, *([disc] if disc is not None else [])):
        img_B3HW = torch.zeros(2, 3, *size, device="meta", requires_grad=module is disc)
        with LiveBytes() as live:
            out = module(img_B3HW)
            loss = out.mean() if isinstance(out, Tensor) else F.l1_loss(out[0], img_B3HW) + out[1].vq_loss
            loss.backward()
        peaks.append(live.peak // 2 * preset.share)
        assert all(p.grad is not None and p.grad.shape == p.shape for p in module.parameters() if p.requires_grad)
    parameters = [p for group in [g for o in task.optims for g in o.param_groups] for p in group["params"]]
    average = tensor_bytes(task.model.state_dict().values()) if task.ema.decay else 0
    flops = count.trained(task.model, size)
    return flops, 4 * tensor_bytes(parameters) + average + max(peaks)


def table(rows: Mapping[str, tuple[Preset, Planned]]) -> str:
    """The numbers of presets, side by side."""
    lines = ["| preset | parameters | of them decaying | train TFLOP | encode TFLOP | batch | GiB a device |"]
    lines.append("|---|---|---|---|---|---|---|")
    for name, (preset, planned) in rows.items():
        batch = f"{preset.config['data']['batch']} = {preset.ranks} × {preset.config['data']['batch'] // preset.ranks}"
        share = f", {preset.share} at once" if preset.task.micro_batch else ""
        lines.append(
            f"| {name} | {planned.parameters / 1e6:,.1f}M | {planned.decayed / 1e6:,.1f}M | {planned.train_flops / 1e12:.3f} | "
            f"{planned.encode_flops / 1e12:.3f} | {batch}{share} | {planned.memory / 2**30:.1f} |"
        )
    return "\n".join(lines)
