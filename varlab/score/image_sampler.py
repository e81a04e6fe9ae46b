"""The samples of a generator: labels, conditions, rejection of the worse candidates."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor

from varlab.data import BaseDataModule
from varlab.metrics.extractors import Extractor
from varlab.order import BaseOrder
from varlab.rng import Rng
from varlab.sample import Sampler
from varlab.sample.images import decode_maps
from varlab.sample.replay import called
from varlab.sample.sampler import Watch
from varlab.tokenizer import VQTokenizer
from varlab.tokenizer.condition import Condition
from varlab.transformer import Transformer
from varlab.types import Batch, Maps, VarlabError, to_uint8


def balanced_labels(ids_N: Tensor, num_classes: int) -> Tensor:
    """Class i mod K for sample i: all classes equally often, on any number of ranks."""
    return ids_N % num_classes


def labels_of_val(data: BaseDataModule, rng: Rng) -> Tensor:
    """label_N of the held-out images, in an order that depends on ``rng`` alone: samples with these have the data's classes
    as often as the data."""
    label_N = data.labels("val")
    return label_N[rng.stream("labels").permutation(len(label_N))[0]]


class ValConditions:
    """The conditions of the val split (of train if val is empty): sample i gets condition and label of image i mod n."""

    def __init__(self, *, data: BaseDataModule, condition: Condition):
        self._data, self._condition = data, condition
        self._split = "val" if data.info.counts.get("val") else "train"
        self._n = data.info.counts[self._split]

    def images(self, ids_B: Tensor) -> Batch:
        """The val images of these samples."""
        return self._data.samples(self._split, ids_B % self._n)

    def tokens(self, ids_B: Tensor, device: torch.device) -> tuple[Tensor, Tensor]:
        """(cond_BN, label_B) of these samples."""
        batch = self.images(ids_B).to(device)
        return self._condition.tokens(batch), batch.label_B

    def shown(self, ids_B: Tensor) -> Tensor:
        """img_u8_B3HW: the conditions of these samples as pictures."""
        return self._condition.shown(self.images(ids_B))


class Rejection:
    """Keeps, of ``candidates`` images for each sample, the one whose label is most probable for a classifier.

    VQGAN's rejection (Esser et al. 2021, sec. 4.4; Razavi et al. 2019) at the acceptance rate 1/candidates, for each sample
    alone, so that sample i still depends only on (seed, i). judge: a classifier of the labels' classes.
    """

    def __init__(self, *, judge: Extractor, rate: float, num_classes: int):
        if not isinstance(rate, int | float) or not 0 < rate <= 1:
            raise VarlabError(f"reject={rate} is an acceptance rate: it must lie above 0 and be at most 1.")
        if judge.num_classes != num_classes:
            raise VarlabError(
                f"reject={rate} needs a classifier of the {num_classes} classes, which {judge.name} is not."
            )
        self._judge, self.candidates = judge, round(1 / rate)

    def __call__(self, draw: Callable[[Tensor], Tensor], ids_B: Tensor, label_B: Tensor) -> Tensor:
        """img_u8_B3HW, the best for each sample. draw: returns img_u8_B3HW of the candidates with these ids."""
        best_B = torch.full((len(ids_B),), -torch.inf, device=label_B.device)
        kept: Tensor | None = None
        for j in range(self.candidates):
            img_u8 = draw(ids_B * self.candidates + j)
            score_B = self._judge(img_u8)[1].log_softmax(-1).gather(1, label_B[:, None])[:, 0]
            better_B = score_B > best_B
            best_B = torch.where(better_B, score_B, best_B)
            kept = img_u8 if kept is None else torch.where(better_B[:, None, None, None], img_u8, kept)
        assert kept is not None
        return kept


@dataclass(kw_only=True)
class ImageSampler:
    """Sample i of a generator as a uint8 image, a function of (seed, i).

    conditions: with their labels; without them sample i gets ``label_N[i mod N]``, or balanced labels. rejection: of the worse
    candidates for each sample. check: called before each batch and after each step; may raise. compile: whether the networks
    are those of ``torch.compile``. replay: calls the work of a batch; a ``Replay`` makes it a CUDA graph. seconds: of sampling
    and decoding on this rank.
    """

    transformer: Transformer
    order: BaseOrder
    tokenizer: VQTokenizer
    sampler: Sampler
    seed: int
    batch: int
    conditions: ValConditions | None = None
    label_N: Tensor | None = None
    rejection: Rejection | None = None
    check: Callable[[], None] = lambda: None
    compile: bool = False
    replay: Callable[..., Tensor] = called
    seconds: float = field(default=0.0)

    @property
    def device(self) -> torch.device:
        """The device of the images."""
        return self.tokenizer.last_layer.device

    def maps(self, ids_B: Tensor, watch: Watch | None = None, draw_ids_B: Tensor | None = None) -> tuple[Maps, Tensor]:
        """Token maps and label_B of these samples. draw_ids_B: ids of the random draws, ``ids_B`` by default."""
        label_B, cond_BN = self._given(ids_B)
        return self._maps(label_B, ids_B if draw_ids_B is None else draw_ids_B, cond_BN, watch), label_B

    def _given(self, ids_B: Tensor) -> tuple[Tensor, Tensor | None]:
        """label_B and cond_BN of these samples."""
        if self.conditions is None:
            return self._labels(ids_B), None
        cond_BN, label_B = self.conditions.tokens(ids_B, self.device)
        return label_B, cond_BN

    def _maps(self, label_B: Tensor, draw_ids_B: Tensor, cond_BN: Tensor | None, watch: Watch | None) -> Maps:
        def after_step(k: int, state: object) -> None:
            self.check()
            if watch is not None:
                watch(k, state)

        return self.sampler(
            transformer=self.transformer,
            order=self.order,
            tokenizer=self.tokenizer,
            label_B=label_B,
            ids_B=draw_ids_B,
            rng=Rng(self.seed),
            cond_BN=cond_BN,
            watch=after_step,
            compile=self.compile,
        )

    def images(self, ids_N: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """(img_u8_B3HW, label_B) in batches."""
        for ids_B in ids_N.split(self.batch):
            self.check()
            before = time.perf_counter()
            img_u8_B3HW, label_B = (
                self._draw(ids_B) if self.rejection is None else self._draw_best(ids_B, self.rejection)
            )
            if self.device.type == "cuda":
                torch.cuda.synchronize(self.device)
            self.seconds += time.perf_counter() - before
            yield img_u8_B3HW, label_B

    def at(self, ids_N: Tensor) -> Tensor:
        """img_u8_N3HW of samples by number, on the CPU."""
        return torch.cat([img_u8_B3HW.cpu() for img_u8_B3HW, _ in self.images(ids_N)])

    def _draw(self, ids_B: Tensor, draw_ids_B: Tensor | None = None) -> tuple[Tensor, Tensor]:
        label_B, cond_BN = self._given(ids_B)
        draw_ids_B = (ids_B if draw_ids_B is None else draw_ids_B).to(self.device)
        modules = self.transformer, self.tokenizer
        return self.replay(self._pixels, label_B, draw_ids_B, cond_BN, of=modules), label_B

    def _pixels(self, label_B: Tensor, draw_ids_B: Tensor, cond_BN: Tensor | None) -> Tensor:
        maps = self._maps(label_B, draw_ids_B, cond_BN, None)
        return to_uint8(decode_maps(self.tokenizer, maps, compile=self.compile))

    def _draw_best(self, ids_B: Tensor, rejection: Rejection) -> tuple[Tensor, Tensor]:
        label_B = (
            self._labels(ids_B) if self.conditions is None else self.conditions.images(ids_B).label_B.to(self.device)
        )
        return rejection(lambda draw_ids_B: self._draw(ids_B, draw_ids_B)[0], ids_B, label_B), label_B

    def _labels(self, ids_B: Tensor) -> Tensor:
        if self.label_N is not None:
            return self.label_N[ids_B % len(self.label_N)].to(self.device)
        return balanced_labels(ids_B, self.transformer.num_classes).to(self.device)
