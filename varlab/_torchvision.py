"""Lets PyPI's CUDA build of torchvision be imported beside a CPU-only torch.

There its import dies with ``operator torchvision::nms does not exist``, and torchmetrics.image, torch-fidelity and lightning
die with it. Declaring the two operators that its Python code registers fake kernels for is enough for everything in Python
(transforms, models); calling the native operators still raises. Nothing happens beside a torch with CUDA.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

SCHEMAS = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
)


class TorchvisionShim(MetaPathFinder):
    """Declares the missing operators at the moment torchvision is first imported: until then nothing heavy is."""

    def __init__(self) -> None:
        self._library: Any = None  # torch forgets the declarations with this object

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        """Never finds anything itself: the ordinary finders go on after the declaration."""
        if name == "torchvision" and self._library is None:
            self._declare()
        return None

    def _declare(self) -> None:
        import torch

        if torch.version.cuda is not None or torch.version.hip is not None:
            return
        self._library = torch.library.Library("torchvision", "FRAGMENT")
        for schema in SCHEMAS:
            self._library.define(schema)


def install() -> None:
    """Put the shim in front of the import system, once."""
    if "torchvision" not in sys.modules and not any(isinstance(f, TorchvisionShim) for f in sys.meta_path):
        sys.meta_path.insert(0, TorchvisionShim())
