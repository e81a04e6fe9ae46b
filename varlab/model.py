"""A trained model in Python: ``varlab.load("runs/…")`` gives images to tokens, tokens to images, logits and samples."""

from __future__ import annotations

from dataclasses import replace
from typing import Unpack

import torch
from torch import Tensor

from varlab.config import Config
from varlab.order import BaseOrder
from varlab.rng import Rng
from varlab.sample import KnownTokens, Sampler, blend_images, kept_maps
from varlab.sample.images import Growth, decode_maps
from varlab.sample.inputs import Labels, SamplerChanges, checked_condition, checked_labels
from varlab.sample.large_image import sliding_window
from varlab.sample.sampler import Force
from varlab.tokenizer import VQTokenizer
from varlab.tokenizer.condition import Condition
from varlab.tokenizer.model import grid_of
from varlab.transformer import Transformer
from varlab.types import Maps, VarlabError, to_uint8


class Model:
    """A tokenizer, and for a generator also its order and transformer. Images are float in [-1, 1].

    sampler: by default VAR's, without guidance if the transformer has no null class. classes: their names, by default
    numbers. ``logits`` carries gradients unless it is called under ``torch.no_grad``; the other methods do not.
    """

    def __init__(
        self,
        *,
        tokenizer: VQTokenizer,
        order: BaseOrder | None = None,
        transformer: Transformer | None = None,
        sampler: Sampler | None = None,
        classes: tuple[str, ...] = (),
        condition: Condition | None = None,
    ):
        if transformer is not None:
            sampler = sampler or (Sampler() if transformer.has_null_class else Sampler(cfg=0.0))
            classes = classes or tuple(str(i) for i in range(transformer.num_classes))
        self.tokenizer, self.order, self.transformer, self.sampler = tokenizer, order, transformer, sampler
        self.classes, self.condition = classes, condition
        for module in self._modules():
            module.eval()

    def _modules(self) -> list[torch.nn.Module]:
        return [module for module in (self.tokenizer, self.transformer, self.condition) if module is not None]

    def to(self, device: torch.device | str) -> Model:
        """Move the weights."""
        for module in self._modules():
            module.to(device)
        return self

    @property
    def device(self) -> torch.device:
        return self.tokenizer.last_layer.device

    def generator(self) -> tuple[Transformer, BaseOrder]:
        """Return the transformer and its order. VarlabError if this is a tokenizer alone."""
        if self.transformer is None or self.order is None:
            raise VarlabError("This run is a tokenizer: sampling and logits need the run of a generator.")
        return self.transformer, self.order

    def _labels(self, label_B: Labels, batch: int = 1) -> Tensor:
        num_classes = self.generator()[0].num_classes
        names = self.classes if len(self.classes) == num_classes else [str(i) for i in range(num_classes)]
        return checked_labels(label_B, classes=names, batch=batch, device=self.device)

    def _condition(self, cond_BN: Tensor | None, batch: int) -> Tensor | None:
        num_tokens = 0 if self.condition is None else self.condition.num_tokens
        return checked_condition(cond_BN, num_tokens=num_tokens, batch=batch, device=self.device)

    # -- images and tokens ---------------------------------------------------------------------------------------------

    def encode(self, img_B3HW: Tensor) -> Maps:
        """Images → one idx_Bl a scale, coarse to fine."""
        if tuple(img_B3HW.shape[1:]) != (3, *self.tokenizer.image_size):
            h, w = self.tokenizer.image_size
            raise VarlabError(f"This run encodes images of shape (B, 3, {h}, {w}), not {tuple(img_B3HW.shape)}.")
        if not img_B3HW.is_floating_point():
            raise VarlabError(
                f"Images are floats in [-1, 1] here, not {img_B3HW.dtype}: give varlab.types.to_float(images)."
            )
        return self.tokenizer.encode(img_B3HW.to(self.tokenizer.last_layer))

    def decode(self, maps: Maps) -> Tensor:
        """Token maps → img_B3HW."""
        return decode_maps(self.tokenizer, [idx.to(self.device) for idx in maps])

    def condition_tokens(
        self,
        cond_img_B3HW: Tensor | None = None,
        box_B4: Tensor | None = None,
        *,
        img_B3HW: Tensor | None = None,
        label_B: Tensor | None = None,
    ) -> Tensor:
        """Encode conditions → cond_BN, from what the run's condition needs.

        cond_img_B3HW: condition images in [-1, 1], for a spatial condition. box_B4: (top, left, bottom, right) in [0, 1],
        for coordinates: where each image lies in its picture. img_B3HW, label_B: for a condition that is made from these.
        """
        if self.condition is None:
            raise VarlabError("This run is made with no condition: leave it out.")
        images = {"cond_u8_B3HW": cond_img_B3HW, "img_u8_B3HW": img_B3HW}
        fields = {name: to_uint8(img) for name, img in images.items() if img is not None}
        fields |= {name: value for name, value in (("box_B4", box_B4), ("label_B", label_B)) if value is not None}
        return self.condition.encode(**{name: value.to(self.device) for name, value in fields.items()})

    def logits(self, label_B: Labels, maps: Maps, *, seed: int = 0, cond_BN: Tensor | None = None) -> Tensor:
        """Teacher-forced logits_BLV in the order's sequence.

        seed: of the order drawn for each sample, if the order is random. cond_BN: from ``condition_tokens``, for a run
        with a condition.
        """
        transformer, order = self.generator()
        maps = [idx.to(self.device) for idx in maps]
        ids_B = torch.arange(len(maps[0]))
        slots, _ = order.pack(maps, self.tokenizer, Rng(seed).stream("order", ids_B))
        if (cond_BN := self._condition(cond_BN, len(maps[0]))) is not None:
            slots = order.conditioned(slots, cond_BN, 0)
        return transformer(slots, self._labels(label_B, len(maps[0])))[:, -order.num_positions :].float()

    # -- sampling ------------------------------------------------------------------------------------------------------

    def changed_sampler(self, changes: SamplerChanges) -> Sampler:
        """Return the model's sampler with some settings replaced."""
        if self.sampler is None:
            raise VarlabError("This run is a tokenizer: it has no sampler.")
        given: Config = {name: value for name, value in changes.items() if value is not None}
        return replace(self.sampler, **given)

    def sample_maps(
        self,
        label_B: Labels,
        *,
        seed: int,
        ids_B: Tensor | None = None,
        growth: Growth | None = None,
        cond_BN: Tensor | None = None,
        force: Force | None = None,
        **changes: Unpack[SamplerChanges],
    ) -> Maps:
        """Sample token maps for the labels, class numbers or names.

        ids_B: the number of each sample (default 0, 1, 2, …). force: known tokens, for editing. growth: collects the
        growing images. The others are as for ``sample``.
        """
        transformer, order = self.generator()
        labels = self._labels(label_B, 1 if ids_B is None else len(ids_B))
        return self.changed_sampler(changes)(
            transformer=transformer,
            order=order,
            tokenizer=self.tokenizer,
            label_B=labels,
            ids_B=torch.arange(len(labels)) if ids_B is None else ids_B,
            rng=Rng(seed),
            watch=growth,
            cond_BN=self._condition(cond_BN, len(labels)),
            force=force,
        )

    def sample(
        self,
        label_B: Labels,
        *,
        seed: int = 0,
        ids_B: Tensor | None = None,
        cond_img_B3HW: Tensor | None = None,
        cond_BN: Tensor | None = None,
        growth: Growth | None = None,
        force: Force | None = None,
        **changes: Unpack[SamplerChanges],
    ) -> Tensor:
        """Sample img_B3HW for the labels, class numbers or names. Sample i depends on (seed, i) alone.

        cond_img_B3HW: condition images in [-1, 1], for a run with a spatial condition; or cond_BN: the tokens of any
        condition (``condition_tokens``). growth, force: as for ``sample_maps``.
        """
        _, order = self.generator()
        if cond_img_B3HW is not None:
            cond_BN = self.condition_tokens(cond_img_B3HW)
        canvas = growth or Growth(order=order, tokenizer=self.tokenizer, frames=1)
        smooth = self.changed_sampler(changes).smooth
        maps = self.sample_maps(
            label_B,
            seed=seed,
            ids_B=ids_B,
            growth=canvas if smooth else growth,
            cond_BN=cond_BN,
            force=force,
            **changes,
        )
        # Smooth sampling mixes codes: its image is the canvas, which no token maps decode to.
        return canvas.images()[:, -1] if smooth else self.decode(maps)

    def sample_large(
        self,
        label_B: Labels,
        *,
        size: tuple[int, int],
        seed: int = 0,
        ids_B: Tensor | None = None,
        cond_img_B3HW: Tensor | None = None,
        box_B4: Tensor | None = None,
        **changes: Unpack[SamplerChanges],
    ) -> Tensor:
        """Sample img_B3HW of ``size`` (H, W), larger than the trained one, by a sliding window (order=raster).

        cond_img_B3HW: of the same size, for a run with a spatial condition. box_B4: where each image lies in its picture,
        for a run with coordinates (default: it is the whole picture). The others are as for ``sample``.
        """
        large = self.enlarged(size)
        labels = self._labels(label_B, 1 if ids_B is None else len(ids_B))
        cond_BN = None
        if self.condition is not None:
            box_B4 = self.condition.defaults(len(labels)).get("box_B4") if box_B4 is None else box_B4
            cond_BN = large.condition_tokens(cond_img_B3HW, box_B4, label_B=labels)
        return large.sample(labels, seed=seed, ids_B=ids_B, cond_BN=cond_BN, **changes)

    def enlarged(self, size: tuple[int, int]) -> Model:
        """Return a model for images of ``size`` (H, W), larger than the trained one, by a sliding window (order=raster)."""
        transformer, order = self.generator()
        grid, condition = grid_of(self.tokenizer, size), self.condition
        window = sliding_window(order, self.tokenizer, grid, condition)
        return Model(
            tokenizer=self.tokenizer.enlarged(grid),
            order=window,
            transformer=transformer,
            sampler=self.sampler,
            classes=self.classes,
            condition=None if condition is None else condition.enlarged(size, grid),
        )

    def growth(
        self,
        label_B: Labels,
        *,
        seed: int = 0,
        frames: int = 8,
        cond_BN: Tensor | None = None,
        **changes: Unpack[SamplerChanges],
    ) -> Tensor:
        """(B, frames, 3, H, W): how each image grows over the steps of the order."""
        _, order = self.generator()
        growth = Growth(order=order, tokenizer=self.tokenizer, frames=frames)
        self.sample_maps(label_B, seed=seed, growth=growth, cond_BN=cond_BN, **changes)
        return growth.images()

    # -- editing -------------------------------------------------------------------------------------------------------

    def known(self, img_B3HW: Tensor, mask_BHW: Tensor, *, force_small: bool = True) -> KnownTokens:
        """Return the images' own tokens outside the mask, for ``sample_maps(force=…)``. mask_BHW: 1 where to paint."""
        _, order = self.generator()
        keep = kept_maps(mask_BHW.to(self.device), self.tokenizer.scales, force_small=force_small)
        return KnownTokens(order=order, maps=self.encode(img_B3HW), keep=keep)

    def edit(
        self,
        img_B3HW: Tensor,
        mask_BHW: Tensor,
        label_B: Labels = None,
        *,
        seed: int = 0,
        force_small: bool = True,
        blend: bool = False,
        ids_B: Tensor | None = None,
        cond_BN: Tensor | None = None,
        growth: Growth | None = None,
        **changes: Unpack[SamplerChanges],
    ) -> Tensor:
        """Repaint img_B3HW inside the mask: at every step the tokens outside are the image's own.

        mask_BHW (or mask_HW, for all): 1 where to paint, in pixels. label_B: what to paint; None is no class (in- and
        outpainting, as in VAR). force_small: also keep the scales of h·w ≤ 3 whatever the mask. blend: put the known
        pixels back at the end. A full mask is free sampling, an empty one the reconstruction (without force_small).
        """
        transformer, _ = self.generator()
        img_B3HW = img_B3HW.to(self.device)
        if label_B is None and not transformer.has_null_class and transformer.num_classes > 1:
            raise VarlabError("This model has no null class to paint by: give the label of a class.")
        mask_BHW = mask_BHW.to(self.device).expand(len(img_B3HW), -1, -1)
        if mask_BHW.shape[1:] != img_B3HW.shape[2:]:
            raise VarlabError(f"The mask is {tuple(mask_BHW.shape[1:])}, the image {tuple(img_B3HW.shape[2:])} pixels.")
        painted = self.sample(
            self._labels(label_B, len(img_B3HW)).expand(len(img_B3HW)),
            seed=seed,
            ids_B=ids_B,
            cond_BN=cond_BN,
            growth=growth,
            force=self.known(img_B3HW, mask_BHW, force_small=force_small),
            **changes,
        )
        return blend_images(img_B3HW, painted, mask_BHW) if blend else painted
