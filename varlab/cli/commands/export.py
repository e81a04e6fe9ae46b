"""``varlab export``: a run's weights as the official code of VAR, VQGAN or LlamaGen reads them."""

from __future__ import annotations

import logging
from pathlib import Path

import safetensors.torch

from varlab.checkpoint import formats, read_weights, write_torch
from varlab.config import Config
from varlab.files import atomic_write
from varlab.model import Model
from varlab.recipe.finished_run import load
from varlab.run.directory import RunDirectory
from varlab.run.record import read_record

__all__ = ["run"]

logger = logging.getLogger(__name__)

_WRAPPER = {"var": None, "vqgan": "state_dict", "llamagen": "model"}


def run(config: Config, directory: RunDirectory) -> Config:
    """Write tokenizer.pth, and transformer.pth for a generator."""
    name, run_path = config["format"]["name"], Path(config["run"])
    build = read_record(run_path).build
    model = load(run_path, weights=config["weights"], trust=config.get("trust"))
    kept = run_path / "foreign.safetensors"
    rest = read_weights(kept) if kept.is_file() else {}
    written = [_write(directory.path / f"tokenizer.{config['file']}", name, _tokenizer(name, build, model, rest))]
    if model.transformer is not None:
        path = directory.path / f"transformer.{config['file']}"
        written.append(_write(path, name, _transformer(name, build, model, rest)))
    logger.info("%s", ", ".join(str(path) for path in written))
    return {"files": [str(path) for path in written]}


def _tokenizer(name: str, build: Config, model: Model, rest: formats.State) -> formats.State:
    config, imported = build["tokenizer"], build.get("imported") or {}
    formats.check_tokenizer(name, config)
    phi = imported["phi"] if imported.get("format") == name else formats.default_phi(config)
    state = formats.write_links(formats.tokenizer_links(name, config, phi), model.tokenizer.state_dict())
    derived = formats.derived_buffers(name, build, transformer=False, rows=0, unmasked=0)
    if imported.get("format") == name:
        return state | {key: value for key, value in rest.items() if key != "pos_emb"}
    return state | derived


def _transformer(name: str, build: Config, model: Model, rest: formats.State) -> formats.State:
    assert model.transformer is not None
    imported = build.get("imported") or {}
    formats.check_transformer(name, build)
    state = formats.write_links(formats.transformer_links(name, build["transformer"]), model.transformer.state_dict())
    state = formats.rejoin_positions(state, rest)
    rows = state["pos_emb"].shape[1] if "pos_emb" in state else 0
    if imported.get("format") == name == "vqgan" and not imported["masks"]:
        return state
    unmasked = build["transformer"].get("unmasked", 0)
    return state | formats.derived_buffers(name, build, transformer=True, rows=rows, unmasked=unmasked)


def _write(path: Path, name: str, state: formats.State) -> Path:
    with atomic_write(path) as file:
        if path.suffix == ".safetensors":
            file.write(safetensors.torch.save(state))
        else:
            wrapper = _WRAPPER[name]
            write_torch(file, state if wrapper is None else {wrapper: state})
    return path
