"""``varlab encode``: the token maps of a data set, the same by a tokenizer and by a generator that carries it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import varlab
from tests import small
from varlab.build import make
from varlab.checkpoint import read_metadata, sha256
from varlab.cli.main import main
from varlab.types import to_float


@pytest.fixture(scope="module")
def encoded(world_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("encoded") / "multi"
    with small.inside(world_folder):
        assert main(["encode", "runs/multi", f"out={out}", "batch=100"]) == 0
    return out


def test_every_image_of_every_split(encoded: Path) -> None:
    for split, n in (("train", 1438), ("val", 359)):
        tokens = load_file(encoded / f"{split}.safetensors")
        assert tokens["idx_NP"].shape == (n, 30) and tokens["idx_NP"].dtype == torch.int32
        assert int(tokens["idx_NP"].min()) >= 0 and int(tokens["idx_NP"].max()) < 32
        assert tokens["label_N"].shape == (n,) and tokens["label_N"].unique().tolist() == list(range(10))
    assert small.record(encoded)["outcome"]["images"] == {"train": 1438, "val": 359}


def test_they_are_what_the_tokenizer_says_of_those_images(encoded: Path, lab: Path) -> None:
    data, model = make(small.record(lab / "multi")["config"]["data"]), varlab.load(lab / "multi")
    rows = torch.tensor([0, 99, 100, 358])
    maps = model.encode(to_float(data.images("val", rows)))
    tokens = load_file(encoded / "val.safetensors")
    assert torch.equal(torch.cat(maps, 1).int(), tokens["idx_NP"][rows])
    assert torch.equal(data.labels("val"), tokens["label_N"])


def test_their_origin_is_told(encoded: Path, lab: Path) -> None:
    origin, data = read_metadata(encoded / "val.safetensors"), small.record(lab / "multi")["data"]
    assert origin["tokenizer_sha256"] == sha256(lab / "multi" / "weights.safetensors")
    assert origin["data_hash"] == data["hash"] and origin["scales"] == "[[1, 1], [2, 2], [3, 3], [4, 4]]"


def test_a_generator_encodes_with_the_tokenizer_it_carries(encoded: Path, lab: Path, tmp_path: Path) -> None:
    assert main(["encode", "runs/next_scale", f"out={tmp_path / 'out'}"]) == 0
    for split in ("train", "val"):
        one, other = (load_file(folder / f"{split}.safetensors") for folder in (encoded, tmp_path / "out"))
        differing = (one["idx_NP"] != other["idx_NP"]).float().mean()
        assert differing < 1e-3 and torch.equal(one["label_N"], other["label_N"])  # batches of another size: ties only
