"""The processor: whether it multiplies bfloat16 numbers itself, the precision that is fast where it does not, and compiling."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from varlab.types import full_precision

__all__ = ["emulates_bfloat16", "hardware_precision", "many_shapes", "multiplies_bfloat16", "on_processor", "widened"]

_SHAPES = 64  # that a function may be compiled for


@cache
def multiplies_bfloat16() -> bool:
    """Whether the processor has instructions for products of bfloat16 numbers (AVX512-BF16 or AMX)."""
    info = Path("/proc/cpuinfo")
    flags = info.read_text() if info.exists() else ""
    return "avx512_bf16" in flags or "amx_bf16" in flags


def on_processor(x: Tensor) -> bool:
    """Whether a tensor has numbers on a processor: the tensors of a plan have a shape alone, and stand for any device."""
    return type(x) is Tensor and x.device.type == "cpu"


def emulates_bfloat16(x: Tensor) -> bool:
    """Whether torch would emulate products of such tensors in bfloat16, which takes several times as long as in float32."""
    return on_processor(x) and not multiplies_bfloat16()


def hardware_precision(x: Tensor) -> AbstractContextManager[object]:
    """A context without autocast if a product of such tensors would be emulated; otherwise with autocast as it is."""
    return full_precision(x) if emulates_bfloat16(x) else nullcontext()


def widened(*tensors: Tensor) -> tuple[Tensor, ...]:
    """The tensors as they are, or in float32 if their products would be emulated.

    Products of bfloat16 numbers that are added up in float32 are what the instructions compute, too.
    """
    wide = tensors[0].dtype == torch.bfloat16 and emulates_bfloat16(tensors[0])
    return tuple(x.float() for x in tensors) if wide else tensors


@contextmanager
def many_shapes() -> Iterator[None]:
    """Inside, a function may be compiled for more shapes than torch allows by default."""
    with torch._dynamo.config.patch(recompile_limit=_SHAPES, accumulated_recompile_limit=_SHAPES * 16):
        yield
