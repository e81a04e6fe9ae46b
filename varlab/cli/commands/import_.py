"""``varlab import``: make a run directory from an official checkpoint."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import nn

from varlab.checkpoint import formats, save_weights
from varlab.config import Config
from varlab.data.format.index import read_index
from varlab.data.format.labels import class_names
from varlab.files import sha256
from varlab.recipe.assembly import Build, assemble, build_tokenizer, example_slots
from varlab.recipe.flops import run_on_meta
from varlab.recipe.plan import parameters
from varlab.recipe.preflight.file_checks import no_tokenizer_file
from varlab.rng import Rng
from varlab.run.directory import RunDirectory
from varlab.tokenizer import VQTokenizer
from varlab.transformer import Transformer
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
        """What run.json stores of it."""
        return {"file": str(self.path), "sha256": sha256(self.path)}


def run(config: Config, directory: RunDirectory) -> Config:
    """Write weights.safetensors (and tokenizer.safetensors beside a transformer's) and the record that loads them."""
    name = config["format"]["name"]
    tokenizer_file, transformer_file = _sources(config)
    build, tokenizer = _tokenizer(config, tokenizer_file, _scales(config, transformer_file))
    imported: Config = {
        "format": name,
        "phi": formats.phi_style(tokenizer_file.state),
        "tokenizer": tokenizer_file.record(),
    }
    kept = formats.kept_buffers(tokenizer_file.state)
    module: nn.Module = tokenizer
    if transformer_file is not None:
        build, module, rest = _transformer(config, transformer_file, build, tokenizer)
        kept |= rest
        masks = formats.unmasked_tokens(transformer_file.state) is not None
        imported |= {"transformer": transformer_file.record(), "masks": masks}
        save_weights(directory.path / "tokenizer.safetensors", tokenizer.state_dict(), {})
    for file in ("weights", "weights_raw"):
        save_weights(directory.path / f"{file}.safetensors", module.state_dict(), {})
    if kept:
        save_weights(directory.path / "foreign.safetensors", kept, {})
    count = parameters(module)
    directory.update(build=replace(build, imported=imported).to_json(), cost={"parameters": count})
    h, w = tokenizer.image_size
    logger.info("%s: %s model of %d parameters, %d×%d pixels", directory.path, name, count, h, w)
    return {"parameters": count}  # the file does not say what its training cost


def _sources(config: Config) -> tuple[Source, Source | None]:
    """Read the files. A checkpoint of VQGAN's transformer, or of VAR's trainer, may contain the tokenizer, too."""
    name = config["format"]["name"]
    paths = {role: None if file is None else Path(file) for role, file in config["files"].items()}
    transformer = tokenizer = None
    if (path := paths["transformer"]) is not None:
        whole = _part(path, name, "var_wo_ddp")
        transformer = Source(path, formats.stripped(name, whole))
        first = "first_stage_model."
        inside = {key.removeprefix(first): value for key, value in whole.items() if key.startswith(first)}
        tokenizer = Source(path, inside) if inside else None
    if (path := paths["tokenizer"]) is not None:
        tokenizer = Source(path, _part(path, name, "vae_local"))
    if tokenizer is None:
        raise no_tokenizer_file()
    return tokenizer, transformer


def _part(path: Path, name: str, part: str) -> formats.State:
    """The tensors of a file, or of one part of it if VAR's trainer wrote it."""
    state = formats.parts(path, ("trainer", part)) if name == "var" else None
    return formats.read_state(path) if state is None else state


def _scales(config: Config, transformer: Source | None) -> list[list[int]]:
    """The scales that are asked for; else those of the transformer's file; else the official ones."""
    name, inferred = config["format"]["name"], config["scales"]
    if inferred is None and transformer is not None and name == "var":
        inferred = formats.var_scales(transformer.state, transformer.path)
    elif inferred is None and transformer is not None and name == "vqgan" and "pos_emb" in transformer.state:
        places = transformer.state["pos_emb"].shape[1]
        inferred = formats.square(places)
        if inferred is None:
            raise VarlabError(f"{transformer.path} has {places} places, which is not a square: give scales=[[h,w]].")
    return [list(scale) for scale in inferred or config["format"]["scales"]]


def _tokenizer(config: Config, source: Source, scales: list[list[int]]) -> tuple[Build, VQTokenizer]:
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
    _load(tokenizer, links, source.state, lambda key: formats.tokenizer_extras(name, key), source.path)
    return Build(tokenizer=built, image_size=list(tokenizer.image_size)), tokenizer


def _transformer(
    config: Config, source: Source, build: Build, tokenizer: VQTokenizer
) -> tuple[Build, Transformer, formats.State]:
    """The build with a transformer, the transformer, and the tensors of the file that it has no place for."""
    name, options = config["format"]["name"], config["format"]["infer"] | _given(config, ("heads",))
    built = config["format"]["transformer"] | formats.INFER[name](source.state, options, source.path)
    if name == "vqgan":
        built["unmasked"] = config["unmasked"] or formats.unmasked_tokens(source.state) or 0
    classes = _classes(config, source, tokenizer.vocab_size)
    build = replace(build, transformer=built, order=config["order"], sampler=config["sampler"], classes=classes)
    transformer, order = assemble(build, Rng(config["seed"]), tokenizer=tokenizer).generator()
    cut, rest = formats.cut_positions(name, source.state, order.num_positions, source.path)
    links = formats.transformer_links(name, built)
    _load(transformer, links, cut, lambda key: formats.transformer_extras(name, key), source.path)
    run_on_meta(
        transformer, example_slots(order, tokenizer), torch.zeros(1, dtype=torch.int64)
    )  # raises unless the parts fit
    return build, transformer, rest


def _classes(config: Config, source: Source, vocab_size: int) -> list[str]:
    """The names that are given, or numbers. VarlabError if the file has another number of classes."""
    asked, count = config["classes"], formats.num_classes(config["format"]["name"], source.state, source.path)
    if isinstance(asked, str):
        names = _read_names(Path(asked))
    elif isinstance(asked, list):
        names = [str(name) for name in asked]
    else:
        default = min(config["format"]["infer"]["classes"], vocab_size) if count is None else count
        names = [str(i) for i in range(asked or default)]
    if count is not None and len(names) != count:
        raise VarlabError(f"{source.path} has {count} classes, not {len(names)}: leave classes= out, or name them all.")
    return names


def _read_names(path: Path) -> list[str]:
    """The classes of a shard set, or the lines of a file."""
    if path.is_dir():
        return list(read_index(path).info.classes)
    return list(class_names(str(path)) or ())


def _given(config: Config, keys: tuple[str, ...]) -> Config:
    return {key: config[key] for key in keys if config[key] is not None}


def _load(
    module: nn.Module, links: list[formats.Link], state: formats.State, extras: Callable[[str], bool], path: Path
) -> None:
    shapes = {key: tuple(value.shape) for key, value in module.state_dict().items()}
    module.load_state_dict(formats.read_links(links, state, shapes=shapes, extras=extras, path=path))
