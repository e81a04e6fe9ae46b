"""Where samples come from: sample i of a generator with its label, its condition, and the rejection of worse candidates."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from varlab.metrics.extractors import Extractor
from varlab.order import BaseOrder
from varlab.rng import Rng
from varlab.sample import Sampler
from varlab.sample.images import decode_maps
from varlab.sample.sampler import Watch
from varlab.tokenizer import VQTokenizer
from varlab.tokenizer.condition import Condition
from varlab.transformer import Transformer
from varlab.types import Batch, Maps, VarlabError, to_uint8

if TYPE_CHECKING:
    from varlab.data import BaseDataModule


def balanced_labels(ids_N: Tensor, num_classes: int) -> Tensor:
    """Sample i is asked for class i mod K: every class equally often, on any number of ranks."""
    return ids_N % num_classes


class HeldOut:
    """The val split's conditions: sample i gets condition and label of val image i mod n.

    Raises:
        VarlabError: the val split is empty.
    """

    def __init__(self, *, data: BaseDataModule, condition: Condition):
        self._data, self._condition, self._n = data, condition, data.info.counts.get("val", 0)
        if not self._n:
            raise VarlabError(f"{data.info.path} has no val images, whose conditions samples are made from: pack some.")

    def samples(self, ids_B: Tensor) -> Batch:
        """The val images that these samples stand beside."""
        return self._data.samples("val", ids_B % self._n)

    def tokens(self, ids_B: Tensor, device: torch.device) -> tuple[Tensor, Tensor]:
        """(cond_BN, label_B) of these samples."""
        batch = self.samples(ids_B).to(device)
        return self._condition.tokens(batch), batch.label_B

    def shown(self, ids_B: Tensor) -> Tensor:
        """img_u8_B3HW, what these samples are made from."""
        return self._condition.shown(self.samples(ids_B))


class Rejection:
    """Of ``candidates`` images for each sample, keeps the one that a classifier gives its label the highest probability.

    VQGAN's rejection (Esser et al. 2021, sec. 4.4; Razavi et al. 2019), at the acceptance rate 1/candidates; sample by
    sample, so that sample i still depends on (seed, i) alone. judge: must know the labels' classes.
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
        """img_u8_B3HW, the best for each sample. draw: img_u8_B3HW of candidates with these ids."""
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
class SampleSource:
    """Sample i of a generator, uint8, a function of (seed, i). seconds: spent sampling and decoding on this rank.

    held_out: where conditions come from, and labels with them; without it labels are balanced. rejection: of the worse
    candidates for each sample.
    """

    transformer: Transformer
    order: BaseOrder
    tokenizer: VQTokenizer
    sampler: Sampler
    seed: int
    batch: int
    held_out: HeldOut | None = None
    rejection: Rejection | None = None
    seconds: float = field(default=0.0)

    def maps(self, ids_B: Tensor, watch: Watch | None = None, draw_ids_B: Tensor | None = None) -> tuple[Maps, Tensor]:
        """Token maps and label_B of these samples. draw_ids_B: what their randomness depends on, where not on themselves."""
        device = self.tokenizer.last_layer.device
        cond_BN, label_B = None, balanced_labels(ids_B, self.transformer.num_classes).to(device)
        if self.held_out is not None:
            cond_BN, label_B = self.held_out.tokens(ids_B, device)
        maps = self.sampler(
            transformer=self.transformer,
            order=self.order,
            tokenizer=self.tokenizer,
            label_B=label_B,
            ids_B=ids_B if draw_ids_B is None else draw_ids_B,
            rng=Rng(self.seed),
            cond_BN=cond_BN,
            watch=watch,
        )
        return maps, label_B

    def images(self, ids_N: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """(img_u8_B3HW, label_B) in batches."""
        device = self.tokenizer.last_layer.device
        for ids_B in ids_N.split(self.batch):
            before = time.perf_counter()
            img_u8, label_B = self._drawn(ids_B)
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            self.seconds += time.perf_counter() - before
            yield img_u8, label_B

    def _drawn(self, ids_B: Tensor) -> tuple[Tensor, Tensor]:
        if self.rejection is None:
            maps, label_B = self.maps(ids_B)
            return to_uint8(decode_maps(self.tokenizer, maps)), label_B
        label_B = self.labels(ids_B)

        def draw(draw_ids_B: Tensor) -> Tensor:
            return to_uint8(decode_maps(self.tokenizer, self.maps(ids_B, draw_ids_B=draw_ids_B)[0]))

        return self.rejection(draw, ids_B, label_B), label_B

    def labels(self, ids_B: Tensor) -> Tensor:
        """label_B of these samples."""
        device = self.tokenizer.last_layer.device
        if self.held_out is not None:
            return self.held_out.samples(ids_B).label_B.to(device)
        return balanced_labels(ids_B, self.transformer.num_classes).to(device)
