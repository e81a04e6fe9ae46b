"""Read the state dicts of foreign checkpoints without running code from them."""

from __future__ import annotations

import pickle
import re
import sys
from collections import OrderedDict
from collections.abc import Callable, Mapping
from pathlib import Path

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from varlab.files import require_file
from varlab.types import VarlabError

State = dict[str, Tensor]

_UNKNOWN = re.compile(
    r"Unsupported global: GLOBAL (\S+) was not an allowed global|unsupported GLOBAL (\S+) whose module"
)
_WRAPPERS = ("state_dict", "ema", "model", "module")  # keys under which trainers keep the weights, best first
_MOST_PLACEHOLDERS = 200


def read_state(path: Path) -> State:
    """Read the named tensors of a .safetensors, .pth, .pt or .ckpt file.

    Other pickled classes (such as Lightning's callbacks) become inert placeholders: their code is never imported.
    Raises VarlabError for a file that is missing or damaged, holds code, or holds no named tensors.
    """
    require_file(path, "checkpoint")
    if path.suffix == ".safetensors":
        try:
            return safetensors.torch.load_file(path)
        except (SafetensorError, OSError, ValueError) as error:
            raise _damaged(path) from error
    return _tensors(_unpickled(path), path)


def parts(path: Path, names: tuple[str, ...]) -> State | None:
    """Read the state under nested keys of a trainer's file (VAR's: trainer, var_wo_ddp); None where it lacks them."""
    if path.suffix == ".safetensors" or not path.is_file():
        return None
    content = _unpickled(path)
    for name in names:
        if not isinstance(content, Mapping) or name not in content:
            return None
        content = content[name]
    return _tensors(content, path)


def _damaged(path: Path) -> VarlabError:
    return VarlabError(f"{path} cannot be read as a checkpoint: it is truncated, damaged or of another kind.")


def _unpickled(path: Path) -> object:
    """Read a file with torch's restricted unpickler, replacing unknown classes by placeholders one at a time."""
    placeholders: list[Callable[..., object] | tuple[Callable[..., object], str]] = []
    for _ in range(_MOST_PLACEHOLDERS):
        try:
            with torch.serialization.safe_globals(placeholders):
                return torch.load(path, map_location="cpu", weights_only=True)
        except pickle.UnpicklingError as error:
            match = _UNKNOWN.search(str(error))
            if match is None:
                raise _damaged(path) from error
            name = match[1] or match[2]
            if match[2] or not _is_foreign_class(name):
                raise VarlabError(
                    f"{path} holds code ({name:.100}) besides tensors and was not read: get the weights from a source you "
                    "trust, as .safetensors if possible."
                ) from error
            placeholders.append((_placeholder(name), name))
        except Exception as error:  # a damaged pickle may raise anything
            raise _damaged(path) from error
    raise VarlabError(
        f"{path} holds objects of more than {_MOST_PLACEHOLDERS} classes and was not read: keep only tensors in it."
    )


def _is_foreign_class(name: str) -> bool:
    """Whether a pickled name looks like a third-party class: no function, and nothing of Python, torch or numpy."""
    package, _, last = name.partition(".")[0], None, name.rpartition(".")[2]
    return package not in (*sys.stdlib_module_names, "torch", "numpy", "builtins", "__builtin__") and last[:1].isupper()


def _placeholder(name: str) -> type:
    """A class whose instances are ordered dicts, the only type that the restricted unpickler can fill."""

    def empty(cls: type, *args: object, **kwargs: object) -> OrderedDict[object, object]:
        return OrderedDict()

    return type(name.rpartition(".")[2], (), {"__module__": __name__, "__new__": empty})


def _tensors(content: object, path: Path) -> State:
    """The first mapping of names to tensors, also under the usual wrapper keys."""
    for name in _WRAPPERS:
        if isinstance(content, Mapping) and isinstance(content.get(name), Mapping):
            return _tensors(content[name], path)
    if isinstance(content, Mapping):
        state = {str(key): value for key, value in content.items() if isinstance(value, Tensor)}
        if state:
            return state
    raise VarlabError(
        f"{path} holds no named tensors at its top level or under {', '.join(_WRAPPERS)}: give a checkpoint that does."
    )
