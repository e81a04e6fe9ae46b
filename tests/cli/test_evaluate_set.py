"""``varlab reference`` and ``varlab evaluate samples=… reference=…``: anybody's samples, with the whole protocol."""

from __future__ import annotations

import json
import re
import shutil
import socket
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from tests import small
from tests.metrics import adm_suite
from varlab.cli.main import main
from varlab.files import sha256
from varlab.recipe.networks import load_classifier
from varlab.recipe.objects import make
from varlab.report import write_report
from varlab.report.runs import read_run
from varlab.types import to_float

JUDGE = "extractor.run=runs/judge"
SMOKE = ("extractor=classifier", JUDGE, "metrics=smoke", "metrics.kid.size=30", "metrics.kid.subsets=5", "batch=64")


def pixels(n: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (n, 16, 16, 3)).astype(np.uint8)


@pytest.fixture(scope="module")
def reference(world_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("reference") / "out"
    with small.inside(world_folder):
        assert main(["reference", "data=digits", "extractor=classifier", JUDGE, "images=90", f"out={out}"]) == 0
    return out / "reference.npz"


@pytest.fixture(scope="module")
def samples(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("samples") / "theirs.npz"
    np.savez_compressed(path, pixels(70, 0), np.arange(70) % 10)
    return path


def evaluate(out: Path, *arguments: str) -> dict[str, Any]:
    assert main(["evaluate", f"out={out}", *arguments]) == 0
    file = Path(small.record(out)["outcome"]["scores_file"])
    scores: dict[str, Any] = json.loads(file.read_text())
    return scores


def features(img: np.ndarray) -> np.ndarray:
    judge = load_classifier(Path("runs/judge")).eval()
    with torch.no_grad():
        f: np.ndarray = judge.features(to_float(torch.from_numpy(img).permute(0, 3, 1, 2))).numpy()
    return f


def test_a_reference_has_the_moments_of_all_images_and_some_of_them(reference: Path, lab: Path) -> None:
    data = make(small.record(lab / "multi")["config"]["data"])
    train = data.images("train").permute(0, 2, 3, 1).numpy()
    with np.load(reference) as file:
        mu, sigma = adm_suite.moments(features(train))
        assert file["mu"] == pytest.approx(mu, rel=1e-5) and file["sigma"] == pytest.approx(sigma, rel=1e-3, abs=1e-6)
        kept = file["arr_0"]
        assert set(file.files) == {"mu", "sigma", "arr_0"}
    assert kept.shape == (90, 16, 16, 3) and kept.dtype == np.uint8
    known = {image.tobytes() for image in train}
    assert all(image.tobytes() in known for image in kept) and len({image.tobytes() for image in kept}) > 80
    said = json.loads(reference.with_suffix(".json").read_text())
    assert said["n"] == len(train) and said["extractor_hash"] == sha256(lab / "judge" / "weights.safetensors")


def test_anybodys_samples_are_scored_as_the_suite_scores_them(
    reference: Path, samples: Path, lab: Path, tmp_path: Path
) -> None:
    result = evaluate(tmp_path / "out", f"samples={samples}", f"reference={reference}", *SMOKE)
    with np.load(reference) as file:
        stored, real = (file["mu"], file["sigma"]), features(file["arr_0"])
    fake = features(pixels(70, 0))
    scores = result["scores"]
    assert scores["fid"] == pytest.approx(adm_suite.frechet(stored, adm_suite.moments(fake)), rel=1e-4)
    theirs = adm_suite.manifold_scores(real, fake, 3, 5)
    assert {name: scores[name] for name in theirs} == pytest.approx(theirs, abs=0.05)
    assert 0 < scores["fid_error"] < scores["fid"] and scores["duplicates"] == 0 and 0 <= scores["accuracy"] <= 1
    protocol = result["protocol"]
    assert protocol["reference"] == {
        "name": "reference.npz", "hash": sha256(reference), "n": 90, "moments": ["mu"]
    }  # fmt: skip
    assert protocol["samples"]["hash"] == sha256(samples) and protocol["balance"] == "each of 10 classes 7 times"
    assert protocol["label"] == "FID of 70 samples, smoke" and protocol["n"] == 70
    assert protocol["code"]["version"] and protocol["image_size"] == [16, 16] and protocol["rounding"] == "uint8"
    assert read_run(tmp_path / "out").scores[0].get("fid") == scores["fid"]


def test_a_folder_of_pictures_is_the_file_of_its_pictures(
    reference: Path, samples: Path, lab: Path, tmp_path: Path
) -> None:
    (tmp_path / "folder").mkdir()
    img = pixels(70, 0)
    for i, image in enumerate(img):
        Image.fromarray(image).save(tmp_path / "folder" / f"{i:03d}.png")
    of_file = evaluate(tmp_path / "file", f"samples={samples}", f"reference={reference}", *SMOKE)["scores"]
    of_folder = evaluate(tmp_path / "of", f"samples={tmp_path / 'folder'}", f"reference={reference}", *SMOKE)["scores"]
    assert of_folder == {name: value for name, value in of_file.items() if name != "accuracy"}


def test_a_run_is_scored_as_the_file_of_its_samples(reference: Path, lab: Path, tmp_path: Path) -> None:
    """The same samples, one shuffled; and the protocol of the file has what they were made with."""
    assert main(["sample", "runs/raster", f"out={tmp_path / 's'}", "n=60", "seed=2", "format=npz", "cfg=1"]) == 0
    compare = (f"reference={reference}", *SMOKE)
    of_file = evaluate(tmp_path / "file", f"samples={tmp_path / 's' / 'samples.npz'}", *compare)
    run = tmp_path / "raster"
    shutil.copytree(lab / "raster", run)
    of_run = evaluate(tmp_path / "run", str(run), *compare, "n=60", "seed=2", "cfg=1")
    for name in ("fid", "precision", "recall", "accuracy"):
        assert of_run["scores"][name] == pytest.approx(of_file["scores"][name], rel=1e-2, abs=0.04), name
    assert of_file["protocol"]["sampler"]["cfg"] == 1 == of_run["protocol"]["sampler"]["cfg"]
    assert of_file["protocol"]["samples"]["made_with"]["seed"] == 2
    assert of_run["protocol"]["balance"] == "each of 10 classes 6 times"
    assert list((run / "scores").iterdir())


def test_shards_against_their_own_images(lab: Path, tmp_path: Path) -> None:
    """Val against val, through the file: nothing is between them."""
    shards = small.record(lab / "multi")["config"]["data"]["path"]
    ask = ("data=digits", "split=val", "extractor=classifier", JUDGE)
    assert main(["reference", *ask, "images=1000", f"out={tmp_path / 'val'}"]) == 0
    file = tmp_path / "val" / "reference.npz"
    scores = evaluate(tmp_path / "out", f"samples={file}", f"reference={shards}", "split=val", *SMOKE)["scores"]
    assert abs(scores["fid"]) < 1e-6 and scores["precision"] == 1 == scores["recall"] and scores["coverage"] == 1
    again = evaluate(tmp_path / "again", f"samples={file}", f"reference={file}", *SMOKE)["scores"]
    assert abs(again["fid"]) < 1e-6


def test_anybodys_samples_have_pictures_and_a_place_in_the_report(lab: Path, samples: Path, tmp_path: Path) -> None:
    """As a run's: against shards also the FID ratio and the distances of val images."""
    shards = small.record(lab / "multi")["config"]["data"]["path"]
    result = evaluate(tmp_path / "out", f"samples={samples}", f"reference={shards}", *SMOKE, "metrics.draws=2")
    assert {"fid_ratio", "fid_val", "nn_ratio", "nn_val_median"} <= set(result["scores"])
    assert result["scores"]["fid_ratio"] > 1 < result["scores"]["nn_ratio"]  # noise is far from digits
    near = result["neighbours"]
    assert near["distance"] == sorted(near["distance"]) and len(near["distance"]) == len(near["val_distance"]) == 8
    [name] = (file.stem for file in (tmp_path / "out" / "scores").iterdir())
    drawn = {
        file.relative_to(tmp_path / "out" / "pictures").as_posix() for file in tmp_path.glob("out/pictures/**/*.png")
    }
    assert drawn == {"real.png", f"scored/{name}.png", f"neighbours/{name}.png"}
    page = write_report([tmp_path / "out"], tmp_path / "page", title="t").html.read_text()
    for title in ("Samples beside real images", "Nearest training images"):
        assert f"{title}: {samples.name}" in page


def test_shards_find_the_judge_of_a_reference_file(reference: Path, samples: Path, lab: Path, tmp_path: Path) -> None:
    ask = (f"samples={samples}", f"reference={reference}", "data=digits", "batch=64")
    protocol = evaluate(tmp_path / "out", *ask)["protocol"]
    assert protocol["reference"]["name"] == "reference.npz" and protocol["judge"]["predicts"] == "labels"
    assert protocol["extractor_hash"] == sha256(lab / "judge" / "weights.safetensors")


def test_val_against_val_is_one_in_every_space(lab: Path, tmp_path: Path) -> None:
    """FDr of the held-out images themselves, as anybody's samples."""
    data = make(small.record(lab / "multi")["config"]["data"])
    val = data.samples("val")
    np.savez(tmp_path / "val.npz", val.img_u8_B3HW.permute(0, 2, 3, 1).numpy(), val.label_B.numpy())
    ask = ("reference=runs/data/source=digits", *SMOKE, "metrics.draws=2", "spaces=[runs/perceptual]")
    result = evaluate(tmp_path / "out", f"samples={tmp_path / 'val.npz'}", *ask)
    scores = result["scores"]
    assert scores["fdr"] == pytest.approx(1.0) and scores["fdr_spaces"] == 2
    names = list(result["protocol"]["spaces"])
    assert names == [f"classifier-{sha256(lab / run / 'weights.safetensors')[:8]}" for run in ("judge", "perceptual")]
    assert scores[f"{names[0]}/fid"] == pytest.approx(scores["fid"], rel=1e-6)
    assert scores[f"{names[0]}/fid"] == pytest.approx(scores[f"{names[0]}/fid_val"])


def test_protocols_are_compared_in_one_pass(reference: Path, samples: Path, lab: Path, tmp_path: Path) -> None:
    """One that does not fit is left out with a sentence; numbers that differ are explained by the settings."""
    free = [f"metrics.protocols.torch_fidelity.protocol.{key}=null" for key in ("extractor", "weights")]
    asked = ("extractor=classifier", JUDGE, "metrics=compare", *free, "metrics.protocols.torch_fidelity.splits=5")
    result = evaluate(tmp_path / "out", f"samples={samples}", f"reference={reference}", *asked)
    scores, notes = result["scores"], result["protocol"]["notes"]
    single = evaluate(tmp_path / "one", f"samples={samples}", f"reference={reference}", *asked[:2], "metrics=smoke")
    for name, value in single["scores"].items():
        assert scores[name if name == "duplicates" else f"smoke/{name}"] == pytest.approx(value)
    with np.load(reference) as file:
        of_images = adm_suite.moments(features(file["arr_0"]))
    fid = adm_suite.frechet(of_images, adm_suite.moments(features(pixels(70, 0))))
    assert scores["torch_fidelity/fid"] == pytest.approx(fid, rel=1e-4) != scores["smoke/fid"]
    assert not [name for name in scores if name.startswith("adm256")]
    assert any("metrics=adm256 asks for extractor=inception, but here it is classifier" in note for note in notes)
    assert any(re.match(r"fid: torch_fidelity .*, smoke .*, by protocol.reference images and none", n) for n in notes)
    assert any("by inception (order=fidelity) and none; splits 5 and 10" in note for note in notes)
    assert result["protocol"]["label"] == "FID of 70 samples, compare"


def test_a_file_sorted_by_class_is_shuffled_for_its_inception_score_and_says_so(lab: Path, tmp_path: Path) -> None:
    val = make(small.record(lab / "multi")["config"]["data"]).samples("val")
    img, label = val.img_u8_B3HW.permute(0, 2, 3, 1).numpy(), val.label_B.numpy()
    asked = ("extractor", "weights", "n", "balanced", "image_size", "reference", "reference_images")
    free = [f"metrics.protocol.{key}=null" for key in asked]
    ask = ("reference=runs/data/source=digits", JUDGE, "metrics=adm256", *free, "metrics.inception.split_size=36")
    scores = {}
    for name, order in (("sorted", np.argsort(label)), ("mixed", np.random.default_rng(0).permutation(len(label)))):
        np.savez(tmp_path / f"{name}.npz", img[order], label[order])
        result = evaluate(tmp_path / name, f"samples={tmp_path / name}.npz", *ask)
        notes = result["protocol"].get("notes", [])
        assert any("sorted by class, so they were shuffled" in note for note in notes) == (name == "sorted")
        scores[name] = result["scores"]
    assert scores["sorted"]["inception_score"] == pytest.approx(scores["mixed"]["inception_score"], rel=0.1)
    assert scores["sorted"]["fid"] == pytest.approx(scores["mixed"]["fid"], rel=1e-3)


@pytest.mark.slow
def test_inception_in_torchs_folder_scores_without_a_network(
    inception_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """TORCH_HOME holds the weights under their name and hash; without them one sentence says what to put there."""

    def refuse(self: socket.socket, address: object) -> None:
        raise OSError("no network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "home"))
    for name, seed in (("samples", 0), ("reference", 1)):
        np.savez(tmp_path / f"{name}.npz", pixels(8, seed))
    ask = [f"{name}={tmp_path / name}.npz" for name in ("samples", "reference")]
    ask += ["extractor=inception", "metrics=smoke", "batch=8", "metrics.kid.size=8", "metrics.kid.subsets=2"]
    assert main(["evaluate", *ask, f"out={tmp_path / 'refused'}"]) == 1
    place = tmp_path / "home" / "hub" / "checkpoints" / "weights-inception-2015-12-05-6726825d.pth"
    assert re.search(
        rf"Could not download .*: fetch it elsewhere and put it at {place}, or give", capsys.readouterr().err
    )
    shutil.copy(inception_file, place)
    assert main(["evaluate", *ask, f"out={tmp_path / 'refused'}"]) == 1
    assert "is damaged, or another file" in capsys.readouterr().err
    digest = sha256(inception_file)
    monkeypatch.setattr("varlab.metrics.extractors._PUBLISHED", digest[:8])
    result = evaluate(tmp_path / "out", *ask)
    assert result["protocol"]["extractor_hash"] == digest and result["protocol"]["resize"] == "tf1-bilinear-299"
    assert {"fid", "sfid", "kid", "inception_score", "precision", "recall", "density", "coverage"} <= set(
        result["scores"]
    )


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ([], "Name one thing to score"),
        (["samples={samples}"], "samples have nothing to be compared with"),
        (["samples={samples}", "reference=nowhere.npz"], "reference=nowhere.npz does not exist"),
        (["samples={samples}", "reference={reference}"], "no shards to find a judge by"),
        (
            ["samples={samples}", "reference={reference}", JUDGE, "metrics=adm256"],
            "asks for extractor=inception, but here",
        ),
        (["samples={samples}", "reference={reference}", JUDGE, "spaces=runs/perceptual"], "need a reference of shards"),
        (["samples={samples}", "reference={wrong}", JUDGE], "mu .2. and sigma .2, 3. do not fit"),
        (["samples={samples}", "reference={small}", JUDGE], "have 16×16 pixels, the reference small.npz has 8×8"),
    ],
)
def test_what_cannot_be_scored_is_one_sentence(
    arguments: list[str],
    sentence: str,
    reference: Path,
    samples: Path,
    lab: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    np.savez(tmp_path / "wrong.npz", mu=np.ones(2), sigma=np.ones((2, 3)))
    np.savez(tmp_path / "small.npz", pixels(40, 3)[:, :8, :8])
    files = {name: tmp_path / f"{name}.npz" for name in ("wrong", "small")} | {
        "samples": samples,
        "reference": reference,
    }
    asked = [argument.format(**files) for argument in arguments]
    assert main(["evaluate", *asked, f"out={tmp_path / 'out'}"]) == 1
    assert re.search(sentence, capsys.readouterr().err)
