"""The laws of tokenizers and quantizers."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from varlab.rng import Rng
from varlab.testing.expectation import expect, expect_close, expect_tensor, require_members
from varlab.tokenizer import Quantizer, VQTokenizer
from varlab.types import Maps, Quantized, Tokenizer


def check_quantizer(quantizer: Quantizer, *, batch: int = 2, seed: int = 5, atol: float = 1e-4) -> None:
    """Check a quantizer between the convolutions of a small tokenizer. Raises VarlabError with the first broken law."""
    with Rng(seed).scope("init/tokenizer"):
        tokenizer = VQTokenizer(
            quantizer=quantizer,
            channels=8,
            channel_mult=(1, 2),
            res_blocks=1,
            groups=4,
            attention=(),
            mid_attention=False,
        )
    check_tokenizer(tokenizer, batch=batch, seed=seed, atol=atol)


def check_tokenizer(tokenizer: Tokenizer, *, batch: int = 2, seed: int = 5, atol: float = 1e-4) -> None:
    """Check all laws of a tokenizer, which is left in evaluation mode. Raises VarlabError with the first broken one."""
    name = type(tokenizer).__name__
    expect(isinstance(tokenizer, nn.Module), f"{name} must be a torch.nn.Module: its weights are trained and stored.")
    require_members(tokenizer, Tokenizer)
    sizes_fit(tokenizer)
    assert isinstance(tokenizer, nn.Module)
    tokenizer.eval()
    ids_B, (h, w) = torch.arange(batch), tokenizer.image_size
    img_B3HW = Rng(seed).stream("images", ids_B).uniform(3, h, w).to(tokenizer.last_layer) * 2 - 1
    with torch.no_grad():
        maps = maps_are_tokens(tokenizer, img_B3HW)
        f_hat_BChw = steps_add_up(tokenizer, maps)
        images_are_images(tokenizer, f_hat_BChw, img_B3HW)
        samples_do_not_mix(tokenizer, img_B3HW, maps, atol)
    copies_agree(tokenizer, img_B3HW, maps)
    training_has_gradients(tokenizer, img_B3HW, maps)
    live_codes_stay(tokenizer, seed)


def sizes_fit(tokenizer: Tokenizer) -> None:
    """Scales grow from coarse to fine; the finest, times ``downsample``, is the image."""
    name, scales = type(tokenizer).__name__, tokenizer.scales
    pairs = bool(scales) and all(len(scale) == 2 and min(scale) > 0 for scale in scales)
    grows = pairs and all(a[0] <= b[0] and a[1] <= b[1] for a, b in zip(scales, scales[1:], strict=False))
    expect(grows, f"{name}.scales is {scales}, but must be pairs (h, w) from coarse to fine.")
    expect(
        tokenizer.vocab_size > 1 and tokenizer.code_dim > 0, f"{name} needs vocab_size above 1 and code_dim above 0."
    )
    size = (scales[-1][0] * tokenizer.downsample, scales[-1][1] * tokenizer.downsample)
    found = tuple(tokenizer.image_size)
    expect(found == size, f"{name}.image_size is {found}, but the last scale times downsample is {size}.")


def maps_are_tokens(tokenizer: Tokenizer, img_B3HW: Tensor) -> Maps:
    """``encode`` gives one map a scale, of tokens below ``vocab_size``, the same ones each time."""
    name, maps = type(tokenizer).__name__, tokenizer.encode(img_B3HW)
    expect(
        len(maps) == len(tokenizer.scales), f"{name}.encode gives {len(maps)} maps for {len(tokenizer.scales)} scales."
    )
    for k, ((h, w), idx_Bl) in enumerate(zip(tokenizer.scales, maps, strict=True)):
        expect_tensor(idx_Bl, (len(img_B3HW), h * w), torch.int64, f"{name}.encode, map {k},")
        inside = bool(((idx_Bl >= 0) & (idx_Bl < tokenizer.vocab_size)).all())
        expect(inside, f"{name}.encode gives tokens outside 0 … {tokenizer.vocab_size - 1}.")
    again = all(torch.equal(a, b) for a, b in zip(maps, tokenizer.encode(img_B3HW), strict=True))
    expect(again, f"{name}.encode gives other tokens the second time: it must not draw anything.")
    return maps


def steps_add_up(tokenizer: Tokenizer, maps: Maps) -> Tensor:
    """``blank``, ``embed`` and ``accumulate`` build f_hat and change none of their arguments. Returns f_hat_BChw."""
    name, (h, w), B = type(tokenizer).__name__, tokenizer.scales[-1], len(maps[0])
    f_hat = tokenizer.blank(B)
    dtype = f_hat.dtype
    for k, idx_Bl in enumerate(maps):
        expect_tensor(f_hat, (B, tokenizer.code_dim, h, w), dtype, f"{name}: f_hat before scale {k}")
        h_BlC, before = tokenizer.embed(idx_Bl), f_hat.clone()
        expect_tensor(h_BlC, (*idx_Bl.shape, tokenizer.code_dim), h_BlC.dtype, f"{name}.embed")
        after = tokenizer.accumulate(f_hat, k, h_BlC)
        expect(torch.equal(before, f_hat), f"{name}.accumulate changes its argument: return a new tensor.")
        f_hat = after
    expect_tensor(f_hat, (B, tokenizer.code_dim, h, w), dtype, f"{name}.accumulate")
    return f_hat


def images_are_images(tokenizer: Tokenizer, f_hat_BChw: Tensor, img_B3HW: Tensor) -> None:
    """``decode`` gives images of the size of the input, in [-1, 1]."""
    name, rec_B3HW = type(tokenizer).__name__, tokenizer.decode(f_hat_BChw)
    expect_tensor(rec_B3HW, tuple(img_B3HW.shape), img_B3HW.dtype, f"{name}.decode")
    expect(bool(rec_B3HW.abs().max() <= 1), f"{name}.decode must clamp to [-1, 1].")


def samples_do_not_mix(tokenizer: Tokenizer, img_B3HW: Tensor, maps: Maps, atol: float) -> None:
    """A sample alone has the f_hat that it has in a batch (a token may change where two codes are equally near)."""
    name, alone = type(tokenizer).__name__, tokenizer.encode(img_B3HW[1:2])
    equal = float(torch.cat([(a == b[1:2]).flatten() for a, b in zip(alone, maps, strict=True)]).float().mean())
    expect(equal >= 0.9, f"{name}.encode of an image depends on the others in its batch ({equal:.0%} equal tokens).")
    f_hats = [steps_add_up(tokenizer, rows) for rows in ([idx[1:2] for idx in maps], maps)]
    images = [tokenizer.decode(f_hat) for f_hat in f_hats]
    expect_close(images[0], images[1][1:2], atol, f"{name}.decode of an image depends on the others in its batch")


def copies_agree(tokenizer: Tokenizer, img_B3HW: Tensor, maps: Maps) -> None:
    """Weights that were stored and loaded give the same tokens: all that counts is in the state dict."""
    assert isinstance(tokenizer, nn.Module)
    other = copy.deepcopy(tokenizer)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.add_(1.0)
    other.load_state_dict(tokenizer.state_dict())
    again = all(torch.equal(a, b) for a, b in zip(maps, other.eval().encode(img_B3HW), strict=True))
    expect(again, f"{type(tokenizer).__name__}: loading its state dict does not bring its tokens back.")


def training_has_gradients(tokenizer: Tokenizer, img_B3HW: Tensor, maps: Maps) -> None:
    """Called, it reconstructs with a graph, and describes what its quantizer did."""
    trained = copy.deepcopy(tokenizer)
    assert isinstance(trained, nn.Module)
    name, trained = type(tokenizer).__name__, trained.requires_grad_(True).train()
    rec_B3HW, quantized = trained(img_B3HW)
    expect_tensor(rec_B3HW, tuple(img_B3HW.shape), rec_B3HW.dtype, f"{name}(images)[0]")
    expect(isinstance(quantized, Quantized), f"{name}(images)[1] must be a varlab.types.Quantized.")
    expect(quantized.vq_loss.ndim == 0, f"{name}: vq_loss must be a scalar.")
    counts = (len(tokenizer.scales), tokenizer.vocab_size)
    expect_tensor(quantized.counts_KV, counts, torch.int64, f"{name}: counts_KV")
    tokens = [idx.numel() for idx in maps]
    expect(
        quantized.counts_KV.sum(1).tolist() == tokens,
        f"{name}: counts_KV must count the {tokens} tokens of each scale.",
    )
    rows = quantized.candidates_NC.shape[1]
    expect(rows == tokenizer.code_dim, f"{name}: candidates_NC has rows of {rows} numbers, not {tokenizer.code_dim}.")
    expect(rec_B3HW.requires_grad, f"{name}: called, it must reconstruct with a graph, so that it can be trained.")
    (rec_B3HW.square().mean() + quantized.vq_loss).backward()
    expect(trained.last_layer.grad is not None, f"{name}: the reconstruction has no gradient for last_layer.")
    expect(
        any(trained.last_layer is p for p in trained.parameters()), f"{name}.last_layer must be one of its parameters."
    )


def live_codes_stay(tokenizer: Tokenizer, seed: int) -> None:
    """``revive`` replaces dead codes only, and says how many."""
    other, name, V = copy.deepcopy(tokenizer), type(tokenizer).__name__, tokenizer.vocab_size
    idx_1V = torch.arange(V, device=tokenizer.last_layer.device)[None]
    dead_V = idx_1V[0] < 1
    candidates = Rng(seed).stream("candidates", torch.arange(4)).normal(tokenizer.code_dim).to(tokenizer.last_layer)
    with torch.no_grad():
        count = other.revive(dead_V, candidates, Rng(seed).stream("revive"))
        expect(isinstance(count, int) and 0 <= count <= 1, f"{name}.revive must return how many codes it replaced.")
        same = torch.equal(other.embed(idx_1V[:, 1:]), tokenizer.embed(idx_1V[:, 1:]))
    expect(same, f"{name}.revive changes codes that are not dead.")
