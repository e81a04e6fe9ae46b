"""varlab: an open laboratory for visual autoregression.

``model = varlab.load("runs/…")`` gives a trained model: see :class:`varlab.model.Model`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from varlab._torchvision import install as _install_torchvision_shim

if TYPE_CHECKING:
    from varlab.model import Model
    from varlab.recipe.finished_run import load

__all__ = ["Model", "load"]
__version__ = "0.1.0"

_install_torchvision_shim()


def __getattr__(name: str) -> object:
    """``varlab.load`` and ``varlab.Model`` import torch on their first use."""
    if name in __all__:
        from varlab.recipe import finished_run

        return getattr(finished_run, name)
    raise AttributeError(f"module 'varlab' has no attribute {name!r}")
