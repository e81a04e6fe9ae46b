"""``varlab evaluate``: scores with the whole protocol, of a run whose directory is all that is left."""

from __future__ import annotations

import json
import math
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import varlab
from tests import small
from varlab.cli.main import main
from varlab.files import sha256
from varlab.losses.perceptual import LPIPS
from varlab.recipe.assembly import image_sampler
from varlab.recipe.objects import make
from varlab.report import write_report
from varlab.rng import Rng
from varlab.run import provenance
from varlab.score.image_sampler import labels_of_val

FEW = ("n=40", "metrics.splits=2", "metrics.draws=2")
GENERATOR_SCORES = {
    "fid", "inception_score", "inception_score_std", "precision", "recall", "accuracy", "fid_draws", "fid_draws_std",
    "fid_val", "fid_ratio", "nn_median", "nn_val_median", "nn_ratio", "val_nll",
}  # fmt: skip


@pytest.fixture
def run(lab: Path, tmp_path: Path) -> Path:
    """A copy of the next-scale generator, to be scored."""
    shutil.copytree(lab / "next_scale", tmp_path / "next_scale")
    return tmp_path / "next_scale"


def evaluate(run: Path, out: Path, *arguments: str) -> dict[str, Any]:
    """The scores file that the command leaves."""
    before = set(run.glob("scores/*"))
    assert main(["evaluate", str(run), f"out={out}", *arguments]) == 0
    (new,) = set(run.glob("scores/*")) - before
    scores: dict[str, Any] = json.loads(new.read_text())
    assert small.record(out)["outcome"]["scores_file"] == str(new)
    return scores


@pytest.mark.parametrize("name", ["raster", "single"])
def test_the_end_says_the_score_beside_a_guess_and_what_comes_next(
    name: str, lab: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run = tmp_path / name
    shutil.copytree(lab / name, run)
    result = evaluate(run, tmp_path / "out", *(FEW if name == "raster" else ()), "labels=data")
    said = [entry.getMessage() for entry in caplog.records]
    if name == "raster":
        (line,) = [line for line in said if line.startswith("the judge sees the class in")]
        judge = result["protocol"]["judge"]
        assert f"always the largest class: {judge['majority']:.0%}, real images: {judge['accuracy']:.0%}" in line
        assert f"FID ratio {result['scores']['fid_ratio']:.2f} (real images: 1)" in line
        (file,) = run.glob("scores/*.json")
        picture = run / "pictures" / "scored" / f"{file.stem}.png"
        assert picture.is_file() and f"look at {picture}" in said
        assert f"next: varlab sample {run}, and varlab report {tmp_path}" in said
    else:
        assert any(re.fullmatch(r"PSNR [\d.]+ dB \(one colour for all images: [\d.]+ dB\)", line) for line in said)
        assert any(f"task=generator tokenizer_run={run} with the same data" in line for line in said)


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("raster", ["train images", "samples", "val images", "likelihood of val images"]),
        ("single", ["reconstructions"]),
    ],
)
def test_a_bar_says_at_once_what_it_waits_for_and_what_is_done(
    name: str,
    parts: list[str],
    lab: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "200")
    shutil.copytree(lab / name, tmp_path / name)
    evaluate(tmp_path / name, tmp_path / "out", *(FEW if name == "raster" else ()))
    said = capsys.readouterr().err
    places = [said.find(f"{part}: waiting for the first images") for part in ("scores", *parts)]
    assert -1 not in places and places == sorted(places) and "100%" in said


def test_a_generators_scores_and_their_protocol(run: Path, lab: Path, tmp_path: Path) -> None:
    result = evaluate(run, tmp_path / "out", *FEW, "cfg=1.5", "top_k=9", "seed=3")
    assert set(result) >= {"kind", "protocol", "scores", "cost", "images"} and result["kind"] == "generator"
    judge, data = sha256(lab / "judge" / "weights.safetensors"), small.record(run)["data"]
    protocol = result["protocol"]
    assert (protocol["extractor"], protocol["extractor_hash"]) == ("classifier", judge)
    assert protocol["reference"]["hash"] == data["hash"] and protocol["reference"]["n"] == data["counts"]["train"]
    drawn = {"cfg": 1.5, "ramp": "linear", "temperature": 1.0, "top_k": 9, "top_p": 1.0}
    assert protocol["sampler"] == drawn | {"cfg_steps": None, "smooth": False}
    assert (protocol["n"], protocol["seed"], protocol["rounding"], protocol["weights"]) == (40, 3, "uint8", "ema")
    assert protocol["resize"] and protocol["metrics"]["splits"] == 2
    assert set(result["scores"]) >= GENERATOR_SCORES and all(map(math.isfinite, result["scores"].values()))
    cost = small.record(run)["cost"]
    assert result["cost"]["sampling_flops"] > 40 * cost["sampling_flops_per_image"]  # guidance asks twice
    assert protocol["label"] == "FID of 40 samples" and protocol["balance"] == "each of 10 classes 4 times"
    assert "conditional" in protocol["guidance"] and protocol["code"]["version"]
    assert protocol["images"]["name"] == "digits" and protocol["images"]["resample"] == "bicubic"
    assert result["cost"]["sampling_seconds"] > 0 and result["images"] == 256
    assert small.record(tmp_path / "out")["parents"]["judge"]["weights_sha256"] == judge
    assert set(result["by_class"]) == {"accuracy", "recall"} and len(result["by_class"]["accuracy"]) == 10
    assert sum(result["by_class"]["accuracy"]) / 10 == pytest.approx(result["scores"]["accuracy"])


def test_samples_are_shown_above_their_nearest_training_images(run: Path, lab: Path, tmp_path: Path) -> None:
    result = evaluate(run, tmp_path / "out", *FEW)
    [file] = (run / "scores").iterdir()
    with Image.open(run / "pictures" / "neighbours" / f"{file.stem}.png") as picture:
        shown = np.asarray(picture)
    data = make(small.record(run)["config"]["data"])
    train = {image.tobytes() for image in data.images("train").permute(0, 2, 3, 1).contiguous().numpy()}
    side, factor = 17, shown.shape[1] // (8 * 17 - 1)  # images of 16 pixels, one apart, below the numbers
    rows = shown[shown.shape[0] - factor * (4 * side - 1) :][::factor, ::factor]
    cells = [
        [rows[y : y + 16, x : x + 16].tobytes() for x in range(0, 8 * side, side)] for y in range(0, 4 * side, side)
    ]
    assert not set(cells[0]) & train and all(set(row) <= train for row in cells[1:])
    near = result["neighbours"]
    assert near["distance"] == sorted(near["distance"]) and len(near["distance"]) == len(near["val_distance"]) == 8
    assert result["scores"]["duplicates"] < 40
    page = write_report([run], tmp_path / "page", title="t").html.read_text()
    assert (
        "Nearest training images" in page and "of 40 samples have the same pixels" in page and "Recall by class" in page
    )


@pytest.mark.slow
def test_every_protocol_has_its_own_file(run: Path, tmp_path: Path) -> None:
    """The same question asked again gets the same numbers."""
    first = evaluate(run, tmp_path / "first", *FEW)
    other = evaluate(run, tmp_path / "other", *FEW, "seed=1")
    assert first["protocol"] != other["protocol"] and first["scores"]["fid"] != other["scores"]["fid"]
    assert first["scores"]["fid_val"] != 0 and first["scores"]["val_nll"] == other["scores"]["val_nll"]
    (run / "scores").rename(tmp_path / "before")
    again = evaluate(run, tmp_path / "again", *FEW, "batch=7")
    assert {path.name for path in (run / "scores").iterdir()} <= {path.name for path in (tmp_path / "before").iterdir()}
    assert again["scores"] == pytest.approx(first["scores"], rel=1e-3, abs=1e-6)


def test_val_nll_is_that_of_the_training(run: Path, tmp_path: Path) -> None:
    result = evaluate(run, tmp_path / "out", *FEW)
    assert result["scores"]["val_nll"] == pytest.approx(small.curve(run, "val/nll")[-1], rel=1e-5)


def test_a_tokenizers_scores(lab: Path, tmp_path: Path) -> None:
    shutil.copytree(lab / "multi", tmp_path / "multi")
    result = evaluate(tmp_path / "multi", tmp_path / "out")
    logged = small.lines(tmp_path / "multi")[-1]
    assert result["kind"] == "tokenizer" and result["protocol"]["sampler"] is None and result["protocol"]["n"] == 359
    assert set(result["scores"]) >= {"rfid", "psnr", "l1", "perceptual", "usage/3", "perplexity/3"}
    for name in ("psnr", "l1", "perceptual", "usage/0", "usage/3", "perplexity/3"):
        assert result["scores"][name] == pytest.approx(logged[f"val/{name}"], rel=1e-4), name


def test_what_a_tokenizers_tokens_are_worth(lab: Path, tmp_path: Path) -> None:
    shutil.copytree(lab / "multi", tmp_path / "multi")
    asked = ("metrics=tokens", "metrics.tokens.perturbed.rates=[0,1]", "metrics.tokens.perturbed.nearest=0.5")
    result = evaluate(tmp_path / "multi", tmp_path / "out", *asked)
    scores = result["scores"]
    assert scores["pfid/0"] == pytest.approx(scores["rfid"], rel=1e-2) and scores["pfid/1"] != scores["pfid/0"]
    assert scores["pfid"] == pytest.approx((scores["pfid/0"] + scores["pfid/1"]) / 2)
    assert 0.3 < scores["probe"] <= 1, "a linear classifier of the codes reads digits better than chance"
    assert result["protocol"]["tokens"]["perturbed"]["rates"] == [0, 1]


def test_a_perceptual_distance_whatever_the_training_used(lab: Path, tmp_path: Path) -> None:
    """Half the weights are half the distance; both scores stay, under names of their own."""
    shutil.copytree(lab / "multi", tmp_path / "multi")
    trained = evaluate(tmp_path / "multi", tmp_path / "out")
    asked = ("perceptual=classifier", "perceptual.weights=[0.5,0.5,0.5]", f"perceptual.run={lab / 'perceptual'}")
    other = evaluate(tmp_path / "multi", tmp_path / "other", *asked)
    assert other["scores"]["perceptual"] == pytest.approx(trained["scores"]["perceptual"] / 2, rel=1e-5)
    assert other["scores"]["ssim"] == trained["scores"]["ssim"] and 0 < other["scores"]["ssim"] < 1
    assert len(list((tmp_path / "multi" / "scores").iterdir())) == 2 and LPIPS.hash


def test_a_generators_directory_needs_nothing_else(run: Path, lab: Path, tmp_path: Path) -> None:
    """Its tokenizer's run is gone, and so is its folder; the judge and the shards are named."""
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    judge, shards = lab / "judge", lab / "data" / "source=digits"
    with small.inside(elsewhere):
        more = ("data=digits", "data.seed=0", f"data.path={shards}", f"extractor.run={judge}")
        result = evaluate(run, elsewhere / "out", *FEW, *more)
        assert main(["sample", str(run), "n=4", f"out={elsewhere / 'samples'}"]) == 0
    (file,) = (run / "scores").iterdir()
    file.unlink()
    assert evaluate(run, tmp_path / "out", *FEW)["scores"] == pytest.approx(result["scores"], rel=1e-6)


def test_a_finished_evaluation_is_left_alone(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    evaluate(run, tmp_path / "out", *FEW)
    (file,) = (run / "scores").iterdir()
    before = file.stat().st_mtime_ns
    assert main(["evaluate", str(run), f"out={tmp_path / 'out'}", *FEW]) == 0
    assert file.stat().st_mtime_ns == before and "finished: nothing to do" in capsys.readouterr().err


def test_samples_can_have_the_classes_as_often_as_the_data(run: Path, tmp_path: Path) -> None:
    data = make(small.record(run)["config"]["data"])
    held_out = data.labels("val")
    drawn = labels_of_val(data, Rng(3))
    assert torch.equal(drawn.sort().values, held_out.sort().values)
    assert torch.equal(drawn, labels_of_val(data, Rng(3))) and not torch.equal(drawn, held_out)
    source = image_sampler(varlab.load(run), data, seed=3, batch=8, label_N=drawn)
    (_, label_B), *_ = source.images(torch.arange(len(drawn), len(drawn) + 8))
    assert torch.equal(label_B, drawn[:8])
    protocol = evaluate(run, tmp_path / "out", *FEW, "labels=data")["protocol"]
    assert protocol["labels"] == "as often as in val" and "to" in protocol["balance"].split()
    assert main(["evaluate", str(run), f"out={tmp_path / 'no'}", "labels=all"]) == 1


def test_a_protocol_that_is_not_that_of_the_run_is_refused(lab: Path, tmp_path: Path, capsys) -> None:
    for run, metrics, sentence in (
        ("multi", "rfid", "metrics=rfid asks for extractor=inception, but here it is classifier"),
        ("raster", "rfid", "metrics=rfid asks for a score of reconstructions, but here it is samples"),
        ("multi", "torch_fidelity", "asks for a score of samples, but here it is reconstructions"),
        ("raster", "adm256", "metrics=adm256 asks for extractor=inception"),
        ("raster", "compare", "on a reference of one's own (reference=FILE.npz"),
    ):
        assert main(["evaluate", f"runs/{run}", f"metrics={metrics}", f"out={tmp_path / metrics}"]) == 1
        assert sentence in capsys.readouterr().err


def test_several_spaces_are_scored_on_the_same_samples(run: Path, lab: Path, tmp_path: Path, capsys) -> None:
    """Each as if it were alone, and FDr, the mean of their ratios."""
    both = evaluate(run, tmp_path / "both", *FEW, "spaces=[runs/perceptual]", "metrics=smoke", "metrics.kid.size=20")
    assert both["protocol"]["label"] == "FID of 40 samples, smoke"
    assert set(both["scores"]) >= GENERATOR_SCORES | {"kid", "kid_std", "density", "coverage", "fid_error"}
    other = sha256(lab / "perceptual" / "weights.safetensors")
    name = f"classifier-{other[:8]}"
    alone = evaluate(run, tmp_path / "alone", *FEW, "extractor.run=runs/perceptual")
    for key in ("fid", "fid_error", "fid_draws", "fid_val", "fid_ratio"):
        assert both["scores"][f"{name}/{key}"] == pytest.approx(alone["scores"][key], rel=1e-6)
    ratios = both["scores"]["fid_ratio"], alone["scores"]["fid_ratio"]
    assert both["scores"]["fdr"] == pytest.approx(sum(ratios) / 2, rel=1e-6) and both["scores"]["fdr_spaces"] == 2
    assert both["protocol"]["spaces"] == {name: other} and "spaces" not in alone["protocol"]
    assert main(["evaluate", str(run), "spaces=runs/nowhere", f"out={tmp_path / 'x'}"]) == 1
    assert "spaces=runs/nowhere is neither the directory of a judge" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("name", ["raster", "multi"])
def test_ranks_share_an_evaluation(name: str, lab: Path, tmp_path: Path) -> None:
    """The scores of one process, of a generator in two spaces and of a tokenizer, with shares of uneven size.

    And the same pictures of the generator. The tokenizer's images go through it one by one: in batches, whose sizes follow
    from the number of ranks, the last bits of features differ, and with them a token between two codes.
    """
    few = ("n=44", "batch=8", "metrics.splits=2", "metrics.draws=2", "spaces=[runs/perceptual]")
    asked = ("batch=1", "metrics=tokens", "device=cpu") if name == "multi" else (*few, "device=cpu")
    results, pictures = [], []
    for ranks in (1, 2, 3):
        shutil.copytree(lab / name, tmp_path / f"{ranks}" / name)
        run, out = tmp_path / f"{ranks}" / name, tmp_path / f"out{ranks}"
        results.append(evaluate(run, out, *asked, f"trainer.devices={ranks}"))
        assert len(list(run.glob("scores/*"))) == 1
        pictures.append(
            {
                file.relative_to(run): file.read_bytes()
                for file in run.glob("pictures/*/*.png")
                if file.parent.name in ("neighbours", "scored")
            }
        )
    assert len(pictures[0]) == (0 if name == "multi" else 2) and pictures == pictures[:1] * 3
    for result in results[1:]:
        assert result["protocol"] == results[0]["protocol"]
        for part in ("scores", "neighbours"):
            assert result.get(part, {}).keys() == results[0].get(part, {}).keys()
            for key, value in result.get(part, {}).items():
                assert value == pytest.approx(results[0][part][key], rel=1e-9, abs=1e-12), key
        assert result.get("by_class") == results[0].get("by_class")


RUN_KEYS = {
    "extractor", "extractor_hash", "resize", "rounding", "reference", "n", "balance", "sampler", "seed", "code", "label",
    "weights", "weights_sha256", "images", "judge",
}  # fmt: skip


def test_a_result_holds_all_that_repeating_takes(run: Path, lab: Path, tmp_path: Path) -> None:
    """Of a generator, a tokenizer, and anybody's samples."""
    shutil.copytree(lab / "multi", tmp_path / "multi")
    np.savez(tmp_path / "theirs.npz", np.random.default_rng(0).integers(0, 256, (30, 16, 16, 3)).astype(np.uint8))
    generator = evaluate(run, tmp_path / "generator", *FEW)["protocol"]
    tokenizer = evaluate(tmp_path / "multi", tmp_path / "tokenizer")["protocol"]
    asked = (f"samples={tmp_path / 'theirs.npz'}", "reference=runs/data/source=digits", "metrics=smoke")
    assert main(["evaluate", *asked, "extractor.run=runs/judge", "metrics.kid.size=20", f"out={tmp_path / 'set'}"]) == 0
    samples = small.record(tmp_path / "set")["outcome"]["protocol"]
    code = provenance.code()
    changed = bool(code["diff"] or code["untracked"])
    assert all(("changes" in protocol["code"]) == changed for protocol in (generator, tokenizer, samples))
    assert set(generator) >= RUN_KEYS | {"guidance", "metrics"} and set(tokenizer) >= RUN_KEYS | {
        "perceptual",
        "ris_splits",
    }
    of_files = {"samples", "guidance", "metrics", "image_size"}
    assert set(samples) >= (RUN_KEYS - {"weights", "weights_sha256"}) | of_files
    assert set(samples["samples"]) == {"name", "hash", "rounding", "made_with"}
    for protocol in (generator, tokenizer, samples):
        assert set(protocol["reference"]) >= {"name", "hash", "n"} and {"version", "commit"} <= set(protocol["code"])
        assert protocol["resize"] == "none" and protocol["seed"] == 0 and len(protocol["extractor_hash"]) == 64
    assert generator["weights_sha256"] == sha256(run / "weights.safetensors")
