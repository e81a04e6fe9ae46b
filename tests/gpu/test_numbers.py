"""What models compute on a GPU in float32: tokenizers, sampling, and the golden files of the official codes."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests import bounds
from tests.gpu.conftest import DEVICE, Row
from tests.laws.conftest import BASE, World, load, names, pairs, shrunk
from tests.parity.imported import difference, golden, import_golden, load_restored
from varlab.recipe.assembly import build_tokenizer
from varlab.rng import Rng
from varlab.sample import Sampler
from varlab.sample.draws import AddressedDraws
from varlab.sample.images import decode_maps
from varlab.sample.replay import Replay, called
from varlab.score.image_sampler import ImageSampler
from varlab.tokenizer import VQTokenizer

pytestmark = pytest.mark.gpu

MARGIN = 1e-4  # of a decision: below it, roundings may decide
DISTINCT = ("multi", "single", "multi_code_norm", "single_cosine", "var", "vqgan_f16_1024", "llamagen_f16")


def compare(row: Row, what: str, measure: Callable[[str], bounds.Measured]) -> bounds.Measured:
    """``measure(device)`` on the GPU lies as near the truth as float32 lies. Returns the GPU's, on the CPU."""
    exact, bound = bounds.truth(lambda: measure("cpu"))
    mine = {name: value.cpu() for name, value in measure(DEVICE).items()}
    for name, allowed in bound.items():
        off = bounds.distance(mine[name], exact[name])
        row(f"{what}: {name}", bounds.size(exact[name]), bounds.size(mine[name]), off, allowed)
    for name, allowed in bound.items():
        assert bounds.distance(mine[name], exact[name]) <= allowed, name
    return mine


# -- tokenizers --------------------------------------------------------------------------------------------------------


def tokenizer_of(name: str) -> VQTokenizer:
    """A YAML's, small, with codes that say something."""
    tokenizer = build_tokenizer(shrunk(load("tokenizer", name)), Rng(0)).eval()
    with torch.no_grad():
        tokenizer.quantizer.codebook.weight.copy_(Rng(1).stream("init", torch.arange(24)).normal(6))
    return tokenizer


@pytest.mark.parametrize("name", DISTINCT)
def test_tokenizer_encodes_and_decodes_as_on_the_cpu(name: str, row: Row) -> None:
    h, w = tokenizer_of(name).image_size
    img_u8 = Rng(3).stream("images", torch.arange(4)).integers(256, 3, h, w)
    maps = tokenizer_of(name).encode(img_u8 / 127.5 - 1)

    def measure(device: str) -> bounds.Measured:
        tokenizer = tokenizer_of(name).to(device)
        img = (img_u8.to(torch.get_default_dtype()) / 127.5 - 1).to(device)
        with torch.no_grad():
            latents = tokenizer.latents(img)
            pixels = decode_maps(tokenizer, [idx.to(device) for idx in maps])
            return {"latents": latents, "pixels": pixels, "tokens": torch.cat(tokenizer.encode(img), 1)}

    mine = compare(row, f"tokenizer {name}", measure)
    agree = float((mine["tokens"] == torch.cat(maps, 1)).float().mean())
    row(f"tokenizer {name}: equal tokens", 1.0, agree, 1 - agree, 0.01)
    assert agree >= 0.99  # a code that is as near as another may change, and with it finer scales of one place


# -- sampling ----------------------------------------------------------------------------------------------------------


class WatchedDraws(AddressedDraws):
    """Notes, for each token, how far its uniform number lies from the next token's probabilities."""

    def __init__(self, ids_B: Tensor, rng: Rng):
        super().__init__(rng.stream("sample", ids_B))
        self.margins: list[Tensor] = []

    def pick(self, logits_BlV: Tensor, k: int) -> Tensor:
        u_Bl = self._stream.at(k).uniform(logits_BlV.shape[1]).to(logits_BlV.device)
        cdf_BlV = logits_BlV.double().softmax(-1).cumsum(-1)
        self.margins.append((cdf_BlV[..., :-1] - u_Bl.double()[..., None]).abs().amin(-1).cpu())
        return super().pick(logits_BlV, k)


@pytest.mark.parametrize("order", names("order"))
def test_sampled_tokens_are_those_of_the_cpu(order: str, row: Row) -> None:
    """Up to the first decision of a sample whose margin is below ``MARGIN``."""
    tokenizer = next(name for name, fits in pairs() if fits == order and name in BASE)
    world = World(tokenizer, order, batch=8)
    own = world.tokenizer = copy.deepcopy(world.tokenizer).float()
    transformer = world.transformer()
    maps, draws = [], WatchedDraws(world.ids_B, world.rng)
    for device in ("cpu", DEVICE):
        sampled = Sampler(cfg=1.5, ramp="linear", temperature=1.0, top_k=0, top_p=1.0)(
            transformer=transformer.to(device),
            order=world.order,
            tokenizer=own.to(device),
            label_B=world.label_B.to(device),
            ids_B=world.ids_B,
            rng=world.rng,
            draws=draws if device == "cpu" and not maps else None,
        )
        maps.append([idx.cpu() for idx in sampled])
    state = world.order.start(8, own.cpu(), world.rng.stream("order", world.ids_B))
    steps: list[list[Tensor]] = [[], []]
    for k in range(len(world.order.steps)):
        for side in (0, 1):
            steps[side].append(world.order.targets(state, k, maps[side]))
        state = world.order.advance(state, k, steps[0][-1], own)
    cpu, gpu = (torch.cat(side, 1) for side in steps)
    sure = torch.cat(draws.margins, 1).gt(MARGIN).cummin(1).values
    equal = int((cpu == gpu)[sure].sum())
    row(f"order {order}: sure tokens that are equal", int(sure.sum()), equal, int(sure.sum()) - equal, 0)
    assert sure.float().mean() > 0.5 and equal == int(sure.sum())


@pytest.mark.parametrize("compile", [False, True])
def test_replayed_batches_are_those_that_were_called(compile: bool, row: Row) -> None:
    """Other samples, labels and weights than those that were recorded, and a last batch that is smaller."""
    world = World("multi", "next_scale", batch=4)
    world.tokenizer = copy.deepcopy(world.tokenizer).float()
    sampler = Sampler(cfg=1.5, ramp="linear", temperature=1.0, top_k=6, top_p=0.9)
    sources = [
        ImageSampler(
            transformer=world.transformer().to(DEVICE), order=world.order, tokenizer=copy.deepcopy(world.tokenizer).to(DEVICE),
            sampler=sampler, seed=0, batch=4, compile=compile, replay=replay,
        )
        for replay in (called, Replay())
    ]  # fmt: skip
    drawn: list[list[Tensor]] = [[], []]
    for factor in (1.0, 1.5):
        for images, source in zip(drawn, sources, strict=True):
            with torch.no_grad():
                source.transformer.head.weight.mul_(factor)
            images += [img.cpu() for img, _ in source.images(torch.arange(22))]
    far = max(int((a.int() - b.int()).abs().max()) for a, b in zip(*drawn, strict=True))
    row(f"images of a CUDA graph, compile={compile}, of 255", "", "", far, 1)
    assert far <= 1
    assert DEVICE == "cpu" or sources[1].replay._graph is not None  # type: ignore[attr-defined]


# -- golden files ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def official(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    runs = ("var_A", "var_C", "taming", "taming_gpt", "llamagen", "llamagen_gpt", "llamagen_gqa")
    return {name: import_golden(name, tmp_path_factory.mktemp(name)) for name in runs}


@pytest.mark.parametrize("name", ["var_A", "var_C"])
def test_golden_var(name: str, official: dict[str, Path], row: Row) -> None:
    reference = golden(name)

    def measure(device: str) -> bounds.Measured:
        model = load_restored(official[name]).to(device)
        with torch.no_grad():
            tokens = torch.cat(model.encode(reference.image().float()), 1)
            maps = list(reference["tokens"].split([h * w for h, w in model.tokenizer.scales], 1))
            return {"tokens": tokens, "rec": model.decode(maps), "logits": model.logits(reference["labels"], maps)}

    mine = compare(row, name, measure)
    assert torch.equal(mine["tokens"], reference["tokens"])
    near_the_official(row, name, "rec", mine["rec"])


def test_golden_vqgan(official: dict[str, Path], row: Row) -> None:
    reference = golden("taming")
    idx = reference["gpt.idx"]

    def measure(device: str) -> bounds.Measured:
        tokenizer, model = (load_restored(official[name]).to(device) for name in ("taming", "taming_gpt"))
        with torch.no_grad():
            img = reference.image().float().to(device)
            rec, quantized = tokenizer.tokenizer(img)
            logits = model.logits(idx[:, 0], [idx[:, 1:]])
        return {"indices": torch.cat(quantized.maps, 1).flatten(), "rec": rec, "gpt.logits": logits}

    mine = compare(row, "vqgan", measure)
    assert torch.equal(mine["indices"], reference["indices"].flatten())
    for name in ("rec", "gpt.logits"):
        near_the_official(row, "taming", name, mine[name])


def test_golden_llamagen(official: dict[str, Path], row: Row) -> None:
    reference = golden("llamagen")
    runs = {"rec": "llamagen", "gpt": "llamagen_gpt", "gpt_gqa": "llamagen_gqa"}

    def measure(device: str) -> bounds.Measured:
        models = {name: load_restored(official[run]).to(device) for name, run in runs.items()}
        with torch.no_grad():
            rec, quantized = models.pop("rec").tokenizer(reference.image().float().to(device))
            labels, maps = reference["labels"], [reference["z"]]
            logits = {f"{name}.logits": model.logits(labels, maps) for name, model in models.items()}
        return {"indices": torch.cat(quantized.maps, 1).flatten(), "rec": rec, **logits}

    mine = compare(row, "llamagen", measure)
    assert torch.equal(mine["indices"], reference["indices"].flatten())
    for name in ("rec", "gpt.logits", "gpt_gqa.logits"):
        near_the_official(row, "llamagen", name, mine[name])


def near_the_official(row: Row, file: str, name: str, mine: Tensor) -> None:
    """Theirs was computed in float32, too."""
    size = bounds.size(mine)
    off = difference(golden(file), name, mine)
    row(f"{file}: official {name}", "", size, off, 1e-4 * size)
    assert off <= 1e-4 * size
