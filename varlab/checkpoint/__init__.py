"""Our checkpoint format: tensors and JSON types, written atomically, with their digest."""

from varlab.checkpoint.io import (
    check_state,
    diverged,
    load_checkpoint,
    load_weights,
    peek_images,
    read_metadata,
    read_weights,
    save_checkpoint,
    save_weights,
    write_torch,
)

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
