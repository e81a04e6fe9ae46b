"""What is asked of the old runs: each function reads runs/ of the current folder and returns numbers in JSON types.

``make.py`` stored the answers of the commit that made the runs; ``test_old_runs.py`` compares today's with them. Only
commands, ``varlab.load`` and files are used here, so that both codes can be asked.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

import varlab
from varlab.cli.main import main

TOKENIZERS = ("multi", "single", "edges/condition")
GENERATORS = ("next_scale", "raster", "two_ranks", "imported")
LABELS = [3, 0, 1, 2]
COUNTED = 24  # numbers kept of each tensor
FEW = ("n=12", "metrics.splits=2", "metrics.draws=2", "extractor.run=runs/judge", "seed=1")
SWEEP = ("job", "state", "attempts", "score", "images", "flops", "path")
CLOCKED = ("seconds", "train/images_per_second", "train/eta_seconds")


def of_order(order: str) -> Path:
    """The run of the sweep over orders that has this one."""
    (path,) = Path("runs/orders").glob(f"*order={order}*")
    return path


def directory(name: str) -> Path:
    """A run's, by its name under runs/ or by its order."""
    return of_order(name) if name in ("next_scale", "raster") else Path("runs") / name


def command(*arguments: str) -> None:
    """Run ``varlab …``; AssertionError unless it succeeds."""
    assert main(list(arguments)) == 0, arguments


def few(tensor: torch.Tensor) -> list[float]:
    """Numbers of a tensor, evenly spread."""
    flat = tensor.detach().double().flatten()
    return flat[:: max(1, len(flat) // COUNTED)][:COUNTED].tolist()


def images(size: tuple[int, int], count: int = 4) -> torch.Tensor:
    """img_B3HW of smooth waves, a function of its arguments."""
    y_H1 = torch.linspace(0, 3, size[0])[:, None]
    x_1W = torch.linspace(0, 3, size[1])[None]
    waves = [torch.sin(y_H1 * (b + 1) + c) * torch.cos(x_1W * (c + 1) - b) for b in range(count) for c in range(3)]
    return torch.stack(waves).view(count, 3, *size)


def lines(run: str) -> list[dict[str, float]]:
    """metrics.jsonl without what depends on the clock."""
    every = map(json.loads, (Path("runs") / run / "metrics.jsonl").read_text().splitlines())
    return [{key: value for key, value in line.items() if key not in CLOCKED} for line in every]


def tokenizers() -> dict[str, Any]:
    """Tokens of fixed images, and the reconstructions."""
    answers = {}
    for name in TOKENIZERS:
        model = varlab.load(Path("runs") / name)
        maps = model.encode(images(model.tokenizer.image_size))
        answers[name] = {"tokens": [idx.tolist() for idx in maps], "pixels": few(model.decode(maps))}
    return answers


def generators() -> dict[str, Any]:
    """Sampled tokens, plain and guided, and teacher-forced logits."""
    answers = {}
    for name in GENERATORS:
        model = varlab.load(directory(name))
        plain = model.sample_maps(LABELS, seed=11)
        guided = model.sample_maps(LABELS, seed=11, cfg=1.5, top_k=8)
        with torch.no_grad():
            logits = few(model.logits(LABELS, plain))
        answers[name] = {
            "tokens": [idx.tolist() for idx in plain],
            "guided": [idx.tolist() for idx in guided],
            "logits": logits,
        }
    return answers


def condition() -> dict[str, Any]:
    """A generator over the edges of fixed images."""
    model = varlab.load("runs/edges/generator")
    cond_BN = model.condition_tokens(images(model.tokenizer.image_size))
    maps = model.sample_maps(LABELS, seed=11, cond_BN=cond_BN)
    with torch.no_grad():
        logits = few(model.logits(LABELS, maps, cond_BN=cond_BN))
    return {"condition": cond_BN.tolist(), "tokens": [idx.tolist() for idx in maps], "logits": logits}


def samples() -> dict[str, Any]:
    """``varlab sample``: its images."""
    command("sample", str(of_order("next_scale")), "n=6", "seed=2", "out=runs/new/sample")
    with np.load("runs/new/sample/samples.npz") as file:
        return {"pixels": few(torch.from_numpy(file["arr_0"])), "labels": file["arr_1"].tolist()}


def evaluations() -> dict[str, Any]:
    """``varlab evaluate`` of a tokenizer and two generators: their scores under another protocol than the stored one."""
    answers = {}
    for name in ("single", "next_scale", "edges/generator"):
        folder = directory(name) / "scores"
        before = set(folder.glob("*.json"))
        command("evaluate", str(folder.parent), *FEW, f"out=runs/new/evaluate/{name.replace('/', '_')}")
        (new,) = set(folder.glob("*.json")) - before
        answers[name] = {"file": new.name, "scores": json.loads(new.read_text())["scores"]}
    return answers


def tokens() -> dict[str, Any]:
    """``varlab encode`` again, and a training on the stored tokens."""
    command("encode", "runs/multi", "views=2", "out=runs/new/tokens")
    arrays = {path.name: np.load(path).tolist() for path in sorted(Path("runs/new/tokens").glob("*.npy"))}
    from_tokens = ("data.tokens=runs/tokens", "order=raster", "transformer.width=12", "transformer.depth=1")
    size = ("transformer.heads=2", "budget.images=64", "pictures.count=4", "data.batch=16", "log.every=16")
    data = ("data=folder", "data.path=runs/data/letters", "data.workers=0", "seed=9", "trainer.precision=32-true")
    asked = ("tensorboard=false", "tokenizer_run=runs/multi")
    command("train", "out=runs/new/on_tokens", *data, *from_tokens, *size, *asked)
    return {"arrays": arrays, "lines": lines("new/on_tokens")}


def report() -> dict[str, Any]:
    """``varlab report`` of the stored runs: its tables."""
    command("report", "runs/orders", "runs/scaling", "runs/judge", "runs/multi", "runs/single", "out=runs/new/report")
    names = ("results.csv", "scaling.csv")
    return {name: list(csv.DictReader((Path("runs/new/report") / name).open())) for name in names}


def shards() -> dict[str, Any]:
    """``varlab index … check=true`` of packed and of foreign shards."""
    answers = {}
    for name in ("letters", "foreign"):
        command("index", f"runs/data/{name}", "check=true", f"out=runs/new/check/{name}")
        answers[name] = json.loads((Path("runs/new/check") / name / "check.json").read_text())
    return answers


def sweep() -> dict[str, Any]:
    """The finished sweep, whose own command is given again: nothing to do, and its table."""
    record = json.loads((of_order("raster") / "run.json").read_text())
    others = [override for override in record["overrides"] if not override.startswith("order=")]
    command("train", "-m", *others, "order=next_scale,raster")
    with Path("runs/orders/sweep.csv").open() as file:
        return {"rows": [{key: row[key] for key in SWEEP} for row in csv.DictReader(file)]}


def export() -> dict[str, Any]:
    """The imported run, written back: its tensors."""
    command("export", "runs/imported", "format=var", "out=runs/new/export")
    tensors = torch.load("runs/new/export/transformer.pth", weights_only=True)
    return {name: few(tensor) for name, tensor in tensors.items() if tensor.is_floating_point()}


def resumed(name: str) -> Callable[[], dict[str, Any]]:
    """A stopped run, whose own command is given again: its log to the end."""

    def answer() -> dict[str, Any]:
        record = json.loads(Path(f"runs/stopped/{name}/run.json").read_text())
        command("train", *record["overrides"])
        return {"lines": lines(f"stopped/{name}")}

    return answer


ALL: dict[str, Callable[[], dict[str, Any]]] = {
    "tokenizers": tokenizers,
    "generators": generators,
    "condition": condition,
    "samples": samples,
    "evaluations": evaluations,
    "tokens": tokens,
    "report": report,
    "shards": shards,
    "sweep": sweep,
    "export": export,
    **{
        name: resumed(name)
        for name in ("killed_tokenizer", "asked_generator", "validating_generator", "asked_two_ranks")
    },
}
