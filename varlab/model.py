"""A trained model in Python: ``varlab.load("runs/…")`` gives images to tokens, tokens to images, logits and samples."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from varlab.config import Config
from varlab.order import BaseOrder
from varlab.rng import Rng
from varlab.sample import KnownTokens, Sampler, blend_images, kept_maps
from varlab.sample.images import Growth, decode_maps
from varlab.sample.large_image import enlarge, grid_of, sliding_window
from varlab.sample.sampler import Force
from varlab.tokenizer import VQTokenizer
from varlab.tokenizer.condition import Condition, CoordinateCondition, SpatialCondition
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
        condition: Condition | None = None,
    ):
        self.tokenizer, self.order, self.transformer, self.sampler = tokenizer, order, transformer, sampler
        self.classes, self.condition = classes, condition
        for module in (tokenizer, transformer, condition):
            if module is not None:
                module.eval()

    def to(self, device: torch.device | str) -> Model:
        """Move the weights."""
        self.tokenizer.to(device)
        if self.transformer is not None:
            self.transformer.to(device)
        if self.condition is not None:
            self.condition.to(device)
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

    def condition_tokens(self, cond_img_B3HW: Tensor | None = None, box_B4: Tensor | None = None) -> Tensor:
        """cond_BN, of the trained size or (for ``sample_large``) a larger one: condition images in [-1, 1] of a run with a
        spatial condition, or (for one with coordinates) boxes, (top, left, bottom, right) in [0, 1], of the trained size.
        """
        if isinstance(self.condition, SpatialCondition) and cond_img_B3HW is not None:
            tokenizer = self.condition.tokenizer
            grid = grid_of(tokenizer, (cond_img_B3HW.shape[2], cond_img_B3HW.shape[3]))
            large = tokenizer if grid == tokenizer.scales[-1] else enlarge(tokenizer, grid)
            return SpatialCondition(tokenizer=large).encode(cond_img_B3HW.to(self.device))
        if isinstance(self.condition, CoordinateCondition) and box_B4 is not None:
            return self.condition.encode(box_B4.to(self.device), self.condition.scales[0])
        wants = "no condition"
        if self.condition is not None:
            wants = "boxes" if isinstance(self.condition, CoordinateCondition) else "condition images"
        raise VarlabError(f"This run is made with {wants}, one for each sample: give it that.")

    def _conditioned(self, cond_BN: Tensor | None, batch: int) -> Tensor | None:
        """The condition's tokens on the device, checked."""
        N = 0 if self.condition is None else self.condition.num_tokens
        if (0 if cond_BN is None else cond_BN.shape[1]) != N or (cond_BN is not None and len(cond_BN) != batch):
            shape = None if cond_BN is None else tuple(cond_BN.shape)
            raise VarlabError(
                f"This run takes {N} condition tokens for each of {batch} samples, not {shape}: "
                "give cond_img_B3HW, or cond_BN from condition_tokens."
            )
        return None if cond_BN is None else cond_BN.to(self.device)

    def decode(self, maps: Maps) -> Tensor:
        """Token maps → img_B3HW."""
        return decode_maps(self.tokenizer, [idx.to(self.device) for idx in maps])

    def logits(
        self, label_B: Tensor | list[int] | None, maps: Maps, *, seed: int = 0, cond_BN: Tensor | None = None
    ) -> Tensor:
        """Teacher-forced logits_BLV in the order's sequence. seed: of the order drawn for each sample, where it is random.

        cond_BN: the condition's tokens, of a run that has one (``condition_tokens``).
        """
        transformer, order = self._generator()
        maps = [idx.to(self.device) for idx in maps]
        ids_B = torch.arange(len(maps[0]))
        slots, _ = order.pack(maps, self.tokenizer, Rng(seed).stream("order", ids_B))
        if (cond_BN := self._conditioned(cond_BN, len(maps[0]))) is not None:
            slots = order.conditioned(slots, cond_BN, 0)
        return transformer(slots, self._labels(label_B, len(maps[0])))[:, -order.num_positions :]

    def sample_maps(
        self,
        label_B: Tensor | list[int] | None,
        *,
        seed: int,
        ids_B: Tensor | None = None,
        growth: Growth | None = None,
        cond_BN: Tensor | None = None,
        force: Force | None = None,
        **settings: Any,
    ) -> Maps:
        """Token maps for the labels. ids_B: which sample each is (default 0, 1, 2, …); force: known tokens (editing); the
        others as for ``sample``.
        """
        transformer, order = self._generator()
        labels = self._labels(label_B, None if ids_B is None else len(ids_B))
        return self._sampler(settings)(
            transformer=transformer,
            order=order,
            tokenizer=self.tokenizer,
            label_B=labels,
            ids_B=torch.arange(len(labels)) if ids_B is None else ids_B,
            rng=Rng(seed),
            watch=growth,
            cond_BN=self._conditioned(cond_BN, len(labels)),
            force=force,
        )

    def _sampler(self, settings: Config) -> Sampler:
        """The run's own, with the settings given in their places."""
        if self.sampler is None:
            raise VarlabError("This run carries no sampler: it was not written by a generator's training.")
        return replace(self.sampler, **{name: value for name, value in settings.items() if value is not None})

    def _sampled(self, label_B: Tensor | list[int] | None, settings: Config, **asked: Any) -> Tensor:
        """img_B3HW: the decoded maps, or with smooth sampling the decoded canvas, whose codes are no tokens'."""
        _, order = self._generator()
        if not self._sampler(settings).smooth:
            return self.decode(self.sample_maps(label_B, **asked, **settings))
        last = Growth(order=order, tokenizer=self.tokenizer, frames=1)
        self.sample_maps(label_B, growth=last, **asked, **settings)
        return last.images()[:, -1]

    def sample_large(
        self,
        label_B: Tensor | list[int] | None,
        *,
        size: tuple[int, int],
        seed: int = 0,
        ids_B: Tensor | None = None,
        cond_img_B3HW: Tensor | None = None,
        box_B4: Tensor | None = None,
        **settings: Any,
    ) -> Tensor:
        """img_B3HW of ``size`` (H, W), larger than the trained one, by a sliding window; a model of order=raster can.

        cond_img_B3HW: of the same size, for a run with a spatial condition. box_B4: for one with coordinates, where the
        images lie in their pictures (the whole of them if not given). The others as for ``sample``.
        """
        transformer, order = self._generator()
        labels = self._labels(label_B, None if ids_B is None else len(ids_B))
        grid = grid_of(self.tokenizer, size)
        window = sliding_window(order, self.tokenizer, grid, self.condition)
        tokenizer = enlarge(self.tokenizer, grid)
        cond_BN = None
        if isinstance(self.condition, CoordinateCondition):
            whole_B4 = torch.tensor([[0.0, 0.0, 1.0, 1.0]]).expand(len(labels), -1) if box_B4 is None else box_B4
            cond_BN = self.condition.encode(whole_B4.to(self.device), grid)
        elif self.condition is not None:
            if cond_img_B3HW is None or tuple(cond_img_B3HW.shape[2:]) != tuple(size):
                raise VarlabError(f"This run needs condition images of {size[0]}×{size[1]} for samples of that size.")
            cond_BN = self.condition_tokens(cond_img_B3HW)
        last = Growth(order=window, tokenizer=tokenizer, frames=1)
        self._sampler(settings)(
            transformer=transformer,
            order=window,
            tokenizer=tokenizer,
            label_B=labels,
            ids_B=torch.arange(len(labels)) if ids_B is None else ids_B,
            rng=Rng(seed),
            cond_BN=cond_BN,
            watch=last,
        )
        return last.images()[:, -1]

    def sample(
        self,
        label_B: Tensor | list[int] | None,
        *,
        seed: int = 0,
        ids_B: Tensor | None = None,
        cond_img_B3HW: Tensor | None = None,
        cond_BN: Tensor | None = None,
        **settings: Any,
    ) -> Tensor:
        """img_B3HW for the labels. Sample i depends on (seed, i) alone.

        settings: cfg, ramp, cfg_steps, temperature, top_k, top_p, smooth (see ``varlab.sample.Sampler``); those left out (or
        None) are the run's own. For a run with a condition: cond_img_B3HW, its images in [-1, 1], or cond_BN
        (``condition_tokens``).
        """
        if cond_img_B3HW is not None:
            cond_BN = self.condition_tokens(cond_img_B3HW)
        return self._sampled(label_B, settings, seed=seed, ids_B=ids_B, cond_BN=cond_BN)

    def known(self, img_B3HW: Tensor, mask_BHW: Tensor, *, force_small: bool = False) -> KnownTokens:
        """The images' own tokens outside the mask, for ``sample_maps(force=…)``. mask_BHW: 1 where to paint anew."""
        _, order = self._generator()
        keep = kept_maps(mask_BHW.to(self.device), self.tokenizer.scales, force_small=force_small)
        return KnownTokens(order=order, maps=self.encode(img_B3HW), keep=keep)

    def edit(
        self,
        img_B3HW: Tensor,
        mask_BHW: Tensor,
        label_B: Tensor | list[int] | None = None,
        *,
        seed: int = 0,
        force_small: bool = False,
        blend: bool = False,
        ids_B: Tensor | None = None,
        cond_BN: Tensor | None = None,
        growth: Growth | None = None,
        **settings: Any,
    ) -> Tensor:
        """img_B3HW, painted anew inside the mask: at every step the tokens outside are the image's own.

        mask_BHW (or mask_HW, for all): 1 where to paint, in pixels. label_B: what to paint; None is no class (in- and
        outpainting, as in VAR). force_small: also keep the scales of side ≤ 3 whatever the mask. blend: put the known
        pixels back at the end. A full mask is free sampling, an empty one the reconstruction (without force_small).
        """
        transformer, _ = self._generator()
        img_B3HW = img_B3HW.to(self.device)
        if label_B is None and not transformer.has_null_class:
            raise VarlabError("This model has no null class to paint by: give the label of a class.")
        mask_BHW = mask_BHW.to(self.device).expand(len(img_B3HW), -1, -1)
        if mask_BHW.shape[1:] != img_B3HW.shape[2:]:
            raise VarlabError(f"The mask is {tuple(mask_BHW.shape[1:])}, the image {tuple(img_B3HW.shape[2:])} pixels.")
        labels = self._labels(label_B, len(img_B3HW)).expand(len(img_B3HW))
        asked: Config = dict(seed=seed, ids_B=ids_B, cond_BN=cond_BN)
        asked["force"] = self.known(img_B3HW, mask_BHW, force_small=force_small)
        if growth is not None:
            asked["growth"] = growth
            painted = self.decode(self.sample_maps(labels, **asked, **settings))
        else:
            painted = self._sampled(labels, settings, **asked)
        return blend_images(img_B3HW, painted, mask_BHW) if blend else painted

    def growth(
        self, label_B: Tensor | list[int], *, seed: int = 0, frames: int = 8, cond_BN: Tensor | None = None
    ) -> Tensor:
        """(B, frames, 3, H, W): how each image grows over the steps of the order."""
        _, order = self._generator()
        growth = Growth(order=order, tokenizer=self.tokenizer, frames=frames)
        self.sample_maps(label_B, seed=seed, growth=growth, cond_BN=cond_BN)
        return growth.images()
