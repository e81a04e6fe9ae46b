"""What ``dry=true`` computes from: the rate of matrix products, and the FLOPs that an image takes."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from varlab import processor
from varlab.recipe.trainer import forecast


@pytest.mark.parametrize(("instructions", "dtype"), [(True, torch.bfloat16), (False, torch.float32)])
def test_products_are_measured_as_a_training_multiplies(
    instructions: bool, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without instructions for bfloat16 a training multiplies in float32, which is faster than to emulate them."""
    monkeypatch.setattr(processor, "multiplies_bfloat16", lambda: instructions)
    computed: list[Tensor] = []

    def fastest(compute: Callable[[], Tensor], trainer: object) -> float:
        computed.append(compute())
        return 1.0

    monkeypatch.setattr(forecast, "_fastest", fastest)
    assert forecast.matrix_rate({"precision": "bf16-mixed", "accelerator": "cpu"}) == 2 * 1024**3
    assert [number.dtype for number in computed] == [dtype]
