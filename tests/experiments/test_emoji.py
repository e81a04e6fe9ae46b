"""The study of emoji: its fetch checks and sorts the images of two packages, and its command runs as written."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import os
import runpy
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests import small
from tests.experiments.commands import ROOT, run
from varlab.cli.main import main

STUDY = ROOT / "experiments" / "emoji"
SCRIPT = runpy.run_path(str(STUDY / "fetch.py"))
VENDORS = ("google", "twitter")


def png(name: str) -> bytes:
    pixels = np.random.default_rng(list(name.encode())).integers(0, 255, (16, 16, 4), dtype=np.uint8)
    Image.fromarray(pixels).save(file := io.BytesIO(), "PNG")
    return file.getvalue()


def make_tarball(folder: Path, vendor: str, emoji: list[dict], images: list[str]) -> str:
    """Writes a package like the real ones, and returns its SHA-512 in base64."""
    file = folder / f"emoji-datasource-{vendor}-16.0.0.tgz"
    contents = {f"package/img/{vendor}/64/{name}": png(f"{vendor}-{name}") for name in images}
    contents |= {f"package/img/{vendor}/sheets/32.png": png("sheet"), "package/emoji.json": json.dumps(emoji).encode()}
    with tarfile.open(file, "w:gz") as tar:
        for name, content in contents.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return base64.b64encode(hashlib.sha512(file.read_bytes()).digest()).decode()


@pytest.fixture
def packages(tmp_path: Path) -> dict[str, str]:
    """Two tarballs of a hand with a skin tone and of a flag that only Google draws: their SHA-512 by vendor."""
    hand = {"image": "261d.png", "skin_variations": {"1F3FB": {"image": "261d-1f3fb.png"}}, "category": "People & Body"}
    emoji = [hand, {"image": "1f1e6.png", "category": "Flags"}]
    drawn = ["261d.png", "261d-1f3fb.png", "1f1e6.png"]
    return {vendor: make_tarball(tmp_path, vendor, emoji, drawn[: 3 - i]) for i, vendor in enumerate(VENDORS)}


def names(folder: Path) -> list[str]:
    return sorted(str(file.relative_to(folder)) for file in folder.rglob("*.png"))


def test_images_are_sorted_by_category(packages: dict[str, str], tmp_path: Path) -> None:
    folder = tmp_path / "data" / "emoji"
    for _ in range(2):  # the second time they are there
        assert SCRIPT["fetch"](folder, tmp_path.as_uri(), packages) == 5
    hands = [f"People_and_Body/{vendor}-261d{tone}.png" for vendor in VENDORS for tone in ("-1f3fb", "")]
    assert names(folder) == ["Flags/google-1f1e6.png", *hands]
    assert (folder / "Flags" / "google-1f1e6.png").read_bytes() == png("google-1f1e6.png")
    assert list(folder.parent.iterdir()) == [folder]


def test_other_bytes_are_refused(packages: dict[str, str], tmp_path: Path) -> None:
    folder = tmp_path / "data" / "emoji"
    with pytest.raises(SystemExit, match=r"emoji-datasource-twitter-16\.0\.0\.tgz has the SHA-512 .* not wrong"):
        SCRIPT["fetch"](folder, tmp_path.as_uri(), packages | {"twitter": "wrong"})
    assert not folder.exists()


def test_the_readme_credits_the_authors() -> None:
    (credit,) = (line.partition('"')[2] for line in (STUDY / "run.sh").read_text().splitlines() if "credit=" in line)
    text = " ".join((STUDY / "README.md").read_text().split())
    assert "CC-BY 4.0" in credit and credit.rstrip('"') in text


def many(folder: Path) -> dict[str, str]:
    """Tarballs of twelve emoji in each of three categories."""
    emoji = [{"image": f"{i}.png", "category": ("Flags", "Objects", "Symbols")[i % 3]} for i in range(36)]
    images = [entry["image"] for entry in emoji]
    return {vendor: make_tarball(folder, vendor, emoji, images) for vendor in VENDORS}


def one_by_one(command: list[str]) -> int:
    return main(["launch=local" if word == "launch=joblib" else word for word in command])


@pytest.mark.slow
def test_the_study_runs_as_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two seeds in pieces: the second command adds its seed to the tables, and each has a grid of both orders."""
    SCRIPT["fetch"](tmp_path / "runs" / "data" / "emoji_png", tmp_path.as_uri(), many(tmp_path))
    readme = tmp_path / "README.md"
    readme.write_text((STUDY / "README.md").read_text())
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    settings = {"MORE": "budget.images=16 data.batch=8 log.every=8", "N": "36", "README": str(readme)}
    with small.inside(tmp_path):
        for piece, seeds in (("first", "0"), ("second", "1")):
            (tmp_path / piece).mkdir()
            run(STUDY / "run.sh", one_by_one, tmp_path / piece, SEEDS=seeds, **settings)
    table = readme.read_text().partition("<!-- generators -->")[2]
    rows = [
        f"| {order} · {sampler} | 2 |"
        for order in ("next_scale", "raster")
        for sampler in ("plain", "cfg 1.5, top-p 0.95")
    ]
    assert all(row in table for row in rows) and "–" not in table and "FID ratio" in table
    grid = Image.open(tmp_path / "runs" / "emoji" / "seed1" / "grid.png")
    assert grid.width > 2 * 8 * 64 and grid.height > 3 * 64
