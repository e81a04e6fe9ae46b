"""Scores of a tokenizer's tokens: how much its decoder suffers from wrong ones (pFID), and what can be read from them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d, one_hot
from torchmetrics import Metric
from torchmetrics.utilities.data import dim_zero_cat

from varlab.data import BaseDataModule
from varlab.metrics.distribution.frechet import FID
from varlab.metrics.extractors import Extractor
from varlab.metrics.features import nearest
from varlab.rng import Rng, Stream
from varlab.sample.images import canvas_of, decode_maps
from varlab.score.image_set import rank_share
from varlab.types import Batch, Maps, Tokenizer, VarlabError, to_float, to_uint8

__all__ = ["LinearProbe", "PerturbedFID", "nearest_codes", "perturbed", "token_scores"]


def nearest_codes(tokenizer: Tokenizer, count: int) -> Tensor:
    """near_VN: for each code the numbers of the ``count`` codes nearest to it, itself among them."""
    device = tokenizer.last_layer.device
    codes_VC = tokenizer.embed(torch.arange(tokenizer.vocab_size, device=device)[None])[0]
    return nearest(codes_VC, codes_VC, count)[1]


def perturbed(maps: Maps, near_VN: Tensor, *, rate: float, stream: Stream) -> Maps:
    """Maps in which each token, with probability ``rate``, is one of the codes nearest to it. stream: one id an image."""
    changed = []
    for k, idx_Bl in enumerate(maps):
        drawn = stream.at(2 * k + 1).integers(near_VN.shape[1], idx_Bl.shape[1])
        is_changed_Bl = stream.at(2 * k).uniform(idx_Bl.shape[1]) < rate
        changed.append(torch.where(is_changed_Bl, near_VN[idx_Bl, drawn], idx_Bl))
    return changed


class PerturbedFID:
    """pFID (Qiu et al. 2025, "Robust latent matters", arXiv 2503.08354): FID of images decoded from perturbed tokens.

    Tokens of every image are replaced, in the paper's terms, at the rate α by one of the δ nearest codes. rates: several α;
    the score is the mean over them. nearest: δ, a share of the vocabulary below 1, or a number of codes. The draws depend on
    the seed and the image alone. Raises VarlabError for a rate outside [0, 1] and for more codes than there are.
    """

    def __init__(
        self, tokenizer: Tokenizer, *, extractor: Extractor, rates: Sequence[float], nearest: float, seed: int
    ):
        vocab_size = tokenizer.vocab_size
        count = max(round(nearest * vocab_size), 1) if 0 < nearest < 1 else round(nearest)
        if not rates or not all(0 <= rate <= 1 for rate in rates) or not 0 < count <= vocab_size:
            raise VarlabError(
                f"metrics.tokens.perturbed has the rates {list(rates)}, which must lie between 0 and 1, and {nearest} nearest "
                f"codes, which must be a share of the {vocab_size} codes or a number of them."
            )
        self._tokenizer, self._extract, self._rng = tokenizer, extractor, Rng(seed)
        self._near_VN = nearest_codes(tokenizer, count)
        self._fids = {rate: FID(num_features=extractor.num_features).to(self._near_VN.device) for rate in rates}

    @torch.no_grad()
    def update(self, batch: Batch) -> None:
        """Add images of this rank."""
        maps = self._tokenizer.encode(to_float(batch.img_u8_B3HW))
        real_BF = self._extract(batch.img_u8_B3HW)[0]
        for rate, fid in self._fids.items():
            stream = self._rng.stream("metrics/perturbed", batch.position_B)
            img_B3HW = decode_maps(self._tokenizer, perturbed(maps, self._near_VN, rate=rate, stream=stream))
            fid.update(real_BF, real=True)
            fid.update(self._extract(to_uint8(img_B3HW))[0], real=False)

    def compute(self) -> dict[str, float]:
        """pfid, and pfid/<rate> of each rate. All ranks call it together."""
        each = {f"pfid/{rate:g}": float(fid.compute()) for rate, fid in self._fids.items()}
        return {"pfid": sum(each.values()) / len(each)} | each


class LinearProbe(Metric):
    """Accuracy on held-out images of a linear classifier that is fitted to features of training images.

    The classifier is the ridge regression of the classes' indicators, which has one solution and no steps to tune.
    ridge: the weight of its penalty, in units of the mean over features of their sum of squares.
    """

    full_state_update = False
    higher_is_better = True
    xx: Tensor
    xy: Tensor
    x: list[Tensor]
    label: list[Tensor]

    def __init__(self, *, num_features: int, num_classes: int, ridge: float):
        super().__init__()
        self._ridge = ridge
        side = num_features + 1  # with a constant
        self.add_state("xx", torch.zeros(side, side, dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("xy", torch.zeros(side, num_classes, dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("x", [], dist_reduce_fx="cat")
        self.add_state("label", [], dist_reduce_fx="cat")

    def update(self, features_BF: Tensor, label_B: Tensor, *, held_out: bool) -> None:
        """Add features of training or of held-out images."""
        x_BG = torch.cat([features_BF, features_BF.new_ones(len(features_BF), 1)], 1).double()
        if held_out:
            self.x.append(x_BG)
            self.label.append(label_B)
        else:
            self.xx += x_BG.T @ x_BG
            self.xy += x_BG.T @ one_hot(label_B, self.xy.shape[1]).double()

    def compute(self) -> Tensor:
        """The share of right answers."""
        penalty_G = self._ridge * self.xx.diagonal()[:-1].mean() * torch.ones_like(self.xx[0])
        penalty_G[-1] = 0  # the constant is free
        weight_GK = torch.linalg.lstsq(self.xx + penalty_G.diag(), self.xy).solution
        return ((dim_zero_cat(self.x) @ weight_GK).argmax(1) == dim_zero_cat(self.label)).double().mean()


def token_scores(
    tokenizer: Tokenizer,
    *,
    data: BaseDataModule,
    extractor: Extractor,
    batch: int,
    seed: int,
    perturbed: Mapping[str, object] | None,
    probe: Mapping[str, float] | None,
) -> dict[str, float]:
    """pfid of the val images, and probe, where there are classes. perturbed: rates and nearest. probe: cells and ridge.

    The probe sees the sum of an image's codes, averaged to ``cells`` × ``cells`` places.
    """
    device = tokenizer.last_layer.device
    scores: dict[str, float] = {}
    if perturbed is not None:
        tally = PerturbedFID(tokenizer, extractor=extractor, seed=seed, **perturbed)  # type: ignore[arg-type]
        for images in rank_share(data, "val", batch=batch, device=device):
            tally.update(images)
        scores |= tally.compute()
    if probe is not None and data.info.num_classes > 1:
        cells = int(probe["cells"])
        side = tokenizer.code_dim * cells**2
        fitted = LinearProbe(num_features=side, num_classes=data.info.num_classes, ridge=probe["ridge"]).to(device)
        # a rank without images must gather tensors of the same types and sizes as the others
        none_0F, none_0 = torch.zeros(0, side, device=device), torch.zeros(0, dtype=torch.int64, device=device)
        fitted.update(none_0F, none_0, held_out=True)
        for split in ("train", "val"):
            for images in rank_share(data, split, batch=batch, device=device):
                canvas = canvas_of(tokenizer, tokenizer.encode(to_float(images.img_u8_B3HW)))
                x_BF = adaptive_avg_pool2d(canvas.float(), cells).flatten(1)
                fitted.update(x_BF, images.label_B, held_out=split == "val")
        scores["probe"] = float(fitted.compute())
    return scores
