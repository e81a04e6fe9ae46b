"""``varlab edit``: its tasks, its strip, and what it refuses."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import varlab
from tests import small
from varlab.cli.main import main


@pytest.fixture()
def picture(tmp_path: Path) -> Path:
    """A photograph of another size than the model's."""
    pixels = np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "photo.png")
    mask = np.zeros((40, 50), np.uint8)
    mask[:20] = 255
    Image.fromarray(mask).save(tmp_path / "mask.png")
    return tmp_path / "photo.png"


@pytest.mark.parametrize("run", ["next_scale", "raster"])
@pytest.mark.parametrize(
    "asked",
    [
        ["task=inpaint", "mask=mask.png"],
        ["task=inpaint", "box=[0.25,0.25,0.75,0.75]", "blend=true"],
        ["task=outpaint", "box=[4,4,12,12]", "smooth=true"],
        ["task=class", "box=[0,0,1,0.5]", "label=3", "force_small=true", "cfg=1.5"],
    ],
)
def test_a_strip_is_written(run: str, asked: list[str], lab: Path, picture: Path, tmp_path: Path) -> None:
    asked = [a.replace("mask.png", str(picture.with_name("mask.png"))) for a in asked]
    out = tmp_path / "out"
    assert main(["edit", str(lab / run), f"image={picture}", *asked, "n=3", f"out={out}"]) == 0
    with np.load(out / "edit.npz") as held:
        results, image, mask = held["results"], held["image"], held["mask"]
    assert results.shape == (3, 16, 16, 3) and image.shape == (16, 16, 3)
    strip = Image.open(out / "pictures" / "edit.png")
    assert strip.width > 5 * 192 and strip.height > 2 * 192
    assert small.record(out)["outcome"]["painted"] == pytest.approx(mask.mean(), abs=1e-3)
    if "blend=true" in asked:
        assert (results[:, mask == 0] == image[mask == 0]).all()
    assert mask[:8].all() and not mask[8:].any() if "task=inpaint" in asked and "mask" in asked[1] else True


def test_outpainting_knows_the_box(lab: Path, picture: Path, tmp_path: Path) -> None:
    asked = ["task=outpaint", "box=[4,4,12,12]", "n=1", f"out={tmp_path / 'out'}"]
    assert main(["edit", str(lab / "next_scale"), f"image={picture}", *asked]) == 0
    with np.load(tmp_path / "out" / "edit.npz") as held:
        assert not held["mask"][4:12, 4:12].any() and held["mask"].sum() == 256 - 64


def test_a_class_may_be_named(lab: Path, picture: Path, tmp_path: Path) -> None:
    name = varlab.load(lab / "next_scale").classes[7]
    for i, label in enumerate((7, f"'{name}'", f"['{name}']")):
        asked = ["task=class", "box=[0,0,1,1]", f"label={label}", "n=1", f"out={tmp_path / str(i)}"]
        assert main(["edit", str(lab / "next_scale"), f"image={picture}", *asked]) == 0
    one, two, three = (np.load(tmp_path / str(i) / "edit.npz")["results"] for i in range(3))
    assert (one == two).all() and (one == three).all()


@pytest.mark.parametrize(
    ("asked", "says"),
    [
        (["box=[0,0,1,1]", "task=repaint"], "task=repaint is unknown"),
        ([], "one of mask=FILE"),
        (["box=[0,0,1,1]", "mask=x.png"], "only one of mask, box can be given"),
        (["mask=nowhere.png"], "nowhere.png cannot be used"),
        (["box=[0.5,0,0.5,1]"], "does not lie inside"),
        (["box=[0,0,99,99]"], "does not lie inside"),
        (["box=[1]"], "four numbers"),
        (["box=[0,0,1,1]", "task=class"], "number or name with label="),
        (["box=[0,0,1,1]", "label=99"], "outside the 10 classes"),
        (["box=[0,0,1,1]", "label=cat"], "No class of this run is named 'cat'"),
        (["box=[0,0,1,1]", "label=[1,2]"], "takes one class, not 2: give label=1"),
        (["box=[0,0,1,1]", "task=outpaint"], "is empty: paint a part of it white"),
        (["box=[0,0,1,1]", "n=0"], "n=0 must be"),
    ],
)
def test_what_cannot_be_edited_is_said(asked, says, lab: Path, picture: Path, tmp_path: Path, capsys) -> None:
    assert main(["edit", str(lab / "next_scale"), f"image={picture}", *asked, f"out={tmp_path / 'out'}"]) == 1
    assert says in capsys.readouterr().err


def test_pictures_that_do_not_fit_are_said(lab: Path, picture: Path, tmp_path: Path, capsys) -> None:
    other = tmp_path / "other.png"
    Image.new("L", (10, 10), 255).save(other)
    for asked, says in (
        ([str(lab / "next_scale"), f"image={picture}", f"mask={other}"], "must be of one size"),
        ([str(lab / "next_scale"), "image=nowhere.png", "box=[0,0,1,1]"], "nowhere.png cannot be used"),
        ([str(lab / "multi"), f"image={picture}", "box=[0,0,1,1]"], "not the run of a generator"),
    ):
        assert main(["edit", *asked, f"out={tmp_path / 'out'}"]) == 1
        assert says in capsys.readouterr().err


def test_scores_refuse_soft_codes(lab: Path, tmp_path: Path, capsys) -> None:
    assert main(["evaluate", str(lab / "next_scale"), "smooth=true", f"out={tmp_path / 'out'}"]) == 1
    assert "for pictures only" in capsys.readouterr().err


def test_soft_samples_are_other_pictures(lab: Path, tmp_path: Path) -> None:
    for name, smooth in (("plain", "false"), ("soft", "true")):
        assert main(["sample", str(lab / "next_scale"), "n=4", f"smooth={smooth}", f"out={tmp_path / name}"]) == 0
    plain, soft = (np.load(tmp_path / name / "samples.npz")["arr_0"] for name in ("plain", "soft"))
    assert plain.shape == soft.shape and (plain != soft).any()
