"""``varlab import``: an official checkpoint becomes an ordinary run directory."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from torch import nn

from varlab import flops
from varlab.checkpoint import formats, save_weights
from varlab.config import Config
from varlab.data.format.index import read_index
from varlab.files import sha256
from varlab.recipe.assembly import build_order, build_tokenizer, build_transformer, example_slots
from varlab.rng import Rng
from varlab.run.directory import RunDirectory
from varlab.tokenizer import VQTokenizer
from varlab.types import VarlabError

__all__ = ["run"]

logger = logging.getLogger(__name__)

_TOKENIZER_OPTIONS = ("groups", "code_norm", "cosine", "beta", "beta_term", "phi_ratio")
_ENTROPY_TEMPERATURE = 0.01  # LlamaGen's, fixed in its code


@dataclass(frozen=True)
class Source:
    """One of the files: where it is, and its tensors by their official names."""

    path: Path
    state: formats.State

    def record(self) -> Config:
        return {"file": str(self.path), "sha256": sha256(self.path)}


def run(cfg: DictConfig, directory: RunDirectory) -> Config:
    """Write weights.safetensors (and tokenizer.safetensors beside a transformer's) and the record that loads them."""
    config: Config = OmegaConf.to_container(cfg)  # type: ignore[assignment]
    name = config["format"]["name"]
    tokenizer_file, transformer_file = _sources(config)
    scales = _scales(config, transformer_file)
    tokenizer_config, tokenizer = _tokenizer(config, tokenizer_file, scales)
    build: Config = {"tokenizer": tokenizer_config, "image_size": list(tokenizer.image_size)}
    imported: Config = {
        "format": name,
        "phi": formats.phi_style(tokenizer_file.state),
        "tokenizer": tokenizer_file.record(),
    }
    kept = formats.kept_buffers(tokenizer_file.state)
    module: nn.Module = tokenizer
    if transformer_file is not None:
        save_weights(directory.path / "tokenizer.safetensors", tokenizer.state_dict(), {})
        module, parts, rest = _transformer(config, transformer_file, tokenizer)
        build |= parts
        kept |= rest
        masks = formats.unmasked_tokens(transformer_file.state) is not None
        imported |= {"transformer": transformer_file.record(), "masks": masks}
    for file in ("weights", "weights_raw"):
        save_weights(directory.path / f"{file}.safetensors", module.state_dict(), {})
    if kept:
        save_weights(directory.path / "foreign.safetensors", kept, {})
    cost = {"parameters": sum(p.numel() for p in module.parameters())}
    directory.update(build=build | {"imported": imported}, cost=cost)
    h, w = tokenizer.image_size
    logger.info("%s: %s model of %d parameters, %d×%d pixels", directory.path, name, cost["parameters"], h, w)
    return {"parameters": cost["parameters"]}  # what its training cost, the file does not tell


def _sources(config: Config) -> tuple[Source, Source | None]:
    """The files, read. A VQGAN transformer's checkpoint may hold its tokenizer; VAR's trainer puts both into one file."""
    name = config["format"]["name"]
    paths = {
        role: None if config["files"][role] is None else Path(config["files"][role])
        for role in ("tokenizer", "transformer")
    }
    transformer = tokenizer = None
    if (path := paths["transformer"]) is not None:
        whole = formats.parts(path, ("trainer", "var_wo_ddp")) if name == "var" else None
        whole = formats.read_state(path) if whole is None else whole
        transformer = Source(path, formats.stripped(name, whole))
        first = "first_stage_model."
        inside = {key.removeprefix(first): value for key, value in whole.items() if key.startswith(first)}
        if inside and paths["tokenizer"] is None:
            tokenizer = Source(path, inside)
    if (path := paths["tokenizer"]) is not None:
        state = formats.parts(path, ("trainer", "vae_local")) if name == "var" else None
        tokenizer = Source(path, formats.read_state(path) if state is None else state)
    if tokenizer is None:
        raise VarlabError("Give the tokenizer's checkpoint: tokenizer=FILE (a transformer alone makes no images).")
    return tokenizer, transformer


def _scales(config: Config, transformer: Source | None) -> list[list[int]]:
    """As asked; else from the transformer's file; else the official ones."""
    if config["scales"] is not None:
        return [list(scale) for scale in config["scales"]]
    name, found = config["format"]["name"], None
    if transformer is not None and name == "var":
        found = formats.var_scales(transformer.state, transformer.path)
    if transformer is not None and name == "vqgan" and "pos_emb" in transformer.state:
        places = transformer.state["pos_emb"].shape[1]
        found = formats.square(places)
        if found is None:
            raise VarlabError(f"{transformer.path} has {places} places, which is no square: give scales=[[h,w]].")
    return found or config["format"]["scales"]


def _tokenizer(config: Config, source: Source, scales: list[list[int]]) -> tuple[Config, VQTokenizer]:
    name = config["format"]["name"]
    options = config["format"]["tokenizer"] | _given(config, _TOKENIZER_OPTIONS) | {"scales": scales}
    if config["legacy"] is not None:
        options["beta_term"] = "codebook" if config["legacy"] else "commitment"
    if config["entropy"] is not None:
        options["entropy"] = {"weight": config["entropy"], "temperature": _ENTROPY_TEMPERATURE}
    built = formats.infer_tokenizer(name, source.state, options, source.path)
    hits = source.state.get("quantize.ema_vocab_hit_SV")
    if hits is not None and len(hits) != len(scales):
        raise VarlabError(
            f"{source.path} is a tokenizer of {len(hits)} scales, not of {len(scales)}: give scales=[[h,w],…]."
        )
    if formats.phi_style(source.state) == "each" and built["phi_count"] != len(scales):
        raise VarlabError(
            f"{source.path} has {built['phi_count']} φ, one a scale, not {len(scales)}: give scales=[[h,w],…]."
        )
    tokenizer = build_tokenizer(built, Rng(config["seed"]))
    links = formats.tokenizer_links(name, built, formats.phi_style(source.state))
    state = formats.read_links(
        links,
        source.state,
        shapes=_shapes(tokenizer),
        extras=lambda key: formats.tokenizer_extras(name, key),
        path=source.path,
    )
    tokenizer.load_state_dict(state)
    return built, tokenizer


def _transformer(config: Config, source: Source, tokenizer: VQTokenizer) -> tuple[nn.Module, Config, formats.State]:
    """The transformer, its parts of the record, and what of the file has no place in it."""
    name, options = config["format"]["name"], config["format"]["infer"] | _given(config, ("heads",))
    built = config["format"]["transformer"] | formats.INFER[name](source.state, options, source.path)
    if name == "vqgan":
        built["unmasked"] = config["unmasked"] or formats.unmasked_tokens(source.state) or 0
    order = build_order(config["order"], tokenizer)
    classes = _classes(config, source, tokenizer.vocab_size)
    transformer = build_transformer(
        built, tokenizer=tokenizer, order=order, num_classes=len(classes), rng=Rng(config["seed"])
    )
    cut, rest = formats.cut_positions(name, source.state, order.num_positions, source.path)
    state = formats.read_links(
        formats.transformer_links(name, built),
        cut,
        shapes=_shapes(transformer),
        extras=lambda key: formats.transformer_extras(name, key),
        path=source.path,
    )
    transformer.load_state_dict(state)
    flops.transformer_flops(
        transformer, example_slots(order, tokenizer), width=transformer.width, depth=transformer.depth
    )
    parts = {"transformer": built, "order": config["order"], "sampler": config["sampler"], "classes": classes}
    return transformer, parts, rest


def _classes(config: Config, source: Source, vocab_size: int) -> list[str]:
    """Names as given, or numbers."""
    name, asked = config["format"]["name"], config["classes"]
    found = formats.num_classes(name, source.state, source.path)
    if isinstance(asked, str):
        names = _named(Path(asked))
    elif isinstance(asked, list):
        names = [str(one) for one in asked]
    else:
        default = found if found is not None else min(config["format"]["infer"]["classes"], vocab_size)
        names = [str(i) for i in range(asked or default)]
    if found is not None and len(names) != found:
        raise VarlabError(f"{source.path} has {found} classes, not {len(names)}: leave classes= out, or name them all.")
    return names


def _named(path: Path) -> list[str]:
    """The classes of a shard set, or the lines of a file."""
    if path.is_dir():
        return list(read_index(path).info.classes)
    if not path.is_file():
        raise VarlabError(f"classes={path} is no folder of shards and no file of names.")
    return path.read_text().splitlines()


def _given(config: Mapping[str, Any], keys: tuple[str, ...]) -> Config:
    return {key: config[key] for key in keys if config[key] is not None}


def _shapes(module: nn.Module) -> dict[str, tuple[int, ...]]:
    return {key: tuple(value.shape) for key, value in module.state_dict().items()}
