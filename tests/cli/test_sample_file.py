"""``varlab sample … format=npz``: the ADM suite's file, whatever the batch, the ranks and the kills on its way."""

from __future__ import annotations

import json
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import torch

from tests import small
from varlab.cli.main import main
from varlab.data.image.npz import NpzFile, write_npz
from varlab.errors import VarlabError
from varlab.files import sha256
from varlab.recipe.sample_file import sample_writer
from varlab.recipe.sample_file.sample_writer import SampleWriter
from varlab.run.directory import RunDirectory
from varlab.run.record import RunRecord


def sample(run: Path, out: Path, *arguments: str) -> tuple[np.ndarray, np.ndarray]:
    assert main(["sample", str(run), f"out={out}", "n=20", "batch=8", "seed=3", *arguments]) == 0
    with np.load(out / "samples.npz") as file:
        return file["arr_0"], file["arr_1"]


@pytest.fixture(scope="module")
def file(world_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("file") / "out"
    with small.inside(world_folder):
        sample(world_folder / "runs" / "raster", out, "format=npz", "cfg=1.5")
    return out


def test_the_file_holds_the_same_samples_shuffled_and_says_how(file: Path, lab: Path, tmp_path: Path) -> None:
    with np.load(file / "samples.npz") as content:
        img, label = content["arr_0"], content["arr_1"]
    assert img.shape == (20, 16, 16, 3) and img.dtype == np.uint8 and np.bincount(label).tolist() == [2] * 10
    assert (np.diff(label) < 0).sum() > 3, "sorted by class"
    plain, plain_label = sample(lab / "raster", tmp_path / "plain", "cfg=1.5")
    near = (
        np.abs(img[:, None].astype(int) - plain[None]).max((2, 3, 4)) <= 1
    )  # batches of other sizes: a rounding apart
    assert (near.sum(0) == 1).all() and (near.sum(1) == 1).all()
    assert (plain_label[near.argmax(1)] == label).all()
    said = json.loads((file / "samples.json").read_text())
    assert said["balance"] == "each of 10 classes 2 times" and "nearest" in said["rounding"] and said["seed"] == 3
    assert (said["n"], said["size"], said["sampler"]["cfg"]) == (20, [16, 16], 1.5)
    assert said["weights_sha256"] == sha256(lab / "raster" / "weights.safetensors")
    assert sorted(path.name for path in file.iterdir() if path.name != ".lock") == [
        "run.json",
        "samples.json",
        "samples.npz",
    ]


def test_a_killed_sampling_goes_on_where_it_stopped(
    file: Path, lab: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write, drawn = SampleWriter._write_part, []

    def stop_after_one(self: SampleWriter, rows: torch.Tensor) -> None:
        if drawn:
            raise VarlabError("the power went out")
        drawn.append(len(rows))
        write(self, rows)

    monkeypatch.setattr(sample_writer.SampleWriter, "_write_part", stop_after_one)
    asked = ["sample", "runs/raster", f"out={tmp_path / 'out'}", "n=20", "batch=8", "seed=3", "format=npz", "cfg=1.5"]
    assert main(asked) == 1 and not (tmp_path / "out" / "samples.npz").exists()
    monkeypatch.setattr(
        sample_writer.SampleWriter, "_write_part", lambda self, rows: (drawn.append(len(rows)), write(self, rows))
    )
    assert main(asked) == 0 and drawn == [8, 8, 4]
    assert (tmp_path / "out" / "samples.npz").read_bytes() == (file / "samples.npz").read_bytes()


@pytest.mark.slow
def test_ranks_share_the_samples(file: Path, lab: Path, tmp_path: Path) -> None:
    sample(lab / "raster", tmp_path / "out", "format=npz", "cfg=1.5", "trainer.devices=3", "device=cpu")
    assert (tmp_path / "out" / "samples.npz").read_bytes() == (file / "samples.npz").read_bytes()


def test_the_memory_of_a_file_is_that_of_a_batch(tmp_path: Path) -> None:
    """128 images at a time of 40 MB, written and read."""
    label_N, size = torch.arange(3200) % 10, (64, 64)

    def draw(ids_B: torch.Tensor) -> torch.Tensor:
        return (ids_B % 256).to(torch.uint8)[:, None, None, None].expand(-1, 3, *size)

    with RunDirectory(tmp_path / "run") as directory:
        directory.prepare(RunRecord(command="sample"))
        writer = SampleWriter(directory=directory, origin={}, draw=draw, label_N=label_N, size=size, seed=0, batch=128)
        tracemalloc.start()
        writer.write(world=1, progress=lambda done, total: None)
        seen = [int(image[0, 0, 0]) for batch in NpzFile(writer.path).images(128) for image in batch]
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert seen == (writer._ids_N % 256).tolist() and peak < 4 * 128 * 64 * 64 * 3


def test_files_of_others_are_read_and_broken_ones_named(tmp_path: Path) -> None:
    img = np.arange(5 * 4 * 4 * 3, dtype=np.uint8).reshape(5, 4, 4, 3)
    for name, save in (("plain", np.savez), ("small", np.savez_compressed)):
        save(tmp_path / f"{name}.npz", img, np.arange(5))
        read = NpzFile(tmp_path / f"{name}.npz")
        assert (np.concatenate(list(read.images(2))) == img).all() and read.require_images() == (5, 4, 4)
        assert read.array("arr_1").tolist() == [0, 1, 2, 3, 4] and read.names == ["arr_0", "arr_1"]
    write_npz(tmp_path / "own.npz", {"arr_0": img, "mu": np.ones(3)})
    with np.load(tmp_path / "own.npz") as own:
        assert (own["arr_0"] == img).all() and own["mu"].tolist() == [1, 1, 1]
    np.savez(tmp_path / "float.npz", img.astype(np.float32))
    with pytest.raises(VarlabError, match=r"float32 \[5, 4, 4, 3\], but images are uint8"):
        NpzFile(tmp_path / "float.npz").require_images()
    with pytest.raises(VarlabError, match="has no array arr_0, only mu"):
        np.savez(tmp_path / "none.npz", mu=np.ones(2))
        NpzFile(tmp_path / "none.npz").require_images()
    for content in (b"", b"no zip", (tmp_path / "plain.npz").read_bytes()[:-40]):
        (tmp_path / "broken.npz").write_bytes(content)
        with pytest.raises(VarlabError, match=r"broken\.npz cannot be read"):
            NpzFile(tmp_path / "broken.npz")
    np.savez(tmp_path / "objects.npz", np.array([{}]))
    with pytest.raises(VarlabError, match="cannot be read"):
        NpzFile(tmp_path / "objects.npz")


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [(["format=png"], "format=png is unknown"), (["trainer.devices=2"], "Pictures are made by one process")],
)
def test_what_cannot_be_written_is_refused(
    arguments: list[str], sentence: str, lab: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["sample", "runs/raster", f"out={tmp_path / 'x'}", *arguments]) == 1
    assert sentence in capsys.readouterr().err
