"""What acts in a tokenizer's training alone: dropout, first weights, codes that are averages."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from tests.bounds import SAME
from varlab.rng import Rng
from varlab.tokenizer import Phi, Quantizer, VQTokenizer, phi_of_scale
from varlab.tokenizer.codebook import Codebook
from varlab.tokenizer.layers import AttnBlock, ResBlock
from varlab.tokenizer.quantizer import check_scales
from varlab.types import VarlabError

IMG = torch.rand(3, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1
IDS = torch.tensor([5, 9, 2])


def tokenizer(**changes: Any) -> VQTokenizer:
    sizes: dict[str, Any] = dict(scales=[[1, 1], [4, 4]], vocab_size=16, code_dim=4, phi_count=1, code_init=16.0)
    with Rng(0).scope("init/tokenizer"):
        return VQTokenizer(**(sizes | dict(channels=8, channel_mult=[1, 2, 2], groups=4, res_blocks=1) | changes))


# -- dropout -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rate", [0.0, 0.05, 0.5])
def test_dropped_values_keep_their_expectation(rate: float) -> None:
    keep = Rng(1).stream("dropout", torch.arange(50)).keep(rate, 8, 30, 31)
    assert keep.shape == (50, 8, 30, 31)
    share = float((keep == 0).float().mean())
    error = (rate * (1 - rate) / keep.numel()) ** 0.5
    assert abs(share - rate) <= 4 * error + 2**-16
    assert abs(float(keep.mean()) - 1) <= 4 * error / (1 - rate) + 1e-6
    assert keep.unique().numel() == (2 if rate else 1)


def test_what_is_dropped_depends_on_the_sample_and_the_place_alone() -> None:
    stream = Rng(1).stream("dropout", IDS)
    assert torch.equal(stream.keep(0.5, 7, 9)[1:2], stream.only(1).keep(0.5, 7, 9))
    assert not torch.equal(stream.keep(0.5, 63)[0], stream.keep(0.5, 63)[1])
    assert not torch.equal(stream.at(1).keep(0.5, 63), stream.keep(0.5, 63))


def test_a_residual_block_drops_before_its_second_convolution() -> None:
    block = ResBlock(in_channels=8, out_channels=8, groups=4)
    block.dropout, block.place = 0.3, 4
    stream, x = Rng(1).stream("dropout", IDS), torch.randn(3, 8, 6, 6, generator=torch.Generator().manual_seed(1))
    h = nn.functional.silu(block.norm2(block.conv1(nn.functional.silu(block.norm1(x)))))
    keep = stream.at(4).keep(0.3, 8, 6, 6)
    torch.testing.assert_close(block(x, stream), x + block.conv2(h * keep))
    torch.testing.assert_close(block(x), x + block.conv2(h))


def test_a_tokenizer_drops_in_training_alone() -> None:
    plain, model, stream = tokenizer(), tokenizer(dropout=0.3), Rng(1).stream("dropout", IDS)
    blocks = [m for m in model.modules() if isinstance(m, ResBlock)]
    assert {b.dropout for b in blocks} == {0.3} and [b.place for b in blocks] == list(range(len(blocks)))
    rec, _ = model(IMG)
    assert torch.equal(rec, plain(IMG)[0]) and torch.equal(model(IMG, stream)[0], model(IMG, stream)[0])
    assert not torch.equal(rec, model(IMG, stream)[0])
    torch.testing.assert_close(model(IMG[1:2], stream.only(1))[0], model(IMG, stream)[0][1:2], rtol=1e-4, atol=1e-5)


def test_the_default_tokenizer_is_vars() -> None:
    """256 pixels, widths 160·(1, 1, 2, 2, 4), attention at the lowest resolution and in the middle."""
    with torch.device("meta"):
        model = VQTokenizer()
    assert (model.downsample, model.image_size, model.vocab_size, model.code_dim) == (16, (256, 256), 4096, 32)
    assert [h for h, _ in model.scales] == [1, 2, 3, 4, 5, 6, 8, 10, 13, 16] and model.dropout == 0.0
    widths = [
        stage[-1].conv2.out_channels
        for stage in model.encoder.stages
        if isinstance(stage, nn.Sequential) and len(stage) == 2
    ]
    assert widths == [160, 160, 320, 320] and model.encoder.conv_out.in_channels == 640
    blocks, attend = ([sum(isinstance(m, kind) for m in net.modules()) for net in (model.encoder, model.decoder)]
                      for kind in (ResBlock, AttnBlock))  # fmt: skip
    assert blocks == [5 * 2 + 2, 5 * 3 + 2] and attend == [2 + 1, 3 + 1]
    assert model.quant_conv.kernel_size == (3, 3) and model.encoder.norm_out.num_groups == 32
    quantizer = model.quantizer
    assert (quantizer.commitment, quantizer.codebook_weight, len(quantizer.phi), quantizer.phi[0].ratio) == (
        0.25,
        1.0,
        4,
        0.5,
    )
    assert quantizer.entropy is None and quantizer.codebook.ema is None and not quantizer.codebook.normalise


def test_scales_grow_or_stay() -> None:
    assert check_scales([[1, 1], [1, 2], [2, 2], [2, 2]]) == ((1, 1), (1, 2), (2, 2), (2, 2))
    for wrong in ([], [[0, 1]], [[1, 0]], [[2, 2], [1, 3]], [[2, 2], [3, 1]], [[1, 1], [2, 2], [1, 1]]):
        with pytest.raises(VarlabError, match="Tokenizer scales"):
            check_scales(wrong)


@pytest.mark.parametrize(
    ("scales", "count", "shared"),
    [
        (14, 4, [0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3]), (6, 4, [0, 0, 1, 2, 3, 3]), (4, 2, [0, 0, 1, 1]),
        (10, 4, [0, 0, 1, 1, 1, 2, 2, 3, 3, 3]), (5, 1, [0] * 5), (3, 3, [0, 1, 2]), (1, 4, [0]),
    ],
)  # fmt: skip
def test_which_scales_share_a_phi(scales: int, count: int, shared: list[int]) -> None:
    """The nearest of evenly spaced ticks: from 1/12 to 11/12 for four, from 1/(2n) on for others (VAR's code)."""
    assert phi_of_scale(scales, count) == shared


# -- first weights -----------------------------------------------------------------------------------------------------


def test_convolutions_start_as_xavier_normals() -> None:
    """Of the variance 2·gain²/(fan in + fan out), with biases of 0: the φ too, but not the codes."""
    model = tokenizer(channels=32, groups=8, init_gain=0.5)
    convs = [m for m in model.modules() if isinstance(m, nn.Conv2d)]
    for conv in convs:
        fans = (conv.in_channels + conv.out_channels) * conv.kernel_size[0] * conv.kernel_size[1]
        if conv.weight.numel() > 4000:
            assert float(conv.weight.std()) == pytest.approx(0.5 * (2 / fans) ** 0.5, rel=0.06)
        assert conv.bias is not None and not bool(conv.bias.any())
    assert any(isinstance(m, Phi) for m in model.modules()) and 0.9 < float(model.quantizer.codebook.weight.max()) <= 1


def test_codes_start_in_their_range_or_on_the_sphere() -> None:
    """±init/V; those of a cosine codebook have length 1 (LlamaGen normalises its table at the start)."""
    sizes: dict[str, Any] = dict(vocab_size=512, code_dim=8, init=2.0, normalise=False)
    flat = Codebook(**sizes, cosine=False).weight
    assert 0.95 * 2 / 512 < float(flat.max()) <= 2 / 512 and -2 / 512 <= float(flat.min()) < -0.95 * 2 / 512
    assert 0.9 * 0.3 < float(Quantizer(code_range=0.3).codebook.weight.max()) <= 0.3
    torch.testing.assert_close(Codebook(**sizes, cosine=True).weight.norm(dim=1), torch.ones(512))


# -- codes that are averages -------------------------------------------------------------------------------------------


def test_averaged_codes_by_hand() -> None:
    """Decay 3/4, two updates, three codes: one chosen twice and once, one chosen once and never, one never."""
    codebook = Codebook(vocab_size=3, code_dim=1, init=3.0, normalise=False, cosine=False, ema=0.75).double()
    first = codebook.weight.detach().clone()
    assert not codebook.weight.requires_grad
    codebook.average(torch.tensor([2.0, 1.0, 0.0]), torch.tensor([[6.0], [5.0], [0.0]]))
    codebook.average(torch.tensor([1.0, 0.0, 0.0]), torch.tensor([[4.0], [0.0], [0.0]]))
    count = torch.tensor([0.5 * 0.75 + 0.25, 0.25 * 0.75, 0.0]).double()
    total = first[:, 0] * 0.75**2 + torch.tensor([1.5 * 0.75 + 1.0, 1.25 * 0.75, 0.0])
    smooth = (count + 1e-5) / (count.sum() + 3e-5) * count.sum()
    torch.testing.assert_close(codebook.weight[:, 0], total / smooth, rtol=SAME, atol=SAME)


def test_averaged_codes_come_to_their_vectors() -> None:
    """The mean of the vectors that choose a code is where it stays."""
    codebook = Codebook(vocab_size=2, code_dim=2, init=1.0, normalise=False, cosine=False, ema=0.9)
    with torch.no_grad():
        codebook.weight.copy_(torch.tensor([[1.0, 0.0], [0.0, 1.0]]))
        codebook.sum_VC.copy_(codebook.weight)
    z = torch.tensor([[2.0, 0.0], [4.0, 0.0], [0.0, 5.0]])
    for _ in range(200):
        idx = codebook.nearest(z)
        codebook.average(idx.bincount(minlength=2).float(), torch.zeros(2, 2).index_add(0, idx, z))
    torch.testing.assert_close(codebook.weight, torch.tensor([[3.0, 0.0], [0.0, 5.0]]), rtol=1e-4, atol=1e-4)
    codebook.revive(torch.tensor([False, True]), torch.tensor([[7.0, 7.0]]), Rng(0).stream("revive"))
    assert codebook.weight[1].tolist() == codebook.sum_VC[1].tolist() == [7.0, 7.0] and codebook.count_V[1] == 1


def test_averaged_codes_leave_the_encoder_the_commitment_loss() -> None:
    plain, averaged = (
        Quantizer(scales=[[2, 2]], vocab_size=8, code_dim=4, phi_count=0, code_init=8.0, ema=ema)
        for ema in (None, 0.99)
    )
    averaged.load_state_dict(plain.state_dict(), strict=False)
    f = torch.randn(2, 4, 2, 2, generator=torch.Generator().manual_seed(0)).requires_grad_()
    (wanted,) = torch.autograd.grad(plain(f).vq_loss, f)
    quantized = averaged(f)
    (grad,) = torch.autograd.grad(quantized.vq_loss, f)
    torch.testing.assert_close(grad, wanted)
    codes = averaged.codebook.embed(quantized.maps[0]).transpose(1, 2).view_as(f)
    torch.testing.assert_close(quantized.vq_loss, 0.25 * nn.functional.mse_loss(f, codes))
