"""A small world: packed digits, a judge, a perceptual net, two tokenizers, two generators, all by the real commands.

It lies in a folder as a user's would: ``runs/…``, so that every ``auto`` of the configuration finds what it looks for.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from multiprocessing.context import ForkServerContext
from pathlib import Path
from typing import Any

from varlab.cli.main import main
from varlab.files import locked

FAST = ("trainer.precision=32-true", "tensorboard=false", "log.every=64")
CLASSIFIER = ("task=classifier", "classifier.channels=[8,8,16]", "classifier.groups=4", "budget.images=640", *FAST)
TOKENIZER = (
    "task=tokenizer",
    "tokenizer.channels=8",
    "tokenizer.groups=4",
    "tokenizer.vocab_size=32",
    "tokenizer.code_dim=8",
    "discriminator.width=8",
    "data.batch=32",
    "budget.images=256",
    "loss.gan.start=96",  # the adversarial loss is at work in the last updates
    "pictures.count=4",
    *FAST,
)
GENERATOR = (
    "task=generator",
    "transformer.width=32",
    "transformer.depth=2",
    "transformer.heads=2",
    "data.batch=32",
    "budget.images=256",
    "pictures.count=10",
    *FAST,
)
RUNS: dict[str, tuple[str, ...]] = {
    "judge": (*CLASSIFIER, "role=judge", "seed=1"),
    "perceptual": (*CLASSIFIER, "role=perceptual", "seed=2"),
    "multi": (*TOKENIZER, "tokenizer=multi", "tokenizer.scales=[[1,1],[2,2],[3,3],[4,4]]"),
    "single": (*TOKENIZER, "tokenizer=single", "tokenizer.scales=[[4,4]]"),
    "next_scale": (*GENERATOR, "order=next_scale", "tensorboard=true"),
    "raster": (*GENERATOR, "order=raster"),
}


PACKS = {"digits": ("source=digits",), "edges": ("source=digits", "condition=edges")}
LEVELS = (("digits", "edges"), ("judge", "perceptual"), ("multi", "single"), ("next_scale", "raster"))


def build_world(folder: Path, *, turn: int = 0) -> None:
    """Everything above, in ``folder``. Processes with the turns 0 and 1 share the work: those of a level are independent."""
    with inside(folder):
        for level in LEVELS:
            for name in level[::-1] if turn % 2 else level:
                with locked(folder / ".making" / name) as made:
                    if not made.tell():
                        _make(name)
                        made.write("made")


def _make(name: str) -> None:
    assert (train(name, *RUNS[name]) if name in RUNS else main(["pack", *PACKS[name]])) == 0, name


def train(out: str | Path, *overrides: str) -> int:
    """``varlab train`` into ``out`` (a name lands under runs/); returns the exit code."""
    return main(["train", f"out={out if isinstance(out, Path) else Path('runs') / out}", *overrides])


@contextmanager
def inside(folder: Path) -> Iterator[None]:
    """With ``folder`` as the current one."""
    before = Path.cwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)


# -- processes that can be killed --------------------------------------------------------------------------------------


def fork_server() -> ForkServerContext:
    """A way to start processes that are forked from a server that has imported everything already."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["varlab.cli.commands.train", "varlab.cli.app", "varlab.launch.job"])
    return context


class Child:
    """``varlab ARGUMENTS`` in a process of its own."""

    def __init__(self, *arguments: str, log: Path):
        context = fork_server()
        self._process = context.Process(target=_child, args=(arguments, str(Path.cwd()), str(log)), daemon=True)
        self._process.start()

    @property
    def pid(self) -> int:
        assert self._process.pid is not None
        return self._process.pid

    def until(self, moment: Callable[[], bool], patience: float = 600) -> bool:
        """Wait for a moment. False: the process ended before it came."""
        deadline = time.monotonic() + patience
        while time.monotonic() < deadline:
            if moment():
                return True
            if not self._process.is_alive():
                return False
            time.sleep(0.001)
        raise TimeoutError("the moment never came")

    def kill(self) -> None:
        """As kill -9 does."""
        self._process.kill()
        self._process.join()

    def signal(self, number: signal.Signals) -> None:
        """As kill does."""
        os.kill(self.pid, number)

    def wait(self, patience: float = 600) -> int:
        """The exit code, at the end."""
        self._process.join(patience)
        assert self._process.exitcode is not None, "the process does not end"
        return self._process.exitcode


def _child(arguments: Sequence[str], folder: str, log: str) -> None:
    os.chdir(folder)
    out = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(out, 1)
    os.dup2(out, 2)
    os._exit(main(list(arguments)))


# -- what runs leave behind --------------------------------------------------------------------------------------------

CLOCKED = {"seconds", "train/images_per_second", "train/eta_seconds"}  # what the hour has a say in


def record(run: Path) -> dict[str, Any]:
    """run.json, without its seal."""
    return {key: value for key, value in json.loads((run / "run.json").read_text()).items() if key != "sha256"}


def lines(run: Path) -> list[dict[str, float]]:
    """metrics.jsonl, without what the hour has a say in."""
    read = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key not in CLOCKED} for line in read]


def curve(run: Path, key: str) -> list[float]:
    """A metric over the log points."""
    return [line[key] for line in lines(run) if key in line]


def progress(run: Path) -> int:
    """Images consumed so far."""
    try:
        return int((run / "progress").read_text())
    except (OSError, ValueError):
        return 0


def weights(run: Path) -> tuple[bytes, bytes]:
    """Averaged and raw weights, to the bit."""
    return (run / "weights.safetensors").read_bytes(), (run / "weights_raw.safetensors").read_bytes()
