"""varlab: an open laboratory for visual autoregression.

``model = varlab.load("runs/…")`` gives a trained model: see :class:`varlab.model.Model`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from varlab._torchvision import install as _install_torchvision_shim

if TYPE_CHECKING:
    from varlab.model import Model
    from varlab.recipe.loading import load

__all__ = ["Model", "load"]
__version__ = "0.1.0"

_install_torchvision_shim()


def __getattr__(name: str) -> Any:
    """``varlab.load`` and ``varlab.Model`` import torch only when they are asked for."""
    if name in __all__:
        from varlab import model
        from varlab.recipe import loading

        return loading.load if name == "load" else model.Model
    raise AttributeError(f"module 'varlab' has no attribute {name!r}")
