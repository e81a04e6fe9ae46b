"""Codes that are drawn with Gumbel noise: what VQGAN's code computes, from formulas, and what a draw must obey."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from tests.bounds import SAME
from varlab.checkpoint import formats
from varlab.rng import Rng
from varlab.testing import check_quantizer
from varlab.tokenizer import GumbelQuantizer
from varlab.types import VarlabError

IDS = torch.tensor([5, 9, 2])
STREAM = Rng(3).stream("dropout", IDS)


def quantizer(**changes: Any) -> GumbelQuantizer:
    sizes: dict[str, Any] = dict(scales=[[2, 3]], vocab_size=7, code_dim=4, kl=0.25, temperature=(0.8, 0.1))
    with Rng(0).scope("init/tokenizer"):
        return GumbelQuantizer(**(sizes | changes))


def latents() -> Tensor:
    return Rng(1).stream("images", IDS).normal(4, 2, 3).double()


def by_hand(made: GumbelQuantizer, f_BChw: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(idx_Bl, f_hat_BChw, loss) with plain loops over samples and places, straight through."""
    weight_VC, table_VC = made.proj.weight[:, :, 0, 0], made.codebook.weight
    u_BVl = STREAM.at(1 << 32).uniform(7, 6).double() + 2.0**-25
    f_hat, idx, losses = torch.zeros_like(f_BChw), torch.zeros(3, 6, dtype=torch.int64), []
    for b in range(3):
        for place in range(6):
            logits = weight_VC @ f_BChw[b, :, place // 3, place % 3] + made.proj.bias
            soft = torch.softmax((logits - torch.log(-torch.log(u_BVl[b, :, place]))) / made.temperature, 0)
            idx[b, place] = int(soft.argmax())
            one = torch.nn.functional.one_hot(idx[b, place], 7)
            f_hat[b, :, place // 3, place % 3] = (one - soft.detach() + soft) @ table_VC
            share = torch.softmax(logits, 0)
            losses.append((share * torch.log(share * 7)).sum())
    return idx, f_hat, 0.25 * torch.stack(losses).mean()


def test_a_draw_and_its_gradient_are_those_of_the_formulas() -> None:
    made = quantizer().double()
    made.anneal(0.3)
    weights = (made.proj.weight, made.proj.bias, made.codebook.weight)
    f_BChw = latents().requires_grad_(True)
    inputs = (f_BChw, *weights)
    quantized = in_double(made, f_BChw)
    idx_Bl, f_hat_BChw, loss = by_hand(made, f_BChw)
    assert torch.equal(quantized.maps[0], idx_Bl)
    assert quantized.counts_KV.tolist() == [torch.bincount(idx_Bl.flatten(), minlength=7).tolist()]
    torch.testing.assert_close(quantized.f_hat_BChw, f_hat_BChw, rtol=SAME, atol=SAME)
    torch.testing.assert_close(quantized.vq_loss, loss, rtol=SAME, atol=SAME)
    pull = torch.linspace(-1, 1, f_BChw.numel(), dtype=torch.float64).view_as(f_BChw)
    for of in ((quantized.f_hat_BChw, f_hat_BChw), (quantized.vq_loss, loss)):
        scalars = [(one * pull).sum() if one.ndim else one for one in of]
        ours, theirs = (torch.autograd.grad(one, inputs, retain_graph=True, allow_unused=True) for one in scalars)
        for a, b in zip(ours, theirs, strict=True):
            assert (a is None) == (b is None)
            if a is not None:
                torch.testing.assert_close(a, b, rtol=SAME, atol=SAME)


def in_double(made: GumbelQuantizer, f_BChw: Tensor) -> Any:
    """A quantizer's output in float64: it computes in float32 otherwise."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Tensor, "float", Tensor.double)
        return made(f_BChw, STREAM)


def test_codes_are_drawn_as_often_as_their_softmax_says() -> None:
    made = quantizer(scales=[[40, 50]])
    f_BChw = latents()[:1, :, :1, :1].float().expand(1, 4, 40, 50)
    with torch.no_grad():
        share_V = made.proj(f_BChw)[0, :, 0, 0].softmax(0)
        count_V = made(f_BChw, Rng(2).stream("dropout", IDS[:1])).counts_KV[0]
    assert int(count_V.sum()) == 2000
    error_V = (share_V * (1 - share_V) / 2000).sqrt()
    assert ((count_V / 2000 - share_V).abs() <= 4 * error_V).all()


def test_without_a_stream_the_likeliest_code_is_taken() -> None:
    made, f_BChw = quantizer(), latents().float()
    best_Bl = made.proj(f_BChw).flatten(2).argmax(1)
    assert torch.equal(made.encode(f_BChw)[0], best_Bl) and torch.equal(made(f_BChw).maps[0], best_Bl)
    assert not torch.equal(made(f_BChw, STREAM).maps[0], best_Bl), "training draws"


def test_a_draw_depends_on_the_sample_alone() -> None:
    made, f_BChw = quantizer(), latents().float()
    whole = made(f_BChw, STREAM).maps[0]
    assert torch.equal(whole[1:2], made(f_BChw[1:2], STREAM.only(1)).maps[0])


def test_the_temperature_falls_along_half_a_cosine() -> None:
    made = quantizer(temperature=(1.0, 0.2))
    assert made.temperature == 1.0
    seen = []
    for progress in (0.0, 0.25, 0.5, 1.0, 1.5):
        made.anneal(progress)
        seen.append(made.temperature)
    assert seen == pytest.approx([1.0, 0.2 + 0.4 * (1 + 0.5**0.5), 0.6, 0.2, 0.2])


def test_it_obeys_the_laws_of_quantizers() -> None:
    check_quantizer(quantizer(scales=[[4, 4]], vocab_size=16))


@pytest.mark.parametrize("change", [{"scales": [[1, 1], [2, 3]]}, {"phi_count": 1}, {"cosine": True}, {"ema": 0.99}])
def test_settings_of_nearest_codes_are_refused(change: dict[str, Any]) -> None:
    with pytest.raises(VarlabError, match=r"one scale without φ: set tokenizer\.scales=one"):
        quantizer(**change)
    with pytest.raises(VarlabError, match="two numbers above 0"):
        quantizer(temperature=(1.0, 0.0))


def test_vqgans_names_are_known() -> None:
    """quantize.proj and quantize.embed, the names of GumbelQuantize; tests/checkpoint reads whole files of them."""
    links = formats.tokenizer_links("vqgan", CNN | {"gumbel": {}}, None)
    assert {link.ours: link.theirs for link in links if link.ours.startswith("quantizer")} == {
        "quantizer.codebook.weight": ("quantize.embed.weight",),
        "quantizer.proj.weight": ("quantize.proj.weight",),
        "quantizer.proj.bias": ("quantize.proj.bias",),
    }


CNN = dict(channel_mult=[1], decoder_channel_mult=None, res_blocks=1, attention=[], mid_attention=False, phi_count=0)
