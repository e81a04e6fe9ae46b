"""What people's tars hold; the numbers are those of the public reports (row7 …). Each way into varlab reads them alike."""

from __future__ import annotations

import bz2
import gzip
import io
import logging
import lzma
import os
import tarfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from PIL import Image

from tests.data.pack.loading import load_samples, load_skipped
from varlab.cli.main import main
from varlab.data.format.index_builder import build_index
from varlab.data.format.scan import ScanSettings, split_files
from varlab.data.format.tar import scan_tar
from varlab.data.image.augment import Augment
from varlab.data.pack.sources.tars import Tars
from varlab.data.shard_module import ShardDataModule
from varlab.data.stream_module import StreamDataModule
from varlab.errors import VarlabError

STEP = 8  # between the grey values by which samples are known
LINK, SYMLINK = tarfile.LNKTYPE, tarfile.SYMTYPE


# -- small inputs --------------------------------------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    Path("X").mkdir()
    return tmp_path


def picture(i: int, form: str = "JPEG") -> bytes:
    """The picture of sample i: grey, of the value ``STEP * i``."""
    buffer = io.BytesIO()
    image = Image.fromarray(np.full((16, 16, 3), STEP * i, np.uint8))
    image.save(buffer, form, **({"lossless": True} if form == "WEBP" else {}))
    return buffer.getvalue()


class Put(NamedTuple):
    """A member: a file, or a link if it has a kind."""

    name: str
    content: bytes = b""
    kind: bytes = tarfile.REGTYPE
    link: str = ""


def pair(i: int, key: str | None = None, *, form: str = "JPEG", ending: str = "jpg") -> list[Put]:
    """Image and label of sample i, whose class is i modulo 2."""
    key = f"{i:03d}" if key is None else key
    return [Put(f"{key}.{ending}", picture(i, form)), Put(f"{key}.cls", b"%d" % (i % 2))]


def pairs(n: int, first: int = 0) -> list[Put]:
    return [put for i in range(first, first + n) for put in pair(i)]


def tar(*puts: Put, form: int = tarfile.PAX_FORMAT) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=form, errors="surrogateescape") as archive:
        for put in puts:
            info = tarfile.TarInfo(put.name)
            info.type, info.linkname, info.size = put.kind, put.link, len(put.content)
            archive.addfile(info, io.BytesIO(put.content))
    return buffer.getvalue()


def bare(content: bytes) -> bytes:
    """A tar without its end mark and padding."""
    end = len(content.rstrip(b"\0"))
    return content[: -(-end // 512) * 512]


class Seen(NamedTuple):
    """The label of each sample, by number; the kind of each fault, by the sample's key ("" for a shard); and all that was
    said of them. lost: samples."""

    samples: dict[int, int]
    faults: dict[str, str]
    lost: int
    said: str


def number_of(img_3HW: torch.Tensor) -> int:
    return round(float(img_3HW.float().mean()) / STEP)


def by_index(folder: str) -> Seen:
    settings = ScanSettings(label="auto", classes=None, decode=True, most_pixels=1 << 20, size=None)
    files, _ = split_files(Path(folder), {"train": "*"})
    rest: dict[str, Any] = {"source": {"name": "x"}, "val_fraction": 0.0, "seed": 0, "max_bad": 1.0, "workers": 0}
    _, faults = build_index(Path(folder), splits=files, settings=settings, **rest)
    plain = Augment(flip=False, crop=1.0, noise=0.0)
    data = ShardDataModule(path=folder, batch=8, eval_batch=8, seed=0, workers=0, cache_bytes=0, augment=plain)
    batch = data.samples("train")
    assert not batch.faults
    labels = dict(zip(map(number_of, batch.img_u8_B3HW), batch.label_B.tolist(), strict=True))
    lost = sum(fault.samples for fault in faults)
    return Seen(labels, {f.key: f.kind for f in faults}, lost, "; ".join(map(str, faults)))


def by_source(folder: str) -> Seen:
    own: dict[str, Any] = {"size": None, "resample": "lanczos", "label": "auto", "classes": None, "seed": 0}
    source = Tars(path=folder, **own, split={"val": None, "train": None}, val_fraction=0.0)
    labels = {}
    for sample in load_samples(source, "train"):
        image = Image.open(io.BytesIO(sample.image)) if isinstance(sample.image, bytes) else sample.image
        labels[round(float(np.asarray(image.convert("RGB")).mean()) / STEP)] = sample.label or 0
    skipped = {s.name.partition(" ")[2]: s.reason.partition(":")[0] for s in load_skipped(source)}
    return Seen(labels, skipped, len(skipped), "; ".join(s.reason for s in load_skipped(source)))


def by_stream(folder: str, how: str = "{}", n: int = 40) -> Seen:
    urls = [how.format(path) for path in sorted(map(str, Path(folder).glob("*.*")))]
    settings: dict[str, Any] = {"classes": 2, "size": 16, "val_images": 1, "eval_batch": 8, "batch": 8, "seed": 0}
    settings |= {"workers": 0, "shuffle": 0, "augment": Augment(flip=False, crop=1.0, noise=0.0), "max_bad": 1.0}
    data = StreamDataModule(train=urls, val=urls, train_images=n, **settings)
    batches = list(data.train_loader(0, 64, 0, 1))  # several passes
    labels = {number_of(img): int(label) for b in batches for img, label in zip(b.img_u8_B3HW, b.label_B, strict=True)}
    watch = data.watches["train"]
    faults = watch.faults.values()
    return Seen(labels, {f.key: f.kind for f in faults}, watch.lost, "; ".join(map(str, faults)))


def by_pipe(folder: str) -> Seen:
    return by_stream(folder, "pipe:cat {}")


WAYS: dict[str, Callable[[str], Seen]] = {"index": by_index, "source": by_source, "stream": by_stream, "pipe": by_pipe}
each_way = pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)


def whole(numbers: Sequence[int]) -> dict[int, int]:
    return {i: i % 2 for i in numbers}


# -- row 7: to the end of the file ---------------------------------------------------------------------------------------

A, B = tar(*pairs(6)), tar(*pairs(6, first=6))
CONCATENATED = {
    "cat a.tar b.tar": A + B,
    "three": A + tar() + B,
    "without padding": bare(A) + bytes(1024) + bare(B) + bytes(1024),
    "one zero block": bare(A) + bytes(512) + B,
    "tar -A": bare(A) + B,
    "more padding": A + bytes(10240) + B,
    "blocks of 64 KiB": bare(A) + bytes(65536 - len(bare(A))) + B,
}


@each_way
@pytest.mark.parametrize("content", CONCATENATED.values(), ids=CONCATENATED)
def test_row7_concatenated_archives_are_read(way: Callable[[str], Seen], content: bytes) -> None:
    Path("X/x.tar").write_bytes(content)
    assert way("X").samples == whole(range(12))


def test_row7_usual_concatenations_have_no_fault(caplog: pytest.LogCaptureFixture) -> None:
    for name in ("cat a.tar b.tar", "one zero block", "tar -A", "blocks of 64 KiB"):
        Path("X/x.tar").write_bytes(CONCATENATED[name])
        assert not scan_tar(Path("X"), "x.tar").faults
    Path("X/x.tar").write_bytes(A + B)
    with caplog.at_level(logging.INFO):
        by_index("X")
    assert "passed over: 1 member that belongs to no sample (1 × end of archive inside a shard)" in caplog.text


LONG = tar(*pairs(24))
SIZE = len(bare(tar(*pairs(1))))  # bytes of a sample


def zeroed(content: bytes, first: int, last: int | None = None) -> bytes:
    last = len(content) if last is None else last
    return content[:first] + bytes(last - first) + content[last:]


DAMAGED: dict[str, tuple[bytes, int, str]] = {  # the samples that are left, and the kind of the fault
    "zeroed tail": (zeroed(LONG, 12 * SIZE), 12, "cut"),
    "zeroed tail, from inside an image": (zeroed(LONG, 12 * SIZE + 900), 12, "cut"),
    "zeroed tail, a little": (zeroed(LONG, 23 * SIZE + 900), 23, "cut"),
    "zeroed header": (zeroed(LONG, 12 * SIZE, 12 * SIZE + 512), 23, "damaged"),
    "zeroed sample": (zeroed(LONG, 12 * SIZE, 13 * SIZE), 23, "damaged"),
    "zeroed page": (zeroed(LONG, 12 * SIZE, 14 * SIZE), 22, "damaged"),
    "cut": (LONG[: 12 * SIZE + 900], 12, "cut"),
    "cut at a header": (LONG[: 12 * SIZE], 12, "cut"),
    "garbage behind the end": (LONG + b"garbage " * 700, 24, "damaged"),
    "one byte behind the end": (LONG + b"\n", 24, "damaged"),
    "size field": (LONG[: 12 * SIZE + 130] + b"7" + LONG[12 * SIZE + 131 :], 23, "damaged"),
    "checksum": (LONG[: 12 * SIZE + 150] + b"9" + LONG[12 * SIZE + 151 :], 23, "damaged"),
}


@each_way
@pytest.mark.parametrize("case", DAMAGED.values(), ids=DAMAGED)
def test_row7_fewer_samples_are_never_silent(way: Callable[[str], Seen], case: tuple[bytes, int, str]) -> None:
    content, left, kind = case
    Path("X/x.tar").write_bytes(content)
    seen = way("X")
    assert len(seen.samples) == left and kind in seen.faults.values()
    if way is not by_source:  # which counts entries
        assert len(seen.samples) + seen.lost >= 24 or kind == "cut"


@each_way
def test_row7_a_large_loss_counts_as_many_samples(way: Callable[[str], Seen]) -> None:
    Path("X/x.tar").write_bytes(zeroed(LONG, 2 * SIZE, 12 * SIZE))
    seen = way("X")
    assert len(seen.samples) == 14 and (way is by_source or seen.lost == 10)


# -- row 8: images by their content --------------------------------------------------------------------------------------

FORMS = {"png": "PNG", "webp": "WEBP", "bmp": "BMP", "tif": "TIFF", "tiff": "TIFF", "gif": "GIF", "JPG": "JPEG"}
FORMS |= {"jpe": "JPEG", "jfif": "JPEG", "JPEG": "JPEG", "avif": "AVIF", "jp2": "JPEG2000", "img": "PNG", "ppm": "PPM"}


@each_way
@pytest.mark.parametrize("ending", ["jpg", "png", "webp"])
def test_row8_a_wrong_ending_does_not_matter(way: Callable[[str], Seen], ending: str) -> None:
    forms = ("PNG", "WEBP", "JPEG")
    Path("X/x.tar").write_bytes(tar(*(put for i in range(9) for put in pair(i, form=forms[i % 3], ending=ending))))
    seen = way("X")
    assert seen.samples == whole(range(9)) and not seen.faults


@each_way
def test_row8_other_formats_and_endings_are_images(way: Callable[[str], Seen]) -> None:
    members = [put for i, (ending, form) in enumerate(FORMS.items()) for put in pair(i, form=form, ending=ending)]
    members += [Put("099", picture(20)), Put("099.cls", b"0")]  # no ending at all
    Path("X/x.tar").write_bytes(tar(*members))
    seen = way("X")
    assert seen.samples == whole(range(len(FORMS))) | {20: 0} and not seen.faults


@each_way
def test_row8_what_no_program_opens_is_named_with_a_remedy(way: Callable[[str], Seen]) -> None:
    odd = [Put("900.heic", b"\0\0\0\x18ftypheic"), Put("900.cls", b"1"), *pair(3, "901.v2.final")]
    Path("X/x.tar").write_bytes(tar(*pairs(3), *odd))
    seen = way("X")
    assert seen.samples == whole(range(3)) and seen.faults == {"900": "no_image", "901": "no_image"}
    assert "convert it to JPEG or PNG" in seen.said and "rename the files without other dots" in seen.said


# -- row 25: cls with a byte-order mark ----------------------------------------------------------------------------------


@each_way
def test_row25_a_byte_order_mark_is_no_label(way: Callable[[str], Seen]) -> None:
    marked = [Put("001.jpg", picture(1)), Put("001.cls", "\ufeff1\r\n".encode())]
    Path("X/x.tar").write_bytes(tar(*pair(0), *marked, *pair(2)))
    assert way("X").samples == whole(range(3))


# -- row 27: compressed --------------------------------------------------------------------------------------------------

PACKED = {"gz": (gzip.compress, "gunzip"), "bz2": (bz2.compress, "bunzip2"), "xz": (lzma.compress, "unxz")}


@pytest.mark.parametrize("ending", PACKED)
@pytest.mark.parametrize("way", [by_index, by_source])
def test_row27_compressed_shards_are_refused_with_the_command(way: Callable[[str], Seen], ending: str) -> None:
    compress, tool = PACKED[ending]
    Path("X/it's.tar").write_bytes(compress(A))
    with pytest.raises(VarlabError, match=rf"it's\.tar is .*-compressed: unpack it with `mv .* && {tool} ") as raised:
        way("X")
    assert os.system(str(raised.value).split("`")[1]) == 0
    assert way("X").samples == whole(range(6))


@pytest.mark.parametrize(
    ("name", "ending"), [("a.tar.gz", "gz"), ("a.tgz", "gz"), ("a.tar.bz2", "bz2"), ("a.txz", "xz")]
)
def test_row27_a_folder_of_compressed_shards_names_the_remedy(name: str, ending: str) -> None:
    Path(f"X/{name}").write_bytes(PACKED[ending][0](A))
    for way in (by_index, by_source):
        with pytest.raises(
            VarlabError, match=r"1 compressed shards .* and no \*\.tar: unpack them with `find "
        ) as raised:
            way("X")
    assert os.system(str(raised.value).split("`")[1]) == 0
    assert by_index("X").samples == whole(range(6))


@pytest.mark.parametrize("ending", PACKED)
def test_row27_a_stream_unpacks_by_content(ending: str) -> None:
    compress = PACKED[ending][0]
    Path("X/x.tar").write_bytes(compress(A) + compress(B))
    for way in (by_stream, by_pipe):
        seen = way("X")
        assert seen.samples == whole(range(12)) and not seen.faults


def test_row27_other_wrappings_are_named(caplog: pytest.LogCaptureFixture) -> None:
    Path("X/x.tar").write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n")
    with pytest.raises(VarlabError, match=r"pointer of Git LFS .* run `git lfs pull`"):
        by_index("X")
    Path("X/x.tar").write_bytes(A)
    Path("X/y.tar.gz").write_bytes(gzip.compress(B))
    assert len(by_index("X").samples) == 6 and "1 *.tar.gz are passed over" in caplog.text


# -- row 28: what is no sample -------------------------------------------------------------------------------------------

NOTES = [Put("README", b"hi"), Put("classes.txt", b"a"), Put(".DS_Store", b"x"), Put("__meta__/x.jpg", b"x")]
NOTES += [Put("dataset.json", b"{}"), Put("LICENSE.md", b"x"), Put("docs/notes.pdf", b"x")]
SIDES = ["._000.jpg", "./._001.cls", "PaxHeader/000.jpg", "PaxHeaders.123/001.jpg", "__MACOSX/._002.jpg", "a/Thumbs.db"]
SIDES += ["@eaDir/000.jpg/SYNOPHOTO_THUMB_M.jpg", "desktop.ini", "a/.DS_Store", ".ipynb_checkpoints/000-checkpoint.jpg"]


@each_way
def test_row28_notes_and_side_files_are_no_samples(
    way: Callable[[str], Seen], caplog: pytest.LogCaptureFixture
) -> None:
    sides = [Put(name, b"\0\5\x16\7") for name in SIDES]
    among = [
        member for put, side in zip(pairs(5), sides, strict=True) for member in (side, put)
    ]  # as bsdtar does on a Mac
    Path("X/x.tar").write_bytes(tar(*NOTES, *among, *pairs(3, first=5), *NOTES))
    with caplog.at_level(logging.INFO):
        seen = way("X")
    assert seen.samples == whole(range(8)) and not seen.faults
    (line,) = [record.message for record in caplog.records if "to no sample" in record.message]
    assert f"{len(NOTES) + len(SIDES) + 2} members" in line  # __meta__ and .DS_Store come twice
    assert "2 × ._*" in line and "1 × README" in line and "1 × classes.txt" in line


@each_way
def test_row28_a_sample_that_lost_its_image_is_no_note(way: Callable[[str], Seen]) -> None:
    Path("X/x.tar").write_bytes(tar(Put("900.cls", b"1"), *pairs(3), Put("901.cls", b"0"), Put("readme.txt", b"x")))
    seen = way("X")
    assert seen.samples == whole(range(3)) and seen.faults == {"900": "no_image", "901": "no_image"}


@each_way
def test_row28_meta_is_a_note_beside_samples_that_have_its_ending(way: Callable[[str], Seen]) -> None:
    Path("X/x.tar").write_bytes(tar(Put("__meta__.json", b"{}"), *pairs(3), Put("002.json", b"{}")))
    seen = way("X")
    assert seen.samples == whole(range(3)) and not seen.faults


def test_row28_the_command_does_not_count_notes_as_bad() -> None:
    Path("X/x.tar").write_bytes(tar(*NOTES[:3], *pairs(24)))
    assert main(["index", "X", "workers=0"]) == 0


# -- row 29: links -------------------------------------------------------------------------------------------------------


def linked() -> list[Put]:
    """Labels and images that are links: to what lies before and behind, over other links, and in other folders."""
    return [
        *pair(0),
        *[Put("001.jpg", picture(1)), Put("002.jpg", picture(2)), Put("002.cls", kind=LINK, link="000.cls")],
        *[Put("labels/1", b"1"), Put("003.jpg", picture(3)), Put("003.cls", kind=SYMLINK, link="./labels/1")],
        *[Put("a/004.jpg", kind=SYMLINK, link="../images/4.jpg"), Put("a/004.cls", kind=LINK, link="./002.cls")],
    ]


@each_way
def test_row29_links_inside_the_tar_are_followed(way: Callable[[str], Seen]) -> None:
    members = [put for put in linked() if put.name != "001.jpg"]
    Path("X/x.tar").write_bytes(tar(Put("images/4.jpg", picture(4)), Put("images/4.cls", b"0"), *members))
    seen = way("X")
    assert seen.samples == {0: 0, 2: 0, 3: 1, 4: 0} and not seen.faults


@pytest.mark.parametrize("way", [by_index, by_source, by_stream])
def test_row29_links_to_what_lies_behind_are_followed_in_files(way: Callable[[str], Seen]) -> None:
    ahead = [Put("000.jpg", kind=SYMLINK, link="z/0.jpg"), Put("000.cls", kind=SYMLINK, link="001.cls")]
    Path("X/x.tar").write_bytes(tar(*ahead, *pair(1), Put("z/0.jpg", picture(0)), Put("z/0.cls", b"1")))
    seen = way("X")
    assert seen.samples == {0: 1, 1: 1} and not seen.faults


@each_way
def test_row29_other_links_and_special_files_are_named(way: Callable[[str], Seen]) -> None:
    outside = [Put("900.jpg", picture(9)), Put("900.cls", kind=SYMLINK, link="/data/labels/9.cls")]
    loop = [Put("901.jpg", kind=SYMLINK, link="901.png"), Put("901.png", kind=SYMLINK, link="901.jpg")]
    device = [Put("902.jpg", kind=tarfile.CHRTYPE), Put("902.cls", b"1"), Put("d/", kind=tarfile.DIRTYPE)]
    unused = [Put("e", kind=SYMLINK, link="/data"), Put("pipe", kind=tarfile.FIFOTYPE)]
    Path("X/x.tar").write_bytes(tar(*pairs(3), *outside, *loop, *device, *unused, *pairs(2, first=3)))
    seen = way("X")
    assert seen.samples == whole(range(5)) and seen.faults == {"900": "link", "901": "link", "902": "special"}
    assert "a link to /data/labels/9.cls" in seen.said and "a device" in seen.said


@each_way
def test_row29_files_with_holes_are_named(way: Callable[[str], Seen]) -> None:
    pax = tarfile.TarInfo("GNUSparseFile.0/900.jpg")
    pax.size, pax.pax_headers = 512, {"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.name": "900.jpg"}
    old = tarfile.TarInfo("901.jpg").tobuf(tarfile.GNU_FORMAT)
    old = old[:156] + b"S" + old[157:482] + b"\1" + old[483:]
    old = old[:148] + b"%06o\0 " % (sum(old[:148]) + sum(old[156:]) + 256) + old[156:] + bytes(512)
    odd = pax.tobuf() + bytes(512) + bare(tar(Put("900.cls", b"1"))) + old + bare(tar(Put("901.cls", b"1")))
    Path("X/x.tar").write_bytes(bare(tar(*pairs(3))) + odd + tar(*pairs(2, first=3)))
    seen = way("X")
    assert seen.samples == whole(range(5)) and seen.faults == {"900": "special", "901": "special"}


# -- names ---------------------------------------------------------------------------------------------------------------

LONG_NAME = "folder/" * 20 + "x" * 90
NAMES = [
    "./a",
    "/data/b",
    "v1.0/c",
    "d\\e.f\\g",
    "H",
    "h",
    "i/h",
    "é",
    "写真",
    "x" * 99,
    LONG_NAME,
    "y" * 200,
    "bad\udcff",
]
NAMES += ["bad\\xff", "bad\udcfe", "with space", "a:b", "50% & #1"]


@each_way
@pytest.mark.parametrize("form", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT], ids=["gnu", "pax"])
def test_names_of_any_kind_stay_apart(way: Callable[[str], Seen], form: int) -> None:
    Path("X/x.tar").write_bytes(tar(*(put for i, name in enumerate(NAMES) for put in pair(i, name)), form=form))
    seen = way("X")
    assert seen.samples == whole(range(len(NAMES))) and not seen.faults


def test_names_in_headers_of_every_kind() -> None:
    prefix = "p" * 120 + "/" + "n" * 80
    made = bare(tar(*pair(0, prefix), form=tarfile.USTAR_FORMAT))
    broad = tarfile.TarInfo("broad.jpg")
    broad.size = len(picture(1))
    block = bytearray(broad.tobuf(tarfile.GNU_FORMAT))
    block[124:136] = b"\x80" + broad.size.to_bytes(11, "big")
    block[148:156] = b"%06o\0 " % (sum(block[:148]) + sum(block[156:]) + 256)
    made += bytes(block) + picture(1) + bytes(-broad.size % 512)
    sized = tarfile.TarInfo("sized.jpg")
    sized.pax_headers = {"size": str(len(picture(2))), "path": "real.jpg", "comment": "x"}
    made += sized.tobuf() + picture(2) + bytes(-len(picture(2)) % 512)
    made += tarfile.TarInfo.create_pax_global_header({"comment": "of all"}) + tar(*pair(3))
    Path("X/x.tar").write_bytes(made)
    scan = scan_tar(Path("X"), "x.tar", label="none")
    assert [record.key for record in scan.records] == [prefix, "broad", "real", "003"] and not scan.faults
    assert [record.image.size for record in scan.records][1:3] == [len(picture(1)), len(picture(2))]


def test_v7_headers_and_signed_checksums() -> None:
    blocks = b""
    for i, (name, content) in enumerate([(b"dir/", b""), (b"0.jpg", picture(0)), (b"\xe9.jpg", picture(1))]):
        block = bytearray(name.ljust(100, b"\0") + b"0000644\0" * 3 + b"%011o\0" % len(content) + b"0" * 11 + b"\0")
        block += bytes(512 - len(block))
        signed = sum(block) + 8 * 32 - (256 * sum(byte > 127 for byte in block) if i == 2 else 0)
        block[148:156] = b"%06o\0 " % signed
        blocks += bytes(block) + content + bytes(-len(content) % 512)
    Path("X/x.tar").write_bytes(blocks + bytes(1024))
    scan = scan_tar(Path("X"), "x.tar", label="none")
    assert [record.key for record in scan.records] == ["0", "\\xe9"] and not scan.faults
