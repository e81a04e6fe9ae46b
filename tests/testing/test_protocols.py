"""The Protocols list all that varlab asks of an implementation, and nothing else: their consumers run with nothing more."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from tests.tasks import tiny_tasks as tiny
from varlab.data.pack.packer import pack
from varlab.data.pack.sources.base import ImageSource
from varlab.data.pack.sources.digits import Digits
from varlab.metrics.classifier import Classifier
from varlab.metrics.extractors import ClassifierExtractor, Extractor
from varlab.metrics.protocol import protocol
from varlab.metrics.tokenizer_scores import ReconstructionScores
from varlab.model import Model
from varlab.order import NextScale, Permutation, Random
from varlab.order.paths import raster
from varlab.recipe.assembly import build_order, check_image_size, example_slots
from varlab.recipe.flops import FlopCounter
from varlab.recipe.plans.training_pictures import reconstructions
from varlab.sample import Sampler
from varlab.sample.large_image import sliding_window
from varlab.score.image_sampler import ImageSampler, Rejection
from varlab.testing.expectation import members
from varlab.tokenizer.condition import SpatialCondition
from varlab.types import Order, Tokenizer, VarlabError, to_float

PLAIN = Sampler(cfg=0.0, ramp="linear", temperature=1.0, top_k=0, top_p=1.0)


class Only:
    """An object that has nothing but what a contract lists; notes what it is asked for."""

    def __init__(self, inner: object, names: list[str], used: set[str]) -> None:
        self._inner, self._names, self._used = inner, names, used

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        if name not in self._names:
            raise AttributeError(f"{name} is asked of an implementation, but its contract does not list it")
        self._used.add(name)
        return getattr(self._inner, name)


class OnlyModule(nn.Module):
    """The same for a contract that also wants an ``nn.Module``."""

    def __init__(self, inner: nn.Module, names: list[str], used: set[str]) -> None:
        super().__init__()
        self.inner = inner
        self.__dict__["only"] = Only(inner, names, used)

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(self.__dict__["only"], name)

    def forward(self, *args: Any) -> Any:
        return self.inner(*args)


def model_of(order: Any, tokenizer: Any) -> Model:
    task = tiny.generator_task(order=order)
    return Model(tokenizer=tokenizer, order=order, transformer=task.model.eval(), sampler=PLAIN)


def use_generator(model: Model) -> None:
    """Logits, samples, growth and edits, and what a training asks besides."""
    batch = tiny.batch_at(list(range(4)))
    img = to_float(batch.img_u8_B3HW)
    transformer, order = model.generator()
    model.logits(batch.label_B, model.encode(img))
    model.sample(batch.label_B, seed=1)
    model.growth(batch.label_B, seed=1, frames=2)
    model.edit(img, torch.ones(4, *img.shape[2:]), batch.label_B)
    slots = example_slots(order, model.tokenizer)
    count = FlopCounter()
    count.sampling(count.transformer(transformer, slots), model.tokenizer, guided=True)
    task = tiny.generator_task(order=order, transformer=transformer.train(), tokenizer=model.tokenizer)
    with torch.no_grad():
        task.predict(batch)
    task.validation_scores([batch])
    source = ImageSampler(
        transformer=transformer, order=order, tokenizer=model.tokenizer, sampler=PLAIN, seed=0, batch=2
    )
    list(source.images(torch.arange(4)))


def test_the_orders_protocol() -> None:
    used: set[str] = set()
    for order in (
        NextScale(scales=tiny.SCALES),
        Random(scales=tiny.SCALES),
        Permutation(scales=tiny.SCALES, path=raster),
    ):
        only: Any = Only(order, members(Order), used)
        model = model_of(only, tiny.tokenizer())
        use_generator(model)
        only.conditioned(example_slots(only, model.tokenizer), torch.zeros(1, 2, dtype=torch.int64), 0)
        with pytest.raises(VarlabError, match="sliding window"):
            sliding_window(only, model.tokenizer, (8, 8), None)
    assert used == set(members(Order))


def test_the_tokenizers_protocol(tmp_path: Path) -> None:
    used: set[str] = set()

    def only(scales: list[list[int]] = tiny.SCALES) -> Any:
        return OnlyModule(tiny.tokenizer(scales), members(Tokenizer), used)

    for order in (NextScale(scales=tiny.SCALES), Permutation(scales=tiny.SCALES, path=raster)):
        use_generator(model_of(order, only()))
    batch = tiny.batch_at(list(range(4)))
    trained = only()
    tiny.train(tiny.tokenizer_task(tokenizer=trained), tmp_path, images=48)
    FlopCounter().encode(trained, (8, 8)), FlopCounter().decode(trained)
    reconstructions(trained, batch.img_u8_B3HW)
    ReconstructionScores(trained.eval(), extractor=None, perceptual=None).over([batch])
    check_image_size(trained, (8, 8), "here")
    build_order({"_target_": "varlab.order.NextScale"}, trained)
    with pytest.raises(VarlabError, match=r"use data\.size=8"):
        check_image_size(trained, (9, 9), "here")
    single = only([[2, 2]])
    large = model_of(Permutation(scales=[[2, 2]], path=raster), single).enlarged((16, 16))
    assert large.tokenizer.image_size == (16, 16)
    SpatialCondition(tokenizer=single).enlarged((16, 16), (4, 4))
    assert used == set(members(Tokenizer)), set(members(Tokenizer)) ^ used


def test_the_sources_protocol(tmp_path: Path) -> None:
    used: set[str] = set()
    source: Any = Only(Digits(size=16, resample="bicubic", val_fraction=0.2, seed=0), members(ImageSource), used)
    pack(source, tmp_path, shard_size=2000)
    assert used == set(members(ImageSource)), set(members(ImageSource)) ^ used


def test_the_extractors_contract() -> None:
    listed = ["name", "resize", "hash", "num_features", "num_classes", "num_spatial", "knows_content", "held_out"]
    assert set(listed) == set(Extractor.__annotations__)
    used: set[str] = set()
    classifier = Classifier(channels=[8, 8], blocks=1, groups=4, num_classes=tiny.CLASSES)
    extractor: Any = OnlyModule(ClassifierExtractor(classifier=classifier, hash="x"), listed, used)
    protocol(extractor=extractor, reference={}, n=4, sampler=None, seed=0)
    scores = ReconstructionScores(tiny.tokenizer().eval(), extractor=extractor, perceptual=None)
    scores.over([tiny.batch_at([0, 1, 2])])
    rejection = Rejection(judge=extractor, rate=0.5, num_classes=tiny.CLASSES)
    rejection(lambda ids_B: tiny.batch_at(ids_B.tolist()).img_u8_B3HW, torch.arange(3), torch.arange(3))
    assert used <= set(listed)
