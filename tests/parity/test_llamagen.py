"""Law 6: what the official LlamaGen code computes: its tokenizer and its GPT, with and without grouped queries."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.parity.imported import FLOAT, GRADIENT, GeneratorDraws, close, golden, gradients, links_of, same
from varlab import load
from varlab.model import Model
from varlab.rng import Rng
from varlab.sample import Sampler, filter_logits

REFERENCE = golden("llamagen")
RUNS = {"gpt": "llamagen_gpt", "gpt_gqa": "llamagen_gqa"}


def test_tokens_latents_and_images(imported) -> None:
    model = load(imported("llamagen"))
    tokenizer, img = model.tokenizer, REFERENCE.image()
    with torch.no_grad():
        close(REFERENCE, "h", tokenizer.latents(img))
        rec, quantized = tokenizer(img)
        close(REFERENCE, "z_q", quantized.f_hat_BChw)
        close(REFERENCE, "rec", rec)
        f_hat = tokenizer.accumulate(tokenizer.blank(len(img)), 0, tokenizer.embed(quantized.maps[0]))
        close(REFERENCE, "decode_code", tokenizer.decoder(tokenizer.post_quant_conv(f_hat)))
    same(REFERENCE, "indices", torch.cat(model.encode(img), 1).flatten())


def test_training_losses_and_gradients(imported) -> None:
    """Codebook, commitment and entropy terms together."""
    run = imported("llamagen")
    tokenizer = load(run).tokenizer
    rec, quantized = tokenizer(REFERENCE.image())
    losses = REFERENCE.scalars["losses"]
    assert abs(float(quantized.vq_loss.detach()) - losses["vq"] - losses["commit"] - losses["entropy"]) < FLOAT
    (F.mse_loss(rec, REFERENCE.image()) + quantized.vq_loss).backward()
    found = gradients(links_of(run, REFERENCE.state("vq"), transformer=False), tokenizer)
    for name in (n for n in REFERENCE.meta["tensors"] if n.startswith("grad.")):
        close(REFERENCE, name, found[name.removeprefix("grad.")], GRADIENT)


@pytest.mark.parametrize("name", RUNS)
def test_gpt(name: str, imported) -> None:
    run = imported(RUNS[name])
    model = load(run)
    assert model.transformer is not None
    logits = model.logits(REFERENCE["labels"], [REFERENCE["z"]])
    close(REFERENCE, f"{name}.logits", logits.detach())
    loss = F.cross_entropy(logits.flatten(0, 1), REFERENCE["z"].flatten())
    assert abs(float(loss.detach()) / REFERENCE.scalars[f"{name}.loss"] - 1) < FLOAT
    loss.backward()
    found = gradients(links_of(run, {}, transformer=True), model.transformer)
    for key in (n for n in REFERENCE.meta["tensors"] if n.startswith(f"{name}.grad.")):
        close(REFERENCE, key, found[key.removeprefix(f"{name}.grad.")], GRADIENT)
    table = model.transformer.rotary_Pd2
    assert table is not None
    close(REFERENCE, f"{name}.freqs_cis", torch.cat([table[-1:], table[:-1]]))  # ours has the class's zeros last


def tokens_of(model: Model, draws: GeneratorDraws | None = None, **settings) -> Tensor:
    plain = dict(cfg=0.0, ramp="constant", temperature=1.0, top_k=0, top_p=1.0)
    assert model.transformer is not None and model.order is not None
    labels = REFERENCE["labels"]
    return Sampler(**(plain | settings))(
        transformer=model.transformer,
        order=model.order,
        tokenizer=model.tokenizer,
        label_B=labels,
        ids_B=torch.arange(len(labels)),
        rng=Rng(0),
        draws=draws,
    )[0]


@pytest.mark.parametrize(
    ("name", "guidance"),
    [("cfg1", {}), ("cfg2", {"cfg": 1.0}), ("cfg2_interval5", {"cfg": 1.0, "cfg_steps": 7})],
)
def test_sampling(name: str, guidance: dict, imported) -> None:
    """Their cfg_scale is 1 + t. Their interval counts the steps after the first from 0, and includes its end."""
    model = load(imported("llamagen_gpt"))
    same(REFERENCE, f"gpt.greedy_{name}", tokens_of(model, top_k=1, **guidance))
    with torch.random.fork_rng():
        torch.manual_seed(3)
        drawn = tokens_of(model, GeneratorDraws(None), temperature=0.9, top_k=20, top_p=0.9, **guidance)
    same(REFERENCE, f"gpt.rng_{name}", drawn)


def test_filter_supports() -> None:
    for name in (n for n in REFERENCE.meta["tensors"] if n.startswith("filter.k")):
        k, p = name.removeprefix("filter.k").split("_p")
        logits = REFERENCE["filter.logits"][:, None]
        kept = filter_logits(logits, temperature=1.0, top_k=int(k), top_p=float(p)).isfinite()[:, 0]
        same(REFERENCE, name, kept.to(REFERENCE[name].dtype))
