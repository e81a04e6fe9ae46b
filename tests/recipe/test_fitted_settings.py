"""Settings that follow from the data: scales that end in one token, batches by the number of images alone."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from omegaconf import OmegaConf

from tests import small
from varlab.config import conf_dir
from varlab.errors import VarlabError
from varlab.recipe.assembly import build_tokenizer
from varlab.recipe.preflight.fitted_settings import complete, fitted_batch, fitted_scales, fitted_tokenizer
from varlab.rng import Rng

SIDES = st.integers(1, 24)


@given(SIDES, SIDES, st.sampled_from([1, 2, 4, 8, 16]))
def test_scales_double_up_to_the_whole_map(h: int, w: int, downsample: int) -> None:
    size = (h * downsample, w * downsample)
    scales = fitted_scales(size, downsample, several=True)
    assert scales[0] == [1, 1] and scales[-1] == [h, w]
    for (h0, w0), (h1, w1) in pairwise(scales):
        assert h0 <= h1 and w0 <= w1 and h0 * w0 < h1 * w1 <= 2 * h0 * w0
    assert fitted_scales(size, downsample, several=False) == [[h, w]]


@given(st.integers(0, 10**8))
def test_batches_are_powers_of_two_that_grow_with_the_set(images: int) -> None:
    batch = fitted_batch(images)
    assert batch & (batch - 1) == 0 and 16 <= batch <= 256
    assert batch <= fitted_batch(images + 1)
    assert batch == 16 or images // batch >= 128  # updates of an epoch


@pytest.mark.parametrize("name", ["multi", "single"])
@pytest.mark.parametrize("size", [(16, 16), (32, 32), (64, 64), (128, 128), (32, 48)])
def test_a_tokenizer_fits_the_images(name: str, size: tuple[int, int]) -> None:
    files = ["multi", *(["single"] if name == "single" else [])]
    asked = OmegaConf.merge(*(OmegaConf.load(conf_dir() / "tokenizer" / f"{file}.yaml") for file in files))
    asked.pop("defaults", None)
    fitted = fitted_tokenizer(OmegaConf.to_container(asked), size)
    tokenizer = build_tokenizer(fitted | {"channels": 8, "groups": 4}, Rng(0))
    h, w = tokenizer.scales[-1]
    assert (h * tokenizer.downsample, w * tokenizer.downsample) == size
    assert h * w <= 100
    assert fitted_tokenizer(fitted, (999, 1)) == fitted  # what a person gave stays


def test_a_size_without_whole_tokens_is_refused_with_one_that_fits() -> None:
    with pytest.raises(VarlabError, match=r"data\.size=\[32,28\]"):
        fitted_scales((33, 29), 4, several=True)


def test_a_run_records_what_was_fitted(lab: Path) -> None:
    data = small.record(lab / "multi")["config"]["data"]
    tokenizer = {"scales": "one", "channel_mult": "auto"}
    asked = {"kind": "tokenizer", "data": {**data, "batch": "auto"}, "tokenizer": tokenizer}
    completed = complete(asked)
    assert completed["data"]["batch"] == 16
    assert completed["tokenizer"] == {"scales": [[4, 4]], "channel_mult": [1, 2, 4]}
    assert complete(completed) == completed
    assert asked["tokenizer"] == tokenizer
