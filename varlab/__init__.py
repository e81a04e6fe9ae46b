"""varlab: an open laboratory for visual autoregression."""

from __future__ import annotations

__version__ = "0.1.0"
