"""Official names and shapes say enough: whatever model of a kind is written, the same one is inferred and read back."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from varlab.checkpoint import formats
from varlab.cli.app import conf_dir
from varlab.recipe.assembly import build_order, build_transformer
from varlab.rng import Rng
from varlab.tokenizer import VQTokenizer

FILE = Path("official.pth")
FIXED = dict(groups=2, beta=0.25, beta_term="commitment", phi_ratio=0.5, code_init=1.0, code_norm=False, entropy=None)


@st.composite
def tokenizers(draw: st.DrawFn) -> tuple[str, dict[str, Any], str | None]:
    """(format, configuration, how φ are shared)."""
    name = draw(st.sampled_from(["var", "vqgan", "llamagen"]))
    stages = draw(st.integers(1, 3))
    mult = draw(st.lists(st.integers(1, 3), min_size=stages, max_size=stages))
    config: dict[str, Any] = FIXED | {
        "vocab_size": draw(st.integers(2, 9)),
        "code_dim": draw(st.integers(1, 5)),
        "channels": 2 * draw(st.integers(1, 3)),
        "channel_mult": mult,
        "decoder_channel_mult": None,
        "res_blocks": draw(st.integers(1, 2)),
        "attention": sorted(draw(st.sets(st.integers(0, stages - 1)))),
        "mid_attention": draw(st.booleans()),
        "quant_kernel": draw(st.sampled_from([1, 3])),
        "cosine": name == "llamagen",
        "scales": [[2, 2]],
        "phi_count": 0,
        "gumbel": None,
    }
    if name == "vqgan" and draw(st.booleans()):
        config["gumbel"] = {"kl": 1e-8, "temperature": [1.0, 0.0625]}
    if name == "var":
        config["scales"] = [[1, 1], [2, 2], [3, 3]][: draw(st.integers(2, 3))]
        phi = draw(st.sampled_from(["each", "one", "some"]))
        count = {"each": len(config["scales"]), "one": 1, "some": draw(st.integers(2, 4))}[phi]
        return name, config | {"z_channels": config["code_dim"], "phi_count": count}, phi
    if name == "llamagen":
        other = draw(st.lists(st.integers(1, 3), min_size=stages, max_size=stages))
        config["decoder_channel_mult"] = None if other == mult else other
    return name, config | {"z_channels": draw(st.integers(1, 5))}, None


@settings(max_examples=60, deadline=None)
@given(tokenizers())
def test_tokenizers(case: tuple[str, dict[str, Any], str | None]) -> None:
    name, config, phi = case
    model = VQTokenizer(**config)
    formats.check_tokenizer(name, config | {"_target_": "varlab.tokenizer.VQTokenizer"})
    official = formats.write_links(formats.tokenizer_links(name, config, phi), model.state_dict())
    asked = FIXED | {"cosine": config["cosine"], "scales": config["scales"]}
    inferred = formats.infer_tokenizer(name, official, asked, FILE)
    assert inferred == config and formats.phi_style(official) == phi
    shapes = {key: tuple(value.shape) for key, value in model.state_dict().items()}
    links = formats.tokenizer_links(name, inferred, phi)
    state = formats.read_links(links, official, shapes=shapes, extras=lambda key: False, path=FILE)
    assert all(torch.equal(state[key], value) for key, value in model.state_dict().items())


def format_defaults(name: str) -> dict[str, Any]:
    from omegaconf import OmegaConf

    loaded: Any = OmegaConf.to_container(OmegaConf.load(Path(conf_dir()) / "format" / f"{name}.yaml"))
    return loaded["format"]


@st.composite
def transformers(draw: st.DrawFn) -> tuple[str, dict[str, Any], int]:
    """(format, configuration, classes)."""
    name = draw(st.sampled_from(["var", "vqgan", "llamagen"]))
    heads = draw(st.sampled_from([2, 4]))
    width, depth = heads * 4 * draw(st.integers(1, 2)), draw(st.integers(1, 3))
    config = format_defaults(name)["transformer"] | {"width": width, "depth": depth, "heads": heads}
    made = f"varlab.transformer.{ {'var': 'AdaLNBlock', 'vqgan': 'GPT2Block', 'llamagen': 'LlamaBlock'}[name] }"
    block: dict[str, Any] = {"_target_": made, "_partial_": True, "mlp_ratio": draw(st.sampled_from([2.0, 4.0]))}
    if name == "var":
        block |= {"qk_norm": draw(st.booleans()), "attention_scale": 0.25}
        block["_target_"] = made.replace("AdaLN", draw(st.sampled_from(["AdaLN", "SharedAdaLN"])))
        config["drop_path"] = 0.1 * depth / 24
    if name == "llamagen":
        kv_heads = draw(st.sampled_from([None, 1, heads // 2]))
        hidden = -(-int(8 * width / 3) // 8) * 8
        block |= {"mlp_ratio": 4.0, "multiple_of": hidden, "kv_heads": kv_heads, "norm_eps": 1e-5, "dropout": 0.1}
    return name, config | {"block": block}, draw(st.integers(1, 5))


@settings(max_examples=60, deadline=None)
@given(transformers())
def test_transformers(case: tuple[str, dict[str, Any], int]) -> None:
    name, config, classes = case
    scales = [[1, 1], [2, 2]] if name == "var" else [[2, 3]]
    phi = {"phi_count": 0, "z_channels": None, "decoder_channel_mult": None, "cosine": False, "quant_kernel": 1}
    shape = {"channels": 2, "channel_mult": [1], "res_blocks": 1, "attention": [], "mid_attention": False}
    tokenizer = VQTokenizer(scales=scales, vocab_size=7, code_dim=3, **FIXED, **phi, **shape)  # type: ignore[arg-type]
    target = {"_target_": "varlab.order.NextScale"}
    raster = {"_target_": "varlab.order.paths.raster", "_partial_": True}
    order = build_order(
        target if name == "var" else {"_target_": "varlab.order.Permutation", "path": raster}, tokenizer
    )
    model = build_transformer(config, tokenizer=tokenizer, order=order, num_classes=classes, rng=Rng(0))
    official = formats.write_links(formats.transformer_links(name, config), model.state_dict())
    options = format_defaults(name)["infer"] | {"heads": config["heads"]}
    inferred = format_defaults(name)["transformer"] | formats.INFER[name](official, options, FILE)
    assert inferred == config
    assert formats.num_classes(name, official, FILE) in (None, classes)
    shapes = {key: tuple(value.shape) for key, value in model.state_dict().items()}
    links = formats.transformer_links(name, inferred)
    state = formats.read_links(links, official, shapes=shapes, extras=lambda key: False, path=FILE)
    assert all(torch.equal(state[key], value) for key, value in model.state_dict().items())
