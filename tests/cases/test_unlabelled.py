"""Pictures without labels go all the way (row 30 of the public reports): pack, judge, tokenizer, generator, scores, page."""

from __future__ import annotations

import json
import logging
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from tests import small
from tests.cases.photographs import FACES, write_faces
from tests.tasks.tiny_tasks import batch_at, classifier_task
from varlab.cli.main import main
from varlab.data.format.index import read_index
from varlab.data.format.labels import UNLABELLED
from varlab.data.pack.sources.folder import ImageFolder
from varlab.metrics.classifier import Classifier
from varlab.recipe.finished_run import FinishedRun
from varlab.recipe.flops import FlopCounter
from varlab.recipe.objects import make
from varlab.recipe.parents import Parents
from varlab.rng import Rng
from varlab.score.image_sampler import Rejection
from varlab.tasks import Labels, Rotation
from varlab.tasks.callbacks import Checkpointer
from varlab.types import VarlabError

SHARDS = ("data=folder", "data.path=runs/data/photos", "data.workers=0", "val.every=null", *small.FAST)
ROTATION = ("task=rotation", *SHARDS, "data.batch=32", "classifier.channels=[8,16,16]", "classifier.groups=4")
TOKENIZER = (*small.TOKENIZER, *SHARDS, "tokenizer.scales=[[1,1],[4,4]]", "budget.images=64", "loss.gan.start=32")
GENERATOR = (*small.GENERATOR, *SHARDS, "sampler=var", "budget.images=64")


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A flat folder, all the way to a scored generator and a report; the current folder while the module's tests run."""
    folder = tmp_path_factory.mktemp("unlabelled")
    with small.inside(folder):
        write_faces(Path("photos"))
        assert pack("photos", "runs/data/photos", "source.val_fraction=0.25") == 0
        assert small.train("judge", *ROTATION, "budget.images=1280") == 0
        assert small.train("perceptual", *ROTATION, "budget.images=64", "role=perceptual", "seed=1") == 0
        assert small.train("tokenizer", *TOKENIZER) == 0
        assert small.train("generator", *GENERATOR) == 0
        few = ("n=40", "metrics.draws=2", "threads=null")
        assert main(["evaluate", "runs/generator", "out=runs/scores/generator", *few]) == 0
        assert main(["evaluate", "runs/tokenizer", "out=runs/scores/tokenizer", "threads=null"]) == 0
        assert main(["report", "runs", "out=page"]) == 0
        yield folder


def pack(path: str, out: str, *arguments: str) -> int:
    return main(["pack", "source=folder", f"path={path}", f"out={out}", "source.size=16", "workers=0", *arguments])


def score(run: str) -> dict[str, Any]:
    (file,) = Path("runs", run, "scores").glob("*.json")
    content: dict[str, Any] = json.loads(file.read_text())
    return content


def put(path: str, value: int = 0) -> None:
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((16, 16, 3), value, np.uint8)).save(path)


@pytest.fixture
def here(tmp_path: Path) -> Iterator[Path]:
    with small.inside(tmp_path):
        yield tmp_path


# -- packing -------------------------------------------------------------------------------------------------------------


def test_row30_a_flat_folder_has_a_val_split_and_says_that_it_has_no_labels(world: Path) -> None:
    index = read_index("runs/data/photos")
    summary = small.record(Path("runs/data/photos"))["outcome"]["summary"]
    assert index.classes == UNLABELLED and summary["counts"]["val"] == {"image": index.info.counts["val"]}
    assert index.info.counts == {"train": 0.75 * FACES, "val": 0.25 * FACES}
    assert summary["notes"] == ["there are no class folders: the images are packed without labels"]


def test_row30_a_single_class_is_no_class(here: Path) -> None:
    for i in range(20):
        put(f"X/face/{i}.png", i)
        put(f"Y/train/face/{i}.png", i)
        put(f"Y/val/face/{i}.png", 100 + i)
    for path, counts in (("X", [18, 2]), ("Y", [20, 20])):
        source = ImageFolder(path=path, size=16, resample="lanczos", val_fraction=0.1, seed=0)
        assert source.classes == UNLABELLED and "single class, whose images are packed without labels: face" in str(
            source.notes
        )
        assert [len(source.entries(split)) for split in ("train", "val")] == counts


@pytest.mark.parametrize("ending", ["png", "jpg", "bmp"])
def test_a_stray_subfolder_of_a_flat_folder_is_passed_over(here: Path, ending: str) -> None:
    for i in range(20):
        put(f"X/{i}.{ending}", i)
    for i in range(3):
        put(f"X/rejected/{i}.{ending}", 100 + i)
    source = ImageFolder(path="X", size=16, resample="lanczos", val_fraction=0.1, seed=0)
    assert source.classes == UNLABELLED and sum(len(source.entries(split)) for split in ("train", "val")) == 20
    assert "3 images in a folder beside most images are passed over: rejected" in source.notes


def test_folders_that_are_no_classes(here: Path) -> None:
    for year in (2019, 2020, 2021):
        for i in range(4):
            put(f"X/{year}/{'summer/' * (i % 2)}{i}.png", i)
    arguments: dict[str, Any] = dict(path="X", size=16, resample="lanczos", val_fraction=0.25, seed=0)
    assert ImageFolder(**arguments).classes == ("2019", "2020", "2021")
    source = ImageFolder(**arguments, label="none")
    assert source.classes == UNLABELLED and [len(source.entries(s)) for s in ("train", "val")] == [9, 3]
    with pytest.raises(VarlabError, match="label=nothing is unknown: use none"):
        ImageFolder(**arguments, label="nothing")


def test_tars_and_parquet_without_labels(world: Path, tmp_path: Path) -> None:
    """The same pictures, from the shards of the folder and from a table."""
    tars = ("source=tars", "path=runs/data/photos", "source.label=none", "source.size=16", "workers=0")
    assert main(["pack", *tars, f"out={tmp_path / 'tars'}"]) == 0
    pictures = [path.read_bytes() for path in sorted(Path("photos").iterdir())][:20]
    pq.write_table(pa.table({"image": pictures}), tmp_path / "x.parquet")
    table = ("source=parquet", f"path={tmp_path / 'x.parquet'}", "source.label=null", "source.size=16", "workers=0")
    assert main(["pack", *table, f"out={tmp_path / 'parquet'}"]) == 0
    for name in ("tars", "parquet"):
        index = read_index(tmp_path / name)
        assert index.classes == UNLABELLED and index.info.counts["val"] > 0, name


# -- the judge -----------------------------------------------------------------------------------------------------------


def test_rotations_are_all_quarter_turns_of_the_central_square() -> None:
    img_u8 = torch.arange(2 * 3 * 4 * 6, dtype=torch.uint8).view(2, 3, 4, 6)
    turned, answer_N = Rotation()(img_u8, torch.zeros(2, dtype=torch.int64))
    assert turned.shape == (8, 3, 4, 4) and answer_N.tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
    assert torch.equal(turned[:2], img_u8[..., 1:5])
    for n, turns in enumerate(answer_N.tolist()):
        assert torch.equal(torch.rot90(turned[n], -turns, (1, 2)), turned[n % 2])
    assert Rotation().size((4, 6)) == (4, 4) and Rotation().answers(1000) == 4


def test_rotations_take_no_more_memory_than_micro_batches_allow() -> None:
    """And give the same update: no draw depends on how the batch is cut."""

    def weights(micro_batch: int | None) -> tuple[list[int], torch.Tensor]:
        sizes: list[int] = []
        with Rng(0).scope("init/classifier"):
            net = Classifier(channels=[4, 8], blocks=1, groups=2, num_classes=4)
        net.register_forward_pre_hook(lambda module, inputs: sizes.append(len(inputs[0])))
        task = classifier_task(classifier=net, target=Rotation(), micro_batch=micro_batch)
        task.total_images = 80
        task.training_step(batch_at(list(range(8))), 0)
        return sizes, torch.cat([p.detach().flatten() for p in net.parameters()])

    (whole, first), (cut, second) = weights(None), weights(8)
    assert whole == [32] and cut == [8, 8, 8, 8]
    assert torch.allclose(first, second, atol=1e-5)


def test_row30_the_judge_learns_rotation_and_its_record_says_how_well(world: Path) -> None:
    record = small.record(Path("runs/judge"))
    held_out, cost = record["outcome"]["held_out"], record["cost"]
    assert record["build"]["predicts"] == held_out["predicts"] == "rotation" and held_out["majority"] == 0.25
    assert (
        held_out["accuracy"] == small.curve(Path("runs/judge"), "val/accuracy")[-1] > 0.4 and "warning" not in held_out
    )
    assert held_out["images"] == read_index("runs/data/photos").info.counts["val"]
    labels = FlopCounter().trained(Classifier(channels=[8, 16, 16], blocks=1, groups=4, num_classes=4), (16, 16))
    assert cost["train_flops_per_image"] == 4 * labels  # each image is seen in its four turns


def test_row30_a_classifier_of_one_class_is_refused_and_its_remedy_works(
    world: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    words = [word for word in ROTATION if word != "task=rotation"] + ["budget.images=32"]
    assert small.train(tmp_path / "J", "task=classifier", *words) == 1
    error = capsys.readouterr().err
    assert "are of one class, from which a classifier learns nothing" in error
    assert "the same command with task=rotation" in error and "inception" in error and "lpips" in error
    assert not (tmp_path / "J" / "progress").exists() and not (tmp_path / "J" / "last.ckpt").exists()
    assert small.train(tmp_path / "J", "task=rotation", *words) == 0
    experiment = ("experiment=photos/judge", "task=rotation", *SHARDS[1:], "budget.images=16", "data.batch=16")
    assert small.train(tmp_path / "K", *experiment, "classifier.channels=[4,4]", "classifier.groups=2") == 0
    assert small.record(tmp_path / "K")["build"]["predicts"] == "rotation"


def test_a_set_whose_training_images_have_one_label_is_refused(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Two names, one class: the other has images in val alone."""
    for i in range(8):
        put(f"X/train/cat/{i}.png", i)
        put(f"X/val/dog/{i}.png", i)
    Path("X/train/dog").mkdir()
    assert pack("X", "Y", "source.allow_empty=true") == 0
    small_one = ("task=classifier", "data=folder", "data.path=Y", "data.workers=0", "data.batch=8", "budget.images=8")
    assert small.train(here / "J", *small_one) == 1 and "task=rotation" in capsys.readouterr().err


def test_the_judge_resumes_to_the_same_bits(world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = (*ROTATION, "budget.images=128", "checkpoint.every=32")
    assert small.train(tmp_path / "whole", *words) == 0
    save, saved = Checkpointer.save, []

    def save_and_break(self: Any, *arguments: Any) -> None:
        save(self, *arguments)
        saved.append(arguments)
        if len(saved) == 2:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Checkpointer, "save", save_and_break)
        assert small.train(tmp_path / "broken", *words) != 0
    assert small.progress(tmp_path / "broken") < 128
    assert small.train(tmp_path / "broken", *words) == 0
    assert small.weights(tmp_path / "broken") == small.weights(tmp_path / "whole")
    outcomes = [small.record(tmp_path / name)["outcome"]["held_out"] for name in ("broken", "whole")]
    assert outcomes[0] == outcomes[1]


# -- what is made with it ------------------------------------------------------------------------------------------------


def test_row30_scores_in_its_features_say_so_and_have_no_class(world: Path) -> None:
    generator, tokenizer = score("generator"), score("tokenizer")
    judge = generator["protocol"]["judge"]
    assert judge["summary"].startswith("features of a network that predicts rotation; held-out accuracy 0.")
    assert "chance 0.250" in judge["summary"] and tokenizer["protocol"]["judge"] == judge
    assert {"fid", "precision", "recall", "fid_draws", "fid_val", "fid_ratio", "nn_ratio"} <= set(generator["scores"])
    assert not {"accuracy", "inception_score", "inception_score_std"} & set(generator["scores"])
    assert all(map(math.isfinite, generator["scores"].values())) and tokenizer["scores"]["rfid"] >= 0
    assert tokenizer["scores"]["perceptual"] > 0
    assert tokenizer["protocol"]["perceptual_network"]["predicts"] == "rotation"


def test_four_classes_are_no_rotations(tmp_path: Path) -> None:
    """A judge of rotations has four answers; with data of four classes these are not taken for the classes."""
    with small.inside(tmp_path):
        for name in "abcd":
            for i in range(8):
                put(f"X/{name}/{i}.png", 20 * i)
        assert pack("X", "runs/data/X") == 0
        few = ("data=folder", "data.path=runs/data/X", "data.workers=0", "data.batch=16", "budget.images=16")
        net = ("classifier.channels=[4,4]", "classifier.groups=2", *small.FAST)
        assert small.train("judge", "task=rotation", *few, *net) == 0
        data = make(small.record(Path("runs/judge"))["config"]["data"])
        extractor = Parents(info=data.info, near=Path("runs/x")).extractor(
            {"_target_": "varlab.recipe.networks.judge", "run": "auto"}
        )
    assert extractor.num_classes is None and not extractor.knows_content
    with pytest.raises(VarlabError, match=r"reject=0\.5 needs a classifier of the 4 classes"):
        Rejection(judge=extractor, rate=0.5, num_classes=4)


def test_row30_generators_are_unconditional(world: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """No label is dropped; sampler=var asks for guidance, and there is none, whoever asks."""
    config = {"run": "runs/generator", "weights": "ema", "device": "cpu", "threads": None, "sampler": None}
    asked = dict.fromkeys(("ramp", "temperature", "top_k", "top_p", "cfg_steps", "smooth"))
    with caplog.at_level(logging.WARNING, "varlab"):
        run = FinishedRun(config | asked | {"cfg": 3.0})
        assert run.sampler().cfg == 0 and "one class, so nothing can be guided: cfg=3 is taken as 0" in caplog.text
    plain = run.model.sample([0, 0], seed=1, cfg=0.0)
    for labels in ([0, 0], [1, 1]):  # 1 is the null class
        assert torch.equal(run.model.sample(labels, seed=1, cfg=3.0), plain)
    assert torch.equal(run.model.sample(None, seed=1, ids_B=torch.arange(2), cfg=3.0), plain)
    protocol, record = score("generator")["protocol"], small.record(Path("runs/generator"))
    assert protocol["sampler"]["cfg"] == 0 and "classes" not in protocol
    sampled = score("generator")["cost"]["sampling_flops"]
    assert sampled == 40 * record["cost"]["sampling_flops_per_image"]


def test_pictures_of_one_class_have_several_columns(world: Path, tmp_path: Path) -> None:
    assert main(["sample", "runs/generator", "n=16", "grown=2", "threads=null", f"out={tmp_path}"]) == 0
    with Image.open(tmp_path / "pictures" / "samples.png") as grid:
        assert grid.width > 2 * grid.height > 0  # 8 × 2
    with Image.open("runs/generator/pictures/samples.png") as grid:
        assert grid.width >= 4 * grid.height  # 8 × 1, of pictures.count=10
    mask = ("box=[0,0,0.5,1]", "n=1", "threads=null", f"out={tmp_path / 'edit'}")
    assert main(["edit", "runs/generator", "image=photos/000.png", *mask]) == 0


def test_row30_the_report_shows_what_the_judge_predicts(world: Path) -> None:
    html = Path("page/report.html").read_text()
    assert "features of a network that predicts rotation" in html and ">Guess<" in html
    boxes = re.findall(r'<details class="meanings">.*?</details>', html, re.DOTALL)
    assert boxes and not any("the judge assigns" in box for box in boxes)  # no run fills that column
    rows = Path("page/results.csv").read_text().splitlines()
    columns = rows[0].split(",")
    (generator,) = [dict(zip(columns, row.split(","), strict=True)) for row in rows[1:] if ",generator," in row]
    assert generator["accuracy"] == generator["inception_score"] == "" != generator["fid"]


def test_labels_are_as_before() -> None:
    """The target of an ordinary judge changes nothing: the same tensors come back."""
    img, label = torch.zeros(2, 3, 4, 4, dtype=torch.uint8), torch.tensor([0, 1])
    inputs, answers = Labels()(img, label)
    assert inputs is img and answers is label and Labels().majority(torch.tensor([0, 1, 1, 1])) == 0.75
