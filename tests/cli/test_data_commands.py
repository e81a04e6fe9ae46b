"""``varlab pack``, ``index`` and ``bench`` from the command line."""

from __future__ import annotations

import io
import json
import shutil
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests import small
from varlab.cli.main import main
from varlab.data.format.index import read_index
from varlab.data.format.writer import ShardWriter


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Forty JPEGs and PNGs of three classes, of various sizes."""
    folder = tmp_path_factory.mktemp("pictures")
    rng = np.random.default_rng(0)
    for i in range(40):
        where = folder / "abc"[i % 3]
        where.mkdir(exist_ok=True)
        noise = rng.integers(0, 256, (3, 4, 3), dtype=np.uint8)
        image = Image.fromarray(noise).resize((40 + i, 60 - i), Image.Resampling.BICUBIC)
        image.save(where / f"{i:02d}.{'png' if i % 4 == 0 else 'jpg'}")
    return folder


def pack(pictures: Path, out: Path, *more: str) -> int:
    return main(["pack", "source=folder", f"path={pictures}", f"out={out}", "shard_size=5", *more])


def bytes_of(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in folder.iterdir() if p.suffix in (".tar", ".npy") or p.name == "index.json"}


@pytest.mark.parametrize("size", ["16", pytest.param("null", marks=pytest.mark.slow)])
def test_any_number_of_workers_packs_the_same_bytes(pictures: Path, tmp_path: Path, size: str) -> None:
    for workers in ("0", "2"):
        assert pack(pictures, tmp_path / workers, f"workers={workers}", f"source.size={size}") == 0
    assert bytes_of(tmp_path / "0") == bytes_of(tmp_path / "2")
    index = read_index(tmp_path / "0")
    assert index.image_size == ((16, 16) if size == "16" else None)
    assert main(["index", str(tmp_path / "0"), "check=true", f"out={tmp_path / 'check'}"]) == 0


def test_images_kept_as_they_are_are_kept_byte_for_byte(pictures: Path, tmp_path: Path) -> None:
    assert pack(pictures, tmp_path / "set", "source.size=null", "check=header") == 0
    stored = {}
    for shard in (tmp_path / "set").glob("*.tar"):
        with tarfile.open(shard) as tar:
            for member in tar:
                if not member.name.endswith(".cls"):
                    stored[member.name.partition("-")[2]] = tar.extractfile(member).read()  # type: ignore[union-attr]
    assert stored == {path.name: path.read_bytes() for path in pictures.rglob("*.*")}


def test_packing_goes_on_where_it_stopped(pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out, whole, written, add = tmp_path / "set", tmp_path / "whole", [], ShardWriter.add

    def stops(writer: ShardWriter, key: str, *arguments: object, **settings: object) -> None:
        if len(written) == 23:
            raise KeyboardInterrupt
        written.append(key)
        add(writer, key, *arguments, **settings)  # type: ignore[arg-type]

    monkeypatch.setattr(ShardWriter, "add", stops)
    assert pack(pictures, out, "workers=0") == 130 or small.record(out)["outcome"]["state"] == "failed"
    assert not (out / "index.json").exists() and not list(out.glob("*.tar"))
    monkeypatch.setattr(ShardWriter, "add", lambda w, key, *a, **s: (written.append(key), add(w, key, *a, **s))[1])
    assert pack(pictures, out, "workers=0") == 0
    monkeypatch.undo()
    assert pack(pictures, whole, "workers=0") == 0
    assert bytes_of(out) == bytes_of(whole)
    assert len(written) == 40 + 23 % 5 and not (out / ".packing").exists()  # of the shard that was begun, again


def test_the_summary_shows_what_there_is(pictures: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(pictures, tmp_path / "pictures"))
    (copy / "a" / "torn.jpg").write_bytes((copy / "a" / "03.jpg").read_bytes()[:200])
    assert pack(copy, tmp_path / "set", "source.size=24") == 0
    page = (tmp_path / "set" / "summary.html").read_text()
    assert "a/torn.jpg" in page and "data:image/png;base64," in page and "36 train, 4 val images in 3 classes" in page
    assert "http" not in page.replace("http-equiv", "")  # nothing is loaded from elsewhere


def test_an_index_removes_what_a_killed_one_left_and_nothing_else(pictures: Path, tmp_path: Path) -> None:
    shards = tmp_path / "set"
    assert pack(pictures, shards, "source.size=24") == 0
    for name in (".index.json.1.tmp", ".train.samples.npy.1.tmp", ".summary.html.1.tmp", ".mine.tmp"):
        (shards / name).write_bytes(b"half")
    assert main(["index", str(shards), "workers=0"]) == 0
    assert [path.name for path in shards.glob("*.tmp")] == [".mine.tmp"]


def test_shards_that_others_wrote(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """ImageNet's way (jpg, cls), OpenImages' (jpg, json) and CC12M's (jpg, txt), in one folder below another."""
    ways = {
        "cls": lambda i: str(i % 7).encode(),
        "json": lambda i: json.dumps({"label": "ab"[i % 2]}).encode(),
        "txt": str,
    }
    for ending, told in ways.items():
        folder = tmp_path / ending / "part-0"
        folder.mkdir(parents=True)
        for number in range(3):
            with tarfile.open(folder / f"{number:05d}.tar", "w") as tar:
                for i in range(8 * number, 8 * number + 8):
                    buffer = io.BytesIO()
                    Image.new("RGB", (20 + i, 30), (i, 0, 0)).save(buffer, format="JPEG")
                    text = told(i)
                    for name, content in (
                        ("jpg", buffer.getvalue()),
                        (ending, text if isinstance(text, bytes) else b"x"),
                    ):
                        member = tarfile.TarInfo(f"{i:08d}.{name}")
                        member.size = len(content)
                        tar.addfile(member, io.BytesIO(content))
        assert main(["index", str(tmp_path / ending), "val_fraction=0.25", "workers=2"]) == 0
        index = read_index(tmp_path / ending)
        assert index.info.counts == {"train": 18, "val": 6}
        assert len(index.classes) == {"cls": 7, "json": 2, "txt": 1}[ending]
        assert (tmp_path / ending / "summary.html").is_file()
        bench = ("bench", f"data.path={tmp_path / ending}", "data.size=16", "crop@data.crop=random_resized")
        if ending == "cls":
            quick = ("rounds=1", "seconds=0.05", "images=16", "batch=8", f"out={tmp_path / 'bench'}")
            assert main([*bench, *quick]) == 0
            rates = json.loads((tmp_path / "bench" / "bench.json").read_text())["images_per_second"]
            assert len(rates) == 7 and min(rates.values()) > 0
    assert main(["index", str(tmp_path / "cls"), "split.train=*9.tar"]) == 1
    assert "belongs to no split" in capsys.readouterr().err
    assert main(["index", str(tmp_path / "nowhere")]) == 1
    assert "There is no folder" in capsys.readouterr().err


def test_an_index_keeps_the_depth_of_pictures_that_were_packed_as_bytes(tmp_path: Path) -> None:
    for name in ("a", "b"):
        for i in range(4):
            path = tmp_path / "photos" / name / f"{i}.tif"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.full((16, 16), i / 4, np.float32)).save(path)
    out = tmp_path / "data"
    assert (
        main(["pack", "source=folder", f"path={tmp_path / 'photos'}", "source.size=16", f"out={out}", "workers=0"]) == 0
    )
    before = read_index(out)
    assert dict(before.depth) == {"float": 1}
    assert main(["index", str(out), "workers=0"]) == 0
    assert read_index(out).hash == before.hash
