"""Each contract accepts what keeps it, and refuses what breaks one law, with that law's sentence."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from typing import Any
from unittest.mock import patch

import pytest
import torch
from torch import Tensor, nn
from torchmetrics import Metric
from torchmetrics.image import PeakSignalNoiseRatio

from tests.tasks import tiny_tasks as tiny
from varlab import testing
from varlab.data.pack.sources.digits import Digits
from varlab.losses.perceptual import ClassifierPerceptual, PerceptualDistance
from varlab.metrics.classifier import Classifier
from varlab.metrics.extractors import ClassifierExtractor, Extractor
from varlab.order import BaseOrder, NextScale, Permutation, Random
from varlab.order.paths import raster
from varlab.rng import Rng
from varlab.tasks import ClassifierTask
from varlab.tokenizer import Quantizer, VQTokenizer
from varlab.tokenizer.condition import Condition, CoordinateCondition
from varlab.types import Quantized, Slots, VarlabError

SCALES = [[1, 1], [2, 2], [4, 4]]
SMALL: dict[str, Any] = dict(
    channels=8, channel_mult=(1, 2), res_blocks=1, groups=4, attention=(), mid_attention=False, vocab_size=24, code_dim=6,
    code_init=24.0,
)  # fmt: skip


def tokenizer_of(kind: type[VQTokenizer] = VQTokenizer, scales: list[list[int]] = SCALES) -> VQTokenizer:
    with Rng(0).scope("init/tokenizer"):
        return kind(scales=scales, phi_count=1, **SMALL)


@cache
def plain_tokenizer() -> VQTokenizer:
    return tokenizer_of()


# -- orders ------------------------------------------------------------------------------------------------------------


class SeesItsTarget(NextScale):
    """Packs the image of the very scale that it predicts."""

    def pack(self, maps, tokenizer, rng=None):
        slots, targets = super().pack(maps, tokenizer, rng)
        return replace(slots, x_BLC=slots.x_BLC + tokenizer.embed(targets)), targets

    def inputs(self, state, k, tokenizer):
        return super().inputs(state, k, tokenizer)


class ForgetsACode(NextScale):
    def advance(self, state, k, idx_Bl, tokenizer, h_BlC=None):
        return super().advance(state, k, idx_Bl, tokenizer, tokenizer.embed(idx_Bl) * 0.5)


class LosesAMap(NextScale):
    def finish(self, state):
        return super().finish(state)[::-1]


class DrawsForTheBatch(Random):
    """Its path follows from a sample's place in the batch."""

    def path_BP(self, batch, device, rng):
        return super().path_BP(batch, device, Rng(3).stream("order", torch.arange(batch)))


class ConditionsLast(NextScale):
    def conditioned(self, slots, cond_BN, k):
        return Slots.cat([slots, self.prefix(cond_BN, slots)])


class NextTokenInputs(Permutation):
    """The input of a slot also holds the token that it predicts."""

    def inputs(self, state, k, tokenizer):
        slots, known = super().inputs(state, k, tokenizer), getattr(self, "maps", None)
        if known is None:
            return slots
        return replace(slots, x_BLC=slots.x_BLC + tokenizer.embed(self.targets(state, k, known)))

    def pack(self, maps, tokenizer, rng=None):
        self.maps = maps
        return BaseOrder.pack(self, maps, tokenizer, rng)


@pytest.mark.parametrize(
    "order", [NextScale(scales=SCALES), Random(scales=SCALES), Permutation(scales=SCALES, path=raster)]
)
def test_orders_that_keep_the_contract(order: Any) -> None:
    testing.check_order(order, plain_tokenizer())


@pytest.mark.parametrize(
    ("order", "said"),
    [
        (SeesItsTarget(scales=SCALES), "pack differs from the walk .* in x_BLC"),
        (ForgetsACode(scales=SCALES), "canvas after the last step is not f_hat"),
        (LosesAMap(scales=SCALES), "finish gives other maps"),
        (DrawsForTheBatch(scales=SCALES), "depends on the others in its batch"),
        (ConditionsLast(scales=SCALES), "conditioned must put the condition's tokens first"),
        (NextTokenInputs(scales=SCALES, path=raster), "a token of step .* changes what is predicted at step"),
        (NextScale(scales=[[1, 1], [2, 2]]), "lengths is"),
        (object(), "object lacks advance, cached, canvas"),
    ],
)
def test_orders_that_break_a_law(order: Any, said: str) -> None:
    with pytest.raises(VarlabError, match=said):
        testing.check_order(order, plain_tokenizer())


# -- tokenizers and quantizers -----------------------------------------------------------------------------------------


class Unclamped(VQTokenizer):
    def decode(self, f_hat_BChw):
        return super().decode(f_hat_BChw) * 3


class WritesInPlace(VQTokenizer):
    def accumulate(self, f_hat_BChw, k, h_BlC):
        return f_hat_BChw.copy_(super().accumulate(f_hat_BChw, k, h_BlC))


class Draws(VQTokenizer):
    def encode(self, img_B3HW):
        return super().encode(img_B3HW + torch.rand_like(img_B3HW))


class MixesTheBatch(VQTokenizer):
    def decode(self, f_hat_BChw):
        return super().decode(f_hat_BChw - f_hat_BChw.mean(0))


class Forgets(VQTokenizer):
    """A weight that no state dict holds."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self.turned = [0]

    def load_state_dict(self, state, *args, **more):
        self.turned[0] += 1
        return super().load_state_dict(state, *args, **more)

    def encode(self, img_B3HW):
        return [(idx + self.turned[0]) % self.vocab_size for idx in super().encode(img_B3HW)]


class Detached(VQTokenizer):
    def forward(self, img_B3HW: Tensor) -> tuple[Tensor, Quantized]:
        rec_B3HW, quantized = super().forward(img_B3HW.detach())
        return rec_B3HW, replace(quantized, counts_KV=quantized.counts_KV * 0)


class NoGraph(VQTokenizer):
    @torch.no_grad()
    def forward(self, img_B3HW: Tensor) -> tuple[Tensor, Quantized]:
        return super().forward(img_B3HW)


class KillsLiveCodes(VQTokenizer):
    def revive(self, dead_V, candidates_NC, stream):
        return super().revive(~dead_V, candidates_NC, stream) and 1


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        (Unclamped, "decode must clamp"),
        (WritesInPlace, "accumulate changes its argument"),
        (Draws, "other tokens the second time"),
        (MixesTheBatch, "decode of an image depends on the others"),
        (Forgets, "does not bring its tokens back"),
        (Detached, "counts_KV must count"),
        (NoGraph, "must reconstruct with a graph"),
        (KillsLiveCodes, "revive changes codes that are not dead"),
    ],
)
def test_tokenizers_that_break_a_law(kind: type[VQTokenizer], said: str) -> None:
    with pytest.raises(VarlabError, match=said):
        testing.check_tokenizer(tokenizer_of(kind))


def test_tokenizers_and_quantizers_that_keep_the_contract() -> None:
    testing.check_tokenizer(plain_tokenizer())
    testing.check_tokenizer(tokenizer_of(scales=[[4, 4]]))
    testing.check_quantizer(Quantizer(scales=[[4, 4]], vocab_size=16, code_dim=4, phi_count=0, cosine=True))


class LosesCounts(Quantizer):
    def forward(self, f_BChw: Tensor) -> Quantized:
        return replace(super().forward(f_BChw), counts_KV=torch.zeros(1, 16, dtype=torch.int64))


def test_a_quantizer_that_breaks_a_law() -> None:
    with pytest.raises(VarlabError, match="counts_KV must count"):
        testing.check_quantizer(LosesCounts(scales=[[4, 4]], vocab_size=16, code_dim=4, phi_count=0))
    with pytest.raises(VarlabError, match=r"must be a torch.nn.Module"):
        testing.check_tokenizer(object())  # type: ignore[arg-type]


# -- networks and numbers ----------------------------------------------------------------------------------------------


@cache
def classifier() -> Classifier:
    with Rng(0).scope("init/classifier"):
        return Classifier(channels=[8, 8], blocks=1, groups=4, num_classes=3)


class Pixels(Extractor):
    """Means of the channels; ``broken`` names what is wrong with it."""

    name, resize, hash, num_features, num_classes = "pixels", "none", "0", 3, None

    def __init__(self, broken: str = "") -> None:
        super().__init__()
        self.broken = broken
        if broken == "trains":
            self.weight = nn.Parameter(torch.ones(3))
        if broken == "name":
            self.name = ""

    def extract(self, img_u8_B3HW: Tensor) -> tuple[Tensor, Tensor]:
        f_BF = img_u8_B3HW.float().mean((2, 3))
        if self.broken == "batch":
            f_BF = f_BF - f_BF.mean(0)
        return f_BF[:, : 2 if self.broken == "features" else 3], f_BF

    def forward(self, img_u8_B3HW: Tensor) -> tuple[Tensor, Tensor]:
        return self.extract(img_u8_B3HW) if self.broken == "floats" else super().forward(img_u8_B3HW)


@pytest.mark.parametrize(
    ("broken", "said"),
    [
        ("trains", "must be frozen, but weight"),
        ("name", r"Pixels\.name must be a text"),
        ("batch", "depend on the rest of the batch"),
        ("features", "features_BF must be a tensor"),
        ("floats", "must refuse images that are not uint8"),
    ],
)
def test_extractors(broken: str, said: str) -> None:
    testing.check_extractor(Pixels())
    testing.check_extractor(ClassifierExtractor(classifier=classifier(), hash="x"))
    with pytest.raises(VarlabError, match=said):
        testing.check_extractor(Pixels(broken))


class Distance(PerceptualDistance):
    def __init__(self, broken: str = "") -> None:
        super().__init__()
        self.broken = broken

    def distance(self, x_B3HW: Tensor, y_B3HW: Tensor) -> Tensor:
        d_B = (x_B3HW - y_B3HW).square().mean((1, 2, 3))
        flat = {
            "detached": d_B.detach() + 0 * y_B3HW.mean(),
            "one": d_B + 1,
            "negative": -d_B,
            "batch": d_B / d_B.sum().clamp_min(1e-9),
        }
        return flat.get(self.broken, d_B)


@pytest.mark.parametrize(
    ("broken", "said"),
    [
        ("detached", "no finite gradient"),
        ("one", "is not zero"),
        ("negative", "is negative"),
        ("batch", "depends on the others"),
    ],
)
def test_perceptual_distances(broken: str, said: str) -> None:
    testing.check_perceptual(Distance())
    testing.check_perceptual(ClassifierPerceptual(classifier=classifier(), weights=[1.0, 1.0]))
    with pytest.raises(VarlabError, match=said):
        testing.check_perceptual(Distance(broken))


class Labels(Condition):
    """The label as a token; ``needs`` may keep it secret."""

    vocab_size, scales = 3, ((1, 1),)

    def __init__(self, needs: tuple[str, ...] = ("label_B",), shift: int = 0) -> None:
        super().__init__()
        self.needs, self.shift = needs, shift

    def tokens(self, batch):
        return batch.label_B[:, None] + self.shift


@pytest.mark.parametrize(
    ("condition", "said"),
    [
        (Labels(shift=5), r"tokens outside 0 … 2"),
        (Labels(needs=("box_B4",)), "fields of the batch that needs does not name"),
        (Labels(needs=("mood",)), "needs names"),
    ],
)
def test_conditions(condition: Condition, said: str) -> None:
    testing.check_condition(Labels())
    testing.check_condition(CoordinateCondition(grid=(4, 4), rows=4, columns=4))
    with pytest.raises(VarlabError, match=said):
        testing.check_condition(condition)


class LastBatch(Metric):
    """Its value is that of the last batch alone."""

    def __init__(self, nothing: bool = False) -> None:
        super().__init__()
        self.add_state("mean", torch.zeros(()))
        self.nothing = nothing

    def update(self, img: Tensor) -> None:
        self.mean = img.float().mean() / (0 if self.nothing else 1)

    def compute(self) -> Tensor:
        return self.mean


def test_metrics() -> None:
    testing.check_metric(PeakSignalNoiseRatio(data_range=1.0))
    with pytest.raises(VarlabError, match="must not depend on batches"):
        testing.check_metric(LastBatch())
    with pytest.raises(VarlabError, match="finite number"):
        testing.check_metric(LastBatch(nothing=True))


# -- sources -----------------------------------------------------------------------------------------------------------


class Broken(Digits):
    broken = ""

    def entries(self, split):
        entries = super().entries(split)
        if self.broken == "order":
            self.turn = -getattr(self, "turn", 1)
            return entries[:: self.turn]
        return entries[:0] if self.broken == "empty" else entries

    def load(self, split, entry):
        sample = super().load(split, entry)
        changes = {"key": {"key": "a.b"}, "label": {"label": 99}, "twice": {"key": "same"}}
        return replace(sample, **changes.get(self.broken, {}))


@pytest.mark.parametrize(
    ("broken", "said"),
    [
        ("order", "its order must be fixed"),
        ("empty", "nothing to train on"),
        ("key", "without a dot"),
        ("label", "label 99"),
        ("twice", "occurs twice"),
    ],
)
def test_sources(broken: str, said: str) -> None:
    source = Broken(size=16, resample="bicubic", val_fraction=0.2, seed=0)
    testing.check_source(source, most=4)
    source.broken = broken
    with pytest.raises(VarlabError, match=said):
        testing.check_source(source, most=4)


# -- tasks -------------------------------------------------------------------------------------------------------------

BATCHES = [tiny.batch_at(list(range(first, first + 8))) for first in range(0, 32, 8)]


class Forgetful(ClassifierTask):
    """Counts its updates, which decide, where no checkpoint sees it."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self.turns = 0

    def loss(self, chunk):
        self.turns += 1
        return super().loss(chunk.only(chunk.position_B >= chunk.position_B[0] + self.turns % 3))


class NothingMoves(ClassifierTask):
    def configure_optimizers(self):
        for group in self.optims[0].param_groups:
            group["initial_lr"] = group["lr"] = 0.0
        return super().configure_optimizers()


class NoScores(ClassifierTask):
    def validate(self, loader):
        return {}


def classifier_of(kind: type[ClassifierTask]) -> Callable[[], ClassifierTask]:
    def make() -> ClassifierTask:
        with patch.object(tiny, "ClassifierTask", kind):
            return tiny.classifier_task()

    return make


@pytest.mark.parametrize("make", [tiny.generator_task, tiny.classifier_task, tiny.held_back_task])
def test_tasks_that_keep_the_contract(make: Any) -> None:
    testing.check_task(make, BATCHES)


@pytest.mark.parametrize(
    ("kind", "said"),
    [(Forgetful, "trains to other weights"), (NothingMoves, "change no weight"), (NoScores, "finite numbers by name")],
)
def test_tasks_that_break_a_law(kind: type[ClassifierTask], said: str) -> None:
    with pytest.raises(VarlabError, match=said):
        testing.check_task(classifier_of(kind), BATCHES)
