"""Exported weights (safetensors) and checkpoints (torch; tensors and JSON types), both written atomically."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, TypeVar, cast

import torch
from safetensors import safe_open
from torch import Tensor, nn

from varlab.checkpoint.seal import MARKS, SealedFile, check_seal, lost_digest, sealed_tensors
from varlab.checkpoint.weight_blocks import LARGEST, WeightBlocks, is_sound
from varlab.config import Config
from varlab.files import atomic_write
from varlab.types import VarlabError

__all__ = [
    "check_state",
    "diverged",
    "load_checkpoint",
    "load_weights",
    "peek_images",
    "read_metadata",
    "read_weights",
    "save_checkpoint",
    "save_weights",
    "write_torch",
]


T = TypeVar("T")
_SEALED = "sealed"  # key of a checkpoint that has a digest at its end


def save_weights(path: Path, state: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Export a state dict as sealed safetensors, atomically. metadata: strings for the file's header."""
    tensors = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in state.items()}
    head, rest = sealed_tensors(tensors, dict(metadata))
    with atomic_write(path, make_folder=False) as file:
        file.write(head)
        file.write(rest)


def load_weights(module: nn.Module, path: Path) -> None:
    """Read exported weights into ``module``, in place.

    Raises VarlabError when the file is missing or damaged, when a tensor is missing, unexpected or of another shape, or
    when one holds numbers that no sound training ends with; the module then holds some of the file's numbers.
    """
    places = module.state_dict()
    state, blocks = _read(path, lambda name: _read_sealed(name, places), "weights")
    check_state(places, state, path)
    if blocks.diverged is not None:
        raise VarlabError(
            f"{path} comes from a training that diverged: its tensor '{blocks.diverged}' holds NaN, infinity or numbers "
            f"beyond {LARGEST:g}. Train again with a lower learning rate."
        )
    module.load_state_dict({name: state[name] for name in state if name not in blocks.copied}, strict=False)


def diverged(state: Mapping[str, Tensor]) -> str | None:
    """The first tensor with a number that is not finite, or whose square is not finite in float32; None if all are sound."""
    floats = (name for name, tensor in state.items() if tensor.is_floating_point() and tensor.numel())
    return next((name for name in floats if not is_sound(state[name])), None)


def read_weights(path: Path) -> dict[str, Tensor]:
    """Read weights written by ``save_weights``. Raises VarlabError when the file is missing or damaged."""
    return _read(path, lambda name: _read_sealed(name, {}), "weights")[0]


def _read_sealed(path: Path, places: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], WeightBlocks]:
    """The tensors of a file that holds what was written, and their blocks, which went to their places meanwhile."""
    with safe_open(path, framework="pt") as file:
        state: dict[str, Tensor] = {name: file.get_tensor(name) for name in file.offset_keys()}
    blocks = WeightBlocks(state, places)
    rest = iter(blocks)
    check_seal(path, rest=rest)
    for _ in rest:  # of a file without a digest
        pass
    return state, blocks


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
    with atomic_write(path, make_folder=False) as file:
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


def peek_images(path: Path) -> int:
    """The images of a training's checkpoint. Its tensors are not read, and its digest is not compared."""

    def peek(name: Path) -> int:
        state: Config = torch.load(name, map_location="cpu", weights_only=True, mmap=True)
        return int(state["images"])

    return _read(path, peek, "a checkpoint")


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
