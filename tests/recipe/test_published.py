"""The recipes of ``conf/experiment/imagenet`` against their sources, number by number.

Each row names a fact of the composed and built training, its published value and where it stands. The readers below say how
a fact is read. The repositories on GitHub: FoundationVision/VAR, FoundationVision/vaex (the later tokenizer trainer of VAR's
authors), CompVis/taming-transformers, FoundationVision/LlamaGen.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from torch import nn

from tests.recipe.presets import Preset, build, composed, plan_update
from varlab.cli.app import conf_dir
from varlab.losses.dino import DinoDiscriminator, GlobalBatchNorm
from varlab.losses.discriminator import PatchGAN
from varlab.recipe.objects import make
from varlab.tasks import GeneratorTask, ScaleStages, TokenizerTask
from varlab.transformer import AdaLNBlock, GPT2Block, LlamaBlock, SharedAdaLNBlock

FOLDER = conf_dir() / "experiment" / "imagenet"
EPOCH, OPENIMAGES = 1_281_167, 9_011_219
POINTS = (0.0, 0.005, 0.01, 0.02, 0.06, 0.069, 0.1, 0.2, 0.22, 0.3, 0.5, 0.75, 0.999)
"""Shares of a training at which rates are compared."""


class Fact(NamedTuple):
    """name: of a reader. source: the file of the official code, or its command."""

    name: str
    value: Any
    source: str


# -- the published schedules, in terms of the done share of a training --------------------------------------------------


def var_rate(end: float, *, kind: str = "lin0", middle: float = 0.05) -> Callable[[float], float]:
    """VAR, utils/lr_control.py: warm-up from 0.005, then ``lin0`` (held for 5%) or ``lin<pg>`` (slower before pg)."""

    def rate(done: float) -> float:
        warm = 1 / 50
        if done < warm:
            return 0.005 + 0.995 * done / warm
        passed = (done - warm) / (1 - warm)
        if kind == "lin0":
            return 1.0 if passed < middle else end + (1 - end) * (1 - passed) / (1 - middle)
        half = (1 + end + (1 - end) * (1 - middle)) / 2
        if passed < middle:
            return 1 + (half - 1) * passed / middle
        return end + (half - end) * (1 - passed) / (1 - middle)

    return rate


def cosine_rate(*, start: float = 0.0, warm: float, end: float = 0.3) -> Callable[[float], float]:
    """vaex, utils/lr_control.py, from ``start`` on: warm-up from 0.005, then half a cosine."""

    def rate(done: float) -> float:
        if done < start:
            return 0.0
        if done < start + warm:
            return 0.005 + 0.995 * (done - start) / warm
        passed = (done - start - warm) / (1 - start - warm)
        return end + (1 - end) * 0.5 * (1 + math.cos(math.pi * passed))

    return rate


def constant(done: float) -> float:
    return 1.0


# -- what is published -------------------------------------------------------------------------------------------------


def var(
    depth: int, *, epochs: int, rate: float, batch: int, end: float, gamma: float, twde: float | None
) -> list[Fact]:
    readme, args = f"VAR README, command of d{depth}", "VAR utils/arg_util.py"
    return [
        Fact("lr", rate * batch / 256, f"{readme}: tblr × bs / 256"),
        Fact("batch", batch, readme),
        Fact("epochs", epochs, readme),
        Fact("rates", var_rate(end), f"{args}: lin0, wp, wp0; {readme}: wpe"),
        Fact("weight_decay", 0.05, f"{args}: twd"),
        Fact("weight_decay_end", twde, readme if twde else f"{args}: twde = twd"),
        Fact("betas", (0.9, 0.95), "VAR train.py"),
        Fact("no_decay", {"position.weight", "level.weight"} | _places_in_blocks(depth), "VAR train.py: nowd_keys"),
        Fact("optimizer", "AdamW", f"{args}: opt"),
        Fact("clip", 2.0, f"{args}: tclip"),
        Fact("ema", 0.0, "VAR trainer.py: none"),
        Fact("label_smoothing", 0.0, f"{args}: ls"),
        Fact("label_drop", 0.1, "VAR models/var.py: cond_drop_rate"),
        Fact("drop_path", 0.1 * depth / 24, "VAR models/__init__.py"),
        Fact("dropout", 0.0, "VAR models/var.py: drop_rate, attn_drop_rate"),
        Fact("sizes", (64 * depth, depth, depth), "VAR models/__init__.py"),
        Fact("first_head", 0.02, f"{args}: hd"),
        Fact("first_modulation", 0.5, f"{args}: aln"),
        Fact("first_gamma", gamma, f"{readme}: alng"),
        Fact("first_std", math.sqrt(1 / (64 * depth) / 3), "VAR models/var.py: init_weights, init_std < 0"),
        Fact("crops", (8 / 9, "whole picture"), "VAR utils/data.py: mid_reso 1.125, RandomCrop"),
        Fact("pack", "whole lanczos", "VAR utils/data.py: Resize, LANCZOS"),
        Fact("flip", False, f"{args}: hflip"),
        Fact("sampler", (1.5, "linear", 900, 0.96), "VAR README: for FID evaluation"),
    ]


def _places_in_blocks(depth: int) -> set[str]:
    """The learned scales of attention, one a block; and each block's own offset in the 512-pixel model."""
    names = {f"blocks.{i}.attention.log_scale" for i in range(depth)}
    return names | ({f"blocks.{i}.offset_116D" for i in range(depth)} if depth == 36 else set())


def llamagen(size: str, *, width: int, depth: int, heads: int, guidance: float) -> list[Fact]:
    train, gpt = "LlamaGen autoregressive/train/train_c2i.py", "LlamaGen autoregressive/models/gpt.py"
    return [
        Fact("lr", 1e-4, f"{train}: lr"),
        Fact("batch", 256, f"{train}: global-batch-size"),
        Fact("epochs", 300, f"{train}: epochs"),
        Fact("rates", constant, f"{train}: no schedule"),
        Fact("weight_decay", 0.05, f"{train}: weight-decay"),
        Fact("betas", (0.9, 0.95), f"{train}: beta1, beta2"),
        Fact("no_decay", set(), f"{train}: everything of two dimensions decays"),
        Fact("optimizer", "AdamW", train),
        Fact("clip", 1.0, f"{train}: max-grad-norm"),
        Fact("ema", 0.0, f"{train}: ema is off"),
        Fact("label_drop", 0.1, f"{gpt}: class_dropout_prob"),
        Fact("label_smoothing", 0.0, gpt),
        Fact("drop_path", 0.0, f"{train}: drop-path-rate"),
        Fact("dropout", 0.1, f"{train}: token-dropout-p"),
        Fact("branch_dropout", 0.1, f"{train}: dropout-p"),
        Fact("sizes", (width, depth, heads), f"{gpt}: GPT_{size}"),
        Fact("first_std", 0.02, f"{gpt}: initializer_range"),
        Fact("first_head", 0.0, f"{gpt}: the output layer starts at 0"),
        Fact(
            "crops",
            (256 / 281, 256 / 268, "middle"),
            "LlamaGen extract_codes_c2i.py, GETTING_STARTED.md: crop-range 1.1, 1.05",
        ),
        Fact("pack", "middle bicubic", "LlamaGen dataset/augmentation.py: center_crop_arr"),
        Fact("flip", True, "LlamaGen extract_codes_c2i.py: TenCrop"),
        Fact("sampler", (guidance - 1, "constant", 0, 1.0), "LlamaGen GETTING_STARTED.md: cfg-scale"),
        Fact("precision", "bf16-mixed", f"{train}: mixed-precision"),
    ]


def vqgan(*, sizes: tuple[int, int, int], source: str, sampler: tuple[Any, ...], codes: int) -> list[Fact]:
    net, gpt = "taming taming/models/cond_transformer.py", "taming modules/transformer/mingpt.py"
    return [
        Fact("lr_by_batch", 4.5e-6, "taming configs/faceshq_transformer.yaml: base_learning_rate"),
        Fact("rates", constant, f"{net}: no schedule"),
        Fact("weight_decay", 0.01, f"{net}: configure_optimizers"),
        Fact("no_decay", {"word.weight", "position.weight"}, f"{net}: embeddings do not decay"),
        Fact("betas", (0.9, 0.95), net),
        Fact("optimizer", "AdamW", net),
        Fact("clip", None, "taming configs/faceshq_transformer.yaml: none"),
        Fact("ema", 0.0, net),
        Fact("pkeep", 1.0, net),
        Fact("label_drop", 0.0, f"{net}: none"),
        Fact("drop_path", 0.0, gpt),
        Fact("dropout", 0.0, f"{gpt}: embd_pdrop, resid_pdrop, attn_pdrop"),
        Fact("sizes", sizes, source),
        Fact("codes", codes, source),
        Fact("first_std", 0.02, gpt),
        Fact("first_position", 0.0, gpt),
        Fact("crops", (1.0, "whole picture"), "taming data/base.py: SmallestMaxSize, RandomCrop"),
        Fact("pack", "whole bilinear", "taming data/base.py: SmallestMaxSize"),
        Fact("flip", False, "taming data/base.py"),
        Fact("sampler", sampler, "taming README"),
    ]


TAMING = "taming configs/imagenet_vqgan.yaml"
LOSS = "taming modules/losses/vqperceptual.py"
VQ_TRAIN = "LlamaGen tokenizer/tokenizer_image/vq_train.py"
VQ_LOSS = "LlamaGen tokenizer/tokenizer_image/vq_loss.py"
ARGS, DINO = "vaex utils/arg_util.py", "vaex models/dino.py"
TOKENIZERS: dict[str, list[Fact]] = {
    "vqgan_tokenizer": [
        Fact("lr_by_batch", 4.5e-6, f"{TAMING}: base_learning_rate"),
        Fact("disc_lr_by_batch", 4.5e-6, "taming models/vqgan.py: the same for both"),
        Fact("optimizer", "Adam", "taming models/vqgan.py"),
        Fact("betas", (0.5, 0.9), "taming models/vqgan.py"),
        Fact("disc_betas", (0.5, 0.9), "taming models/vqgan.py"),
        Fact("weight_decay", 0, "taming models/vqgan.py"),
        Fact("rates", constant, "taming models/vqgan.py: no schedule"),
        Fact("disc_rates", constant, "taming models/vqgan.py: no schedule"),
        Fact("clip", None, TAMING),
        Fact("ema", 0.0, TAMING),
        Fact("revival", None, TAMING),
        Fact("loss", (1.0, 0.0, 1.0, 1.0), f"{LOSS}: pixelloss, perceptual, codebook"),
        Fact("gan", ("hinge", 0.8, True, 1e-4, (0.0, 1e4)), f"{LOSS}; {TAMING}: disc_weight"),
        Fact("disc_factor", None, f"{LOSS}: hinge_d_loss has 1/2"),
        Fact("disc_start_steps", 250_001, f"{TAMING}: disc_start"),
        Fact("disc_ramp", 0.0, LOSS),
        Fact(
            "patchgan", (64, 4, True), "taming modules/discriminator/model.py: ndf, n_layers, weights_init, BatchNorm"
        ),
        Fact("codes", 1024, TAMING),
        Fact("code_dim", 256, TAMING),
        Fact("beta", (1.0, 0.25), "taming modules/vqvae/quantize.py: legacy"),
        Fact("code_range", 1 / 1024, "taming modules/vqvae/quantize.py"),
        Fact("cnn", (128, [1, 1, 2, 2, 4], 2, 0.0, None), TAMING),
        Fact("crops", (1.0, "whole picture"), "taming data/base.py: SmallestMaxSize, RandomCrop"),
        Fact("pack", "whole bilinear", "taming data/base.py: SmallestMaxSize"),
        Fact("flip", False, "taming data/base.py"),
    ],
    "llamagen_tokenizer": [
        Fact("lr", 1e-4, f"{VQ_TRAIN}: lr"),
        Fact("disc_lr", 1e-4, f"{VQ_TRAIN}: lr"),
        Fact("optimizer", "Adam", VQ_TRAIN),
        Fact("betas", (0.9, 0.95), f"{VQ_TRAIN}: beta1, beta2"),
        Fact("disc_betas", (0.9, 0.95), f"{VQ_TRAIN}: beta1, beta2"),
        Fact("weight_decay", 0, f"{VQ_TRAIN}: its weight-decay is not used"),
        Fact("rates", constant, f"{VQ_TRAIN}: no schedule"),
        Fact("disc_rates", constant, f"{VQ_TRAIN}: no schedule"),
        Fact("clip", 1.0, f"{VQ_TRAIN}: max-grad-norm"),
        Fact("ema", 0.0, f"{VQ_TRAIN}: ema is off"),
        Fact("revival", None, VQ_TRAIN),
        Fact("batch", 128, f"{VQ_TRAIN}: global-batch-size"),
        Fact("epochs", 40, f"{VQ_TRAIN}: epochs"),
        Fact("loss", (0.0, 1.0, 1.0, 1.0), f"{VQ_TRAIN}: reconstruction-loss l2 and the weights"),
        Fact("gan", ("hinge", 0.5, False, None, None), f"{VQ_TRAIN}: disc-weight; {VQ_LOSS}: disc_adaptive_weight"),
        Fact("disc_factor", 0.25, f"{VQ_LOSS}: disc_weight × 1/2"),
        Fact("disc_start_steps", 19_999, f"{VQ_TRAIN}: disc-start, steps counted from 1"),
        Fact("disc_ramp", 0.0, VQ_LOSS),
        Fact("patchgan", (64, 4, True), "LlamaGen tokenizer/tokenizer_image/discriminator_patchgan.py"),
        Fact("codes", 16384, f"{VQ_TRAIN}: codebook-size"),
        Fact("code_dim", 8, f"{VQ_TRAIN}: codebook-embed-dim"),
        Fact("beta", (0.25, 1.0), f"{VQ_TRAIN}: commit-loss-beta"),
        Fact("cosine", True, f"{VQ_TRAIN}: codebook-l2-norm"),
        Fact("cnn", (128, [1, 1, 2, 2, 4], 2, 0.0, None), "LlamaGen tokenizer/tokenizer_image/vq_model.py; dropout-p"),
        Fact("crops", (0.8, 1.0, "whole picture"), "LlamaGen dataset/augmentation.py: random_crop_arr"),
        Fact("pack", "whole bicubic", "LlamaGen dataset/augmentation.py: random_crop_arr"),
        Fact("flip", True, VQ_TRAIN),
        Fact("precision", "bf16-mixed", f"{VQ_TRAIN}: mixed-precision"),
    ],
    "var_tokenizer": [
        Fact("lr", 3e-4, f"{ARGS}: vae_lr"),
        Fact("disc_lr", 3e-4, f"{ARGS}: disc_lr"),
        Fact("optimizer", "AdamW", f"{ARGS}: opt"),
        Fact("betas", (0.5, 0.9), f"{ARGS}: vae_opt_beta"),
        Fact("disc_betas", (0.5, 0.9), f"{ARGS}: disc_opt_beta"),
        Fact("weight_decay", 0.005, f"{ARGS}: vae_wd"),
        Fact("disc_weight_decay", 0.0005, f"{ARGS}: disc_wd"),
        Fact("no_decay", {"quantizer.codebook.weight"}, "vaex train.py: nowd_keys"),
        Fact("rates", cosine_rate(warm=0.01), f"{ARGS}: sche, sche_end, warmup_ep, wp0"),
        Fact("disc_rates", cosine_rate(start=0.2, warm=0.02), "vaex train.py: disc_g_it, disc_wp_it, disc_max_it"),
        Fact("clip", 10.0, f"{ARGS}: grad_clip"),
        Fact("ema", 0.9999, f"{ARGS}: ema"),
        Fact("revival", None, "vaex models/quant.py: none"),
        Fact("batch", 768, f"{ARGS}: bs"),
        Fact("openimages_epochs", 250, f"{ARGS}: ep"),
        Fact("loss", (0.2, 1.0, 1.0, 1.0), f"{ARGS}: l1, l2, lp (doubled in trainer.py)"),
        Fact("gan", ("hinge", 0.4, True, 1e-6, (0.015, 1e4)), f"{ARGS}: dcrit, ld, gada; trainer.py"),
        Fact("disc_factor", 1.0, "vaex utils/loss.py: without 1/2"),
        Fact("disc_start", 0.2, f"{ARGS}: disc_start_ep"),
        Fact("disc_ramp", 0.02, f"{ARGS}: disc_warmup_ep"),
        Fact("blur", 0.04, "vaex train.py: fade_blur_schedule"),
        Fact("augment", (["translation", "color", "cutout"], 1.0, 0.2, 224), f"vaex utils/diffaug.py; {DINO}: crop"),
        Fact("strong", (["translation", "color", "cutout"], 1.0, 0.2, 224), f"{ARGS}: bcr_cut"),
        Fact("bcr", 4.0, f"{ARGS}: bcr"),
        Fact("r1", None, f"{ARGS}: reg"),
        Fact("joint", (True, True), "vaex trainer.py: inp_rec_no_grad, disc.eval() in the generator's turn"),
        Fact("dino_taps", (-1, 2, 5, 8, 11), f"{DINO}: key_depths, and one head before them"),
        Fact("dino", (9, True, 224, "tanh"), f"{DINO}: ks, readout, img_size, GELU; {ARGS}: dino_kernel_size"),
        Fact("dino_norm", 1e-6, f"{DINO}: SyncBatchNorm; {ARGS}: disc_norm"),
        Fact("dino_first", 0.02, f"{ARGS}: disc_init"),
        Fact("codes", 4096, f"{ARGS}: vocab_size"),
        Fact("code_dim", 32, f"{ARGS}: vocab_width"),
        Fact("beta", (0.25, 1.0), f"{ARGS}: vq_beta"),
        Fact("code_range", 32**-0.5 / 36, "vaex models/quant.py: init_vocab"),
        Fact("cnn", (160, [1, 1, 2, 2, 4], 2, 0.05, 0.5), f"{ARGS}: ch, drop_out, vae_init; models/__init__.py"),
        Fact("crops", (8 / 9, "whole picture"), "vaex utils/data.py: mid_reso"),
        Fact("pack", "whole lanczos", "vaex utils/data.py: Resize, LANCZOS"),
        Fact("flip", False, f"{ARGS}: hflip"),
    ],
}
D16 = var(16, epochs=200, rate=1e-4, batch=768, end=0.1, gamma=1e-3, twde=None)
PUBLISHED: dict[str, list[Fact]] = TOKENIZERS | {
    "var_d16": D16,
    "var_d16_progressive": [fact for fact in D16 if fact.name != "rates"]
    + [
        Fact("rates", var_rate(0.1, kind="lin", middle=0.5), "VAR utils/arg_util.py: sche = lin<pg>"),
        Fact("stages", (0.5, 4, 1 / 300), "VAR utils/arg_util.py: pg0, pgwp (pg is our choice)"),
    ],
    "var_d20": var(20, epochs=250, rate=1e-4, batch=768, end=0.1, gamma=1e-3, twde=None),
    "var_d24": var(24, epochs=350, rate=8e-5, batch=768, end=0.01, gamma=1e-4, twde=None),
    "var_d30": var(30, epochs=350, rate=8e-5, batch=1024, end=0.01, gamma=1e-5, twde=0.08),
    "var_d36_512": [
        *var(36, epochs=350, rate=8e-5, batch=768, end=0.01, gamma=5e-6, twde=0.08),
        Fact("block", SharedAdaLNBlock, "VAR README, command of d36: saln"),
        Fact("scales", [1, 2, 3, 4, 6, 9, 13, 18, 24, 32], "VAR utils/arg_util.py: pn 512"),
    ],
    "llamagen_b": llamagen("B", width=768, depth=12, heads=12, guidance=2.0),
    "llamagen_l": llamagen("L", width=1024, depth=24, heads=16, guidance=2.0),
    "llamagen_xl": llamagen("XL", width=1280, depth=36, heads=20, guidance=1.75),
    "llamagen_xxl": llamagen("XXL", width=1536, depth=48, heads=24, guidance=1.75),
    "llamagen_3b": llamagen("3B", width=3200, depth=24, heads=32, guidance=1.65),
    "vqgan_transformer": vqgan(
        sizes=(1024, 24, 16),
        source="taming configs/faceshq_transformer.yaml",
        sampler=(0.0, "linear", 0, 1.0),
        codes=1024,
    ),
    "vqgan_cin": vqgan(
        sizes=(1536, 48, 24),
        source="taming, the released cin_transformer",
        sampler=(0.0, "linear", 600, 0.92),
        codes=16384,
    ),
}


# -- how facts are read from what was built ----------------------------------------------------------------------------


def _group(preset: Preset, which: int = 0) -> dict[str, Any]:
    return preset.task.optims[which].param_groups[0]


def _rates(preset: Preset, which: int = 0) -> list[float]:
    task, total = preset.task, preset.config["budget"]["images"]
    task.total_images, found = total, []
    for point in POINTS:
        task.images = round(point * total)
        found.append(task.rates()[which])
    task.images = task.total_images = 0
    return found


def _no_decay(preset: Preset) -> set[str]:
    """Names of matrices and tables without weight decay."""
    spared = {id(p) for g in preset.task.optims[0].param_groups if not g["weight_decay"] for p in g["params"]}
    return {name for name, p in preset.task.model.named_parameters() if id(p) in spared and p.ndim > 1}


def _crops(preset: Preset) -> tuple[Any, ...]:
    """The sides of crops of a picture of 1,600 × 1,200, packed whole, as shares of the shorter side, and their reach."""
    crop = make(preset.config["data"]["crop"])
    draws = [[a / 8, b / 8, c / 8] + [0.0] * 9 for a in range(8) for b in range(8) for c in (0, 8 - 1e-9)]
    boxes = [crop.box(1200, 1600, 1.0, u) for u in draws]
    sides = sorted({round(box.height / 1200, 3) for box in boxes})
    reach = min(box.left for box in boxes) < 200
    return (*sides, "whole picture" if reach else "middle")


def _pack(preset: Preset) -> str:
    """What the header's command packs."""
    name = preset.config["name"].removeprefix("imagenet/")
    pages = [FOLDER / f"{n}.yaml" for n in (name, name.replace("_progressive", ""))]
    (line,) = {line for page in pages for line in page.read_text().splitlines() if "varlab pack" in line}
    words = line.split()
    filters = [word.removeprefix("source.resample=") for word in words if word.startswith("source.resample=")]
    return f"{'whole' if 'source.whole=true' in words else 'middle'} {(filters or ['lanczos'])[0]}"


def _gan(preset: Preset) -> tuple[Any, ...]:
    gan = _tokenizer_task(preset).gan
    ends = (gan.delta, tuple(gan.clamp)) if gan.adaptive else (None, None)
    return (gan.kind, gan.weight, gan.adaptive, *ends)


def _tokenizer_task(preset: Preset) -> TokenizerTask:
    assert isinstance(preset.task, TokenizerTask)
    return preset.task


def _generator_task(preset: Preset) -> GeneratorTask:
    assert isinstance(preset.task, GeneratorTask)
    return preset.task


def _dino(preset: Preset) -> DinoDiscriminator:
    assert isinstance(preset.discriminator, DinoDiscriminator)
    return preset.discriminator


def _patchgan(preset: Preset) -> tuple[int, int, bool]:
    """Width, convolutions with strides or norms, and whether the norm is BatchNorm."""
    disc = preset.discriminator
    assert isinstance(disc, PatchGAN) and preset.config["discriminator"]["torch_bias"]
    convs = [m for m in disc.modules() if isinstance(m, nn.Conv2d)]
    norms = [m for m in disc.modules() if isinstance(m, nn.BatchNorm2d)]
    return convs[0].out_channels, len(convs) - 1, len(norms) == len(convs) - 2


def _augment(augment: Any) -> tuple[Any, ...]:
    return list(augment.policies), augment.rate, augment.cutout, augment.crop


def _cnn(preset: Preset) -> tuple[Any, ...]:
    config, model = preset.config["tokenizer"], preset.tokenizer
    return (
        model.encoder.conv_in.out_channels,
        config["channel_mult"],
        config["res_blocks"],
        model.dropout,
        config["init_gain"],
    )


def _code_range(preset: Preset) -> float:
    config = preset.config["tokenizer"]
    return config["code_range"] or config["code_init"] / config["vocab_size"]


def _first_std(preset: Preset) -> float:
    init = preset.config["transformer"]["init"]
    return init["std"] or math.sqrt(1 / preset.task.model.width / 3)


def _share(preset: Preset, images: float) -> float:
    return images / preset.config["budget"]["images"]


READERS: dict[str, Callable[[Preset], Any]] = {
    "augment": lambda p: _augment(_tokenizer_task(p).gan.augment),
    "batch": lambda p: p.config["data"]["batch"],
    "bcr": lambda p: _tokenizer_task(p).gan.bcr,
    "beta": lambda p: (p.tokenizer.quantizer.commitment, p.tokenizer.quantizer.codebook_weight),
    "betas": lambda p: tuple(_group(p)["betas"]),
    "block": lambda p: type(p.task.model.blocks[0]),
    "blur": lambda p: _share(p, _tokenizer_task(p).gan.fade or 0),
    "branch_dropout": lambda p: p.task.model.blocks[0].dropout,
    "clip": lambda p: p.task.clip,
    "cnn": _cnn,
    "code_dim": lambda p: p.tokenizer.code_dim,
    "code_range": _code_range,
    "codes": lambda p: p.tokenizer.vocab_size,
    "cosine": lambda p: p.tokenizer.quantizer.codebook.cosine,
    "crops": _crops,
    "dino": lambda p: (
        _dino(p).heads[0].second.kernel_size[0],
        _dino(p).readout,
        _dino(p).size,
        _dino(p).vit.blocks[0].gelu,
    ),
    "dino_first": lambda p: p.config["discriminator"]["std"],
    "dino_norm": lambda p: {m.eps for m in _dino(p).modules() if isinstance(m, GlobalBatchNorm)}.pop(),
    "dino_taps": lambda p: _dino(p).taps,
    "disc_betas": lambda p: tuple(_group(p, 1)["betas"]),
    "disc_factor": lambda p: _tokenizer_task(p).gan.disc_factor,
    "disc_lr": lambda p: _group(p, 1)["initial_lr"],
    "disc_lr_by_batch": lambda p: _group(p, 1)["initial_lr"] / p.config["data"]["batch"],
    "disc_ramp": lambda p: _share(p, _tokenizer_task(p).gan.ramp),
    "disc_rates": lambda p: _rates(p, 1),
    "disc_start": lambda p: _share(p, _tokenizer_task(p).gan.start),
    "disc_start_steps": lambda p: _tokenizer_task(p).gan.start / p.config["data"]["batch"],
    "disc_weight_decay": lambda p: _group(p, 1)["weight_decay"],
    "drop_path": lambda p: p.task.model.blocks[-1].drop.rate,
    "dropout": lambda p: p.task.model.dropout,
    "ema": lambda p: p.task.ema.decay,
    "epochs": lambda p: p.config["budget"]["images"] / EPOCH,
    "first_gamma": lambda p: p.config["transformer"]["init"]["gamma"],
    "first_head": lambda p: p.config["transformer"]["init"]["head"],
    "first_modulation": lambda p: p.config["transformer"]["init"]["modulation"],
    "first_position": lambda p: p.config["transformer"]["init"]["position"],
    "first_std": _first_std,
    "flip": lambda p: p.config["data"]["augment"]["flip"],
    "gan": _gan,
    "joint": lambda p: (_tokenizer_task(p).gan.joint, _tokenizer_task(p).gan.evaluated),
    "label_drop": lambda p: _generator_task(p).label_drop,
    "label_smoothing": lambda p: _generator_task(p).label_smoothing,
    "loss": lambda p: tuple(getattr(_tokenizer_task(p).weights, n) for n in ("l1", "l2", "perceptual", "vq")),
    "lr": lambda p: _group(p)["initial_lr"],
    "lr_by_batch": lambda p: _group(p)["initial_lr"] / p.config["data"]["batch"],
    "no_decay": _no_decay,
    "openimages_epochs": lambda p: p.config["budget"]["images"] / OPENIMAGES,
    "optimizer": lambda p: "/".join({type(optimizer).__name__ for optimizer in p.task.optims}),
    "pack": _pack,
    "patchgan": _patchgan,
    "pkeep": lambda p: _generator_task(p).pkeep,
    "precision": lambda p: p.config["trainer"]["precision"],
    "r1": lambda p: _tokenizer_task(p).gan.r1,
    "rates": _rates,
    "revival": lambda p: _tokenizer_task(p).revival,
    "sampler": lambda p: tuple(getattr(make(p.config["sampler"]), n) for n in ("cfg", "ramp", "top_k", "top_p")),
    "scales": lambda p: [h for h, _ in p.tokenizer.scales],
    "sizes": lambda p: (p.task.model.width, p.task.model.depth, p.task.model.blocks[0].attention.heads),
    "stages": lambda p: (lambda s: (s.until, s.first, s.warmup))(_stages(p)),
    "strong": lambda p: _augment(_tokenizer_task(p).gan.strong),
    "weight_decay": lambda p: _group(p)["weight_decay"],
    "weight_decay_end": lambda p: p.task.weight_decay_end,
}


def _stages(preset: Preset) -> ScaleStages:
    stages = _generator_task(preset).stages
    assert stages is not None
    return stages


# -- the comparison ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def preset(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Preset]:
    """The training of a recipe, built once."""
    folder: Path = tmp_path_factory.mktemp("weights")
    return cache(lambda name: build(composed(f"experiment=imagenet/{name}"), folder))


@pytest.mark.filterwarnings("ignore:for .* copying from a non-meta parameter")
@pytest.mark.parametrize("name", PUBLISHED)
def test_a_recipe_is_what_was_published(name: str, preset: Callable[[str], Preset]) -> None:
    built, wrong = preset(name), []
    for fact in PUBLISHED[name]:
        found = READERS[fact.name](built)
        expected = (
            [fact.value(x) for x in POINTS] if callable(fact.value) and fact.name.endswith("rates") else fact.value
        )
        if not _equal(found, expected):
            wrong.append(f"{fact.name}: {found} here, {expected} in {fact.source}")
    assert not wrong, "\n".join(wrong)


def _equal(found: Any, expected: Any) -> bool:
    if isinstance(expected, tuple | list):
        return len(found) == len(expected) and all(_equal(a, b) for a, b in zip(found, expected, strict=True))
    if isinstance(expected, float):
        return found is not None and found == pytest.approx(expected, rel=5e-4)  # shares of pixels are rounded
    return bool(found == expected)


def test_every_recipe_is_in_the_table_and_says_what_is_whose() -> None:
    assert {file.stem for file in FOLDER.glob("*.yaml")} == set(PUBLISHED)
    for file in FOLDER.glob("*.yaml"):
        head = [line for line in file.read_text().splitlines() if line.startswith("# ")]
        for section in ("Question:", "Command:", "Cost:", "Expected:", "As published (", "Differs:", "Our choice:"):
            assert sum(line.startswith(f"# {section}") for line in head) == 1, (file.name, section)


def test_a_wrong_number_is_noticed(preset: Callable[[str], Preset]) -> None:
    """Ten times the learning rate, a decay without its end, another crop."""
    for words, fact in (
        (["task.optimizer.lr=3.0e-3"], "lr"),
        (["data.crop.enlarge=1.2"], "crops"),
        (["task.schedule.hold=0.15"], "rates"),
        (["task.no_decay=[word.weight]"], "no_decay"),
    ):
        other = build(composed("experiment=imagenet/var_d16", *words), Path())
        (wanted,) = (f for f in PUBLISHED["var_d16"] if f.name == fact)
        expected = [wanted.value(x) for x in POINTS] if fact == "rates" else wanted.value
        assert not _equal(READERS[fact](other), expected), fact


def test_kinds_of_blocks(preset: Callable[[str], Preset]) -> None:
    for name, block in (("var_d16", AdaLNBlock), ("llamagen_b", LlamaBlock), ("vqgan_transformer", GPT2Block)):
        assert type(preset(name).task.model.blocks[0]) is block


def test_an_update_costs_three_forward_passes(preset: Callable[[str], Preset]) -> None:
    """Of VAR-d16, .31 TFLOP an image, and of its tokenizer, .215 to encode and .39 to decode (derived from the sizes)."""
    generator, tokenizer = plan_update(preset("var_d16")), plan_update(preset("var_tokenizer"))
    assert generator.train_flops / 1e12 == pytest.approx(3 * 0.31, rel=0.05)
    assert tokenizer.train_flops / 1e12 == pytest.approx(3 * (0.215 + 0.39), rel=0.05)
    assert generator.encode_flops / 1e12 == pytest.approx(0.215, rel=0.05)
