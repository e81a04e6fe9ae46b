"""Our checkpoint format: tensors and JSON types, written atomically."""

from varlab.checkpoint.io import (
    check_state,
    load_checkpoint,
    load_weights,
    read_metadata,
    read_weights,
    save_checkpoint,
    save_weights,
)

__all__ = [
    "atomic_write",
    "check_state",
    "load_checkpoint",
    "load_weights",
    "read_metadata",
    "read_weights",
    "save_checkpoint",
    "save_weights",
    "sha256",
]
