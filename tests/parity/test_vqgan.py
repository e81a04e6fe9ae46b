"""Law 6: what the official VQGAN code (taming-transformers) computes: tokenizer and minGPT."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.bounds import Measured
from tests.golden.golden_io import draw
from tests.parity.imported import agree, golden, gradients, links_of, load_restored, same, stored_gradients
from varlab.cli.main import main
from varlab.losses.adaptive_weight import adaptive_weight
from varlab.losses.discriminator import PatchGAN
from varlab.rng import Rng
from varlab.sample import Sampler
from varlab.transformer import Context, Visible
from varlab.types import Slots, VarlabError

pytestmark = pytest.mark.numeric

REFERENCE = golden("taming")
GREEDY = Sampler(cfg=0.0, ramp="constant", temperature=1.0, top_k=1, top_p=1.0)


def test_tokens_latents_and_images(imported) -> None:
    def measure() -> Measured:
        model = load_restored(imported("taming"))
        tokenizer, img = model.tokenizer, REFERENCE.image().float()
        with torch.no_grad():
            h = tokenizer.latents(img)
            rec, quantized = tokenizer(img)
            f_hat = tokenizer.accumulate(tokenizer.blank(len(img)), 0, tokenizer.embed(quantized.maps[0]))
            entry = tokenizer.decoder(tokenizer.post_quant_conv(f_hat))
        assert torch.equal(torch.cat(quantized.maps, 1), torch.cat(model.encode(img), 1))
        indices = torch.cat(quantized.maps, 1).flatten()
        return {"h": h, "indices": indices, "z_q": quantized.f_hat_BChw, "rec": rec, "decode_entry": entry}

    agree(REFERENCE, measure)


@pytest.mark.parametrize("legacy", [True, False])
def test_beta_weighs_the_term_that_is_named(legacy: bool, imported, tmp_path) -> None:
    """legacy: the official code's β is on the codebook term; the loss is the same, the gradients are not."""
    asked = [f"tokenizer={imported('taming').parent / 'tokenizer.pth'}", f"legacy={legacy}", f"out={tmp_path / 'run'}"]
    assert main(["import", "format=vqgan", *asked]) == 0

    def measure() -> Measured:
        tokenizer = load_restored(tmp_path / "run").tokenizer
        h = REFERENCE["h"].float().clone().requires_grad_(True)
        loss = tokenizer.quantize(h).vq_loss
        loss.backward()
        found = {"h": h.grad, "codebook": tokenizer.quantizer.codebook.weight.grad}
        return {"loss": loss} | {f"qgrad.legacy{legacy}.{name}": gradient for name, gradient in found.items()}

    agree(REFERENCE, measure, {"loss": REFERENCE.scalars["qloss_legacy"]})


def logits_of(model, tokens: Tensor) -> Tensor:
    """Tokens, the class first → logits of each next one."""
    return model.logits(tokens[:, 0], [tokens[:, 1:]])


@pytest.mark.parametrize("name", ["gpt", "gpt_unmasked"])
def test_gpt(name: str, imported) -> None:
    run = imported("taming_gpt" if name == "gpt" else "taming_unmasked")

    def measure() -> Measured:
        model, idx = load_restored(run), REFERENCE["gpt.idx"]
        logits = logits_of(model, idx)
        loss = F.cross_entropy(logits.flatten(0, 1), idx[:, 1:].flatten())
        loss.backward()
        found = gradients(links_of(run, {}, transformer=True), model.transformer)
        found["pos_emb"] = F.pad(found["pos_emb"], (0, 0, 0, 1))  # the last place of the table is not used
        stored = (n for n in REFERENCE.meta["tensors"] if n.startswith(f"{name}.grad."))
        measured = {key: found[key.removeprefix(f"{name}.grad.")] for key in stored}
        return measured | {f"{name}.logits": logits, f"{name}.loss": loss}

    agree(REFERENCE, measure, {f"{name}.loss": REFERENCE.scalars[f"{name}.loss"]})


def test_greedy_continuation(imported) -> None:
    """Two tokens are given: the first is the class, the second is forced."""
    model, idx = load_restored(imported("taming_gpt")), REFERENCE["gpt.idx"]
    assert model.transformer is not None and model.order is not None

    def force(state: object, k: int) -> tuple[Tensor, Tensor]:
        return idx[:, 1:2], torch.full_like(idx[:, 1:2], k == 0, dtype=torch.bool)

    maps = GREEDY(
        transformer=model.transformer,
        order=model.order,
        tokenizer=model.tokenizer,
        label_B=idx[:, 0],
        ids_B=torch.arange(len(idx)),
        rng=Rng(0),
        force=force,
    )
    sampled = torch.cat([idx[:, :1], maps[0]], 1)
    same(REFERENCE, "gpt.sample", sampled[:, :17])
    same(REFERENCE, "gpt.sample_with_past", sampled[:, 2:17])


@pytest.mark.parametrize("name", ["gpt", "gpt_unmasked"])
def test_embeddings_before_the_tokens(name: str, imported) -> None:
    """Two vectors are put before the tokens' embeddings; places, and tokens that see each other, count from there."""
    run = imported("taming_gpt" if name == "gpt" else "taming_unmasked")

    def measure() -> Measured:
        transformer = load_restored(run).transformer
        assert transformer is not None and transformer.position is not None
        vectors = draw("tgptemb4", (2, 2, transformer.width), -1, 1).float()
        x_BLD = torch.cat([vectors, transformer.word(REFERENCE["gpt.idx"][:, :10])], 1)
        x_BLD = x_BLD + transformer.position.weight[: x_BLD.shape[1]]
        with torch.no_grad():
            return {f"{name}.logits_emb": transformer.trunk(x_BLD, plain_context(x_BLD, transformer.unmasked))}

    agree(REFERENCE, measure)


def plain_context(x_BLD: Tensor, unmasked: int) -> Context:
    step_L = torch.arange(x_BLD.shape[1])
    step_L[:unmasked] = max(unmasked - 1, 0)
    return Context(cond_BD=x_BLD[:, 0], visible=Visible.of(step_L, step_L), cache=None, rng=None)


def test_greedy_continuation_where_the_first_tokens_see_each_other(imported) -> None:
    """Without a cache: what a first token sees changes with every token that comes."""
    model, idx = load_restored(imported("taming_unmasked")), REFERENCE["gpt.idx"]
    assert model.transformer is not None and model.order is not None
    tokens = idx.clone()
    for t in range(2, 17):
        slots, _ = model.order.pack([tokens[:, 1:]], model.tokenizer)
        with torch.no_grad():
            logits = model.transformer(first(slots, t), tokens[:, 0])
        tokens[:, t] = logits[:, -1].argmax(-1)
    same(REFERENCE, "gpt_unmasked.sample", tokens[:, :17])
    with pytest.raises(VarlabError, match="see each other"):
        model.sample(idx[:, 0])


def first(slots: Slots, n: int) -> Slots:
    return Slots(
        x_BLC=slots.x_BLC[:, :n],
        tok_BL=slots.tok_BL[:, :n],
        src_BL=slots.src_BL[:, :n],
        pos_BL=slots.pos_BL[:, :n],
        level_L=slots.level_L[:n],
        step_L=slots.step_L[:n],
    )


def test_gradients_of_the_whole_loss(imported) -> None:
    """L1 + adaptive λ·hinge + VQ loss after disc_start (the golden run weighs LPIPS by 0)."""

    def measure() -> Measured:
        run, img = imported("taming"), REFERENCE.image().float()
        tokenizer = load_restored(run).tokenizer.requires_grad_(True)
        disc = PatchGAN(width=16, layers=3, norm="batch").train()
        disc.load_state_dict({key.replace("main.", "net."): value for key, value in REFERENCE.state("disc").items()})
        rec, quantized = tokenizer(img)
        nll, g_loss = F.l1_loss(rec, img), -disc(rec).mean()
        last = [torch.autograd.grad(loss, tokenizer.last_layer, retain_graph=True)[0] for loss in (nll, g_loss)]
        weight = 0.8 * adaptive_weight(*last, delta=1e-4, clamp_min=0.0, clamp_max=1e4)
        loss = nll + weight * g_loss + quantized.vq_loss
        loss.backward()
        links = links_of(run, REFERENCE.state("vqgan"), transformer=False)
        measured = {"weight": weight, "loss": loss}
        return measured | stored_gradients(REFERENCE, "gen_grad.", links, tokenizer)

    step, weight = REFERENCE.scalars["gen_loss.step20"], REFERENCE.scalars["adaptive"]["d_weight"]
    agree(REFERENCE, measure, {"weight": weight, "loss": step["loss"]})
