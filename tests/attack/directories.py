"""Run directories of a stranger: each payload in each place of a record, read by every command that takes a run."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import varlab
from tests import small
from tests.attack.foreign_values import payloads
from tests.attack.stored import answer, put
from tests.attack.trial import Format, Reading

__all__ = ["DIRECTORIES", "FORMATS", "PLACES", "plant"]

PLACES: tuple[tuple[str, ...], ...] = (
    ("build", "tokenizer", "scales"),
    ("build", "tokenizer", "surplus"),
    ("build", "tokenizer"),
    ("build", "order"),
    ("build", "order", "path"),
    ("build", "transformer"),
    ("build", "transformer", "block"),
    ("build", "transformer", "width"),
    ("build", "transformer", "_args_"),
    ("build", "sampler"),
    ("build", "sampler", "cfg"),
    ("build", "condition"),
    ("build", "classes"),
    ("config", "data"),
    ("config", "data", "augment"),
    ("config", "data", "crop"),
    ("config", "data", "surplus"),
    ("config", "metrics"),
    ("config", "extractor"),
    ("config", "perceptual"),
    ("config", "callbacks"),
    ("config", "logger"),
    ("config", "transformer"),
    ("parents", "tokenizer", "config"),
    ("parents", "judge"),
    ("choices", "order"),
    ("report",),
)
"""Keys of a record under which something is planted; one that is not there is made."""

DIRECTORIES = len(PLACES)
"""Different directories that each command meets, with other payloads each."""

RUN = Path("runs/evil")
_DATA = (
    "data=folder",
    "data.path=runs/data/letters",
    "data.workers=0",
    "data.batch=16",
    "log.every=16",
    "val.every=64",
)
_TRAIN = (
    *_DATA,
    "task=generator",
    "transformer.width=12",
    "transformer.depth=1",
    "transformer.heads=2",
    "budget.images=16",
    "pictures.count=4",
    "trainer.precision=32-true",
    "tensorboard=false",
    "out=out",
)

COMMANDS: dict[str, tuple[str, ...]] = {
    "sample": ("sample", str(RUN), "n=2", "out=out"),
    "edit": ("edit", str(RUN), "task=inpaint", "image=picture.png", "box=[0,0,1,0.5]", "n=1", "out=out"),
    "evaluate": (
        "evaluate",
        str(RUN),
        "n=16",
        "metrics.splits=2",
        "metrics.draws=2",
        "extractor.run=runs/judge",
        "out=out",
    ),
    "encode": ("encode", str(RUN), "out=out"),
    "export": ("export", str(RUN), "format=var", "out=out"),
    "init": ("train", f"init={RUN}", "tokenizer_run=runs/multi", *_TRAIN),
    "tokenizer_run": ("train", f"tokenizer_run={RUN}", *_TRAIN),
    "auto": ("train", *_TRAIN),
    "judge": (
        "evaluate",
        "runs/multi",
        "n=16",
        "metrics.splits=2",
        "metrics.draws=2",
        f"extractor.run={RUN}",
        "out=out",
    ),
    "report": ("report", "runs", "out=out"),
}


def plant(record: object, place: tuple[str, ...], payload: Any) -> dict[str, Any]:
    """A record with a payload at a place."""
    known = record if isinstance(record, dict) else {}
    first, *rest = place
    return {**known, first: plant(known.get(first), tuple(rest), payload) if rest else payload}


def _directory(number: int, folder: Path, *, kind: str) -> None:
    """The number-th hostile directory: place by place, the payloads in turn."""
    run = folder / RUN
    planted = folder.parents[2] / "outside" / "planted"
    every = list(payloads(planted).values())
    payload = every[(5 * number + len(kind)) % len(every)]
    record = small.record(run)
    (run / "run.json").write_text(json.dumps(plant(record, PLACES[number % len(PLACES)], payload)))


def _world(folder: Path, *, kind: str) -> None:
    source = {"tokenizer_run": "multi", "auto": "multi", "encode": "multi", "judge": "judge"}.get(kind, "next_scale")
    put(folder, "multi", "judge", "perceptual", "data/letters", source)
    if source == "next_scale":
        (folder / "runs" / source).rename(folder / RUN)
    else:
        put(folder, source)
        (folder / "runs" / source).rename(folder / RUN)
        put(folder, source)
    if kind == "edit":
        from PIL import Image

        Image.new("RGB", (8, 8)).save(folder / "picture.png")


def _call(folder: Path, *, arguments: tuple[str, ...]) -> Reading:
    return answer(*arguments)


def _load(folder: Path) -> Reading:
    varlab.load(folder / RUN)
    return {"": "done"}, False


def _form(kind: str, read: Callable[[Path], Reading], cases: int) -> Format:
    make, planting = functools.partial(_world, kind=kind), functools.partial(_directory, kind=kind)
    return Format(
        f"directory: {kind}",
        make,
        read,
        (),
        lambda rng, path: None,
        verified=False,
        plant=planting,
        cases=cases,
        seconds=60,
    )


FORMATS = (
    _form("load", _load, 10 * DIRECTORIES),
    *(_form(kind, functools.partial(_call, arguments=arguments), DIRECTORIES) for kind, arguments in COMMANDS.items()),
)
