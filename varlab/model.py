"""A trained model in Python: ``varlab.load("runs/…")`` gives images to tokens, tokens to images, logits and samples."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from varlab.build import build_order, build_tokenizer, build_transformer, make
from varlab.checkpoint import load_weights
from varlab.order import BaseOrder
from varlab.rng import Rng
from varlab.sample import Sampler
from varlab.sample.images import Growth, decode_maps
from varlab.tokenizer import VQTokenizer
from varlab.transformer import Transformer
from varlab.types import Maps, VarlabError


class Model:
    """A tokenizer, and for a generator also its order and transformer. Images are float in [-1, 1].

    ``logits`` carries gradients unless it is called under ``torch.no_grad``; encoding, decoding and sampling do not.
    """

    def __init__(
        self,
        *,
        tokenizer: VQTokenizer,
        order: BaseOrder | None,
        transformer: Transformer | None,
        sampler: Sampler | None,
        classes: tuple[str, ...],
    ):
        self.tokenizer, self.order, self.transformer, self.sampler = tokenizer, order, transformer, sampler
        self.classes = classes
        for module in (tokenizer, transformer):
            if module is not None:
                module.eval()

    def to(self, device: torch.device | str) -> Model:
        """Move the weights."""
        self.tokenizer.to(device)
        if self.transformer is not None:
            self.transformer.to(device)
        return self

    @property
    def device(self) -> torch.device:
        return self.tokenizer.last_layer.device

    def _generator(self) -> tuple[Transformer, BaseOrder]:
        if self.transformer is None or self.order is None:
            raise VarlabError("This run is a tokenizer: sampling and logits need the run of a generator.")
        return self.transformer, self.order

    def _labels(self, label_B: Tensor | list[int] | None, batch: int | None = None) -> Tensor:
        """Labels on the device, checked; None stands for no class (the null class)."""
        transformer, _ = self._generator()
        if label_B is None:
            return torch.full((batch or 1,), transformer.num_classes, device=self.device)
        label_B = torch.as_tensor(label_B, dtype=torch.int64, device=self.device).reshape(-1)
        bad = label_B[(label_B < 0) | (label_B > transformer.num_classes)]
        if len(bad):
            raise VarlabError(
                f"Label {int(bad[0])} is outside the {transformer.num_classes} classes of this run "
                f"(0 … {transformer.num_classes - 1}, or {transformer.num_classes} for no class)."
            )
        return label_B

    def encode(self, img_B3HW: Tensor) -> Maps:
        """Images → one idx_Bl a scale, coarse to fine."""
        if tuple(img_B3HW.shape[1:]) != (3, *self.tokenizer.image_size):
            h, w = self.tokenizer.image_size
            raise VarlabError(f"This run encodes images of shape (B, 3, {h}, {w}), not {tuple(img_B3HW.shape)}.")
        return self.tokenizer.encode(img_B3HW.to(self.device))

    def decode(self, maps: Maps) -> Tensor:
        """Token maps → img_B3HW."""
        return decode_maps(self.tokenizer, [idx.to(self.device) for idx in maps])

    def logits(self, label_B: Tensor | list[int] | None, maps: Maps, *, seed: int = 0) -> Tensor:
        """Teacher-forced logits_BLV in the order's sequence. seed: of the order drawn for each sample, where it is random."""
        transformer, order = self._generator()
        maps = [idx.to(self.device) for idx in maps]
        ids_B = torch.arange(len(maps[0]))
        slots, _ = order.pack(maps, self.tokenizer, Rng(seed).stream("order", ids_B))
        return transformer(slots, self._labels(label_B, len(maps[0])))

    def sample_maps(
        self,
        label_B: Tensor | list[int] | None,
        *,
        seed: int,
        ids_B: Tensor | None = None,
        growth: Growth | None = None,
        **settings: Any,
    ) -> Maps:
        """Token maps for the labels. ids_B: which sample each is (default 0, 1, 2, …); the others as for ``sample``."""
        transformer, order = self._generator()
        labels = self._labels(label_B, None if ids_B is None else len(ids_B))
        if self.sampler is None:
            raise VarlabError("This run carries no sampler: it was not written by a generator's training.")
        return replace(self.sampler, **{name: value for name, value in settings.items() if value is not None})(
            transformer=transformer,
            order=order,
            tokenizer=self.tokenizer,
            label_B=labels,
            ids_B=torch.arange(len(labels)) if ids_B is None else ids_B,
            rng=Rng(seed),
            watch=growth,
        )

    def sample(
        self,
        label_B: Tensor | list[int] | None,
        *,
        seed: int = 0,
        cfg: float | None = None,
        top_k: int | None = None,
        top_p: float | None = None,
        temperature: float | None = None,
        ramp: str | None = None,
        ids_B: Tensor | None = None,
    ) -> Tensor:
        """img_B3HW for the labels. Sample i depends on (seed, i) alone. Settings left out are those of the run's sampler."""
        settings: dict[str, Any] = dict(cfg=cfg, top_k=top_k, top_p=top_p, temperature=temperature, ramp=ramp)
        return self.decode(self.sample_maps(label_B, seed=seed, ids_B=ids_B, **settings))

    def growth(self, label_B: Tensor | list[int], *, seed: int = 0, frames: int = 8) -> Tensor:
        """(B, frames, 3, H, W): how each image grows over the steps of the order."""
        _, order = self._generator()
        growth = Growth(order=order, tokenizer=self.tokenizer, frames=frames)
        self.sample_maps(label_B, seed=seed, growth=growth)
        return growth.images()


def load(run: str | Path, *, weights: str = "ema", device: torch.device | str = "cpu") -> Model:
    """The model of a run directory. weights: "ema" (what is reported) or "raw"."""
    run = Path(run)
    if not (run / "run.json").is_file():
        raise VarlabError(f"{run} holds no run.json: it is not the directory of a varlab run.")
    if weights not in ("ema", "raw"):
        raise VarlabError(f"weights={weights!r} is unknown: use 'ema' or 'raw'.")
    record = json.loads((run / "run.json").read_text())
    build = record.get("build") or {}
    if "tokenizer" not in build:
        raise VarlabError(
            f"{run} is a run of '{record.get('command')} {record.get('name')}', which holds no image model."
        )
    own = run / ("weights.safetensors" if weights == "ema" else "weights_raw.safetensors")
    rng = Rng(0)
    tokenizer = build_tokenizer(build["tokenizer"], rng)
    if "transformer" not in build:
        load_weights(tokenizer, own)
        return Model(tokenizer=tokenizer, order=None, transformer=None, sampler=None, classes=()).to(device)
    load_weights(tokenizer, run / "tokenizer.safetensors")
    order = build_order(build["order"], tokenizer)
    classes = tuple(build["classes"])
    transformer = build_transformer(
        build["transformer"], tokenizer=tokenizer, order=order, num_classes=len(classes), rng=rng
    )
    load_weights(transformer, own)
    sampler = make(build["sampler"])
    return Model(tokenizer=tokenizer, order=order, transformer=transformer, sampler=sampler, classes=classes).to(device)
