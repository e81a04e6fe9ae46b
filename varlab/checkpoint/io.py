"""Files written whole or not at all: exported weights (safetensors), and checkpoints (torch; tensors and JSON types)."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from varlab.config import Config
from varlab.files import atomic_write
from varlab.types import VarlabError

__all__ = [
    "check_state",
    "load_checkpoint",
    "load_weights",
    "read_metadata",
    "read_weights",
    "save_checkpoint",
    "save_weights",
]


def save_weights(path: Path, state: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Export a state dict as safetensors, atomically. ``metadata``: strings that travel in the file's header."""
    tensors = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in state.items()}
    with atomic_write(path) as file:
        file.write(safetensors.torch.save(tensors, dict(metadata)))


def load_weights(module: nn.Module, path: Path) -> None:
    """Read exported weights into ``module``, in place.

    Raises VarlabError when the file is missing or damaged, or when a tensor is missing, unexpected or of another shape.
    """
    found = read_weights(path)
    check_state(module.state_dict(), found, path)
    module.load_state_dict(found)


def read_weights(path: Path) -> dict[str, Tensor]:
    """What ``save_weights`` wrote. Raises VarlabError when the file is missing or damaged."""
    found: dict[str, Tensor] = _read(path, safetensors.torch.load_file, "weights")
    return found


def read_metadata(path: Path) -> dict[str, str]:
    """The strings that ``save_weights`` put into the file's header."""

    def read(name: Path) -> dict[str, str]:
        with safe_open(name, framework="pt") as file:
            return dict(file.metadata() or {})

    return _read(path, read, "weights")


def check_state(wanted: Mapping[str, Tensor], found: Mapping[str, Tensor], path: Path) -> None:
    """VarlabError naming the first tensor by which a stored state dict does not fit the one wanted."""
    advice = f"{path} is a checkpoint of another configuration"
    for name in wanted:
        if name not in found:
            raise VarlabError(f"{advice}: it has no tensor '{name}', which this model needs.")
    for name, tensor in found.items():
        if name not in wanted:
            raise VarlabError(f"{advice}: its tensor '{name}' has no place in this model.")
        if tensor.shape != wanted[name].shape:
            stored, needed = tuple(tensor.shape), tuple(wanted[name].shape)
            raise VarlabError(f"{advice}: tensor '{name}' has shape {stored}, this model needs {needed}.")


def save_checkpoint(path: Path, state: Mapping[str, Any]) -> None:
    """Write a resumable state, atomically. TypeError if anything in it is neither a tensor nor a JSON type."""
    _check_types(state, "state")
    with atomic_write(path) as file:
        try:
            torch.save(dict(state), file)
        except RuntimeError as error:  # torch's complaint about a file that was not written to its end hides why
            why: BaseException | None = error
            while why is not None:
                if isinstance(why, OSError | KeyboardInterrupt):
                    raise why from None
                why = why.__context__
            raise


def load_checkpoint(path: Path) -> Config:
    """Read what ``save_checkpoint`` wrote, on the CPU and without unpickling code (``weights_only``)."""
    return _read(path, lambda name: torch.load(name, map_location="cpu", weights_only=True), "a checkpoint")


def _read(path: Path, reader: Callable[[Path], Any], what: str) -> Any:
    if not path.is_file():
        raise VarlabError(f"There is no file {path} to read {what} from.")
    try:
        return reader(path)
    except (SafetensorError, RuntimeError, EOFError, ValueError, OSError, pickle.UnpicklingError) as error:
        raise VarlabError(f"{path} does not hold {what} that can be read (truncated or damaged): remove it.") from error


def _check_types(value: Any, where: str) -> None:
    """Optimizers keep tuples (betas), which torch's safe loader takes as well as JSON's lists."""
    if isinstance(value, Mapping):
        for key, item in value.items():
            if not isinstance(key, str | int):
                raise TypeError(f"{where} has a key of type {type(key).__name__}")
            _check_types(item, f"{where}[{key!r}]")
    elif isinstance(value, list | tuple):
        for index, item in enumerate(value):
            _check_types(item, f"{where}[{index}]")
    elif value is not None and type(value) not in (bool, int, float, str) and not isinstance(value, Tensor):
        raise TypeError(f"{where} is a {type(value).__name__}, not a tensor or a JSON type")
