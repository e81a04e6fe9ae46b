"""Tasks small enough for tests, on random images held in memory."""

from __future__ import annotations

import hashlib
import os
import signal
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.loggers import Logger
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from varlab.data import BaseDataModule
from varlab.losses.diff_augment import DiffAugment
from varlab.losses.discriminator import PatchGAN
from varlab.metrics.classifier import Classifier
from varlab.order import NextScale, Random
from varlab.rng import Rng
from varlab.tasks import (
    ClassifierTask,
    GanLoss,
    GeneratorTask,
    LossWeights,
    Revival,
    Task,
    TokenizerTask,
    WarmupDecay,
    fit,
)
from varlab.tasks.callbacks import BestWeights, Checkpointer, Resume, TrainingLog, Validation
from varlab.tasks.distributed import collectives
from varlab.tasks.loggers import Journal
from varlab.tokenizer import VQTokenizer
from varlab.transformer import AdaLNBlock, AdaLNHeadNorm, Transformer
from varlab.types import Batch, DataInfo

BATCH, SIZE, CLASSES, IMAGES, EPOCH = 8, 8, 3, 20, 78
SCALES = [[1, 1], [2, 2]]
RNG = Rng(7)


def batch_at(positions: list[int]) -> Batch:
    """Images, labels: functions of the position modulo the number of images."""
    position_B = torch.tensor(positions)
    stream = RNG.stream("images", position_B % IMAGES)
    return Batch(
        img_u8_B3HW=stream.integers(256, 3, SIZE, SIZE).to(torch.uint8),
        label_B=stream.at(1).integers(CLASSES, 1)[:, 0],
        position_B=position_B,
        valid_B=torch.ones(len(positions), dtype=torch.bool),
    )


class _Listed(Dataset[Batch]):
    def __init__(self, batches: list[list[int]]):
        self._batches = batches

    def __len__(self) -> int:
        return len(self._batches)

    def __getitem__(self, index: int) -> Batch:
        return batch_at(self._batches[index])


def loader(start: int, stop: int, rank: int = 0, world: int = 1, batch: int = BATCH) -> DataLoader[Batch]:
    """A rank's shares of the global batches between two positions, as torch's own loader reads them."""
    share = batch // world
    firsts = [first + rank * share for first in range(start, stop, batch)]
    return DataLoader(_Listed([list(range(f, f + share)) for f in firsts]), batch_size=None)


class Data(BaseDataModule):
    """A stream of global batches."""

    def __init__(self) -> None:
        super().__init__(path="memory", batch=BATCH, eval_batch=BATCH, seed=0, workers=0)

    @property
    def info(self) -> DataInfo:
        counts = {"train": EPOCH, "val": IMAGES}
        return DataInfo(
            path="memory", classes=("a", "b", "c"), image_size=(SIZE, SIZE), counts=counts, hash="", source="memory"
        )

    def train_loader(self, start: int, stop: int, rank: int, world: int) -> DataLoader[Batch]:
        return loader(start, stop, rank, world)

    def eval_loader(self, split: str, rank: int, world: int, batch: int | None = None) -> Any:
        return [batch_at([p]) for p in range(rank, IMAGES, world)]


class Interrupted(Data):
    """SIGTERM after some batches of the second validation."""

    def __init__(self) -> None:
        super().__init__()
        self.validations = 0

    def eval_loader(self, split: str, rank: int, world: int, batch: int | None = None) -> Iterator[Batch]:
        self.validations += 1
        for i, batch in enumerate(super().eval_loader(split, rank, world)):
            if self.validations == 2 and i == 3:
                os.kill(os.getpid(), signal.SIGTERM)
            assert self.validations < 2 or i < 4, "it was not left at once"
            yield batch


def tokenizer(scales: list[list[int]] = SCALES, **changes: Any) -> VQTokenizer:
    with RNG.scope("init/tokenizer"):
        sizes: dict[str, Any] = dict(
            scales=scales,
            vocab_size=16,
            code_dim=4,
            channels=8,
            channel_mult=[1, 1, 2],
            res_blocks=1,
            groups=4,
            decoder_channel_mult=None,
            z_channels=None,
            attention=[],
            mid_attention=False,
            beta_term="commitment",
            quant_kernel=1,
            beta=0.25,
            phi_count=1,
            phi_ratio=0.5,
            code_init=16.0,
            code_norm=False,
            cosine=False,
            entropy=None,
        )
        return VQTokenizer(**(sizes | changes))


def optimizer(lr: float = 1e-2) -> Any:
    return partial(torch.optim.AdamW, lr=lr, betas=(0.9, 0.95), weight_decay=0.05)


SCHEDULE = WarmupDecay(warmup=0.2, start=0.1, shape="cosine", end=0.1)


def generator_task(*, order: Any = NextScale, **changes: Any) -> GeneratorTask:
    """order: a type, or one that is made already (and then perhaps ``transformer`` too)."""
    the_order = order(scales=SCALES) if isinstance(order, type) else order
    with RNG.scope("init/transformer"):
        transformer = Transformer(
            vocab_size=16,
            code_dim=4,
            num_classes=CLASSES,
            positions_P3=the_order.positions_P3,
            source_positions=not the_order.fixed,
            width=16,
            depth=2,
            heads=2,
            block=partial(AdaLNBlock, mlp_ratio=2.0, qk_norm=True, attention_scale=0.25),
            head_norm=AdaLNHeadNorm,
            token_inputs=False,
            tied=False,
            embed={"start": True, "position": True, "level": True},
            rotary=None,
            head_bias=True,
            drop_path=0.2,
            dropout=0.0,
            init={"std": None, "residual": True, "position": 1.0, "head": 0.5, "modulation": 0.5, "gamma": 0.1},
        )
    values: dict[str, Any] = dict(
        transformer=transformer,
        order=the_order,
        tokenizer=tokenizer(),
        label_drop=0.3,
        optimizer=optimizer(),
        schedule=SCHEDULE,
        clip=1.0,
        ema_decay=0.9,
        label_smoothing=0.1,
        pkeep=0.8,
        micro_batch=None,
        rng=RNG,
    )
    return GeneratorTask(**{**values, **changes})


def random_order_task(**changes: Any) -> GeneratorTask:
    return generator_task(order=Random, **changes)


def gan_loss(**changes: Any) -> GanLoss:
    values: dict[str, Any] = dict(kind="hinge", weight=0.8, start=16, adaptive=True, delta=1e-4, clamp=(0.0, 1e4))
    return GanLoss(**{**values, **changes})


def discriminator(norm: str = "group") -> PatchGAN:
    with RNG.scope("init/discriminator"):
        return PatchGAN(width=8, layers=1, norm=norm)


def tokenizer_task(**changes: Any) -> TokenizerTask:
    values: dict[str, Any] = dict(
        tokenizer=tokenizer(),
        discriminator=discriminator(),
        perceptual=None,
        weights=LossWeights(l1=1.0, l2=0.5, perceptual=1.0, vq=1.0),
        gan=gan_loss(),
        optimizer=optimizer(),
        disc_optimizer=optimizer(),
        schedule=SCHEDULE,
        clip=1.0,
        revival=Revival(every=24, until=1.0),
        ema_decay=0.9,
        micro_batch=None,
        rng=RNG,
    )
    return TokenizerTask(**{**values, **changes})


def held_back_task(**changes: Any) -> TokenizerTask:
    """A tokenizer whose discriminator has everything that holds it back."""
    augment = DiffAugment(policies=["color", "translation", "cutout"], rate=0.7)
    gan = gan_loss(start=8, warmup=8, ramp=24, augment=augment, bcr=1.0, lecam=0.3, lecam_decay=0.8)
    return tokenizer_task(**({"gan": gan} | changes))


def gumbel_task(**changes: Any) -> TokenizerTask:
    """A tokenizer whose codes are drawn, at a temperature that falls."""
    gumbel = {"kl": 0.01, "temperature": [1.0, 0.1]}
    drawing = tokenizer(scales=SCALES[-1:], phi_count=0, gumbel=gumbel)
    return tokenizer_task(**({"tokenizer": drawing, "revival": None} | changes))


def classifier_task(**changes: Any) -> ClassifierTask:
    with RNG.scope("init/classifier"):
        classifier = Classifier(channels=[8, 8], blocks=1, groups=4, num_classes=CLASSES)
    values: dict[str, Any] = dict(
        classifier=classifier,
        optimizer=optimizer(),
        schedule=SCHEDULE,
        clip=1.0,
        ema_decay=0.9,
        label_smoothing=0.1,
        micro_batch=None,
        rng=RNG,
    )
    return ClassifierTask(**{**values, **changes})


class Ask(Callback):
    """SIGUSR2 to one rank, just before the update that follows so many images."""

    def __init__(self, *, rank: int, after: int):
        self._rank, self._after = rank, after

    def on_train_batch_start(self, trainer: Any, task: Any, batch: Any, batch_idx: int) -> None:
        if task.images == self._after and collectives.rank() == self._rank:
            os.kill(os.getpid(), signal.SIGUSR2)


class Killed(Exception):
    """Stands for kill -9: nothing runs after it but the test."""


class Kill(Callback):
    """After so many images, on every rank."""

    def __init__(self, at: int):
        self._at = at

    def on_train_batch_end(self, trainer: Any, task: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if task.images >= self._at:
            raise Killed


def train(
    task: Task,
    directory: Path,
    *,
    images: int,
    every: int = 16,
    config_hash: str = "same",
    extra: tuple[Callback, ...] = (),
    on_resume: Any = lambda resumed: None,
    devices: int = 1,
    precision: str = "32-true",
    loggers: tuple[Logger, ...] = (),
    val_every: int | None = 24,
    shard: bool = False,
    data: Data | None = None,
    log_every: int = 24,
    accelerator: str = "cpu",
    deterministic: bool | str = True,
    keep: tuple[int, ...] = (),
    minutes: float | None = None,
    best: tuple[str, str] | None = None,
) -> Task:
    """A whole training in a directory, resumed if there is a checkpoint."""
    data = data or Data()
    checkpointer = Checkpointer(
        path=directory / "last.ckpt",
        every=every,
        config_hash=config_hash,
        weights=directory,
        keep=keep,
        minutes=minutes,
        best=BestWeights(path=directory / "weights_best.safetensors", score=best[0], best=best[1]) if best else None,
    )
    fit(
        task,
        data,
        images=images,
        resume=Resume(
            checkpointer=checkpointer,
            progress=directory / "progress",
            on_resume=on_resume,
        ),
        callbacks=[
            TrainingLog(every=log_every),
            Validation(loader=partial(data.eval_loader, "val"), every=val_every),
            *extra,
        ],
        checkpointer=checkpointer,
        trainer=partial(
            Trainer,
            accelerator=accelerator,
            devices=devices,
            precision=precision,
            deterministic=deterministic,
            enable_model_summary=False,
        ),
        ranks=devices,
        loggers=[Journal(directory=directory), *loggers],
        threads=1,
        shard=shard,
    )
    return task


def same_state(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    """Equal to the last bit."""
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def fingerprint(state: dict[str, Tensor]) -> str:
    """A hash of a state dict's bytes."""
    digest = hashlib.sha256()
    for name in sorted(state):
        digest.update(name.encode() + state[name].detach().contiguous().numpy().tobytes())
    return digest.hexdigest()
