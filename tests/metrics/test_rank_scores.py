"""Several ranks share samples and references, of uneven sizes, and score as one rank does."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tests.small import fork_server
from varlab.data.image.depth import ASSUMED
from varlab.data.image.picture import PixelRules
from varlab.metrics.classifier import Classifier
from varlab.metrics.extractors import ClassifierExtractor
from varlab.rng import Rng
from varlab.score.image_set import image_set
from varlab.score.reference import Reference
from varlab.score.set_scorer import SetScorer
from varlab.score.space_scorer import score_spaces
from varlab.tasks.distributed import collectives

pytestmark = pytest.mark.numeric

SETTINGS = {
    "splits": 2,
    "neighbours": 3,
    "manifold": None,
    "density_neighbours": 5,
    "inception": {"order": "file", "split_size": 12},
    "kid": {"subsets": 3, "size": 10, "seed": 2020},
}


def images(seed: int, n: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (n, 8, 8, 3)).astype(np.uint8)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Files of 23 and 19 images, of which one occurs three times, and a folder of 31 pictures."""
    folder = tmp_path_factory.mktemp("sets")
    fake = images(1, 23)
    fake[[4, 22]] = fake[0]
    np.savez(folder / "fake.npz", fake, np.arange(23) % 4)
    np.savez_compressed(folder / "val.npz", images(2, 19), np.arange(19) % 4)
    (folder / "train").mkdir()
    for i, image in enumerate(images(3, 31)):
        Image.fromarray(image).save(folder / "train" / f"{i:02d}.png")
    return folder


def extractor(seed: int) -> ClassifierExtractor:
    with Rng(seed).scope("init"):
        return ClassifierExtractor(classifier=Classifier(channels=[8, 8], blocks=1, groups=4, num_classes=4), hash="00")


def scores(folder: Path, batch: int) -> dict[str, float]:
    """Every score of a set, under two protocols, of each class, and in two spaces."""
    fake, val, train = (
        image_set(folder / name, rules=PixelRules(most_pixels=1 << 20, depths=ASSUMED))
        for name in ("fake.npz", "val.npz", "train")
    )
    reference = Reference(name="train", hash="", images=train)
    sheets = {
        "": (SETTINGS, None),
        "plain": ({key: SETTINGS[key] for key in ("splits", "neighbours", "manifold")}, None),
    }
    compared = {"held_out": val, "draws": 2}
    ways = {"samples": fake, "reference": reference, "extractor": extractor(0), "seed": 0, "batch": batch}
    scorer = SetScorer(**ways, sheets=sheets, **compared)
    spaces = {"a": extractor(0), "b": extractor(1)}
    values = scorer() | score_spaces(spaces, samples=fake, train=train, seed=0, batch=batch, **compared)
    values |= {f"near/{i}": number for i, number in enumerate(scorer.neighbours.train_SK.flatten().tolist())}
    return values | {f"accuracy/{label}": share for label, share in enumerate(scorer.by_class["accuracy"])}


def _rank(rank: int, world: int, folder: str, results: str) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", f"file://{results}/store{world}", rank=rank, world_size=world)
    values = {batch: scores(Path(folder), batch) for batch in (4, 16)}
    torch.save(values, f"{results}/{world}-{rank}.pt")
    torch.distributed.destroy_process_group()


@pytest.mark.parametrize("world", [2, pytest.param(3, marks=pytest.mark.slow)])
def test_any_number_of_ranks_scores_as_one(world: int, folder: Path, tmp_path: Path) -> None:
    """In batches of 4, of which ranks have different numbers, and of 16, of which there is not one for each rank."""
    fork_server()
    asked = (world, str(folder), str(tmp_path))
    torch.multiprocessing.start_processes(_rank, asked, nprocs=world, start_method="forkserver")
    for rank in range(world):
        for batch, values in torch.load(tmp_path / f"{world}-{rank}.pt", weights_only=True).items():
            whole = scores(folder, batch)
            assert whole["duplicates"] == 2 and {
                "kid",
                "plain/fid",
                "fid_error",
                "accuracy",
                "a/fid_ratio",
                "fdr",
                "nn_ratio",
                "near/23",
            } <= set(whole)
            assert whole["fid_ratio"] == pytest.approx(whole["a/fid_ratio"], rel=1e-6)
            assert values == pytest.approx(whole, rel=1e-9, abs=1e-12)


@pytest.mark.parametrize("name", ["fake.npz", "val.npz", "train"])
def test_images_are_found_by_their_numbers(name: str, folder: Path) -> None:
    images = image_set(folder / name, rules=PixelRules(most_pixels=1 << 20, depths=ASSUMED))
    whole = torch.cat([numbered.img_u8_B3HW for numbered in images.batches(5)])
    for rows in ([17, 3, 3, 0, 18], [images.n - 1], range(images.n)):
        row_N = torch.tensor(list(rows))
        assert torch.equal(images.at(row_N), whole[row_N])


def test_samples_of_other_classes_are_compared_without_classes(folder: Path, tmp_path: Path) -> None:
    """Labels that lack a class of the held-out images leave nothing to draw for it."""
    np.savez(tmp_path / "fake.npz", images(1, 23), np.arange(23) % 3)
    np.savez(tmp_path / "plain.npz", images(1, 23))
    rules = PixelRules(most_pixels=1 << 20, depths=ASSUMED)
    val, train = (image_set(folder / name, rules=rules) for name in ("val.npz", "train"))
    found = []
    for name in ("fake", "plain"):
        scorer = SetScorer(
            samples=image_set(tmp_path / f"{name}.npz", rules=rules),
            reference=Reference(name="train", hash="", images=train),
            extractor=extractor(0),
            sheets={"": (SETTINGS, None)},
            seed=0,
            batch=16,
            held_out=val,
            draws=2,
        )
        found.append(scorer())
    assert found[0]["fid_ratio"] == found[1]["fid_ratio"] and found[0]["fid_draws_n"] == 19


@pytest.mark.parametrize("n", [0, 1, 5, 23, 24])
@pytest.mark.parametrize("batch", [1, 7, 64])
def test_ranks_share_every_row_once(n: int, batch: int, monkeypatch: pytest.MonkeyPatch) -> None:
    for world in (1, 2, 3, 8):
        parts = []
        for rank in range(world):
            monkeypatch.setattr(collectives, "rank", lambda rank=rank: rank)
            monkeypatch.setattr(collectives, "world_size", lambda world=world: world)
            mine = collectives.share(n, batch)
            assert (
                mine and max(map(len, mine)) <= batch and [part.start for part in mine] == sorted(p.start for p in mine)
            )
            parts += mine
        assert sorted(row for part in parts for row in part) == list(range(n))
        if n >= batch * world:
            assert sorted(part.start for part in parts) == list(range(0, n, batch))


@pytest.mark.parametrize("batch", [1, 7, 64])
def test_images_are_scored_alike_in_any_batches(batch: int, folder: Path) -> None:
    """The extractor's batches have one size, which may still decide the last bits of float32 features."""
    assert scores(folder, batch) == pytest.approx(scores(folder, 5), rel=1e-4, abs=1e-6)
