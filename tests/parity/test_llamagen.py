"""Law 6: what the official LlamaGen code computes: its tokenizer and its GPT, with and without grouped queries."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.bounds import Measured
from tests.parity.imported import GeneratorDraws, agree, golden, links_of, load_restored, same, stored_gradients
from varlab.model import Model
from varlab.rng import Rng
from varlab.sample import Sampler, filter_logits

pytestmark = pytest.mark.numeric

REFERENCE = golden("llamagen")
RUNS = {"gpt": "llamagen_gpt", "gpt_gqa": "llamagen_gqa"}


def test_tokens_latents_and_images(imported) -> None:
    def measure() -> Measured:
        model = load_restored(imported("llamagen"))
        tokenizer, img = model.tokenizer, REFERENCE.image().float()
        with torch.no_grad():
            h = tokenizer.latents(img)
            rec, quantized = tokenizer(img)
            f_hat = tokenizer.accumulate(tokenizer.blank(len(img)), 0, tokenizer.embed(quantized.maps[0]))
            code = tokenizer.decoder(tokenizer.post_quant_conv(f_hat))
        indices = torch.cat(model.encode(img), 1).flatten()
        return {"h": h, "z_q": quantized.f_hat_BChw, "rec": rec, "decode_code": code, "indices": indices}

    agree(REFERENCE, measure)


def test_training_losses_and_gradients(imported) -> None:
    """Codebook, commitment and entropy terms together."""

    run = imported("llamagen")

    @torch.no_grad()
    def loss() -> Measured:
        return {"loss": load_restored(run).tokenizer(REFERENCE.image().float())[1].vq_loss}

    def trained() -> Measured:
        tokenizer, img = load_restored(run).tokenizer, REFERENCE.image().float()
        rec, quantized = tokenizer(img)
        (F.mse_loss(rec, img) + quantized.vq_loss).backward()
        links = links_of(run, REFERENCE.state("vq"), transformer=False)
        return stored_gradients(REFERENCE, "grad.", links, tokenizer)

    losses = REFERENCE.scalars["losses"]
    agree(REFERENCE, loss, {"loss": losses["vq"] + losses["commit"] + losses["entropy"]})
    agree(REFERENCE, trained)


@pytest.mark.parametrize("name", RUNS)
def test_gpt(name: str, imported) -> None:
    def measure() -> Measured:
        run = imported(RUNS[name])
        model = load_restored(run)
        assert model.transformer is not None
        logits = model.logits(REFERENCE["labels"], [REFERENCE["z"]])
        loss = F.cross_entropy(logits.flatten(0, 1), REFERENCE["z"].flatten())
        loss.backward()
        table = model.transformer.rotary_Pd2
        assert table is not None
        turns = {f"{name}.freqs_cis": torch.cat([table[-1:], table[:-1]])}  # ours has the class's zeros last
        links = links_of(run, {}, transformer=True)
        measured = turns | {f"{name}.logits": logits, f"{name}.loss": loss}
        return measured | stored_gradients(REFERENCE, f"{name}.grad.", links, model.transformer)

    agree(REFERENCE, measure, {f"{name}.loss": REFERENCE.scalars[f"{name}.loss"]})


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
    model = load_restored(imported("llamagen_gpt"))
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
