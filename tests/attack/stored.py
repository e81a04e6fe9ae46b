"""Small whole runs to damage: the stored ones of ``tests/old``, with the digests that runs have today."""

from __future__ import annotations

import contextlib
import functools
import io
import logging
import re
import shutil
import tarfile
import tempfile
from pathlib import Path

import safetensors.torch
import torch

from tests import small
from tests.attack.trial import Reading
from varlab.checkpoint import read_metadata, save_checkpoint, save_weights
from varlab.cli.main import main
from varlab.errors import VarlabError

__all__ = ["answer", "call", "put"]

_ARCHIVE = Path(__file__).parents[1] / "old" / "runs.tar.xz"
_SHORT = {"order=next_scale": "next_scale", "order=raster": "raster"}


@functools.cache
def _stored() -> tempfile.TemporaryDirectory[str]:
    """The runs, unpacked once in this process; the generators have short names."""
    folder = tempfile.TemporaryDirectory(prefix="stored-")
    with tarfile.open(_ARCHIVE) as archive:
        archive.extractall(folder.name, filter="data")
    runs = Path(folder.name) / "runs"
    for path in sorted((runs / "orders").iterdir()):
        for order, name in _SHORT.items():
            if order in path.name:
                shutil.move(path, runs / name)
    for name in _SHORT.values():  # the others' weights are those that the tokens and scores name
        for path in (runs / name).glob("*.safetensors"):
            save_weights(path, safetensors.torch.load_file(path), read_metadata(path))
    for path in runs.rglob("last.ckpt"):
        save_checkpoint(path, torch.load(path, weights_only=True))
    return folder


def put(folder: Path, *names: str) -> None:
    """Copy some of the stored runs into ``folder/runs``."""
    runs = Path(_stored().name) / "runs"
    for name in names:
        shutil.copytree(runs / name, folder / "runs" / name, dirs_exist_ok=True)


def overrides(run: Path) -> list[str]:
    """What a run was asked."""
    return [str(word) for word in small.record(run)["overrides"]]


def call(*arguments: str) -> tuple[int, str]:
    """A command's exit code, and what it says."""
    said = io.StringIO()
    handlers = logging.getLogger().handlers[:]
    with contextlib.redirect_stderr(said), contextlib.redirect_stdout(said):
        code = main(list(arguments))
    logging.getLogger().handlers[:] = handlers
    return code, said.getvalue()


def answer(*arguments: str) -> Reading:
    """Whether a command works. Raises VarlabError with its sentence if it refuses; RuntimeError if it says something else."""
    code, said = call(*arguments)
    if "Traceback" in said or re.search(r"^varlab \w+: unexpected", said, re.MULTILINE) or code not in (0, 1):
        raise RuntimeError(f"varlab {' '.join(arguments)}: exit code {code}\n{said}")
    if code:
        raise VarlabError(" ".join(said.split())[-1500:])
    return {"": "done"}, False
