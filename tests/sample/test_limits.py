"""What happens exactly at a limit: half a cell, one group, one training image, a temperature."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from torchmetrics.utilities.data import dim_zero_cat

from tests.losses.test_discriminators import vit_state
from varlab.errors import VarlabError
from varlab.losses.dino import ViT, ViTBlock
from varlab.metrics.comparison import _resampled, nearest_scores
from varlab.metrics.distribution.frechet import FID
from varlab.metrics.distribution.inception_score import SeededInceptionScore
from varlab.metrics.tokenizer_scores import plain_psnr
from varlab.rng import Rng
from varlab.sample.filter import filter_logits
from varlab.sample.known_tokens import kept_maps
from varlab.tokenizer.layers import group_norm
from varlab.transformer import Transformer


def test_a_cell_of_which_half_is_repainted_is_not_kept() -> None:
    mask_BHW = torch.zeros(1, 4, 4)
    mask_BHW[:, :2] = 1
    whole, halves, cells = kept_maps(mask_BHW, [(1, 1), (2, 2), (4, 4)], force_small=False)
    assert whole.tolist() == [[False]] and halves.tolist() == [[False, False, True, True]]
    assert int(cells.sum()) == 8
    assert kept_maps(mask_BHW, [(1, 3)], force_small=True)[0].all()


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_logits_are_divided_by_the_temperature(temperature: float) -> None:
    logits_BlV = Rng(0).stream("sample", torch.arange(2)).normal(3, 9)
    logits_BlV[..., 3] = -400.0  # of probability zero, and kept
    assert torch.equal(filter_logits(logits_BlV, temperature=temperature, top_k=0, top_p=1.0), logits_BlV / temperature)


@pytest.mark.parametrize(
    ("channels", "groups", "found"), [(9, 8, 3), (48, 32, 24), (7, 4, 1), (8, 1, 1), (15, 7, 5), (4, 9, 4)]
)
def test_groups_are_the_most_that_divide(channels: int, groups: int, found: int) -> None:
    assert group_norm(channels, groups).num_groups == found


def test_one_training_image_is_enough_for_its_distance() -> None:
    scores = nearest_scores(torch.tensor([2.0, 3.0, 4.0]), torch.tensor([1.5]), torch.tensor([[3.0, 4.0]]))
    assert scores == pytest.approx({"nn_median": 3.0, "nn_val_median": 1.5, "nn_ratio": 2.0})


def test_dinos_norms_have_its_epsilon() -> None:
    block, whole = ViTBlock(8, 16, 2, "none"), ViT(vit_state(), heads=2, gelu="none", path=Path("vit.pth"))
    assert block.norm1.eps == block.norm2.eps == whole.norm.eps == 1e-6


def test_the_only_held_out_image_of_a_class_is_in_every_draw() -> None:
    val_NF, label_N = torch.arange(8.0).view(4, 2), torch.tensor([0, 0, 0, 1])
    sets = _resampled(val_NF, label_N, Rng(0))
    assert {len(chosen) for chosen in sets} == {4}
    assert all((chosen == val_NF[3]).all(1).any() for chosen in sets)


@pytest.mark.parametrize("fewest", ["fake", "real"])
def test_one_image_has_no_fid(fewest: str) -> None:
    fid = FID(num_features=2)
    fid.update(torch.rand(1 if fewest == "fake" else 5, 2), real=False)
    fid.update(torch.rand(1 if fewest == "real" else 5, 2), real=True)
    with pytest.raises(VarlabError, match="not 1"):
        fid.compute()


def test_the_psnr_of_one_colour() -> None:
    """Half of the pixels black, half white: each is 1 from the mean, of a range of 2."""
    img_u8_N3HW = torch.zeros(1, 3, 2, 2, dtype=torch.uint8)
    img_u8_N3HW[..., 0] = 255
    assert plain_psnr(img_u8_N3HW) == pytest.approx(10 * math.log10(4))


def test_logits_of_all_ranks_are_joined() -> None:
    assert SeededInceptionScore(splits=2, seed=0)._reductions["features"] is dim_zero_cat


def test_a_causal_condition_leaves_the_images_steps() -> None:
    """Also where the first step has several slots."""
    model = Transformer(
        vocab_size=5, code_dim=3, num_classes=2, positions_P3=torch.zeros(7, 3, dtype=torch.int64), source_positions=False,
        width=16, depth=1, heads=2, cond_vocab=5, cond_tokens=3, causal_condition=True,
    )  # fmt: skip
    step_L = torch.tensor([-1, -1, -1, 0, 0, 0, 1])
    assert model._ordered(step_L).tolist() == [-3, -2, -1, 0, 0, 0, 1]
    assert model._ordered(step_L[3:]).tolist() == [0, 0, 0, 1]
