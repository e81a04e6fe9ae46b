"""What people's folders, splits, labels and indexes hold; the numbers are those of the public reports (row1 …)."""

from __future__ import annotations

import io
import logging
import os
import unicodedata
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from tests.data.pack.loading import load_samples, load_skipped
from varlab.cli.main import main
from varlab.data.folders.class_names import in_order
from varlab.data.folders.splits import assign_splits, split_of_path
from varlab.data.folders.tree import Tree
from varlab.data.format.index import read_index
from varlab.data.pack.sources.folder import ImageFolder
from varlab.errors import VarlabError

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
    assert source("Z", split={"skip": "dog"}).classes == ("cat",)


@pytest.mark.parametrize(
    ("folders", "words"),
    [
        (["seg_train/cat", "seg_test/cat"], "look like splits: set source.split.train='seg_train'"),
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
    assert made.classes == ("cat", "dog") and counts(made) == [12, 4] and "there is no val folder" in said(made)


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
