"""Checkpoints of other code, read without running any of theirs."""

from __future__ import annotations

import pickle
import re
import sys
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from varlab.types import VarlabError

State = dict[str, Tensor]

_UNKNOWN = re.compile(
    r"Unsupported global: GLOBAL (\S+) was not an allowed global|unsupported GLOBAL (\S+) whose module"
)
_WRAPPERS = ("state_dict", "ema", "model", "module")  # under which trainers keep the weights, best first
_MOST_PLACEHOLDERS = 200


def read_state(path: Path) -> State:
    """The tensors of a .safetensors, .pth, .pt or .ckpt file by name.

    Classes that a trainer pickled along (Lightning's callbacks) become inert placeholders: their code is never imported.
    Raises VarlabError for a file that is missing, damaged, holds code, or holds no tensors by name.
    """
    if not path.is_file():
        raise VarlabError(f"There is no checkpoint {path}.")
    if path.suffix == ".safetensors":
        try:
            return safetensors.torch.load_file(path)
        except (SafetensorError, OSError, ValueError) as error:
            raise _damaged(path) from error
    return _tensors(_unpickled(path), path)


def parts(path: Path, names: tuple[str, ...]) -> State | None:
    """The state under nested keys of a trainer's file (VAR's: trainer, var_wo_ddp); None where there is none such."""
    if path.suffix == ".safetensors" or not path.is_file():
        return None
    found: Any = _unpickled(path)
    for name in names:
        if not isinstance(found, Mapping) or name not in found:
            return None
        found = found[name]
    return _tensors(found, path)


def _damaged(path: Path) -> VarlabError:
    return VarlabError(f"{path} is no checkpoint that can be read: it is truncated, damaged or of another kind.")


def _unpickled(path: Path) -> Any:
    """The file's content, by torch's restricted unpickler; each unknown class met is replaced and the file read again."""
    placeholders: list[Any] = []
    for _ in range(_MOST_PLACEHOLDERS):
        try:
            with torch.serialization.safe_globals(placeholders):
                return torch.load(path, map_location="cpu", weights_only=True)
        except pickle.UnpicklingError as error:
            match = _UNKNOWN.search(str(error))
            if match is None:
                raise _damaged(path) from error
            name = match[1] or match[2]
            if match[2] or not _is_a_class_of_others(name):
                raise VarlabError(
                    f"{path} holds code ({name}), not only tensors, and is not read: take the weights from a source you trust, "
                    "as .safetensors if there is one."
                ) from error
            placeholders.append((_placeholder(name), name))
        except (RuntimeError, EOFError, OSError, ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
            raise _damaged(path) from error
    raise VarlabError(f"{path} names more than {_MOST_PLACEHOLDERS} classes that are no tensors: it is not read.")


def _is_a_class_of_others(name: str) -> bool:
    """Whether a pickled name looks like some package's class; functions and Python's own or torch's things never pass."""
    package, _, last = name.partition(".")[0], None, name.rpartition(".")[2]
    return package not in (*sys.stdlib_module_names, "torch", "numpy", "builtins", "__builtin__") and last[:1].isupper()


def _placeholder(name: str) -> type:
    """A class whose instances are ordered dicts: the one kind that the restricted unpickler lets anything be put into."""

    def empty(cls: type, *args: Any, **kwargs: Any) -> OrderedDict[Any, Any]:
        return OrderedDict()

    return type(name.rpartition(".")[2], (), {"__module__": __name__, "__new__": empty})


def _tensors(content: Any, path: Path) -> State:
    """The first mapping of names to tensors, looking under the usual wrappers."""
    for name in _WRAPPERS:
        if isinstance(content, Mapping) and isinstance(content.get(name), Mapping):
            return _tensors(content[name], path)
    if isinstance(content, Mapping):
        state = {str(key): value for key, value in content.items() if isinstance(value, Tensor)}
        if state:
            return state
    raise VarlabError(
        f"{path} holds no tensors by name where a checkpoint has them ({', '.join(_WRAPPERS)} or at the top)."
    )
