"""What people's folders, splits, labels and indexes hold; the numbers are those of the public reports (row1 …)."""

from __future__ import annotations

import io
import json
import logging
import os
import tarfile
import tempfile
import types
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from tests.data.pack.loading import load_samples, load_skipped
from varlab.cli.commands import edit
from varlab.cli.main import main
from varlab.cli.typed_value import in_grammar
from varlab.data.folders.class_names import in_order, permuted
from varlab.data.folders.splits import assign_splits, split_of_path
from varlab.data.folders.tree import Tree
from varlab.data.format.index import read_index
from varlab.data.format.tar import scan_tar
from varlab.data.image.augment import Augment
from varlab.data.pack.conditions import PairedImages
from varlab.data.pack.sources.folder import ImageFolder
from varlab.data.pack.sources.parquet import Parquet
from varlab.data.pack.sources.tars import Tars
from varlab.data.shard_module import ShardDataModule
from varlab.errors import VarlabError
from varlab.recipe.preflight.named_runs import require_same_classes

NFC, NFD = (unicodedata.normalize(form, "café") for form in ("NFC", "NFD"))


# -- small inputs --------------------------------------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def jpg(value: int = 9, size: tuple[int, int] = (16, 16)) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.full((size[1], size[0], 3), value, np.uint8)).save(buffer, "JPEG")
    return buffer.getvalue()


def put(path: str | bytes, content: bytes) -> None:
    file = Path(os.fsdecode(path))
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(content)


def link(target: str, at: str) -> None:
    Path(at).symlink_to(target)


def folder(root: str, classes: Sequence[str] = ("cat", "dog"), n: int = 8) -> None:
    for name in classes:
        for i in range(n):
            put(f"{root}/{name}/{i}.jpg", jpg(10 * i + len(name)))


def source(root: str, **changes: Any) -> ImageFolder:
    own: dict[str, Any] = {"size": 8, "resample": "lanczos", "val_fraction": 0.25, "seed": 0}
    return ImageFolder(path=root, **{**own, **changes})


def paths(made: ImageFolder, split: str = "train") -> dict[str, set[str]]:
    """The files of each class."""
    files: dict[str, set[str]] = {name: set() for name in made.classes}
    for _, path, label in made.entries(split):
        files[made.classes[label or 0]].add(path)
    return files


def counts(made: ImageFolder) -> list[int]:
    return [len(made.entries(split)) for split in ("train", "val")]


def said(made: ImageFolder) -> str:
    return "\n".join(made.notes)


def pack(*arguments: str) -> int:
    return main(["pack", "source=folder", "source.size=16", "out=Y", "workers=0", *arguments])


@pytest.fixture
def log(caplog: pytest.LogCaptureFixture) -> Iterator[pytest.LogCaptureFixture]:
    caplog.set_level(logging.INFO)
    yield caplog


# -- row 2: links --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("target", ["..", ".", "../..", "/", "../cat"])
def test_row2_a_link_to_a_parent_is_passed_over_and_named(target: str) -> None:
    folder("X", n=4)
    link(target, "X/cat/up")
    made = source("X", val_fraction=0.0)
    assert paths(made) == {name: {f"{name}/{i}.jpg" for i in range(4)} for name in ("cat", "dog")}
    assert "1 link to a folder above it (cat/up)" in said(made)


def test_row2_several_loops_end() -> None:
    folder("X", n=2)
    for i in range(12):
        link("..", f"X/cat/up{i}")
        link("../cat", f"X/dog/cat{i}")
    link(".", "X/self")
    made = source("X", val_fraction=0.0)
    assert counts(made) == [2 + 2 + 2, 0]  # cat's two are in dog, too, once
    assert "2 files are in two classes or splits by links" in said(made) and "11 links to what was there" in said(made)


def test_row2_links_elsewhere_are_followed_and_each_file_counts_once() -> None:
    folder("X", n=2)
    folder("store", ("a", "b"), n=3)
    link("../../store/a", "X/cat/more")
    link("../../store/a/0.jpg", "X/cat/again.jpg")
    link("../../store", "X/dog/all")
    link("../../X/dog", "store/b/back")
    link("nowhere.jpg", "X/dog/broken.jpg")
    link("../store/a", "X/cow")
    os.mkfifo("X/dog/pipe.jpg")
    made = source("X", val_fraction=0.0)
    assert {name: len(files) for name, files in paths(made).items()} == {"cat": 5, "cow": 3, "dog": 8}
    for words in (
        "1 broken link (dog/broken.jpg)",
        "1 device, pipe or socket (dog/pipe.jpg)",
        "3 files are in two classes",
    ):
        assert words in said(made)


def test_row2_an_unreadable_folder_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    folder("X", n=2)
    folder("X/cat", ("closed",), n=2)
    scan = os.scandir

    def refuses(path: str) -> Any:
        if path.endswith("closed"):
            raise PermissionError(13, "Permission denied")
        return scan(path)

    monkeypatch.setattr(os, "scandir", refuses)
    made = source("X", val_fraction=0.0)
    assert counts(made) == [4, 0] and "1 unreadable folder (cat/closed: Permission denied)" in said(made)


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 5)), max_size=8))
def test_row2_any_links_between_folders_give_each_file_once(
    tmp_path_factory: pytest.TempPathFactory, links: list[tuple[int, int]]
) -> None:
    root = tmp_path_factory.mktemp("links")
    folders = ["", "a", "a/b", "c", "c/d"]
    for name in folders:
        put(f"{root}/X/{name}/x{len(name)}.jpg", b"x")
    put(f"{root}/other/o.jpg", b"x")
    for number, (at, to) in enumerate(links):
        link([*(f"{root}/X/{name}" for name in folders), f"{root}/other"][to], f"{root}/X/{folders[at]}/l{number}")
    files = Tree(root / "X").files()
    reals = {os.path.realpath(f"{root}/X/{path}") for path in files}
    assert len(files) == len(reals) == 5 + any(to == 5 for _, to in links)
    assert set(files.values()) == reals


# -- row 3: splits -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("val", ["val", "Valid", "validation", "DEV", "eval", "test", "testing", "val2017", "test_set"])
@pytest.mark.parametrize("inside", [False, True], ids=["train/cat", "cat/train"])
def test_row3_split_names_are_no_classes(val: str, inside: bool) -> None:
    for split, n in (("Training", 6), (val, 3)):
        for name in ("cat", "dog"):
            folder("X", (f"{name}/{split}" if inside else f"{split}/{name}",), n)
    made = source("X")
    assert made.classes == ("cat", "dog") and counts(made) == [12, 6]
    assert all(val in path for path in paths(made, "val")["cat"])
    assert ("6 test images are taken for val" in said(made)) == val.startswith("test")


def test_row3_a_test_set_beside_val_is_passed_over_and_said() -> None:
    for split, n in (("train", 4), ("val", 3), ("test", 2)):
        folder(f"X/{split}", n=n)
    made = source("X")
    assert counts(made) == [8, 6]
    assert "4 test images are passed over: source.split.val='test|val' takes them, too" in said(made)
    assert counts(source("X", split={"val": "test|val"})) == [8, 10]  # the remedy
    assert counts(source("X", split={"val": "test"})) == [8, 4]
    assert source("X", split=None).classes == ("test", "train", "val")


def test_row3_splits_beside_classes_are_refused_with_a_remedy(capsys: pytest.CaptureFixture[str]) -> None:
    folder("X", ("train", "car", "ship"))
    assert pack("path=X") == 1
    assert "split train beside car, ship" in capsys.readouterr().err and not Path("Y/index.json").exists()
    assert pack("path=X", "source.split=null") == 0
    assert read_index("Y").classes == ("car", "ship", "train")
    folder("Z/cat", ("train", "val"))
    folder("Z", ("dog",))
    with pytest.raises(VarlabError, match=r"Some classes of Z have splits \(train, val\), but dog holds dog/0.jpg"):
        source("Z")
    assert source("Z", split={"skip": "dog"}).classes == ("image",)


@pytest.mark.parametrize(
    ("folders", "words"),
    [
        (["seg_train/cat", "seg_test/cat"], "look like splits: set source.split.train=seg_train "),
        (["val/cat", "test/cat"], "holds the split test, val but no train"),
        (["all/train/cat", "all/val/cat"], "holds splits: set path=X/all"),
        (["train/cat", "val/cow"], "class 'cow' of val, but train has none"),
    ],
)
def test_row3_doubtful_layouts_are_refused(folders: list[str], words: str) -> None:
    folder("X", folders, 2)
    with pytest.raises(VarlabError, match=words):
        source("X")


def test_row3_folders_without_images_may_lie_beside_splits() -> None:
    for split in ("train", "val"):
        folder(f"X/{split}/{split}", n=2)  # unpacked twice
    put("X/annotations/val.json", b"{}")
    made = source("X")
    assert made.classes == ("cat", "dog") and counts(made) == [4, 4] and "passed over: annotations" in said(made)


def test_row3_train_alone_gives_a_share_to_val() -> None:
    folder("X/train")
    made = source("X")
    assert made.classes == ("cat", "dog") and counts(made) == [12, 4] and "no folder holds val images" in said(made)


# -- rows 5, 6 and 14: what is no image and no class -----------------------------------------------------------------------


def test_row5_hidden_and_system_folders_are_neither_classes_nor_images() -> None:
    folder("X")
    for i in range(4):
        put(f"X/__MACOSX/cat/._{i}.jpg", b"\0\5\x16\7")
    for name in (".ipynb_checkpoints/0-checkpoint.jpg", "@eaDir/0.jpg/SYNOPHOTO_THUMB_M.jpg", "._0.jpg", "Thumbs.db"):
        put(f"X/cat/{name}", jpg())
    for name in ("lost+found", "$RECYCLE.BIN", "System Volume Information", "#recycle", ".Trashes"):
        put(f"X/{name}/0.jpg", jpg())
    made = source("X")
    assert made.classes == ("cat", "dog") and sum(counts(made)) == 16 and not load_skipped(made)
    assert "10 hidden or system names (" in said(made) and "__MACOSX 1" in said(made)


def test_row5_a_hidden_folder_that_is_asked_for_is_read() -> None:
    folder(".data/.x")
    assert counts(source(".data/.x")) == [12, 4]


def test_row6_empty_folders_are_no_classes_unless_they_are_asked_for(log: pytest.LogCaptureFixture) -> None:
    folder("X")
    put("X/aempty/readme.txt", b"")
    assert pack("path=X") == 0
    assert read_index("Y").classes == ("cat", "dog")
    assert "no class, without images (source.allow_empty=true makes it one): aempty" in log.text
    assert "without images (source.allow_empty=true" in Path("Y/summary.html").read_text()
    assert source("X", allow_empty=True).classes == ("aempty", "cat", "dog")


def test_row14_other_endings_are_counted_and_content_decides_for_rare_ones(log: pytest.LogCaptureFixture) -> None:
    folder("X")
    for ending in ("jfif", "jpe", "avif", "heic", "jp2", "JPG"):
        put(f"X/cat/z.{ending}", jpg())
    put("X/cat/noext", jpg())
    for name in ("x.txt", "y.txt", "z.xml", "Makefile", "q.heic"):
        put(f"X/dog/{name}", b"no image")
    put("X/stray.jpg", jpg())
    assert pack("path=X") == 0
    line = "5 files of other endings (.txt 2, .heic 1, .xml 1, none 1); 1 image beside the class folders (stray.jpg)"
    assert line in log.text and log.text.index(line) < log.text.index("packed")
    assert sum(read_index("Y").info.counts.values()) == 16 + 7
    assert all(isinstance(s.image, Image.Image) for s in load_samples(source("X"), "train"))


@pytest.mark.parametrize("place", ["X/train/{}", "X/{}/train"])
def test_images_beside_the_folders_of_splits_are_counted(place: str) -> None:
    for name in ("cat", "dog"):
        for split in ("train", "val"):
            put(f"{place.format(name).replace('train', split)}/x.jpg", jpg())
    put("X/stray.jpg", jpg())
    assert "1 image beside the class folders (stray.jpg)" in " ".join(source("X").notes)


def test_a_flat_folder_has_no_labels() -> None:
    folder("X", (".",))
    made = source("X")
    assert made.classes == ("image",) and counts(made) == [6, 2]
    assert {sample.label for sample in load_samples(made, "train")} == {None}


# -- row 4: numbers in order; names in one spelling --------------------------------------------------------------------------


def test_row4_classes_named_by_number_stand_in_numeric_order() -> None:
    folder("X", [str(i) for i in range(12)], 2)
    assert source("X").classes == tuple(str(i) for i in range(12))
    assert in_order(["10", "2", "x"]) == ("10", "2", "x") and in_order(["02", "10", "-1"]) == ("-1", "02", "10")
    folder("X", ["01"], 2)
    assert "classes '1' and '01' have nearly the same name" in said(source("X"))


def test_names_in_two_spellings_are_one_class_and_bytes_are_shown() -> None:
    folder("X", (NFC, NFD, "Cat", "cat"), 2)
    put(b"X/caf\xe9/\xff.jpg", jpg())
    put(b"X/caf\xe9/torn\xff.jpg", b"no image")
    made = source("X", val_fraction=0.0)
    assert made.classes == ("Cat", r"caf\xe9", NFC, "cat") or made.classes == tuple(
        sorted(("Cat", r"caf\xe9", NFC, "cat"))
    )
    assert len(paths(made)[NFC]) == 4 and "one class with folders of two spellings" in said(made)
    assert "classes 'Cat' and 'cat' have nearly the same name" in said(made)
    assert [skipped.name for skipped in load_skipped(made)] == [r"caf\xe9/torn\xff.jpg"]
    assert pack("path=X") == 0 and read_index("Y").classes == made.classes


def test_row26_any_name_is_a_class_name() -> None:
    names = ("it's (1)", "tench, Tinca tinca", "a=b", "#5 & 100%")
    folder("X", names, 2)
    assert pack("path=X") == 0 and read_index("Y").classes == tuple(sorted(names))


# -- row 22: words in the names of shards --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "split"),
    [
        *(
            (f"{word}-000000.tar", None)
            for word in ("retrieval", "medieval", "festival", "latest", "contest", "interval")
        ),
        *(
            (path, "val")
            for path in ("a-val-0.tar", "val/0.tar", "val_000.tar", "imagenet-VALIDATION.tar", "x/dev00.tar")
        ),
        *(
            (path, "test")
            for path in ("test.tar", "test2015/a.tar", "a.test.tar", "valset/test-0.tar", "testset_1.tar")
        ),
        *((path, "train") for path in ("train-val/train-0.tar", "train/0.tar", "split=train/0.parquet")),
        *((path, None) for path in ("photo of test tubes-0.tar", "trainval-0.tar", "0.tar", "train-val-0.tar")),
    ],
)
def test_row22_only_whole_words_name_a_split(path: str, split: str | None) -> None:
    assert split_of_path(path) == split


def test_row22_patterns_of_the_owner_are_globs_and_test_waits_for_val() -> None:
    files, none = ["retrieval-0.tar", "test-0.tar", "train-0.tar", "val-0.tar"], {"val": None, "train": None}
    splits, notes = assign_splits(files, none, where="X")
    assert splits == {"train": ["retrieval-0.tar", "train-0.tar"], "val": ["val-0.tar"]} and "1 test files" in notes[0]
    splits, notes = assign_splits(files[:3], none, where="X")
    assert splits["val"] == ["test-0.tar"] and "taken for it" in notes[0]
    splits, notes = assign_splits(files, {"val": "*val*|*test*", "train": "*"}, where="X")
    assert splits["val"] == ["retrieval-0.tar", "test-0.tar", "val-0.tar"] and not notes
    assert assign_splits(files, {"val": "none"}, where="X")[0]["train"] == files


# -- rows 21 and 25: shards and their index ------------------------------------------------------------------------------------


def shard(
    path: str, n: int = 6, prefix: str = "", label: Callable[[int], bytes] | None = None, ending: str = "cls"
) -> None:
    """A tar of JPEGs with labels."""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for i in range(n):
            text = str(i % 2).encode() if label is None else label(i)
            for name, content in (("jpg", jpg(i)), (ending, text)):
                member = tarfile.TarInfo(f"{prefix}{i:03d}.{name}")
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))


def index(*arguments: str) -> int:
    return main(["index", "X", "workers=0", *arguments])


def tars(root: str, **changes: Any) -> Tars:
    own: dict[str, Any] = {"size": None, "resample": "lanczos", "label": "auto", "classes": None, "seed": 0}
    return Tars(path=root, **{**own, "split": {"val": None, "train": None}, "val_fraction": 0.0, **changes})


def test_row21_an_index_can_lie_elsewhere(capsys: pytest.CaptureFixture[str]) -> None:
    shard("data/X/train-0.tar")
    shard("data/X/val-0.tar", prefix="b")
    assert main(["index", "data/X", "workers=0", "out=data/I"]) == 0
    assert {p.name for p in Path("data/X").iterdir()} == {"train-0.tar", "val-0.tar"}
    assert json.loads(Path("data/I/index.json").read_text())["shards"] == "../X"
    assert main(["index", "data/X", "workers=0"]) == 0
    assert read_index("data/I").hash == read_index("data/X").hash
    Path("data").rename("moved")  # with the shards
    assert len(module("moved/I").images("train")) == 6
    assert main(["index", "moved/I", "check=true", "out=C"]) == 0
    assert len(tars("moved/I").entries("val")) == 6
    assert main(["index", "moved/I", "workers=0"]) == 0 and "shards" in json.loads(
        Path("moved/I/index.json").read_text()
    )
    Path("moved/X").rename("shards")  # without their index
    with pytest.raises(VarlabError, match=r"no longer at \.\./X: set data.shards to where they are now"):
        module("moved/I").images("train")
    assert len(module("moved/I", shards="shards").images("train")) == 6
    assert module("moved/I", shards="shards").reading_arguments["shards"] == "shards"


def module(path: str, **changes: Any) -> ShardDataModule:
    own: dict[str, Any] = {"batch": 4, "eval_batch": 4, "seed": 0, "workers": 0, "cache_bytes": 0}
    return ShardDataModule(path=path, augment=Augment(flip=False, crop=1.0, noise=0.0), **own, **changes)


def test_row21_a_folder_that_cannot_be_written_is_found_out_first(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shard("X/train-0.tar")
    monkeypatch.setattr("varlab.data.format.scan.scan_tar", lambda *a, **k: pytest.fail("read before the check"))
    make = tempfile.TemporaryFile

    def refuses(**where: Any) -> Any:
        if Path(where["dir"]).name == "X":
            raise OSError(30, "Read-only file system")
        return make(**where)

    monkeypatch.setattr(tempfile, "TemporaryFile", refuses)
    assert index() == 1
    said = capsys.readouterr().err
    assert (
        "X cannot be written (Read-only file system): make it writable, or put the index elsewhere with out=DIR."
        in said
    )
    monkeypatch.undo()


def test_row22_words_inside_words_are_no_splits(log: pytest.LogCaptureFixture) -> None:
    for name in ("retrieval-000000", "retrieval-000001", "latest-0", "._retrieval-000000"):
        shard(f"X/{name}.tar", prefix=name.strip(".")[:3] + name[-1])
    assert index("val_fraction=0.25") == 0
    assert read_index("X").info.counts == {"train": 14, "val": 4} and "1 hidden or system name (._* 1)" in log.text
    assert len(tars("X", label="cls").entries("train")) == 18
    assert index("split.val=*val*") == 0 and read_index("X").info.counts == {"train": 6, "val": 12}


def test_row22_shards_for_val_alone_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    shard("X/val-0.tar")
    with pytest.raises(VarlabError, match=r"named for val.*split\.val=none takes them for train"):
        tars("X")
    assert index() == 1 and "split.val=none takes them for train" in capsys.readouterr().err
    assert not Path("X/index.json").exists()
    assert index("split.val=none") == 0 and read_index("X").info.counts == {"train": 6}


def test_row21_shards_behind_links_are_read_once() -> None:
    shard("big/a-0.tar")
    Path("X").mkdir()
    link("../big", "X/train")
    link("../../big/a-0.tar", "big/again.tar")
    link("..", "big/up")
    assert index() == 0 and read_index("X").info.counts == {"train": 6}
    assert len(module("X").images("train")) == 6


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le-sig"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_row25_classes_of_any_editor_are_read(encoding: str, end: str) -> None:
    text = end.join([NFD, "dog", "tench, Tinca tinca", ""])
    content = text.encode(encoding) if "le" not in encoding else b"\xff\xfe" + text.encode("utf-16-le")
    put("c.txt", content)
    names = (NFC, "dog", "tench, Tinca tinca")
    shard("X/x.tar", label=lambda i: json.dumps({"label": (NFC, NFD, names[2])[i % 3]}).encode(), ending="json")
    assert index("label=json:label", "classes=c.txt") == 0
    made = read_index("X")
    assert made.classes == names and not made.faults and made.table("train")["label"].tolist() == [0, 0, 2] * 2


@pytest.mark.parametrize(
    ("ending", "text", "label"),
    [
        *(("cls", text, 1) for text in (b"\xef\xbb\xbf1", b"1\r\n", b" 1 \n")),
        *(("json", json.dumps({"label": value}).encode(), 1) for value in (1, 1.0, True)),
        ("json", b'\xef\xbb\xbf{"label": 1}', 1),
        *(("json", json.dumps({"label": value}).encode(), None) for value in (-1, None, float("nan"), -1.0)),
        ("cls", b"-1", None),
    ],
)
def test_row25_labels_as_people_write_them(ending: str, text: bytes, label: int | None) -> None:
    shard("X/x.tar", 2, label=lambda i: text, ending=ending)
    scan = scan_tar(Path("X"), "x.tar")
    assert not scan.faults and [record.label for record in scan.records] == [label] * 2


def test_row26_a_list_with_commas_in_names_says_how_to_quote() -> None:
    shard("X/x.tar")
    assert index('classes=["tench, Tinca tinca",dog]') == 0
    assert read_index("X").classes == ("tench, Tinca tinca", "dog")
    with pytest.raises(VarlabError, match=r"has 2 classes, not 3.*a name with a comma needs quotes"):
        tars("X", classes=["tench", "Tinca tinca", "dog"])


def test_row4_labels_that_are_numbers_in_text_stand_in_numeric_order() -> None:
    shard("X/x.tar", 12, label=lambda i: json.dumps({"label": str(i)}).encode(), ending="json")
    assert index() == 0
    assert read_index("X").classes == tuple(map(str, range(12)))
    assert read_index("X").table("train")["label"].tolist() == list(range(12))


# -- row 33: Parquet ---------------------------------------------------------------------------------------------------


def parquet_file(path: str, labels: Any, n: int = 6, **columns: Any) -> str:
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    table = pyarrow.table(
        {"image": [jpg(i) for i in range(n)], **({} if labels is None else {"label": labels}), **columns}
    )
    pyarrow.parquet.write_table(table, path, row_group_size=4)
    return path


def parquet(path: Any, **changes: Any) -> Parquet:
    own: dict[str, Any] = {"split": {"val": None, "train": None}, "image": "image", "label": "label", "classes": None}
    return Parquet(path=path, **{**own, "size": 8, "resample": "lanczos", "val_fraction": 0.0, "seed": 0, **changes})


def labels_of(made: Parquet) -> list[int | None]:
    return [sample.label for sample in load_samples(made, "train")]


@pytest.mark.parametrize(
    ("labels", "classes", "numbers"),
    [
        ([0.0, 1.0, 0.0, 1.0, float("nan"), None], ("0", "1"), [0, 1, 0, 1]),
        ([0, 1, -1, 1, 0, None], ("0", "1"), [0, 1, 1, 0]),
        ([True, False, None, True, False, True], ("0", "1"), [1, 0, 1, 0, 1]),
        ([Decimal("2.00"), Decimal("0.00")] * 3, ("0", "1", "2"), [2, 0] * 3),
        (pyarrow.array([1.0, 0.0] * 3, pyarrow.float32()).dictionary_encode(), ("0", "1"), [1, 0] * 3),
        (pyarrow.array(["10", "9", None] * 2).dictionary_encode(), ("9", "10"), [1, 0] * 2),
        ([NFC, NFD, "a"] * 2, ("a", NFC), [1, 1, 0] * 2),
        ([-1] * 6, ("image",), [None] * 6),
        (pyarrow.nulls(6), ("image",), [None] * 6),
        ([0, 1, -5, 1, 0, 1], ("0", "1"), [0, 1, 1, 0, 1]),
    ],
    ids=["float", "int", "bool", "decimal", "categories", "text", "forms", "none", "nulls", "negative"],
)
def test_row33_labels_of_every_type(labels: Any, classes: tuple[str, ...], numbers: list[int | None]) -> None:
    made = parquet(parquet_file("x.parquet", labels))
    assert made.classes == classes and labels_of(made) == numbers
    missing = 6 - len(numbers)
    assert len(load_skipped(made)) == missing
    if missing and -5 not in np.asarray(labels):
        assert f"{missing} of 6 rows have no label" in "\n".join(made.notes)


def test_row33_numbers_that_are_no_labels_are_refused() -> None:
    with pytest.raises(VarlabError, match=r"has 0.5 in column 'label', which is no class"):
        parquet(parquet_file("x.parquet", [0.5] * 6))


@pytest.mark.parametrize(
    ("values", "classes", "numbers"),
    [
        (("0", "10", "2"), tuple(map(str, range(11))), [0, 10, 2]),
        (("a%20b", "é", "__HIVE_DEFAULT_PARTITION__"), ("a b", "é"), [0, 1]),
    ],
)
def test_row33_folders_give_labels(values: Sequence[str], classes: tuple[str, ...], numbers: list[int]) -> None:
    for value in values:
        parquet_file(f"P/label={value}/part-0.parquet", None, 1)
    made = parquet("P")
    assert made.classes == classes and sorted(labels_of(made), key=str) == sorted(numbers, key=str)


def test_row33_several_files_empty_ones_and_splits() -> None:
    parquet_file("P/train/0.parquet", [0, 1] * 3)
    parquet_file("P/train/empty.parquet", pyarrow.nulls(0), 0)
    parquet_file("P/validation/0.parquet", [0.0, 1.0] * 3)
    parquet_file("P/test/0.parquet", [-1] * 6)
    put("P/.cache/x.parquet", b"no Parquet")
    made = parquet("P")
    assert [len(made.entries(split)) for split in ("train", "val")] == [6, 6]
    assert "1 test files (test/0.parquet …)" in "\n".join(made.notes)
    made = parquet(["P/train", "P/test/0.parquet"], split={"val": "none"})
    assert len(made.entries("train")) == 12 and made.describe()["path"] == ["P/train", "P/test/0.parquet"]
    assert main(["pack", "source=parquet", "path=[P/train,P/validation]", "source.size=8", "out=Y", "workers=0"]) == 0
    assert read_index("Y").info.counts == {"train": 6, "val": 6}
    with pytest.raises(VarlabError, match="none is left for train"):
        parquet("P", split={"skip": "train/*", "val": None})


# -- row 1: no val images; row 4: labels by number; row 26: names of labels ----------------------------------------------

JUDGE = ("task=classifier", "classifier.channels=[8,8,16]", "classifier.groups=4", "data=shards", "data.size=16")
QUICK = ("data.batch=32", "data.workers=0", "budget.images=64", "trainer.precision=32-true", "tensorboard=false")


def train(*arguments: str) -> int:
    return main(["train", "out=J", *JUDGE, *QUICK, *arguments])


def test_row1_a_training_without_val_images_is_refused_before_it_begins(capsys: pytest.CaptureFixture[str]) -> None:
    shard("X/a-000000.tar", 40)
    assert index() == 0
    assert train("data.path=X") == 1
    assert "holds no val images to validate with: add val.skip=true" in capsys.readouterr().err
    assert not Path("J/metrics.jsonl").exists() and not Path("J/last.ckpt").exists()
    assert train("data.path=X", "val.skip=true") == 0  # the remedy, in the same directory
    assert Path("J/weights.safetensors").exists()
    metrics = [json.loads(line) for line in Path("J/metrics.jsonl").read_text().splitlines()]
    assert metrics[-1]["images"] == 64 and not any(key.startswith("val/") for line in metrics for key in line)


def test_row1_skipping_validation_does_not_change_what_is_trained() -> None:
    folder("X")
    assert pack("path=X") == 0
    for out, more in (("A", ()), ("B", ("val.skip=true",))):
        assert train("data.path=Y", f"out={out}", *more) == 0
    assert Path("A/weights.safetensors").read_bytes() == Path("B/weights.safetensors").read_bytes()
    keys = {key for line in Path("A/metrics.jsonl").read_text().splitlines() for key in json.loads(line)}
    assert "val/accuracy" in keys
    assert train("data.path=Y", "out=A", "val.skip=true") == 0  # finished: the same run


def test_row1_classes_with_one_image_are_named_before_the_packing(log: pytest.LogCaptureFixture) -> None:
    folder("X", ["a", "b", "c"], 1)
    assert pack("path=X") == 0
    assert log.text.index("no image is for val: a training on it needs val.skip=true") < log.text.index("packed")
    folder("Z", ["a", "b"], 1)
    folder("Z", ["c"], 9)
    assert "too few images for val in 2 of 3 classes: a, b" in said(source("Z"))


@pytest.mark.parametrize(
    ("knows", "has", "fits"),
    [
        (["0", "1", "2"], ["0", "1", "2"], True),
        (["0", "1", "2"], ["cat", "dog", "cow"], True),
        (["0", "1", "2"], ["00", "01", "02"], True),
        (["0", "1", "2"], ["1", "2", "3"], False),
        ([str(i) for i in range(12)], sorted(str(i) for i in range(12)), False),
        (["cat", NFC], ["cat", NFD], True),
        (["cat", "dog"], ["dog", "cat"], False),
        (["0", "1"], ["0", "1", "2"], False),
        (["\ud83d"], ["\ud83d"], True),  # half a character, in JSON
    ],
)
def test_row4_labels_are_never_permuted(knows: list[str], has: list[str], fits: bool) -> None:
    info = types.SimpleNamespace(path="Y", classes=tuple(has))
    if fits:
        require_same_classes(knows, info)  # type: ignore[arg-type]
        return
    with pytest.raises(VarlabError, match=r"labels would be permuted\. Pack the images again|knows the classes"):
        require_same_classes(knows, info)  # type: ignore[arg-type]


def test_row4_a_judge_of_the_same_classes_in_another_order_is_known() -> None:
    assert permuted(["0", "1", "10", "2"], ["0", "1", "2", "10"]) and not permuted(["a", NFC], ["a", NFD])
    assert not permuted(["a", "b"], ["a", "c"])


@pytest.mark.parametrize("name", ["tench, Tinca tinca", "it's (1)", "a=b", NFC, "12 apostles"])
def test_row26_a_label_is_named_as_it_is_called(name: str) -> None:
    override = OverridesParser.create().parse_override(f"label={in_grammar('label', name, multirun=False)}")
    assert override.value() == name and not override.is_sweep_override()
    model = types.SimpleNamespace(classes=("x", unicodedata.normalize("NFD", name)))
    assert edit._label({"label": name, "kind": "class"}, model) == 1  # type: ignore[arg-type]


@pytest.mark.parametrize("value", ["3", "null", "'a, b'", ""])
def test_row26_numbers_and_quoted_names_stay_as_they_are(value: str) -> None:
    assert in_grammar("label", value, multirun=False) == value
    assert in_grammar("label", f"{value},{value}", multirun=True) == f"{value},{value}"


def test_conditions_are_found_by_name_in_any_spelling_and_ending() -> None:
    folder("X", (NFC,), 1)
    put(f"X/{NFC}/{NFC}.jpg", jpg())
    put(f"C/{NFC}/{NFD}.PNG", jpg(50))
    put(f"C/{NFC}/._{NFC}.jpg", b"\0\5\x16\7")
    put(f"C/{NFC}/0.jfif", jpg(90))
    put(f"C/{NFC}/0.txt", b"a cat")
    maker = PairedImages(path="C", resample="nearest")
    drawn = {}
    for sample in load_samples(source("X", val_fraction=0.0), "train"):
        second = maker.draw(sample, Image.new("RGB", (8, 8)))
        assert isinstance(second, Image.Image)
        drawn[Path(str(sample.file)).stem] = int(np.asarray(second).mean())
    assert drawn == {"0": 90, NFC: 50}


def test_row2_links_in_a_flat_folder_count_once() -> None:
    folder("X", (".",), 3)
    link("1.jpg", "X/0a.jpg")
    made = source("X", val_fraction=0.0)
    assert {path for _, path, _ in made.entries("train")} == {"0.jpg", "1.jpg", "2.jpg"}
    assert "1 link to what was there already (0a.jpg)" in said(made)
