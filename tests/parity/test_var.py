"""Law 6: what the official VAR code computes (tests/golden), to the bounds of tests/golden/README.md."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.golden.golden_io import Golden
from varlab.build import build_order, build_transformer
from varlab.checkpoint.official_var import tokenizer_key, tokenizer_state, transformer_key, transformer_state
from varlab.order import NextScale
from varlab.rng import Rng
from varlab.sample import Sampler, filter_logits
from varlab.sample.images import decode_maps
from varlab.tokenizer import VQTokenizer
from varlab.transformer import AdaLNBlock, AdaLNHeadNorm, Transformer

GOLDEN = Path(__file__).parents[1] / "golden"
FLOAT, GRADIENT = 5e-6, 1e-4  # relative to the largest value


def close(golden: Golden, name: str, mine: Tensor, bound: float = FLOAT) -> None:
    difference, size = golden.maxdiff(name, mine)
    assert difference <= bound * max(size, 1e-3), f"{name}: {difference} against {size}"


def same(golden: Golden, name: str, mine: Tensor) -> None:
    mismatches, _ = golden.maxdiff(name, mine)
    assert mismatches == 0, name


def tokenizer_of(golden: Golden) -> VQTokenizer:
    c = golden.config
    state = tokenizer_state(golden.state("vqvae"), stages=len(c["ch_mult"]))
    tokenizer = VQTokenizer(
        scales=[(p, p) for p in c["patch_nums"]],
        vocab_size=c["V"],
        code_dim=c["Cvae"],
        channels=c["ch"],
        channel_mult=c["ch_mult"],
        res_blocks=c["num_res_blocks"],
        groups=32,
        decoder_channel_mult=None,
        z_channels=None,
        attention=[-1],
        mid_attention=True,
        beta_term="commitment",
        cosine=False,
        entropy=None,
        quant_kernel=c["quant_conv_ks"],
        beta=c["beta"],
        phi_count=sum(".phi." in k and k.endswith("weight") for k in state),
        phi_ratio=c["quant_resi"],
        code_init=1.0,
        code_norm=c["using_znorm"],
    )
    tokenizer.load_state_dict(state)
    return tokenizer.eval()


@pytest.fixture(params=["var_A", "var_C"], scope="module")
def golden(request) -> Golden:
    return Golden(str(GOLDEN / request.param))


@pytest.fixture(scope="module")
def tokenizer(golden: Golden) -> VQTokenizer:
    return tokenizer_of(golden)


def test_encoder_and_tokens(golden: Golden, tokenizer: VQTokenizer) -> None:
    with torch.no_grad():
        raw = tokenizer.encoder(golden.image())
        close(golden, "enc_raw", raw)
        close(golden, "f", tokenizer.quant_conv(raw))
    same(golden, "tokens", torch.cat(tokenizer.encode(golden.image()), 1))


def test_f_hat_at_every_scale_and_the_image(golden: Golden, tokenizer: VQTokenizer) -> None:
    maps = list(golden["tokens"].split([h * w for h, w in tokenizer.scales], 1))
    f_hat, f_hats = tokenizer.blank(len(maps[0])), []
    with torch.no_grad():
        for k, idx in enumerate(maps):
            f_hat = tokenizer.accumulate(f_hat, k, tokenizer.embed(idx))
            f_hats.append(f_hat)
    close(golden, "f_hat_scales", torch.stack(f_hats))
    close(golden, "f_hat", f_hat)
    close(golden, "rec", decode_maps(tokenizer, maps))


def test_phi_of_each_scale(golden: Golden, tokenizer: VQTokenizer) -> None:
    assert tokenizer.quantizer._phi_of_scale == golden.scalars["phi_index_per_scale"]


def test_training_reconstruction_loss_and_gradients(golden: Golden) -> None:
    tokenizer = tokenizer_of(golden)
    rec, quantized = tokenizer(golden.image())
    close(golden, "train_rec", rec)
    assert abs(float(quantized.vq_loss.detach()) / golden.scalars["train_vq_loss"] - 1) < FLOAT
    (F.mse_loss(rec, golden.image()) + quantized.vq_loss).backward()
    stages, own = len(golden.config["ch_mult"]), dict(tokenizer.named_parameters())
    for name in golden.meta["tensors"]:
        if name.startswith("train_grad."):
            close(golden, name, own[tokenizer_key(name.removeprefix("train_grad."), stages=stages)].grad, GRADIENT)


def test_next_scale_inputs(golden: Golden, tokenizer: VQTokenizer) -> None:
    maps = list(golden["tokens"].split([h * w for h, w in tokenizer.scales], 1))
    slots, targets = NextScale(scales=tokenizer.scales).pack(maps, tokenizer)
    first = NextScale(scales=tokenizer.scales).steps[0]
    close(golden, "var_input", slots.x_BLC[:, first:].detach())
    same(golden, "tokens", targets)


def test_filter_supports(golden: Golden) -> None:
    for name in (n for n in golden.meta["tensors"] if n.startswith("filter.k")):
        k, p = name.removeprefix("filter.k").split("_p")
        kept = filter_logits(golden["filter.logits"], temperature=1.0, top_k=int(k), top_p=float(p) or 1.0).isfinite()
        same(golden, name, kept.to(golden[name].dtype))


@pytest.fixture(scope="module")
def var_A() -> Golden:
    """One AdaLN Linear a block, normalised attention, four shared φ."""
    return Golden(str(GOLDEN / "var_A"))


@pytest.fixture(scope="module")
def tokenizer_A(var_A: Golden) -> VQTokenizer:
    return tokenizer_of(var_A)


@pytest.fixture()
def model(var_A: Golden, tokenizer_A: VQTokenizer) -> Transformer:
    c = var_A.config
    block = dict(mlp_ratio=c["mlp_ratio"], qk_norm=c["attn_l2_norm"], attention_scale=0.25)
    config = {
        "_target_": "varlab.transformer.Transformer",
        "width": c["embed_dim"],
        "depth": c["depth"],
        "heads": c["heads"],
        "token_inputs": False,
        "tied": False,
        "embed": {"start": True, "position": True, "level": True},
        "rotary": None,
        "head_bias": True,
        "drop_path": 0.0,
        "dropout": 0.0,
        "block": {"_target_": f"varlab.transformer.{AdaLNBlock.__name__}", "_partial_": True, **block},
        "head_norm": {"_target_": f"varlab.transformer.{AdaLNHeadNorm.__name__}", "_partial_": True},
        "init": {"std": None, "residual": True, "position": 1.0, "head": 1.0, "modulation": 1.0, "gamma": 1.0},
    }
    order = build_order({"_target_": "varlab.order.NextScale"}, tokenizer_A)
    model = build_transformer(config, tokenizer=tokenizer_A, order=order, num_classes=c["num_classes"], rng=Rng(0))
    model.load_state_dict(transformer_state(var_A.state("var")))
    return model.eval()


@pytest.fixture()
def order(tokenizer_A: VQTokenizer) -> NextScale:
    return NextScale(scales=tokenizer_A.scales)


def _packed(var_A: Golden, tokenizer_A: VQTokenizer, order: NextScale):
    return order.pack(list(var_A["tokens"].split(order.lengths, 1)), tokenizer_A)


def test_hidden_states_logits_and_loss(var_A, tokenizer_A, order, model) -> None:
    slots, targets = _packed(var_A, tokenizer_A, order)
    seen: list[Tensor] = []
    for block in model.blocks:
        block.register_forward_hook(lambda _m, _i, out: seen.append(out.detach()))
    logits = model(slots, var_A["labels"])
    for i, hidden in enumerate(seen):
        close(var_A, f"hidden.{i}", hidden)
    close(var_A, "logits", logits)
    null = torch.full_like(var_A["labels"], model.num_classes)
    close(var_A, "logits_null", model(slots, null))
    ce = float(F.cross_entropy(logits.flatten(0, 1), targets.flatten()).detach())
    assert abs(ce / var_A.scalars["ce"] - 1) < FLOAT


def test_gradients(var_A, tokenizer_A, order, model) -> None:
    slots, targets = _packed(var_A, tokenizer_A, order)
    F.cross_entropy(model(slots, var_A["labels"]).flatten(0, 1), targets.flatten()).backward()
    own = dict(model.named_parameters())
    norms = var_A.scalars["grad_norms"]
    for name, norm in norms.items():
        mine = float(own[transformer_key(name)].grad.norm())
        assert abs(mine - norm) <= GRADIENT * max(norm, 1e-3), name
    for name in (n for n in var_A.meta["tensors"] if n.startswith("grad.")):
        mine = own[transformer_key(name.removeprefix("grad."))].grad
        close(var_A, name, mine.reshape(var_A.meta["tensors"][name]["shape"]), GRADIENT)


@pytest.mark.parametrize("cfg", [0.0, 1.5])
def test_greedy_sampling(var_A, tokenizer_A, order, model, cfg: float) -> None:
    name = "ar_cfg0" if cfg == 0 else f"ar_cfg{cfg}"
    sampler = Sampler(cfg=cfg, ramp="linear", temperature=1.0, top_k=1, top_p=1.0)
    label_B = var_A["labels"]
    maps = sampler(
        transformer=model,
        order=order,
        tokenizer=tokenizer_A,
        label_B=label_B,
        ids_B=torch.arange(len(label_B)),
        rng=Rng(0),
    )
    same(var_A, f"{name}.tokens", torch.cat(maps, 1))
    close(var_A, f"{name}.image", decode_maps(tokenizer_A, maps).add(1).div(2))


def test_weight_decay_groups(var_A, model) -> None:
    """The parameters that the official code decays are those that are neither one-dimensional nor named by us."""
    decayed = {transformer_key(n) for g in var_A.scalars["optim.groups"] if g["wd_sc"] for n in g["names"]}
    spared = model.no_weight_decay()
    ours = {n for n, p in model.named_parameters() if p.ndim > 1 and n not in spared}
    assert ours == decayed
