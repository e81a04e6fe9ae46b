"""Law 6: what the official VAR code computes (tests/golden), as near as float32 allows (tests/bounds.py)."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.bounds import Measured
from tests.parity.imported import (
    GeneratorDraws,
    agree,
    golden,
    gradients,
    links_of,
    load_restored,
    same,
    stored_gradients,
)
from varlab.rng import Rng
from varlab.sample import Sampler, filter_logits
from varlab.sample.guidance import guide, linear
from varlab.sample.images import Growth, decode_maps
from varlab.tasks import WarmupDecay
from varlab.types import Maps

pytestmark = pytest.mark.numeric

PLAIN = dict(cfg=0.0, ramp="linear", temperature=1.0, top_k=0, top_p=1.0)


class Case:
    """A golden file, the run imported from it and its model."""

    def __init__(self, name: str, run: Path):
        self.name, self.golden, self.run, self.model = name, golden(name), run, load_restored(run)

    def agrees(self, measure: Callable[[Case], Measured], scalars: dict[str, float] | None = None) -> None:
        """``measure`` gives what the golden file holds. The model is loaded for each precision."""
        agree(self.golden, lambda: measure(Case(self.name, self.run)), scalars)

    def image(self) -> Tensor:
        return self.golden.image().float()

    def maps(self, tokens: Tensor | None = None) -> Maps:
        tokens = self.golden["tokens"] if tokens is None else tokens
        return list(tokens.split([h * w for h, w in self.model.tokenizer.scales], 1))

    def sample(
        self, *, draws: GeneratorDraws | None = None, labels: Tensor | None = None, **settings
    ) -> tuple[Maps, Tensor]:
        """Maps, and the image of the last canvas in [0, 1]."""
        model = self.model
        assert model.transformer is not None and model.order is not None
        labels = self.golden["labels"] if labels is None else labels
        watch = Growth(order=model.order, tokenizer=model.tokenizer, frames=1)
        maps = Sampler(**(PLAIN | settings))(
            transformer=model.transformer,
            order=model.order,
            tokenizer=model.tokenizer,
            label_B=labels,
            ids_B=torch.arange(len(labels)),
            rng=Rng(0),
            watch=watch,
            draws=draws,
        )
        return maps, watch.images()[:, -1].add(1).div(2)


@pytest.fixture(params=["var_A", "var_C"])
def case(request: pytest.FixtureRequest, imported) -> Case:
    return Case(request.param, imported(request.param))


def test_encoder_and_tokens(case: Case) -> None:
    case.agrees(encoded)


def encoded(case: Case) -> Measured:
    with torch.no_grad():
        raw = case.model.tokenizer.encoder(case.image())
        f = case.model.tokenizer.quant_conv(raw)
    return {"enc_raw": raw, "f": f, "tokens": torch.cat(case.model.encode(case.image()), 1)}


def test_f_hat_at_every_scale_and_the_image(case: Case) -> None:
    case.agrees(decoded)


def decoded(case: Case) -> Measured:
    tokenizer = case.model.tokenizer
    f_hat, f_hats = tokenizer.blank(len(case.golden["tokens"])), []
    with torch.no_grad():
        for k, idx in enumerate(case.maps()):
            f_hat = tokenizer.accumulate(f_hat, k, tokenizer.embed(idx))
            f_hats.append(f_hat)
    images = {"rec": decode_maps(tokenizer, case.maps()), "rec_scale1": tokenizer.decode(f_hats[1])}
    return images | {"f_hat_scales": torch.stack(f_hats), "f_hat": f_hat}


def test_phi_of_each_scale(case: Case) -> None:
    assert case.model.tokenizer.quantizer._phi_of_scale == case.golden.scalars["phi_index_per_scale"]


def test_growing_canvas_of_the_official_experiment(case: Case) -> None:
    """same_shape=False: the canvas grows with the scales. Not something we offer; the φ and codes are what is compared."""
    case.agrees(growing)


def growing(case: Case) -> Measured:
    quantizer, f_hat = case.model.tokenizer.quantizer, None
    with torch.no_grad():
        for k, ((h, w), idx) in enumerate(zip(case.model.tokenizer.scales, case.maps(), strict=True)):
            h_BChw = case.model.tokenizer.embed(idx).transpose(1, 2).unflatten(2, (h, w))
            h_BChw = quantizer.phi[quantizer._phi_of_scale[k]](h_BChw)
            f_hat = h_BChw if f_hat is None else F.interpolate(f_hat, (h, w), mode="bicubic") + h_BChw
        return {"rec_not_same_shape": case.model.tokenizer.decode(f_hat)}


@pytest.mark.parametrize("case", ["var_A", pytest.param("var_C", marks=pytest.mark.slow)], indirect=True)
def test_training_reconstruction_loss_and_gradients(case: Case) -> None:
    case.agrees(reconstructed, {name: case.golden.scalars[name] for name in ("train_vq_loss", "train_mse")})
    case.agrees(trained_tokenizer, {"train_grad_norms": 1})
    case.agrees(trained_quantizer)


@torch.no_grad()
def reconstructed(case: Case) -> Measured:
    rec, quantized = case.model.tokenizer(case.image())
    return {"train_rec": rec, "train_vq_loss": quantized.vq_loss, "train_mse": F.mse_loss(rec, case.image())}


def trained_tokenizer(case: Case) -> Measured:
    tokenizer = case.model.tokenizer.requires_grad_(True)
    links = links_of(case.run, case.golden.state("vqvae"), transformer=False)
    rec, quantized = tokenizer(case.image())
    (F.mse_loss(rec, case.image()) + quantized.vq_loss).backward()
    norms = relative(gradients(links, tokenizer), case.golden.scalars["train_grad_norms"])
    return {"train_grad_norms": norms} | stored_gradients(case.golden, "train_grad.", links, tokenizer)


def relative(gradients: dict[str, Tensor], norms: dict[str, float]) -> Tensor:
    """Norms over the official ones; those that are zero but for rounding are left out."""
    return torch.stack([gradients[name].norm() / norm for name, norm in norms.items() if norm > 1e-5])


def trained_quantizer(case: Case) -> Measured:
    tokenizer = case.model.tokenizer.requires_grad_(True)
    tokenizer.quantize(tokenizer.latents(case.image())).vq_loss.backward()
    links = links_of(case.run, case.golden.state("vqvae"), transformer=False)
    return stored_gradients(case.golden, "vqonly_grad.", links, tokenizer)


def test_next_scale_inputs(case: Case) -> None:
    case.agrees(packed)


def packed(case: Case) -> Measured:
    order = case.model.order
    assert order is not None
    slots, targets = order.pack(case.maps(), case.model.tokenizer)
    return {"var_input": slots.x_BLC[:, order.steps[0] :].detach(), "tokens": targets}


def test_filter_supports(case: Case) -> None:
    for name in (n for n in case.golden.meta["tensors"] if n.startswith("filter.k")):
        k, p = name.removeprefix("filter.k").split("_p")
        logits = case.golden["filter.logits"]
        kept = filter_logits(logits, temperature=1.0, top_k=int(k), top_p=float(p) or 1.0).isfinite()
        same(case.golden, name, kept.to(case.golden[name].dtype))
    for name in (n for n in case.golden.meta["tensors"] if n.startswith("filter_edge.p")):
        top_p = float(name.removeprefix("filter_edge.p"))
        kept = filter_logits(case.golden["filter_edge.logits"], temperature=1.0, top_k=0, top_p=top_p).isfinite()
        same(case.golden, name, kept.to(case.golden[name].dtype))


def test_hidden_states_logits_and_loss(case: Case) -> None:
    case.agrees(
        hidden_states, {name: case.golden.scalars[name] for name in ("ce", "ce_null", "ce_label_smoothing_0.1")}
    )


def hidden_states(case: Case) -> Measured:
    transformer, tokens = case.model.transformer, case.golden["tokens"].flatten()
    assert transformer is not None
    seen: list[Tensor] = []
    hooks = [b.register_forward_hook(lambda _m, _i, out: seen.append(out.detach())) for b in transformer.blocks]
    logits = case.model.logits(case.golden["labels"], case.maps()).detach()
    for hook in hooks:
        hook.remove()
    null = case.model.logits([transformer.num_classes] * len(logits), case.maps()).detach()
    measured = {f"hidden.{i}": hidden for i, hidden in enumerate(seen)} | {"logits": logits, "logits_null": null}
    measured |= {f"ce{name}": F.cross_entropy(x.flatten(0, 1), tokens) for name, x in (("", logits), ("_null", null))}
    smoothed = F.cross_entropy(logits.flatten(0, 1), tokens, label_smoothing=0.1)
    return measured | {"ce_label_smoothing_0.1": smoothed}


@pytest.mark.parametrize("mistake", ["eps", "gelu"])
def test_two_easy_mistakes_are_seen(case: Case, mistake: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """An epsilon of 1e-5 in place of 1e-6, and the exact GELU in place of its approximation by tanh."""
    exact, exact_gelu = F.layer_norm, F.gelu
    if mistake == "eps":
        monkeypatch.setattr(F, "layer_norm", lambda x, shape, weight, bias, eps: exact(x, shape, weight, bias, 1e-5))
    else:
        monkeypatch.setattr(F, "gelu", lambda x, approximate: exact_gelu(x))
    for measure in (logits_alone, gradients_alone):
        with pytest.raises(AssertionError, match="the official value lies"):
            case.agrees(measure)


def logits_alone(case: Case) -> Measured:
    return {"logits": case.model.logits(case.golden["labels"], case.maps()).detach()}


def test_gradients(case: Case) -> None:
    case.agrees(gradients_alone, {"grad_norms": 1})


def gradients_alone(case: Case) -> Measured:
    transformer = case.model.transformer
    assert transformer is not None
    logits = case.model.logits(case.golden["labels"], case.maps())
    F.cross_entropy(logits.flatten(0, 1), case.golden["tokens"].flatten()).backward()
    links = links_of(case.run, {}, transformer=True)
    found = gradients(links, transformer)
    norms = {"grad_norms": relative(found, case.golden.scalars["grad_norms"])}
    return stored_gradients(case.golden, "grad.", links, transformer) | norms


@pytest.mark.parametrize("cfg", [0.0, 1.5])
def test_greedy_sampling(case: Case, cfg: float) -> None:
    name = "ar_cfg0" if cfg == 0 else f"ar_cfg{cfg}"

    def sampled(case: Case) -> Measured:
        maps, image = case.sample(cfg=cfg, top_k=1)
        logits = guided(case, cfg, case.golden[f"{name}.tokens"])
        return {f"{name}.tokens": torch.cat(maps, 1), f"{name}.image": image, f"{name}.logits": logits}

    case.agrees(sampled)


def guided(case: Case, cfg: float, tokens: Tensor, labels: Tensor | None = None) -> Tensor:
    """Logits along known tokens, guided as the sampler does it scale by scale."""
    transformer, scales = case.model.transformer, case.model.tokenizer.scales
    assert transformer is not None
    labels = case.golden["labels"] if labels is None else labels
    null = torch.full_like(labels, transformer.num_classes)
    with torch.no_grad():
        both = case.model.logits(torch.cat([labels, null]), [m.repeat(2, 1) for m in case.maps(tokens)])
    parts = both.split([h * w for h, w in scales], 1)
    return torch.cat([guide(part, linear(cfg, k / (len(scales) - 1))) for k, part in enumerate(parts)], 1)


@pytest.mark.parametrize("smooth", [False, True])
def test_sampling_with_the_official_generator(case: Case, smooth: bool) -> None:
    """Smooth sampling divides logits by a temperature down to 0.0135, which multiplies their error before it is decoded."""
    name = "ar_smooth" if smooth else "ar_rng"

    def sampled(case: Case) -> Measured:
        draws = GeneratorDraws(torch.Generator().manual_seed(1))
        maps, image = case.sample(draws=draws, cfg=1.5, top_k=20, top_p=0.9, smooth=smooth)
        return {f"{name}.tokens": torch.cat(maps, 1), f"{name}.image": image}

    case.agrees(sampled)


def test_no_label_is_the_null_class(case: Case) -> None:
    case.agrees(unlabelled)


def unlabelled(case: Case) -> Measured:
    transformer, tokens = case.model.transformer, case.golden["ar_intlabel.tokens"]
    assert transformer is not None
    null = torch.full_like(tokens[:, 0], transformer.num_classes)
    maps, image = case.sample(cfg=1.5, top_k=1, labels=null)
    logits = guided(case, 1.5, tokens, null)
    return {"ar_intlabel.tokens": torch.cat(maps, 1), "ar_intlabel.image": image, "ar_intlabel.logits": logits}


def decayed(case: Case) -> set[str]:
    """Official names of the parameters that weight decay is for."""
    groups = case.golden.scalars["optim.groups"]
    return {name for group in groups if group["wd_sc"] for name in group["names"]}


def test_weight_decay_groups(case: Case) -> None:
    """The parameters that the official code decays are those that are neither one-dimensional nor named by us."""
    transformer = case.model.transformer
    assert transformer is not None
    theirs = {link.ours: link.theirs[0] for link in links_of(case.run, {}, transformer=True)}
    spared = transformer.no_weight_decay()
    ours = {theirs[n] for n, p in transformer.named_parameters() if p.ndim > 1 and n not in spared}
    assert ours == decayed(case)


def test_three_training_steps(case: Case) -> None:
    """AdamW with the official groups and schedule, clipped at 2: loss, gradient norm and weights."""
    metrics = enumerate(case.golden.scalars["train3.metrics"])
    case.agrees(three_steps, {f"{key}.{i}": row[key] for i, row in metrics for key in ("Lm", "Lt", "tnm")})


def three_steps(case: Case) -> Measured:
    transformer, scalars = case.model.transformer, case.golden.scalars
    assert transformer is not None
    links = links_of(case.run, {}, transformer=True)
    theirs = {link.ours: link.theirs[0] for link in links}
    groups = [
        [p for n, p in transformer.named_parameters() if (theirs[n] in decayed(case)) is wanted]
        for wanted in (True, False)
    ]
    optimizer, measured = torch.optim.AdamW([{"params": group} for group in groups], betas=(0.9, 0.95)), {}
    last = case.model.tokenizer.scales[-1][0] * case.model.tokenizer.scales[-1][1]
    for i, (lr, _, decay, _) in enumerate(scalars["train3.schedule"]):
        optimizer.param_groups[0].update(lr=lr, weight_decay=decay)
        optimizer.param_groups[1].update(lr=lr, weight_decay=0.0)
        optimizer.zero_grad()
        logits, tokens = case.model.logits(case.golden["labels"], case.maps()), case.golden["tokens"]
        loss = F.cross_entropy(logits.flatten(0, 1), tokens.flatten())
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(transformer.parameters(), 2.0)
        optimizer.step()
        tail = F.cross_entropy(logits[:, -last:].flatten(0, 1), tokens[:, -last:].flatten())
        measured |= {f"Lm.{i}": loss, f"Lt.{i}": tail, f"tnm.{i}": norm}
    own = dict(transformer.named_parameters())
    weights = {f"train3.{link.theirs[0]}": link.write(own[link.ours].detach())[0] for link in links}
    return measured | {name: weights[name] for name in case.golden.meta["tensors"] if name.startswith("train3.")}


@pytest.mark.parametrize(
    ("name", "shape", "hold"),
    [("cos", "cosine", 0.0), ("lin", "linear", 0.15), ("lin0", "linear", 0.05), ("lin00", "linear", 0.0)],
)
def test_schedules(name: str, shape: str, hold: float) -> None:
    """The official last update has the end's rate, so that their 100 updates span 99 steps of the clock."""
    schedule = WarmupDecay(warmup=10, start=0.005, shape=shape, end=0.01, hold=hold)
    rows = [row for row in golden("var_A").scalars["schedule_table"] if row[0] == name]
    assert len(rows) == 8
    for _, update, low, high, *_ in rows:
        assert low == high and schedule.factor(update, 99) == pytest.approx(high / 1e-3, rel=1e-9)
