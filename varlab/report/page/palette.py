"""The colours of variants, in figures and in the stylesheet."""

from __future__ import annotations

PALETTE = (
    ("#0072b2", "#56a8e8"),
    ("#d55e00", "#ff9147"),
    ("#009e73", "#3ecfa2"),
    ("#b0549a", "#e793cf"),
    ("#c48a00", "#f2c14e"),
    ("#5b5bd6", "#a3a3ff"),
    ("#3d8c95", "#7fd3dc"),
    ("#7a6a58", "#c9b8a3"),
)
"""(on light, on dark), after Okabe & Ito (2008): distinct for colour-blind readers. Further variants repeat it, dashed."""
