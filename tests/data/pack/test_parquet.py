"""Parquet files as a source: equal pixels and labels, the names of the classes, and bad rows skipped by name."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pytest
import torch
from PIL import Image
from pyarrow import parquet

from tests.data.pack.loading import load_samples as samples
from tests.data.pack.loading import load_skipped
from varlab.data.format.index import read_index
from varlab.data.pack.packer import pack
from varlab.data.pack.sources.parquet import Parquet
from varlab.data.read.reader import ShardReader
from varlab.types import VarlabError

Contents = Callable[[Path], dict[str, bytes]]


def source(path: Path, **changes: Any) -> Parquet:
    own: dict[str, Any] = {"split": {"skip": None, "val": "*val*|*test*", "train": "*"}, "image": "image"}
    own |= {"label": "label", "classes": None, "size": None, "resample": "lanczos", "val_fraction": 0.0, "seed": 0}
    return Parquet(**{"path": str(path), **own, **changes})


def noise(number: int, size: int = 8) -> np.ndarray[Any, Any]:
    return np.random.default_rng(number).integers(0, 256, (size, size, 3), dtype=np.uint8)


def encoded(number: int, form: str = "PNG", size: int = 8) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(noise(number, size)).save(buffer, format=form)
    return buffer.getvalue()


def write(path: Path, labels: Any, *, first: int = 0, names: list[str] | None = None, **columns: Any) -> Path:
    """A file of Hugging Face's kind in row groups of three."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rows: dict[str, Any] = {"image": [{"bytes": encoded(first + i), "path": None} for i in range(len(labels))]}
    table = pyarrow.table({**rows, "label": labels, **columns})
    if names is not None:
        features = {"image": {"_type": "Image"}, "label": {"names": names, "_type": "ClassLabel"}}
        table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    parquet.write_table(table, path, row_group_size=3)
    return path


def skipped(made: Parquet) -> dict[str, str]:
    return {s.name: s.reason for s in load_skipped(made)}


def test_packed_rows_equal_the_source(tmp_path: Path) -> None:
    write(tmp_path / "old/data/train-00000-of-00002.parquet", [0, 1, 2, 0, 1, 2, 0], names=["cat", "cow", "dog"])
    write(tmp_path / "old/data/train-00001-of-00002.parquet", [1, 2], first=7, names=["cat", "cow", "dog"])
    write(tmp_path / "old/data/validation-00000-of-00001.parquet", [2, 0, 1, 1], first=9, names=["cat", "cow", "dog"])
    summary = pack(source(tmp_path / "old"), tmp_path / "new", shard_size=4)
    assert summary["images"] == {"train": 9, "val": 4} and summary["skipped"] == []
    index = read_index(tmp_path / "new")
    assert index.classes == ("cat", "cow", "dog")
    for split, first, labels in (("train", 0, [0, 1, 2, 0, 1, 2, 0, 1, 2]), ("val", 9, [2, 0, 1, 1])):
        reader = ShardReader(index=index, split=split, cache_bytes=0, most_pixels=1 << 20, size=(8, 8))
        assert reader.label_N.tolist() == labels
        assert index.table(split)["key"].tolist() == [b"%08d" % (first + i) for i in range(len(labels))]
        wanted_N3HW = np.stack([noise(first + i).transpose(2, 0, 1) for i in range(len(labels))])
        assert np.array_equal(reader.images(torch.arange(len(labels))).numpy(), wanted_N3HW)


def test_entries_name_file_group_and_row_and_a_group_is_read_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for n in range(2):
        write(tmp_path / f"{n}.parquet", [0, 1, 0, 1])
    made, asked = source(tmp_path), []
    assert made.entries("train") == [(n, *at) for n in (0, 1) for at in ((0, 0), (0, 1), (0, 2), (1, 0))]
    assert made.entries("val") == []
    read = parquet.ParquetFile.read_row_group
    monkeypatch.setattr(parquet.ParquetFile, "read_row_group", lambda *a, **k: (asked.append(a[1]), read(*a, **k))[1])
    assert len(samples(made, "train")) == 8 and asked == [0, 1, 0, 1]


@pytest.mark.parametrize(
    ("labels", "settings", "classes", "numbers"),
    [
        ([3, 0, 1], {}, ("0", "1", "2", "3"), [3, 0, 1]),
        (pyarrow.array([1, 0, 1], pyarrow.uint8()), {"classes": ["cat", "dog"]}, ("cat", "dog"), [1, 0, 1]),
        (["b", "a", "b"], {}, ("a", "b"), [1, 0, 1]),
        (["b", "a", "b"], {"classes": ["b", "a"]}, ("b", "a"), [0, 1, 0]),
        (pyarrow.array(["b", "a", "b"]).dictionary_encode(), {}, ("a", "b"), [1, 0, 1]),
        ([1.5, 0.5, 1.5], {"label": None}, ("image",), [None, None, None]),
    ],
    ids=["numbers", "named", "strings", "order", "categories", "none"],
)
def test_labels_of_every_kind(
    tmp_path: Path, labels: Any, settings: dict[str, Any], classes: tuple[str, ...], numbers: list[int | None]
) -> None:
    made = source(write(tmp_path / "a.parquet", labels), **settings)
    assert made.classes == classes
    assert [s.label for s in samples(made, "train")] == numbers
    assert pack(made, tmp_path / "new", shard_size=2)["images"] == {"train": 3, "val": 0}


def test_configured_names_win_over_those_of_the_file(tmp_path: Path) -> None:
    (tmp_path / "names.txt").write_text("Katze\nHund\n")
    file = write(tmp_path / "a.parquet", [0, 1], names=["cat", "dog"])
    assert source(file).classes == ("cat", "dog")
    assert source(file, classes=str(tmp_path / "names.txt")).classes == ("Katze", "Hund")


def test_images_may_be_plain_bytes_and_are_resized(tmp_path: Path) -> None:
    rows = {"img": [encoded(0, "JPEG", 12), encoded(1, "BMP"), encoded(2, "WEBP")], "y": [0, 1, 0]}
    for kind in (pyarrow.binary(), pyarrow.large_binary()):
        table = pyarrow.table({**rows, "img": pyarrow.array(rows["img"], kind)})
        parquet.write_table(table, tmp_path / "a.parquet")
        made = source(tmp_path, image="img", label="y", size=8)
        large, bitmap, right = (s.image for s in samples(made, "train"))
        assert isinstance(large, Image.Image) and large.size == (8, 8)
        assert isinstance(bitmap, Image.Image) and np.array_equal(np.asarray(bitmap), noise(1))
        assert right == rows["img"][2]


def test_the_split_follows_names_or_a_share(tmp_path: Path) -> None:
    for n, name in enumerate(("train", "validation", "test")):
        write(tmp_path / f"{name}-0.parquet", [0, 1] * 5, first=10 * n)

    def counts(path: Path = tmp_path, **changes: Any) -> list[int]:
        made = source(path, **changes)
        keys = [s.key for split in ("train", "val") for s in samples(made, split)]
        assert len(set(keys)) == len(keys)
        return [len(made.entries(split)) for split in ("train", "val")]

    assert counts() == counts(val_fraction=0.5) == [10, 20]
    assert counts(split={"skip": "test-*", "val": "*val*", "train": "*"}) == [10, 10]
    assert counts(split={"val": None, "train": "*"}, val_fraction=0.2) == [24, 6]
    assert counts(tmp_path / "test-0.parquet", val_fraction=0.2) == [8, 2]
    val = samples(source(tmp_path / "test-0.parquet", val_fraction=0.4), "val")
    assert sorted(s.label for s in val if s.label is not None) == [0, 0, 1, 1]
    with pytest.raises(VarlabError, match=r"test-0\.parquet belongs to no split"):
        source(tmp_path, split={"val": "*val*", "train": "*train*"})


def test_bad_rows_are_skipped_and_named(tmp_path: Path) -> None:
    images = [{"bytes": b, "path": "x"} for b in (encoded(0), None, b"not an image", encoded(3)[:60])]
    rows = {"image": [*images, None, *({"bytes": encoded(i), "path": "x"} for i in range(5, 9))]}
    rows["label"] = [0, 1, 0, 1, 0, None, -1, 2, 1]
    parquet.write_table(pyarrow.table(rows), tmp_path / "a.parquet", row_group_size=4)
    made = source(tmp_path, classes=["cat", "dog"], val_fraction=0.4)
    reasons = skipped(made)
    assert {name: reason.split(" (")[0] for name, reason in reasons.items() if not name.endswith("row 3")} == {
        "a.parquet row 1": "no_image: null",
        "a.parquet row 2": "corrupt: cannot be decoded",
        "a.parquet row 4": "no_image: null",
        "a.parquet row 5": "no_label: null",
        "a.parquet row 6": "no_label: null",
        "a.parquet row 7": "bad_label: 2 is none of the 2 classes",
    }
    assert reasons["a.parquet row 3"].startswith("corrupt: ")
    assert sorted(s.key for split in ("train", "val") for s in samples(made, split)) == ["00000000", "00000008"]


def test_a_damaged_row_group_costs_its_own_rows(tmp_path: Path) -> None:
    file = write(tmp_path / "a.parquet", [0, 1, 0, 1, 0, 1])
    content = bytearray(file.read_bytes())
    start = parquet.ParquetFile(file).metadata.row_group(0).column(0).data_page_offset
    content[start : start + 40] = b"\xff" * 40
    file.write_bytes(content)
    reasons = skipped(source(tmp_path))
    assert list(reasons) == [f"a.parquet row {i}" for i in range(3)]
    assert all(reason.startswith("damaged: row group 0 cannot be read (") for reason in reasons.values())
    assert [s.key for s in samples(source(tmp_path), "train")] == ["00000003", "00000004", "00000005"]


def test_a_missing_file_stops_the_packing(tmp_path: Path) -> None:
    made = source(write(tmp_path / "a.parquet", [0, 1]))
    (tmp_path / "a.parquet").unlink()
    with pytest.raises(VarlabError, match=r"train images cannot be read .*a\.parquet"):
        pack(made, tmp_path / "new", shard_size=5)


def test_any_number_of_workers_gives_the_same_bytes(tmp_path: Path, contents: Contents) -> None:
    for n in range(3):
        write(tmp_path / "old" / f"{n}.parquet", [0, 1, 0, 1, -1], first=5 * n)
    for workers in (0, 2):
        made = source(tmp_path / "old", size=6, val_fraction=0.25, classes=["a", "b"])
        pack(made, tmp_path / f"by{workers}", shard_size=2, workers=workers)
    assert contents(tmp_path / "by0") == contents(tmp_path / "by2")


def test_errors_are_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(VarlabError, match="There is no Parquet file or folder"):
        source(tmp_path / "nowhere")
    with pytest.raises(VarlabError, match=r"holds no \*\.parquet"):
        source(tmp_path)
    file = write(tmp_path / "a.parquet", [0, 1], score=[0.5, 1.5])
    with pytest.raises(VarlabError, match=r"no column 'img', but image, label, score: set source\.image"):
        source(file, image="img")
    with pytest.raises(VarlabError, match=r"no column 'y', but .*: set source\.label, or source\.label=null"):
        source(file, label="y")
    with pytest.raises(VarlabError, match="has double in column 'score', not the bytes of images"):
        source(file, image="score")
    with pytest.raises(VarlabError, match=r"has 0\.5 in column 'score', which is no class"):
        source(file, label="score")
    whole = file.read_bytes()
    for content in (b"", b"no Parquet at all", whole[: len(whole) // 2]):
        file.write_bytes(content)
        with pytest.raises(VarlabError, match=r"a\.parquet cannot be read as Parquet \(.*\): fetch it again"):
            source(tmp_path)
