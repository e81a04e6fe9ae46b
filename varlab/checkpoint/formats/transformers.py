"""The transformers of VAR, VQGAN (minGPT) and LlamaGen: sizes from shapes, and links between tensors."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from varlab.checkpoint.formats.links import Link, joined, reshaped, same
from varlab.checkpoint.formats.state import State
from varlab.checkpoint.formats.tokenizers import square
from varlab.config import Config
from varlab.types import VarlabError

Scales = list[list[int]]

_EXTRAS = {
    "var": r"lvl_1L|attn_bias_for_masking|blocks\.\d+\.attn\.zero_k_bias|.*ema_vocab_hit_SV",
    "vqgan": r"blocks\.\d+\.attn\.mask|(first_stage_model|cond_stage_model|loss)\..*",
    "llamagen": r"freqs_cis|causal_mask",
}
_BLOCKS = {"var": "blocks", "vqgan": "blocks", "llamagen": "layers"}


def transformer_extras(name: str, key: str) -> bool:
    """Whether a key is a derived buffer or part of another model, which a file of this format may hold too."""
    return re.fullmatch(_EXTRAS[name], key) is not None


def stripped(name: str, state: State) -> State:
    """The state without VQGAN's prefix ``transformer.``, which it has in the checkpoint of the whole model."""
    prefix = "transformer."
    if name != "vqgan" or not any(key.startswith(prefix) for key in state):
        return state
    return {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}


def _tensor(state: State, key: str, path: Path) -> Tensor:
    if key not in state:
        raise VarlabError(f"{path} has no tensor '{key}', which a model of this kind needs.")
    return state[key]


def _depth(name: str, state: State) -> int:
    numbers = [int(m[1]) for key in state if (m := re.match(rf"{_BLOCKS[name]}\.(\d+)\.", key))]
    return max(numbers, default=-1) + 1


def _heads(asked: int | None, width: int, head_dim: int, path: Path) -> int:
    if asked is None and width % head_dim:
        raise VarlabError(
            f"{path} does not hold the number of heads, and {head_dim} does not divide its width {width}: give heads=."
        )
    return asked or width // head_dim


def infer_var(state: State, options: Config, path: Path) -> Config:
    """Infer VAR's depth, heads (from the attention scale), shared AdaLN and MLP ratio."""
    width = _tensor(state, "word_embed.weight", path).shape[0]
    scale = state.get("blocks.0.attn.scale_mul_1H11")
    shared = "shared_ada_lin.1.weight" in state
    depth = _depth("var", state)
    heads = scale.shape[1] if scale is not None else _heads(options["heads"], width, 64, path)
    block = {
        "_target_": f"varlab.transformer.{'SharedAdaLNBlock' if shared else 'AdaLNBlock'}",
        "_partial_": True,
        "mlp_ratio": _tensor(state, "blocks.0.ffn.fc1.weight", path).shape[0] / width,
        "qk_norm": scale is not None,
        "attention_scale": options["attention_scale"],
    }
    return {"width": width, "depth": depth, "heads": heads, "block": block, "drop_path": 0.1 * depth / 24}


def var_scales(state: State, path: Path) -> Scales | None:
    """VAR's scales from the level of each slot; None where the file lacks it."""
    if "lvl_1L" not in state:
        return None
    counts = state["lvl_1L"].flatten().bincount().tolist()
    squares = [square(count) for count in counts]
    if None in squares:
        raise VarlabError(f"{path} has scales of {counts} tokens, not all of them squares: give scales=[[h,w],…].")
    return [one[0] for one in squares if one]


def infer_vqgan(state: State, options: Config, path: Path) -> Config:
    """Infer the sizes of VQGAN's minGPT."""
    width = _tensor(state, "tok_emb.weight", path).shape[1]
    block = {
        "_target_": "varlab.transformer.GPT2Block",
        "_partial_": True,
        "mlp_ratio": _tensor(state, "blocks.0.mlp.0.weight", path).shape[0] / width,
    }
    heads = _heads(options["heads"], width, 64, path)
    return {"width": width, "depth": _depth("vqgan", state), "heads": heads, "block": block}


def infer_llamagen(state: State, options: Config, path: Path) -> Config:
    """Infer the sizes of LlamaGen's GPT. The number of key and value heads follows from the width of wqkv."""
    width = _tensor(state, "tok_embeddings.weight", path).shape[1]
    heads = _heads(options["heads"] or options["heads_of_width"].get(width), width, 64, path)
    head_dim = width // heads
    inner = (_tensor(state, "layers.0.attention.wqkv.weight", path).shape[0] - width) // 2
    if inner < head_dim or inner % head_dim or heads % (inner // head_dim):
        raise VarlabError(f"{path}: layers.0.attention.wqkv.weight does not fit {heads} heads: give heads=.")
    kv_heads = inner // head_dim
    hidden = _tensor(state, "layers.0.feed_forward.w1.weight", path).shape[0]
    block = options["block"] | {"multiple_of": hidden, "kv_heads": None if kv_heads == heads else kv_heads}
    return {"width": width, "depth": _depth("llamagen", state), "heads": heads, "block": block}


INFER = {"var": infer_var, "vqgan": infer_vqgan, "llamagen": infer_llamagen}


def num_classes(name: str, state: State, path: Path) -> int | None:
    """The number of classes without the null class; None for a format that does not hold it."""
    key = {"var": "class_emb.weight", "llamagen": "cls_embedding.embedding_table.weight"}.get(name)
    return None if key is None else _tensor(state, key, path).shape[0] - 1


def transformer_links(name: str, config: Config) -> list[Link]:
    """The links of all tensors of a transformer."""
    return {"var": _var, "vqgan": _vqgan, "llamagen": _llamagen}[name](config)


def cut_positions(name: str, state: State, places: int, path: Path) -> tuple[State, State]:
    """Cut VQGAN's position table to the images' length: (the state with that table, the other rows by name)."""
    if name != "vqgan":
        return state, {}
    table = _tensor(state, "pos_emb", path)
    if table.shape[1] < places:
        raise VarlabError(
            f"{path}: pos_emb has {table.shape[1]} places, too few for {places} tokens: give other scales=."
        )
    rest = {"pos_emb": table[:, places:]} if table.shape[1] > places else {}
    return state | {"pos_emb": table[:, :places]}, rest


def rejoin_positions(state: State, rest: State) -> State:
    """Undo ``cut_positions``."""
    return state | {key: torch.cat([state[key], value], 1) for key, value in rest.items() if key == "pos_emb"}


def _var(config: Config) -> list[Link]:
    width, heads = config["width"], config["heads"]
    links = [reshaped("start", "pos_start", (-1,), (1, 1, width))]
    links += [reshaped("position.weight", "pos_1LC", (-1, width), (1, -1, width))]
    links += same("level", "lvl_embed", "weight") + same("class_embedding", "class_emb", "weight")
    links += same("word", "word_embed") + same("head", "head") + same("head_norm.modulate", "head_nm.ada_lin.1")
    shared = config["block"]["_target_"].endswith("SharedAdaLNBlock")
    if shared:
        links += same("modulate", "shared_ada_lin.1")
    for i in range(config["depth"]):
        ours, theirs = f"blocks.{i}", f"blocks.{i}"
        links += same(f"{ours}.attention.qkv", f"{theirs}.attn.mat_qkv", "weight")
        links += [Link(f"{ours}.attention.{b}", (f"{theirs}.attn.{b}",)) for b in ("q_bias", "v_bias")]
        links += same(f"{ours}.attention.proj", f"{theirs}.attn.proj")
        links += same(f"{ours}.mlp.0", f"{theirs}.ffn.fc1") + same(f"{ours}.mlp.2", f"{theirs}.ffn.fc2")
        if config["block"]["qk_norm"]:
            scale = f"{theirs}.attn.scale_mul_1H11"
            links += [reshaped(f"{ours}.attention.log_scale", scale, (-1, 1, 1), (1, heads, 1, 1))]
        if shared:
            links += [Link(f"{ours}.offset_116D", (f"{theirs}.ada_gss",))]
        else:
            links += same(f"{ours}.modulate", f"{theirs}.ada_lin.1")
    return links


def _vqgan(config: Config) -> list[Link]:
    width = config["width"]
    links = [reshaped("position.weight", "pos_emb", (-1, width), (1, -1, width))]
    links += same("word", "tok_emb", "weight") + same("head_norm.norm", "ln_f") + same("head", "head", "weight")
    for i in range(config["depth"]):
        ours, theirs = f"blocks.{i}", f"blocks.{i}"
        attention = [f"{theirs}.attn.{part}" for part in ("query", "key", "value")]
        links += [joined(f"{ours}.attention.qkv.weight", [f"{part}.weight" for part in attention])]
        for bias, part in zip(("q_bias", "k_bias", "v_bias"), attention, strict=True):
            links += [Link(f"{ours}.attention.{bias}", (f"{part}.bias",))]
        links += same(f"{ours}.attention.proj", f"{theirs}.attn.proj")
        links += same(f"{ours}.norm1", f"{theirs}.ln1") + same(f"{ours}.norm2", f"{theirs}.ln2")
        links += same(f"{ours}.mlp.0", f"{theirs}.mlp.0") + same(f"{ours}.mlp.2", f"{theirs}.mlp.2")
    return links


def _llamagen(config: Config) -> list[Link]:
    links = same("class_embedding", "cls_embedding.embedding_table", "weight")
    links += same("word", "tok_embeddings", "weight") + same("head", "output", "weight")
    links += same("head_norm.norm", "norm", "weight")
    names: Sequence[tuple[str, str]] = (
        ("attention.qkv", "attention.wqkv"),
        ("attention.proj", "attention.wo"),
        ("norm1", "attention_norm"),
        ("norm2", "ffn_norm"),
        ("mlp.gate", "feed_forward.w1"),
        ("mlp.up", "feed_forward.w3"),
        ("mlp.down", "feed_forward.w2"),
    )
    for i in range(config["depth"]):
        for ours, theirs in names:
            links += same(f"blocks.{i}.{ours}", f"layers.{i}.{theirs}", "weight")
    return links


_KINDS = {"var": ("AdaLNBlock", "SharedAdaLNBlock"), "vqgan": ("GPT2Block",), "llamagen": ("LlamaBlock",)}


def check_transformer(name: str, build: Config) -> None:
    """Raise VarlabError where a generator of ours cannot be written in a foreign format."""
    config, order = build["transformer"], build["order"]["_target_"].rpartition(".")[2]
    kind = str(config["_target_"]).rpartition(".")[2]
    block = config["block"]["_target_"].rpartition(".")[2] if kind == "Transformer" else ""
    reason = None
    if kind != "Transformer":
        reason = f"is a {kind}"
    elif block not in _KINDS[name]:
        reason = f"is made of {block}s, not of {' or '.join(_KINDS[name])}s"
    elif order != ("NextScale" if name == "var" else "Permutation"):
        reason = f"runs in the order {order}"
    elif name == "vqgan" and not config["tied"]:
        reason = "has a table of its own for classes (tied=false)"
    elif build.get("condition"):
        reason = "has a condition"
    if reason:
        raise VarlabError(f"This generator cannot be written as format={name}: it {reason}.")
