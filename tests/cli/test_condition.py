"""Conditions through the commands: packed, tokenised by a run of their own, trained on, sampled from, scored."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d

import varlab
from tests import small
from varlab.checkpoint import read_weights
from varlab.cli.main import main
from varlab.data.pack.sources.base import SourceSample
from varlab.files import sha256
from varlab.recipe.assembly import example_slots
from varlab.recipe.flops import TRAINING, FlopCounter, visible_pairs
from varlab.recipe.objects import make
from varlab.tasks import Task
from varlab.tokenizer import VQTokenizer
from varlab.tokenizer.condition import Condition
from varlab.types import Batch, VarlabError, to_float, to_uint8

SPATIAL, COORDINATES = (f"varlab.tokenizer.condition.{name}Condition" for name in ("Spatial", "Coordinate"))
EDGES = "data.path='runs/data/condition=edges+source=digits'"
TOKENIZER = (*small.RUNS["single"], EDGES, "perceptual=none", "budget.images=64")
GENERATOR = (*small.RUNS["raster"], "budget.images=64", "pictures.count=3")
SMALL = ("budget.images=16", "data.batch=8", "data.workers=0", "pictures.count=3", "tensorboard=false")


@pytest.fixture(scope="module")
def folder(world_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the small world, to add runs to."""
    return Path(shutil.copytree(world_folder, tmp_path_factory.mktemp("conditions") / "world"))


@pytest.fixture
def lab(folder: Path) -> Iterator[Path]:
    """Its runs/, with the copy as the current folder."""
    with small.inside(folder):
        yield folder / "runs"


@pytest.fixture(scope="module")
def edges_run(folder: Path) -> Path:
    """A raster generator over the edges of the digits; both its tokenizers are found by auto."""
    with small.inside(folder):
        assert small.train("edges/image", *TOKENIZER) == 0
        assert small.train("edges/condition", *TOKENIZER, "data.view=condition", "seed=4") == 0
        assert small.train("edges/generator", *GENERATOR, EDGES, "condition=spatial") == 0
    return folder / "runs" / "edges" / "generator"


def test_a_forecast_counts_both_tokenizers(
    edges_run: Path, lab: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the image and of its condition, which encode every batch."""
    monkeypatch.setattr("varlab.recipe.trainer.forecast.matrix_rate", lambda trainer: 1e6)
    asked = (*GENERATOR, EDGES, "condition=spatial", "encode_once=false", "trainer.devices=2", "dry=true")
    assert main(["train", *asked]) == 0
    cost = small.record(edges_run)["cost"]
    flops = [cost[f"{name}_flops_per_image"] for name in ("train", "encode", "condition")]
    minutes = float(re.search(r"minutes +│ at least ([\d.]+)", capfd.readouterr().err)[1])
    assert min(flops) > 0 and minutes == pytest.approx(64 * sum(flops) / 1e6 / 2 / 60, rel=0.01)


@pytest.fixture(scope="module")
def places_run(folder: Path) -> Path:
    """A raster generator over crops of a photograph, conditioned on where they lie."""
    shards = "data.path=runs/places/shards"
    crops = ("source.photos=[coins]", "source.train_crops=16", "source.val_crops=6")
    shape = (
        "tokenizer=single",
        "tokenizer.scales=[[4,4]]",
        "tokenizer.channel_mult=[1,1,1,1,1]",
        "tokenizer.attention=[]",
    )
    tiny = ("tokenizer.channels=8", "tokenizer.groups=4", "tokenizer.vocab_size=32", "tokenizer.code_dim=8")
    without = ("perceptual=none", "discriminator=none")
    model = (
        "transformer.width=32",
        "transformer.depth=2",
        "transformer.heads=2",
        "order=raster",
        "condition=coordinates",
    )
    with small.inside(folder):
        assert main(["pack", "source=photos", "condition=coordinates", *crops, "out=runs/places/shards"]) == 0
        asked = (shards, "data=photos", *SMALL, *small.FAST[:1])
        assert small.train("places/tokenizer", "task=tokenizer", *asked, *shape, *tiny, *without) == 0
        assert small.train("places/generator", "task=generator", *asked, *model, "condition.rows=5") == 0
    return folder / "runs" / "places" / "generator"


def test_the_directory_tells_and_holds_its_condition(edges_run: Path, lab: Path) -> None:
    record, parent = small.record(edges_run), small.record(lab / "edges" / "condition")
    stand = record["parents"]["condition"]
    assert stand["run"] == "runs/edges/condition" and record["parents"]["tokenizer"]["run"] == "runs/edges/image"
    assert sha256(edges_run / "condition.safetensors") == stand["weights_sha256"]
    assert record["build"]["condition"] == {"_target_": SPATIAL, "tokenizer": parent["config"]["tokenizer"]}
    assert record["data"]["hash"] == parent["data"]["hash"]
    assert {path.name for path in (edges_run / "pictures").iterdir()} == {"samples.png", "growth.png"}
    with Image.open(edges_run / "pictures" / "samples.png") as picture:
        assert picture.size == (8 * (3 * 17 - 1),) * 2  # rows: condition, sample, real; 128 pixels an image
    assert "condition" not in small.record(lab / "raster")["parents"]


def test_prefix_slots_and_their_encoder_are_counted(edges_run: Path, lab: Path) -> None:
    model, record = varlab.load(edges_run), small.record(edges_run)
    assert model.transformer is not None and model.order is not None and model.condition is not None
    slots = example_slots(model.order, model.tokenizer, model.condition)
    assert len(slots) == 32 and visible_pairs(slots.step_L) == 16 * 16 + 16 * 16 + 16 * 17 // 2
    forward = FlopCounter().transformer(model.transformer, slots)
    cost, plain = record["cost"], small.record(lab / "raster")["cost"]
    assert cost["train_flops_per_image"] == TRAINING * forward > 1.9 * plain["train_flops_per_image"]
    encode = FlopCounter().encode(model.condition.tokenizer, (16, 16))
    assert cost["condition_flops_per_image"] == encode > 0 == plain["condition_flops_per_image"]
    parents = sum(record["parents"][role]["flops"] for role in ("tokenizer", "condition"))
    assert record["outcome"]["tokenizer_flops"] == parents + 64 * (cost["encode_flops_per_image"] + encode)


def test_the_same_bits_again(edges_run: Path, lab: Path, tmp_path: Path) -> None:
    """Law 7, with a condition and its own tokenizers named."""
    named = ("tokenizer_run=runs/edges/image", "condition.tokenizer_run=runs/edges/condition")
    assert small.train(tmp_path / "again", *GENERATOR, EDGES, "condition=spatial", *named) == 0
    assert small.weights(tmp_path / "again") == small.weights(edges_run)


def test_a_stopped_run_goes_on_from_its_own_copies(
    edges_run: Path, lab: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Law 8; both tokenizers' runs are gone by then."""
    plain, run = Task.training_step, lab / "edges" / "stopped"

    def fails(task: Task, batch: Batch, batch_idx: int) -> object:
        if task.images >= 32:
            raise VarlabError("Stop.")
        return plain(task, batch, batch_idx)

    asked = (*GENERATOR, EDGES, "condition=spatial", "checkpoint.every=32")
    monkeypatch.setattr(Task, "training_step", fails)
    assert small.train(run, *asked) == 1
    monkeypatch.undo()
    hidden = {name: (lab / "edges" / name).rename(tmp_path / name) for name in ("image", "condition")}
    try:
        assert small.train(run, *asked) == 0
    finally:
        for name, path in hidden.items():
            path.rename(lab / "edges" / name)
    assert small.weights(run) == small.weights(edges_run) and len(small.record(run)["resumes"]) == 1


def test_evaluation_takes_the_val_splits_conditions(edges_run: Path, lab: Path, tmp_path: Path) -> None:
    run, judge = tmp_path / "run", tmp_path / "judge"
    shutil.copytree(edges_run, run)
    asked = ("n=24", "metrics.splits=2", "metrics.draws=2", f"extractor.run={lab / 'judge'}")
    assert main(["evaluate", str(run), f"out={judge}", *asked]) == 0
    (file,) = (run / "scores").iterdir()
    result = json.loads(file.read_text())
    assert result["protocol"]["conditions"] == "edges of val, cyclic"
    assert result["scores"]["val_nll"] == pytest.approx(small.curve(run, "val/nll")[-1], rel=1e-5)


def test_python_samples_from_condition_images(edges_run: Path, lab: Path, tmp_path: Path) -> None:
    """From a copy, from where no parent can be seen; sample i depends on its own condition."""
    shutil.copytree(edges_run, tmp_path / "elsewhere" / "copy")
    with small.inside(tmp_path / "elsewhere"):
        model = varlab.load("copy")
    cond_B3HW = torch.zeros(2, 3, 16, 16) - 1
    cond_B3HW[1, :, 4] = 1
    img_B3HW = model.sample([3, 4], seed=1, cond_img_B3HW=cond_B3HW)
    alone = model.sample([4], seed=1, ids_B=torch.tensor([1]), cond_img_B3HW=cond_B3HW[1:])
    torch.testing.assert_close(alone[0], img_B3HW[1], atol=1e-5, rtol=0)
    cond_BN = model.condition_tokens(cond_B3HW)
    assert cond_BN.shape == (2, 16) and model.growth([3, 4], cond_BN=cond_BN).shape[0] == 2
    assert model.logits([3, 4], model.encode(img_B3HW), cond_BN=cond_BN).shape == (2, 16, 32)
    with pytest.raises(VarlabError, match="takes 16 condition tokens for each of 2 samples, not None"):
        model.sample([3, 4])
    with pytest.raises(VarlabError, match="takes 16 condition tokens for each of 1 samples"):
        model.sample([3], cond_BN=cond_BN)
    with pytest.raises(VarlabError, match="takes 0 condition tokens"):
        varlab.load(lab / "raster").sample([3, 4], cond_BN=cond_BN)


def test_a_window_slides_beyond_the_trained_size(edges_run: Path, lab: Path) -> None:
    model, plain = varlab.load(edges_run), varlab.load(lab / "raster")
    assert plain.sample_large([3, 4], size=(24, 40), seed=1).shape == (2, 3, 24, 40)
    same = plain.sample_large([3, 4], size=(16, 16), seed=1)
    torch.testing.assert_close(same, plain.sample([3, 4], seed=1), atol=1e-5, rtol=0)
    cond_B3HW = torch.zeros(2, 3, 24, 40) - 1
    assert model.sample_large([3, 4], size=(24, 40), cond_img_B3HW=cond_B3HW).shape == (2, 3, 24, 40)
    with pytest.raises(VarlabError, match="needs condition images of 24×40"):
        model.sample_large([3, 4], size=(24, 40), cond_img_B3HW=cond_B3HW[:, :, :16, :16])
    with pytest.raises(VarlabError, match="no multiple of 4×4"):
        plain.sample_large([3], size=(23, 40))
    with pytest.raises(VarlabError, match="order=raster"):
        varlab.load(lab / "next_scale").sample_large([3], size=(24, 40))


def test_the_command_samples_from_val_from_files_and_larger(edges_run: Path, lab: Path, tmp_path: Path) -> None:
    def sample(name: str, *arguments: str) -> tuple[np.ndarray, np.ndarray]:
        assert main(["sample", str(edges_run), f"out={tmp_path / name}", "n=4", "batch=3", *arguments]) == 0
        with np.load(tmp_path / name / "samples.npz") as file:
            return file["arr_0"], file["arr_1"]

    images, labels = sample("val")
    held_out = small_labels(lab)
    assert images.shape == (4, 16, 16, 3) and labels.tolist() == held_out[:4]
    assert {p.name for p in (tmp_path / "val" / "pictures").iterdir()} == {
        "samples.png",
        "conditions.png",
        "growth.png",
    }
    (tmp_path / "maps").mkdir()
    for i in range(2):
        Image.new("L", (60, 40), 255 * i).save(tmp_path / "maps" / f"{i}.png")
    _, labels = sample("files", f"cond={tmp_path / 'maps'}", "labels=[5]")
    assert labels.tolist() == [5] * 4
    large, _ = sample("large", f"cond={tmp_path / 'maps' / '1.png'}", "size=[24,40]")
    assert large.shape == (4, 24, 40, 3)
    assert main(["sample", str(edges_run), f"out={tmp_path / 'none'}", "size=[24,40]"]) == 1


def small_labels(lab: Path) -> list[int]:
    with small.inside(lab.parent):
        record = small.record(lab / "edges" / "generator")
        return [int(label) for label in make(record["config"]["data"]).labels("val")]


def test_coordinates(places_run: Path, lab: Path) -> None:
    record, model = small.record(places_run), varlab.load(places_run)
    assert record["build"]["condition"] == {"_target_": COORDINATES, "rows": 5, "columns": 16}
    assert "condition" not in record["parents"] and not (places_run / "condition.safetensors").exists()
    cond_BN = model.condition_tokens(box_B4=torch.tensor([[0.0, 0.0, 1.0, 1.0], [0.0, 1.0, 0.1, 0.0]]))
    rows, columns = (part.view(2, 4, 4) for part in (cond_BN // 16, cond_BN % 16))
    assert rows[0, :, 0].tolist() == [0, 1, 3, 4] and columns[0, 0].tolist() == [2, 6, 10, 14]
    assert rows[1].unique().tolist() == [0] and columns[1, 0].tolist() == [14, 10, 6, 2]  # mirrored
    assert model.sample([0, 0], cond_BN=cond_BN).shape == (2, 3, 64, 64)
    assert model.sample_large([0], size=(64, 128)).shape == (1, 3, 64, 128)
    box_B4 = torch.tensor([[0.2, 0.2, 0.6, 0.9]])
    assert model.sample_large([0], size=(64, 128), box_B4=box_B4).shape == (1, 3, 64, 128)


# -- conditions from elsewhere -------------------------------------------------------------------------------------------


class Parity(Condition):
    """Whether the class is an odd number."""

    needs = ("label_B",)
    vocab_size, scales = 2, ((1, 1),)

    def tokens(self, batch: Batch) -> Tensor:
        return batch.label_B[:, None] % 2


class Levels(Condition):
    """The brightness of the four quarters of the condition image."""

    vocab_size, scales = 8, ((2, 2),)

    def tokens(self, batch: Batch) -> Tensor:
        assert batch.cond_u8_B3HW is not None
        return adaptive_avg_pool2d(batch.cond_u8_B3HW.float().mean(1) / 256, 2).mul(8).long().flatten(1)


class Coarse(Condition):
    """The first scale of a tokenizer's run."""

    def __init__(self, *, tokenizer: VQTokenizer, grid: tuple[int, int]):
        super().__init__()
        self.tokenizer, self.vocab_size, self.scales = tokenizer, tokenizer.vocab_size, tokenizer.scales[:1]
        assert grid == (4, 4)

    def tokens(self, batch: Batch) -> Tensor:
        assert batch.cond_u8_B3HW is not None
        return self.tokenizer.encode(to_float(batch.cond_u8_B3HW))[0]


class Inverted:
    """Packs the image, inverted."""

    name = "inverted"

    def describe(self) -> dict[str, object]:
        return {}

    def draw(self, sample: SourceSample, image: Image.Image) -> Image.Image:
        return ImageOps.invert(image)


@pytest.fixture(scope="module")
def mine(folder: Path) -> tuple[str, str]:
    """A folder with their YAML."""
    conf = folder / "conf" / "condition"
    conf.mkdir(parents=True)
    for name, more in (
        ("Parity", ""),
        ("Levels", f"packing: {{_target_: {__name__}.Inverted}}\n"),
        ("Coarse", "tokenizer_run: auto\n"),
    ):
        (conf / f"{name.lower()}.yaml").write_text(f"_target_: {__name__}.{name}\n{more}")
    return ("--config-dir", str(conf.parent))


def sampled_from(lab: Path, run: str, mine: tuple[str, str], *arguments: str) -> np.ndarray:
    out = lab / f"{run}-samples"
    shutil.rmtree(out, ignore_errors=True)
    assert main(["sample", *mine, str(lab / run), f"out={out}", "n=2", "grown=1", *arguments]) == 0
    with np.load(out / "samples.npz") as file:
        return file["arr_0"]


def test_a_condition_made_from_labels(mine: tuple[str, str], lab: Path, tmp_path: Path) -> None:
    """It is obtained from ``labels=``, needs no val split to sample, and goes with stored tokens."""
    assert main(["encode", "runs/multi", f"out={tmp_path / 'tokens'}"]) == 0
    asked = (*GENERATOR[:-1], "budget.images=32", "order=next_scale", "tokenizer_run=runs/multi", "pictures.count=2")
    of_tokens = ("data=tokens", f"data.path={tmp_path / 'tokens'}")
    assert small.train("mine/parity", *asked, *of_tokens, *mine, "condition=parity") == 0
    same = varlab.load(lab / "mine/parity", trust=True).sample([3, 4], cond_BN=torch.tensor([[1], [0]]))
    images = sampled_from(lab, "mine/parity", mine, "labels=[3,4]")
    assert np.abs(to_uint8(same).permute(0, 2, 3, 1).numpy().astype(int) - images).max() <= 1
    Image.new("RGB", (16, 16), "white").save(tmp_path / "a.png")
    edit = ["edit", *mine, str(lab / "mine/parity"), f"image={tmp_path / 'a.png'}", "box=[0,0,1,1]", "n=1"]
    assert main([*edit, f"out={tmp_path / 'edit'}"]) == 1 and main([*edit, "label=3", f"out={tmp_path / 'edit'}"]) == 0


def test_a_condition_with_its_own_packing(
    mine: tuple[str, str], lab: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["pack", *mine, "source=digits", "condition=levels", "out=runs/mine/inverted"]) == 0
    shards = "data.path=runs/mine/inverted"
    model = (*small.GENERATOR[:5], "budget.images=32", "pictures.count=2", shards, "order=raster")
    data = make(small.record(lab / "raster")["config"]["data"] | {"path": "runs/mine/inverted"})
    batch = data.samples("val", torch.arange(2))
    assert torch.equal(batch.cond_u8_B3HW, 255 - batch.img_u8_B3HW)
    assert small.train("mine/levels", *model, "tokenizer_run=runs/single", *mine, "condition=levels") == 0
    assert "packing" not in small.record(lab / "mine/levels")["build"]["condition"]
    white, black = (tmp_path / f"{name}.png" for name in ("white", "black"))
    Image.new("L", (16, 16), 255).save(white)
    Image.new("L", (16, 16), 0).save(black)
    model = varlab.load(lab / "mine/levels", trust=True)
    bright = model.sample([0, 1], cond_img_B3HW=torch.ones(2, 3, 16, 16))
    assert model.condition_tokens(-torch.ones(1, 3, 16, 16)).tolist() == [[0] * 4]
    images = sampled_from(lab, "mine/levels", mine, f"cond={white}")
    assert np.abs(to_uint8(bright).permute(0, 2, 3, 1).numpy().astype(int) - images).max() <= 1
    with Image.open(lab / "mine/levels-samples" / "pictures" / "conditions.png") as picture:
        assert picture.convert("L").getpixel((1, 1)) == 255
    assert sampled_from(lab, "mine/levels", mine).shape == (2, 16, 16, 3)
    edit = ["edit", *mine, str(lab / "mine/levels"), f"image={white}", "box=[0,0,1,1]", "n=1"]
    assert main([*edit, f"out={tmp_path / 'edit'}"]) == 1 and "cond=FILE" in capsys.readouterr().err
    assert main([*edit, f"cond={black}", f"out={tmp_path / 'edit'}"]) == 0
    assert main(["sample", *mine, str(lab / "mine/levels"), "size=[24,24]", f"cond={white}", "n=1"]) == 1
    with pytest.raises(VarlabError, match="Levels is made for images of the trained size"):
        model.condition.enlarged((24, 24), (6, 6))  # type: ignore[union-attr]


def test_a_condition_with_a_tokenizer_of_a_run(
    mine: tuple[str, str], edges_run: Path, lab: Path, tmp_path: Path
) -> None:
    """Found by auto, carried, and loaded from a copy that sees no parent."""
    assert small.train("mine/coarse", *GENERATOR, "budget.images=32", EDGES, *mine, "condition=coarse") == 0
    record = small.record(lab / "mine/coarse")
    assert record["parents"]["condition"]["run"] == "runs/edges/condition"
    assert record["cost"]["condition_flops_per_image"] == small.record(edges_run)["cost"]["condition_flops_per_image"]
    shutil.copytree(lab / "mine/coarse", tmp_path / "copy")
    with small.inside(tmp_path):
        model = varlab.load("copy", trust=[f"{__name__}.Coarse"])
    assert model.condition is not None
    weights = read_weights(lab / "edges" / "condition" / "weights.safetensors")
    carried = model.condition.get_submodule("tokenizer").state_dict()
    assert all(torch.equal(carried[key], value) for key, value in weights.items())


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("train", *small.RUNS["raster"], "condition=spatial"), "No finished tokenizer of the conditions of "),
        (
            ("train", *small.RUNS["raster"], "condition=spatial", "condition.tokenizer_run=runs/single"),
            "This condition needs shards with conditions, and runs/data/source=digits has none",
        ),
        (
            ("train", *small.RUNS["raster"], "condition=spatial", "condition.tokenizer_run=runs/judge"),
            "condition.tokenizer_run=runs/judge is not the run of a tokenizer",
        ),
        (("train", *small.RUNS["raster"], "condition=coordinates"), "needs shards that store the place of each image"),
        (("train", *small.RUNS["raster"], "condition=edges"), "This condition is for packing"),
        (("train", *small.RUNS["single"], "data.view=condition", "perceptual=none"), "holds no conditions to view"),
        (("pack", "source=digits", "condition=spatial"), "This condition is for training"),
        (("pack", "source=digits", "condition=coordinates"), "coordinates need source=photos"),
    ],
    ids=lambda part: None if isinstance(part, str) else part[-1],
)
def test_what_does_not_fit_is_said(
    arguments: tuple[str, ...], says: str, lab: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command, *rest = arguments
    assert main([command, f"out={tmp_path / 'run'}", *rest]) == 1
    assert says in capsys.readouterr().err.splitlines()[-1]
