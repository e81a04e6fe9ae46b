"""The slots of a condition, the image so far of orders that go cell by cell, and constants on devices."""

from __future__ import annotations

import torch

from varlab.order import Permutation
from varlab.order.base import OnDevices
from varlab.order.paths import raster
from varlab.rng import Rng
from varlab.tokenizer import VQTokenizer


def tokenizer(**changes: object) -> VQTokenizer:
    with Rng(0).scope("init"):
        settings: dict[str, object] = dict(
            scales=[[2, 3]], vocab_size=7, code_dim=4, channels=8, channel_mult=[1, 1], res_blocks=1, groups=2, attention=[],
            mid_attention=False, phi_count=0,
        )  # fmt: skip
        return VQTokenizer(**(settings | changes))  # type: ignore[arg-type]


def test_a_condition_brings_no_codes() -> None:
    order, made = Permutation(scales=[[2, 3]], path=raster), tokenizer()
    slots, _ = order.pack([torch.arange(6)[None]], made)
    prefix = order.prefix(torch.tensor([[5, 3]]), slots)
    assert prefix.x_BLC.shape == (1, 2, 4) and not prefix.x_BLC.any()
    assert prefix.pos_BL.tolist() == prefix.src_BL.tolist() == [[6, 7]]
    assert prefix.level_L.tolist() == [1, 1] and prefix.step_L.tolist() == [-1, -1]


def test_cells_that_are_not_known_yet_are_zero() -> None:
    order, made = Permutation(scales=[[2, 3]], path=raster), tokenizer()
    state = order.start(1, made)
    for k in range(4):
        state = order.advance(state, k, torch.tensor([[k + 1]]), made)
    canvas_Cn = order.canvas(state, made)[0].flatten(1)
    torch.testing.assert_close(canvas_Cn[:, :4].T, made.embed(torch.tensor([[1, 2, 3, 4]]))[0])
    assert not canvas_Cn[:, 4:].any()


def test_a_constant_is_copied_to_a_device_once() -> None:
    constant = OnDevices(torch.arange(3))
    meta = torch.device("meta")
    assert constant.on(meta) is constant.on(meta) and constant.on(meta).device == meta
    assert constant.on(torch.device("cpu")).tolist() == [0, 1, 2]


def test_the_kernel_around_the_quantizer_keeps_the_grid() -> None:
    for size in (1, 3, 5):
        made = tokenizer(quant_kernel=size)
        assert made.latents(torch.zeros(1, 3, 4, 6)).shape == (1, 4, 2, 3)
        assert made.decode(torch.zeros(1, 4, 2, 3)).shape == (1, 3, 4, 6)
