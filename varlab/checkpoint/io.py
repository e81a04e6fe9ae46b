"""Exported weights (safetensors) and checkpoints (torch; tensors and JSON types), both written atomically."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, TypeVar, cast

import safetensors.torch
import torch
from safetensors import safe_open
from torch import Tensor, nn

from varlab.checkpoint.seal import MARKS, SealedFile, check_seal, lost_digest, sealed_tensors
from varlab.config import Config
from varlab.files import atomic_write
from varlab.types import VarlabError

__all__ = [
    "check_state",
    "diverged",
    "load_checkpoint",
    "load_weights",
    "read_metadata",
    "read_weights",
    "save_checkpoint",
    "save_weights",
    "write_torch",
]


T = TypeVar("T")
LARGEST = 1e18
"""A weight beyond it has no square in float32."""
_SEALED = "sealed"  # key of a checkpoint that has a digest at its end


def save_weights(path: Path, state: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Export a state dict as sealed safetensors, atomically. metadata: strings for the file's header."""
    tensors = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in state.items()}
    head, rest = sealed_tensors(tensors, dict(metadata))
    with atomic_write(path) as file:
        file.write(head)
        file.write(rest)


def load_weights(module: nn.Module, path: Path) -> None:
    """Read exported weights into ``module``, in place.

    Raises VarlabError when the file is missing or damaged, when a tensor is missing, unexpected or of another shape, or
    when one holds numbers that no sound training ends with.
    """
    state = read_weights(path)
    check_state(module.state_dict(), state, path)
    if (name := diverged(state)) is not None:
        raise VarlabError(
            f"{path} comes from a training that diverged: its tensor '{name}' holds NaN, infinity or numbers beyond "
            f"{LARGEST:g}. Train again with a lower learning rate."
        )
    module.load_state_dict(state)


def diverged(state: Mapping[str, Tensor]) -> str | None:
    """The first tensor with a number that is not finite, or whose square is not finite in float32; None if all are sound."""
    for name, tensor in state.items():
        if tensor.is_floating_point() and tensor.numel():
            least, most = tensor.aminmax()
            if not (least >= -LARGEST and most <= LARGEST):  # of NaN, neither holds
                return name
    return None


def read_weights(path: Path) -> dict[str, Tensor]:
    """Read weights written by ``save_weights``. Raises VarlabError when the file is missing or damaged."""

    def read(name: Path) -> dict[str, Tensor]:
        check_seal(name)
        return safetensors.torch.load_file(name)

    return _read(path, read, "weights")


def read_metadata(path: Path) -> dict[str, str]:
    """Read the strings that ``save_weights`` wrote into the file's header."""

    def read(name: Path) -> dict[str, str]:
        with safe_open(name, framework="pt") as file:
            return {key: value for key, value in (file.metadata() or {}).items() if key not in MARKS}

    return _read(path, read, "weights")


def check_state(wanted: Mapping[str, Tensor], stored: Mapping[str, Tensor], path: Path) -> None:
    """Raise VarlabError naming the first tensor of a stored state dict that does not fit the wanted one."""
    advice = f"{path} is a checkpoint of another configuration"
    for name in wanted:
        if name not in stored:
            raise VarlabError(f"{advice}: it has no tensor '{name}', which this model needs.")
    for name, tensor in stored.items():
        if name not in wanted:
            raise VarlabError(f"{advice}: its tensor '{name}' has no place in this model.")
        if tensor.shape != wanted[name].shape:
            shapes = f"{tuple(tensor.shape)}, this model needs {tuple(wanted[name].shape)}"
            raise VarlabError(f"{advice}: tensor '{name}' has shape {shapes}.")


def save_checkpoint(path: Path, state: Mapping[str, object]) -> None:
    """Write a resumable state, sealed and atomically; the file before it stays until the new one was read back.

    Raises TypeError for a value that is neither a tensor nor a JSON type.
    """
    _check_types(state, "state")
    with atomic_write(path) as file:
        sealed = SealedFile(file)
        write_torch(cast(IO[bytes], sealed), {_SEALED: True, **state})
        sealed.close()
        check_seal(Path(file.name), path)


def write_torch(file: IO[bytes], value: object) -> None:
    """``torch.save``, which reports an incomplete file where the disk is full; here the disk's own error is raised."""
    try:
        torch.save(value, file)
    except RuntimeError as error:
        why: BaseException | None = error
        while why is not None:
            if isinstance(why, OSError | KeyboardInterrupt):
                raise why from None
            why = why.__context__
        raise


def load_checkpoint(path: Path) -> Config:
    """Read a checkpoint onto the CPU, without unpickling code (``weights_only``)."""

    def load(name: Path) -> Config:
        sealed = check_seal(name)
        state: Config = torch.load(name, map_location="cpu", weights_only=True)
        if state.pop(_SEALED, False) and not sealed:
            raise lost_digest(path)
        return state

    return _read(path, load, "a checkpoint")


def _read(path: Path, reader: Callable[[Path], T], what: str) -> T:
    if not path.is_file():
        raise VarlabError(f"There is no file {path} to read {what} from.")
    try:
        return reader(path)
    except VarlabError:
        raise
    except Exception as error:  # damaged bytes lead both libraries into any error of Python's
        raise VarlabError(f"{path} does not hold {what} that can be read (truncated or damaged): remove it.") from error


def _check_types(value: object, where: str) -> None:
    """Tuples are allowed besides lists: optimizers keep some (betas), and torch's safe loader reads them."""
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
