"""``varlab.load("runs/…")``: the model of a run directory."""

from __future__ import annotations

import json
from pathlib import Path

import torch

from varlab.checkpoint import load_weights
from varlab.model import Model
from varlab.recipe.assembly import build_condition, build_order, build_tokenizer, build_transformer, make
from varlab.rng import Rng
from varlab.tokenizer.condition import SpatialCondition
from varlab.types import VarlabError


def load(run: str | Path, *, weights: str = "ema", device: torch.device | str = "cpu") -> Model:
    """The model of a run directory. weights: "ema" (what is reported) or "raw"."""
    run = Path(run)
    if not (run / "run.json").is_file():
        raise VarlabError(f"{run} holds no run.json: it is not the directory of a varlab run.")
    if weights not in ("ema", "raw"):
        raise VarlabError(f"weights={weights!r} is unknown: use 'ema' or 'raw'.")
    record = json.loads((run / "run.json").read_text())
    build = record.get("build") or {}
    if "tokenizer" not in build:
        raise VarlabError(
            f"{run} is a run of '{record.get('command')} {record.get('name')}', which holds no image model."
        )
    own = run / ("weights.safetensors" if weights == "ema" else "weights_raw.safetensors")
    rng = Rng(0)
    tokenizer = build_tokenizer(build["tokenizer"], rng)
    if "transformer" not in build:
        load_weights(tokenizer, own)
        return Model(tokenizer=tokenizer, order=None, transformer=None, sampler=None, classes=()).to(device)
    load_weights(tokenizer, run / "tokenizer.safetensors")
    order = build_order(build["order"], tokenizer)
    classes = tuple(build["classes"])
    condition = build_condition(build.get("condition"), tokenizer=tokenizer)
    if isinstance(condition, SpatialCondition):
        load_weights(condition.tokenizer, run / "condition.safetensors")
    transformer = build_transformer(
        build["transformer"],
        tokenizer=tokenizer,
        order=order,
        num_classes=len(classes),
        rng=rng,
        cond_vocab=condition.vocab_size if condition else 0,
        cond_tokens=condition.num_tokens if condition else 0,
    )
    load_weights(transformer, own)
    sampler = make(build["sampler"])
    return Model(
        tokenizer=tokenizer,
        order=order,
        transformer=transformer,
        sampler=sampler,
        classes=classes,
        condition=condition,
    ).to(device)
