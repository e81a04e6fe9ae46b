"""Tensor names of the CNN encoder and decoder, which VAR, VQGAN and LlamaGen share except for the names."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from varlab.checkpoint.formats.links import Link, joined, same
from varlab.checkpoint.formats.state import State
from varlab.config import Config
from varlab.types import VarlabError


@dataclass(frozen=True)
class CNNNames:
    """The names of a code for the CNN's parts. level: 0 at the finest resolution. place: counts from the input."""

    stage: Callable[[str, int, int], str]  # (side, level, place) → prefix of a stage
    block: str
    middle: tuple[str, str, str]  # residual block, attention, residual block
    fused: bool  # attention has one convolution for query, key and value


DOWN_UP = CNNNames(
    stage=lambda side, level, place: f"{side}.{'down' if side == 'encoder' else 'up'}.{level}",
    block="block",
    middle=("mid.block_1", "mid.attn_1", "mid.block_2"),
    fused=False,
)
"""taming-transformers' names; VAR's differ in the attention only."""

VAR = CNNNames(stage=DOWN_UP.stage, block="block", middle=DOWN_UP.middle, fused=True)

CONV_BLOCKS = CNNNames(
    stage=lambda side, level, place: f"{side}.conv_blocks.{place}",
    block="res",
    middle=("mid.0", "mid.1", "mid.2"),
    fused=False,
)
"""LlamaGen's names."""


def infer_cnn(state: State, names: CNNNames, path: Path) -> Config:
    """Infer channels, channel_mult, decoder_channel_mult, res_blocks, z_channels, attention, mid_attention from tensors."""
    if "encoder.conv_in.weight" not in state:
        raise VarlabError(
            f"{path} has no tensor 'encoder.conv_in.weight': it is not a tokenizer of this format. Check format=."
        )
    stages = 0
    while _widths(state, names, "encoder", stages, stages):
        stages += 1
    encoder = [_widths(state, names, "encoder", level, level) for level in range(stages)]
    decoder = [_widths(state, names, "decoder", level, stages - 1 - level) for level in range(stages)]
    if not stages or not all(decoder):
        raise VarlabError(f"{path}: the encoder and decoder stages cannot be inferred from its tensors. Check format=.")
    channels = state["encoder.conv_in.weight"].shape[0]
    mult, decoder_mult = ([width[0] // channels for width in side] for side in (encoder, decoder))
    attends = [
        level for level in range(stages) if f"{names.stage('encoder', level, level)}.attn.0.norm.weight" in state
    ]
    return {
        "channels": channels,
        "channel_mult": mult,
        "decoder_channel_mult": None if decoder_mult == mult else decoder_mult,
        "res_blocks": len(encoder[0]),
        "z_channels": _size(state, "encoder.conv_out.weight", path),
        "attention": attends,
        "mid_attention": f"encoder.{names.middle[1]}.norm.weight" in state,
    }


def _size(state: State, key: str, path: Path) -> int:
    if key not in state:
        raise VarlabError(f"{path} has no tensor '{key}', which a model of this kind needs.")
    return int(state[key].shape[0])


def _widths(state: State, names: CNNNames, side: str, level: int, place: int) -> list[int]:
    """The widths of a stage's residual blocks; empty without such a stage."""
    prefix = re.escape(f"{names.stage(side, level, place)}.{names.block}.")
    convs = {int(m[1]): key for key in state if (m := re.fullmatch(rf"{prefix}(\d+)\.conv1\.weight", key))}
    return [int(state[convs[j]].shape[0]) for j in sorted(convs)]


def cnn_links(config: Config, names: CNNNames) -> list[Link]:
    """The links of encoder and decoder, for the tokenizer of this configuration."""
    links = []
    for side in ("encoder", "decoder"):
        for part in ("conv_in", "norm_out", "conv_out"):
            links += same(f"{side}.{part}", f"{side}.{part}")
        links += _middle(config, names, side)
        links += _stages(config, names, side)
    return links


def _middle(config: Config, names: CNNNames, side: str) -> Iterator[Link]:
    first, attention, second = (f"{side}.{name}" for name in names.middle)
    last = 2 if config["mid_attention"] else 1
    yield from _residual(f"{side}.middle.0", first, shortcut=False)
    if config["mid_attention"]:
        yield from _attention(f"{side}.middle.1", attention, names)
    yield from _residual(f"{side}.middle.{last}", second, shortcut=False)


def _stages(config: Config, names: CNNNames, side: str) -> Iterator[Link]:
    mult = list(config["channel_mult"])
    if side == "decoder":
        mult = list(config["decoder_channel_mult"] or mult)[::-1]
    stages, blocks = len(mult), config["res_blocks"] + (side == "decoder")
    attends = {range(stages)[i] for i in config["attention"]}
    before = 1 if side == "encoder" else mult[0]
    for place, width in enumerate(mult):
        level = place if side == "encoder" else stages - 1 - place
        ours, theirs = f"{side}.stages.{2 * place}", names.stage(side, level, place)
        step = 2 if level in attends else 1
        for j in range(blocks):
            yield from _residual(f"{ours}.{step * j}", f"{theirs}.{names.block}.{j}", shortcut=before != width)
            if step == 2:
                yield from _attention(f"{ours}.{step * j + 1}", f"{theirs}.attn.{j}", names)
            before = width
        if place < stages - 1:
            sample = "downsample" if side == "encoder" else "upsample"
            yield from same(f"{side}.stages.{2 * place + 1}.conv", f"{theirs}.{sample}.conv")


def _residual(ours: str, theirs: str, *, shortcut: bool) -> Iterator[Link]:
    for part in ("norm1", "conv1", "norm2", "conv2"):
        yield from same(f"{ours}.{part}", f"{theirs}.{part}")
    if shortcut:
        yield from same(f"{ours}.shortcut", f"{theirs}.nin_shortcut")


def _attention(ours: str, theirs: str, names: CNNNames) -> Iterator[Link]:
    yield from same(f"{ours}.norm", f"{theirs}.norm")
    yield from same(f"{ours}.proj", f"{theirs}.proj_out")
    for part in ("weight", "bias"):
        parts = [f"{theirs}.{name}.{part}" for name in (("qkv",) if names.fused else ("q", "k", "v"))]
        yield joined(f"{ours}.qkv.{part}", parts)
