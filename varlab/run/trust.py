"""Trust: which ``_target_``s of a configuration that was read from a file may be built.

A record is data: somebody else may have written it. What it names is built only if ``conf/`` names it too, or the user.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from varlab.config import conf_dir
from varlab.errors import VarlabError
from varlab.files import read_bytes
from varlab.json_file import LARGEST
from varlab.renames import current_name
from varlab.run.record import FILE

__all__ = ["Trust", "described_by", "named_targets", "targets_of"]

# The groups of conf/ that a record's parts come from. The others name what runs or writes: tasks, trainers, loggers, sources.
_GROUPS = ("classifier", "condition", "crop", "data", "order", "perceptual", "sampler", "tokenizer", "transformer")
_LAYERS = ("GELU", "SiLU", "ReLU", "LeakyReLU", "Tanh", "Identity", "LayerNorm", "RMSNorm", "GroupNorm")
_TARGET = re.compile(r"_target_[\"']?\s*:\s*[\"']?([\w.]+)")
_URL = re.compile(r"\w+://[^\s\"']+")
_PLACES = frozenset({"path", "shards", "train", "val", "tokens"})  # of images, which are data wherever they lie
_SHOWN = 120  # characters of a foreign text in a sentence


@dataclass(frozen=True)
class Trust:
    """What may be built of a record beside varlab's own parts.

    names: the ``_target_``s that the user's command line, ``--config-dir`` or plug-ins name. everything: the user said so.
    """

    names: frozenset[str] = frozenset()
    everything: bool = False

    @classmethod
    def of(cls, setting: bool | Iterable[str] | None) -> Trust:
        """The value of the key ``trust``: true for everything, false for nothing more, or the names to trust."""
        if setting is True:
            return cls(everything=True)
        return cls(names=frozenset(setting or ()))

    @classmethod
    def within(cls, config: Mapping[str, Any]) -> Trust:
        """What a user's own configuration names, and what its key ``trust`` allows beside that."""
        setting = config.get("trust")
        return cls(everything=True) if setting is True else cls.of({*targets_of(config), *(setting or ())})

    def check(self, config: object, source: Path) -> None:
        """Raise VarlabError naming what a record's configuration would run or reach, unless it may.

        config: any JSON value. source: the file that it was read from.
        """
        if self.everything:
            return
        for key, value in _leaves(config):
            if key == "_target_":
                self._check_target(value, source)
            elif isinstance(value, str):
                _check_text(key, value, source)

    def _check_target(self, target: object, source: Path) -> None:
        known = isinstance(target, str) and current_name(target) in _packaged() | self.names
        if not known:
            raise VarlabError(
                f"{source} would run {_shown(target)}, which is no part of varlab: if you trust whoever made it, give "
                "--config-dir with the folder that names it, or trust=true (in Python: trust=True)."
            )


def _check_text(key: str, value: str, source: Path) -> None:
    if "${" in value or "${" in key:
        raise _refused(source, f"a reference to be filled in, {_shown(key)}: {_shown(value)}")
    if "pipe:" in value.lower():
        raise _refused(source, f"a command to run, {_shown(value)}")
    if "://" in value and key not in _PLACES and value not in _packaged_urls():
        raise _refused(source, f"an address that is not varlab's, {_shown(value)}")


def _refused(source: Path, what: str) -> VarlabError:
    return VarlabError(
        f"{source} holds {what}: give it on the command line, or trust=true (in Python: trust=True) if you trust whoever made "
        "the file."
    )


def _shown(value: object) -> str:
    """A foreign value without line breaks and control characters, cut to a length that fits a sentence."""
    text = ascii(value) if not isinstance(value, str) else ascii(value)[1:-1]
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…"


def _leaves(config: object) -> Iterator[tuple[str, object]]:
    """(key, value) of everything in a JSON value that holds nothing more; of a list, its key. ``_target_``s come whole."""
    todo: list[tuple[str, object]] = [("", config)]
    while todo:  # a record may be nested deeper than Python's stack
        key, value = todo.pop()
        if key == "_target_":
            yield key, value
        elif isinstance(value, Mapping):
            todo += [(str(name), item) for name, item in value.items()]
        elif isinstance(value, list | tuple):
            todo += [(key, item) for item in value]
        else:
            yield key, value


@contextmanager
def described_by(file: Path, what: str) -> Iterator[None]:
    """Turn whatever goes wrong with a description of something in a foreign file into one sentence about that file.

    what: the file should describe.
    """
    try:
        yield
    except VarlabError as error:
        if str(file.parent) in str(error):
            raise
        raise VarlabError(f"{file} describes no {what}: {error!s:.600}") from error
    except Exception as error:  # of any constructor that gets values of other types or sizes than it is made for
        said = " ".join(str(error).split())
        raise VarlabError(f"{file} describes no {what} ({type(error).__name__}: {said:.200}).") from error


def targets_of(config: object) -> set[str]:
    """The ``_target_``s in a configuration, at any depth, by their current names."""
    return {current_name(value) for key, value in _leaves(config) if key == "_target_" and isinstance(value, str)}


def named_targets(folder: Path) -> set[str]:
    """The ``_target_``s that the YAML files in a folder name, at any depth, but not in the directories of runs."""
    found: set[str] = set()
    for root, folders, files in os.walk(folder):
        if FILE in files:
            folders.clear()
            continue
        for name in files:
            if name.endswith((".yaml", ".yml")):
                with suppress(VarlabError, FileNotFoundError):  # Hydra says it, if it is to read that file
                    found |= set(_TARGET.findall(read_bytes(Path(root, name), LARGEST).decode(errors="replace")))
    return set(map(current_name, found))


@cache
def _packaged() -> frozenset[str]:
    """varlab's own building blocks, as ``conf/`` names them, and layers of torch that hold nothing but numbers."""
    own = set().union(*(named_targets(conf_dir() / group) for group in _GROUPS))
    return frozenset(own | {f"torch.nn.{layer}" for layer in _LAYERS})


@cache
def _packaged_urls() -> frozenset[str]:
    files = [file for group in _GROUPS for file in (conf_dir() / group).rglob("*.yaml")]
    return frozenset(url for file in files for url in _URL.findall(file.read_text(encoding="utf-8")))
