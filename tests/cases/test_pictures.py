"""What people's pictures hold, over every way into varlab; the numbers are those of the public reports (row9 …)."""

from __future__ import annotations

import base64
import io
import logging
import re
import resource
import tarfile
import tempfile
import zlib
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image, PngImagePlugin

from tests.structure import PACKAGE
from varlab.cli.commands import edit
from varlab.cli.main import main
from varlab.data.faults import BadSampleError, FaultCounter
from varlab.data.format.index import read_index
from varlab.data.image.crop import Centre, box_choices
from varlab.data.image.depth import ASSUMED
from varlab.data.image.picture import PixelRules, open_picture
from varlab.data.image.resize import cover
from varlab.data.pack.conditions import PairedImages
from varlab.data.pack.packer import pack
from varlab.data.pack.sources.base import Skipped, SourceSample
from varlab.data.pack.sources.folder import ImageFolder
from varlab.data.read.reader import ShardReader
from varlab.data.sequential.sample_stream import SampleDecoder, SampleStream
from varlab.errors import VarlabError
from varlab.recipe.sampling_conditions import SamplingConditions
from varlab.tokenizer.condition import SpatialCondition

U8 = NDArray[np.uint8]
LIMIT = 89478485
RULES = PixelRules(most_pixels=LIMIT, depths={})
RNG = np.random.default_rng(0)
NOISE_40x80 = RNG.integers(0, 255, (40, 80, 3), dtype=np.uint8)


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


# -- small inputs --------------------------------------------------------------------------------------------------------


def enc(image: Image.Image | NDArray[Any], form: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(buffer, form, **options)
    return buffer.getvalue()


def put(path: str, content: bytes) -> None:
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).write_bytes(content)


def folder(root: str, content: bytes, n: int = 4, name: str = "png") -> None:
    for split in ("train", "val"):
        for i in range(n):
            put(f"{root}/{split}/a/{i}.{name}", content)


def shard(path: str, content: bytes, ending: str = "jpg") -> None:
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, part in ((f"a.{ending}", content), ("a.cls", b"0")):
            info = tarfile.TarInfo(name)
            info.size = len(part)
            tar.addfile(info, io.BytesIO(part))


def turned(img: NDArray[Any], orientation: int) -> NDArray[Any]:
    """The upright picture of stored pixels, by EXIF's definition of what is row 0 and column 0."""
    for _ in range({3: 2, 4: 2, 5: 1, 6: 1, 7: 3, 8: 3}.get(orientation, 0)):
        img = np.rot90(img, -1)
    return img[:, ::-1] if orientation in (2, 4, 5, 7) else img


def exif(orientation: int) -> Image.Exif:
    tags = Image.Exif()
    tags[0x0112] = orientation
    return tags


# -- the ways into varlab: each from encoded bytes to img_HW3 at (H, W) --------------------------------------------------

Way = Callable[[bytes, tuple[int, int], Path], U8]


def _read(index: Path, size: tuple[int, int]) -> U8:
    reader = ShardReader(index=read_index(index), split="train", cache_bytes=0, most_pixels=LIMIT, size=size)
    return np.asarray(reader.images(np_ids(1))[0].permute(1, 2, 0))


def np_ids(n: int) -> Any:
    import torch

    return torch.arange(n)


def by_pack(content: bytes, size: tuple[int, int], at: Path, *, stored: int | None) -> U8:
    put(f"{at}/train/a/0.jpg", content)
    put(f"{at}/val/a/0.jpg", content)
    source = ImageFolder(path=str(at), size=stored, resample="lanczos", val_fraction=0.5, seed=0)
    done = pack(source, at / "out", shard_size=8)
    if done["skipped"]:
        raise BadSampleError("skipped", done["skipped"][0]["reason"])
    return _read(at / "out", size)


def by_pack_size(content: bytes, size: tuple[int, int], at: Path) -> U8:
    return by_pack(content, size, at, stored=size[0])


def by_pack_whole(content: bytes, size: tuple[int, int], at: Path) -> U8:
    return by_pack(content, size, at, stored=None)


def by_index(content: bytes, size: tuple[int, int], at: Path) -> U8:
    shard(f"{at}/train.tar", content)
    assert main(["index", str(at), "workers=0", "max_bad=1.0"]) == 0
    return _read(at, size)


def by_stream(content: bytes, size: tuple[int, int], at: Path) -> U8:
    shard(f"{at}/train.tar", content)
    img_HW3 = np.zeros((*size, 3), np.uint8)
    decoder = SampleDecoder(classes=1, label="none", rules=PixelRules(most_pixels=LIMIT))
    expected = FaultCounter(where=str(at), split="train", n=1, most=1.0, remedy="")
    stream = SampleStream(
        [f"{at}/train.tar"], name="data.train", n=1, decoder=decoder, timeout=180.0, expected=expected
    )
    (sample,) = stream.once()
    if stream.decode(sample, box_choices(Centre(), size, [()])[0], img_HW3) is None:
        raise BadSampleError("left out", stream.take_faults()[0].detail)
    return img_HW3


def by_edit(content: bytes, size: tuple[int, int], at: Path) -> U8:
    put(f"{at}/picture.jpg", content)
    config = {"image": f"{at}/picture.jpg", "most_pixels": LIMIT, "depth": "auto"}
    return np.asarray(edit._image(config, "image", size, Image.Resampling.LANCZOS)[0].permute(1, 2, 0))


def by_cond(content: bytes, size: tuple[int, int], at: Path) -> U8:
    put(f"{at}/cond.jpg", content)
    config = {"cond": f"{at}/cond.jpg", "size": None, "most_pixels": LIMIT, "depth": "auto"}
    conditioned = SimpleNamespace(
        tokenizer=SimpleNamespace(image_size=size), condition=object.__new__(SpatialCondition)
    )
    conditions = SamplingConditions(config, SimpleNamespace(model=conditioned))
    return np.asarray(conditions.shown(torch.zeros(1, dtype=torch.int64))[0].permute(1, 2, 0))


def by_condition_folder(content: bytes, size: tuple[int, int], at: Path) -> U8:
    put(f"{at}/maps/a/0.png", content)
    maker = PairedImages(path=f"{at}/maps", resample="nearest", most_pixels=LIMIT)
    sample = SourceSample(key="0", label=0, image=b"", file="a/0.jpg")
    drawn = maker.draw(sample, Image.new("RGB", size[::-1]))
    if isinstance(drawn, Skipped):
        raise BadSampleError("skipped", drawn.reason)
    return np.asarray(drawn.convert("RGB"))


def by_summary(content: bytes, size: tuple[int, int], at: Path) -> U8:
    shard(f"{at}/train.tar", content)
    assert main(["index", str(at), "workers=0", "max_bad=1.0"]) == 0
    (sheet,) = re.findall(r"data:image/png;base64,([^\"]+)", (at / "summary.html").read_text())
    tile = np.asarray(Image.open(io.BytesIO(base64.b64decode(sheet))).convert("RGB"))
    return tile if tile.shape[:2] == size else np.asarray(cover(Image.fromarray(tile), size, Image.Resampling.BOX))


WAYS: dict[str, Way] = {
    way.__name__.removeprefix("by_"): way
    for way in (
        *(by_pack_size, by_pack_whole, by_index, by_stream),
        *(by_edit, by_cond, by_condition_folder, by_summary),
    )
}


def through(content: bytes, size: tuple[int, int], *ways: str) -> dict[str, U8]:
    """The picture, by each way (all of them by default)."""
    got = {}
    for name in ways or tuple(WAYS):
        with tempfile.TemporaryDirectory(dir=".") as at:
            got[name] = WAYS[name](content, size, Path(at).resolve())
    return got


def refused(content: bytes, size: tuple[int, int] = (16, 16)) -> dict[str, str]:
    """What each way says of a picture that it must not take."""
    said = {}
    for name in WAYS:
        if name in ("index", "summary"):
            continue  # they leave it out and count it, see below
        with pytest.raises((BadSampleError, VarlabError)) as error:
            through(content, size, name)
        said[name] = str(error.value)
    Path("refused").mkdir(exist_ok=True)
    shard("refused/train.tar", content)
    assert main(["index", "refused", "workers=0", "max_bad=1.0"]) == 1
    return said


# -- one property over mode × format × way ------------------------------------------------------------------------------


def _over(colour: NDArray[Any], alpha: NDArray[Any]) -> U8:
    share = alpha.astype(np.float64) / 255
    return np.round(colour * share + 255 * (1 - share)).astype(np.uint8)


@st.composite
def pictures(draw: st.DrawFn) -> tuple[bytes, U8, str]:
    """(encoded, what it shows as img_HW3, its name): the pixels are computed before anything is encoded."""
    n, seed = draw(st.sampled_from((8, 13, 16))), draw(st.integers(0, 99))
    kind = draw(st.sampled_from(sorted(KINDS)))
    rng = np.random.default_rng(seed)
    image, shown, options = KINDS[kind](rng, n)
    form = draw(st.sampled_from(FORMS[kind]))
    orientation = draw(st.sampled_from((1, 2, 3, 4, 5, 6, 7, 8))) if form in ("PNG", "TIFF", "WEBP") else 1
    if form == "WEBP":
        options |= {"lossless": True, "exact": True}
    if orientation > 1:
        options |= {"exif": exif(orientation)}
    shown = shown if shown.ndim == 3 else np.repeat(shown[..., None], 3, 2)
    return enc(image, form, **options), turned(shown, orientation), f"{kind} {form} {orientation}"


Made = tuple[Image.Image, NDArray[Any], dict[str, Any]]


def _bytes(rng: np.random.Generator, *shape: int) -> U8:
    return rng.integers(0, 256, shape, dtype=np.uint8)


def _grey(rng: np.random.Generator, n: int) -> Made:
    img = _bytes(rng, n, n)
    return Image.fromarray(img), img, {}


def _rgb(rng: np.random.Generator, n: int) -> Made:
    img = _bytes(rng, n, n, 3)
    return Image.fromarray(img), img, {}


def _one_bit(rng: np.random.Generator, n: int) -> Made:
    img = rng.integers(0, 2, (n, n)).astype(bool)
    return Image.fromarray(img), img * np.uint8(255), {}


def _palette(rng: np.random.Generator, n: int) -> Made:
    index, colours = rng.integers(0, 7, (n, n), dtype=np.uint8), _bytes(rng, 7, 3)
    image = Image.fromarray(index).convert("L")
    image.putpalette(colours.tobytes())
    return image, colours[index], {}


def _palette_alpha(rng: np.random.Generator, n: int) -> Made:
    image, _, _ = _palette(rng, n)
    colours = np.array(image.getpalette()).reshape(-1, 3)
    alpha, index = rng.choice([0, 255], 7).astype(np.uint8), np.asarray(image)
    return image, _over(colours[index], alpha[index][..., None]), {"transparency": alpha.tobytes()}


def _palette_clear(rng: np.random.Generator, n: int) -> Made:
    image, shown, _ = _palette(rng, n)
    return image, np.where((np.asarray(image) == 3)[..., None], 255, shown), {"transparency": 3}


def _grey_key(rng: np.random.Generator, n: int) -> Made:
    img = rng.integers(0, 5, (n, n), dtype=np.uint8)
    return Image.fromarray(img), np.where(img == 2, 255, img).astype(np.uint8), {"transparency": 2}


def _rgb_key(rng: np.random.Generator, n: int) -> Made:
    img = rng.integers(0, 2, (n, n, 3), dtype=np.uint8)
    clear = (img == (1, 0, 1)).all(-1)[..., None]
    return Image.fromarray(img), np.where(clear, 255, img).astype(np.uint8), {"transparency": (1, 0, 1)}


def _rgba(rng: np.random.Generator, n: int) -> Made:
    img = _bytes(rng, n, n, 4)
    return Image.fromarray(img, "RGBA"), _over(img[..., :3], img[..., 3:]), {}


def _grey_alpha(rng: np.random.Generator, n: int) -> Made:
    img = _bytes(rng, n, n, 2)
    return Image.fromarray(img, "LA"), _over(img[..., :1], img[..., 1:]).repeat(3, 2), {}


def _sixteen(rng: np.random.Generator, n: int) -> Made:
    img = rng.integers(0, 1 << 16, (n, n)).astype(np.uint16)
    img[0, 0] = 65535  # so that it has 16 bits for those that look at it alone
    return Image.fromarray(img), (img >> 8).astype(np.uint8), {}


def _real(rng: np.random.Generator, n: int) -> Made:
    img = rng.random((n, n)).astype(np.float32)
    return Image.fromarray(img), np.round(img.astype(np.float64) * 255).astype(np.uint8), {}


KINDS: dict[str, Callable[[np.random.Generator, int], Made]] = {
    **{"L": _grey, "RGB": _rgb, "1": _one_bit, "P": _palette, "P tRNS": _palette_alpha, "P index": _palette_clear},
    **{"L key": _grey_key, "RGB key": _rgb_key, "RGBA": _rgba, "LA": _grey_alpha, "I;16": _sixteen, "F": _real},
}
FORMS = {
    **{"L": ("PNG", "TIFF", "BMP", "PPM", "TGA"), "RGB": ("PNG", "TIFF", "BMP", "PPM", "WEBP", "TGA")},
    **{"1": ("PNG", "TIFF", "PPM"), "P": ("PNG", "TIFF", "BMP", "GIF"), "P tRNS": ("PNG",), "P index": ("PNG", "GIF")},
    **{"L key": ("PNG",), "RGB key": ("PNG",), "RGBA": ("PNG", "TIFF", "WEBP", "TGA"), "LA": ("PNG", "TIFF")},
    **{"I;16": ("PNG", "TIFF"), "F": ("TIFF",)},
}


@settings(max_examples=50)
@given(made=pictures(), name=st.sampled_from(sorted(set(WAYS) - {"summary"})))
def test_every_way_shows_what_the_picture_holds(made: tuple[bytes, U8, str], name: str) -> None:
    content, shown, what = made
    (got,) = through(content, shown.shape[:2], name).values()
    assert np.abs(got.astype(int) - shown).max() <= (1 if what.startswith(("RGBA", "LA")) else 0), (name, what)


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_all_ways_agree_with_summary_too(kind: str) -> None:
    image, shown, options = KINDS[kind](np.random.default_rng(5), 16)
    shown = shown if shown.ndim == 3 else np.repeat(shown[..., None], 3, 2)
    content = enc(image, FORMS[kind][0], **options)
    for name, got in through(content, (16, 16), "summary", "stream", "pack_size").items():
        assert np.abs(got.astype(int) - shown).max() <= 1, name


def test_there_is_one_way_from_bytes_to_pixels() -> None:
    """No other module decodes images, except the report's own pictures."""
    decoders = re.compile(r"Image\.open\(|imdecode|decode_jpeg\(|imread|Image\.OPEN")
    found = {str(f.relative_to(PACKAGE)) for f in PACKAGE.rglob("*.py") if decoders.search(f.read_text())}
    found -= {"data/folders/picture_files.py"}  # only asks for the format
    assert found == {"data/image/picture.py", "data/image/jpeg.py", "report/page/gallery.py"}


def test_every_way_meets_in_open_picture(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(height: int, width: int, rules: PixelRules) -> None:
        raise BadSampleError("corrupt", "the one way")

    monkeypatch.setattr("varlab.data.image.picture._check_pixels", refuse)
    assert all("the one way" in said for said in refused(enc(NOISE_40x80)).values())


# -- row 8: the content decides, never the name ---------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["PNG", "WEBP", "BMP", "GIF", "TIFF"])
def test_row8_the_content_decides_whatever_the_ending_says(form: str) -> None:
    content = enc(Image.new("RGB", (16, 16), (10, 200, 30)), form, **({"lossless": True} if form == "WEBP" else {}))
    for name, got in through(content, (16, 16)).items():
        assert (got == (10, 200, 30)).all(), name


def test_row8_wrong_endings_are_counted(caplog: pytest.LogCaptureFixture) -> None:
    folder("X", enc(Image.new("RGB", (16, 16))), name="jpg")
    caplog.set_level(logging.INFO)
    assert main(["pack", "source=folder", "path=X", "source.size=16", "out=Y", "workers=0"]) == 0
    assert "images: 8 under the ending of another format" in caplog.text
    assert "8 under the ending of another format" in Path("Y/summary.html").read_text()


# -- row 9: one verdict on JPEGs with warnings ----------------------------------------------------------------------------

JPEG = enc(NOISE_40x80, "JPEG", quality=90)
_TABLE, _SCAN = JPEG.index(b"\xff\xdb"), JPEG.index(b"\xff\xda")
_SE = _SCAN + 2 + int.from_bytes(JPEG[_SCAN + 2 : _SCAN + 4], "big") - 2
WARNED = {
    "before a table": JPEG[:_TABLE] + b"\0\0" + JPEG[_TABLE:],
    "before the scan": JPEG[:_SCAN] + b"\x12" * 9 + JPEG[_SCAN:],
    "Se": JPEG[:_SE] + b"\x10" + JPEG[_SE + 1 :],
    "before the end": JPEG[:-2] + b"\x55" * 300 + JPEG[-2:],
    "no end mark": JPEG[:-2],
    "JFIF revision": JPEG.replace(b"JFIF\0\x01", b"JFIF\0\x07", 1),
    "after the end": JPEG + b"PADDING" * 50,
    "two": JPEG[:_TABLE] + b"\0\0" + JPEG[_TABLE:-2],
}


@pytest.mark.parametrize("what", WARNED)
def test_row9_jpegs_that_only_warn_are_used(what: str) -> None:
    plain = through(JPEG, (40, 40))
    for name, got in through(WARNED[what], (40, 40)).items():
        assert (got == plain[name]).all(), name


CUT = {
    "in the middle": JPEG[: len(JPEG) // 2],
    "near the end": JPEG[:-9],
    "warned and cut": WARNED["before a table"][: len(JPEG) // 2],
    "zeroed tail": JPEG[: len(JPEG) // 2] + bytes(len(JPEG) // 2),
    "progressive": enc(NOISE_40x80, "JPEG", quality=90, progressive=True)[:-400],
    "CMYK": enc(Image.fromarray(NOISE_40x80).convert("CMYK"), "JPEG")[:-400],
    "header alone": JPEG[:_SCAN],
}


@pytest.mark.parametrize("what", CUT)
def test_row9_cut_jpegs_are_corrupt_on_every_way(what: str) -> None:
    assert all("JPEG" in said or "decoded" in said for said in refused(CUT[what]).values())


@pytest.mark.parametrize("orientation", range(1, 9))
def test_jpegs_are_turned_and_still_decoded_small(orientation: int) -> None:
    upright = np.kron(RNG.integers(0, 255, (4, 6, 3), dtype=np.uint8), np.ones((32, 32, 1), np.uint8))
    stored = {5: turned(upright, 5), 6: np.rot90(upright), 7: turned(upright, 7), 8: np.rot90(upright, -1)}
    stored |= {1: upright, 2: upright[:, ::-1], 3: upright[::-1, ::-1], 4: upright[::-1]}
    content = enc(np.ascontiguousarray(stored[orientation]), "JPEG", quality=98, subsampling=0, exif=exif(orientation))
    picture = open_picture(content, RULES)
    assert picture.size == upright.shape[:2]
    assert np.abs(picture.decode().img_HW3.astype(int) - upright).mean() < 2
    assert picture.decode(least=(16, 24)).img_HWC.shape[:2] == (16, 24)
    got = through(content, (16, 24), "stream", "index")
    assert np.abs(got["stream"].astype(int) - upright[::8, ::8]).mean() < 3
    assert (got["stream"] == got["index"]).all()


# -- rows 10, 11: 16 bits and transparency ---------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["PNG", "TIFF"])
def test_row10_sixteen_bits_are_scaled_everywhere(form: str) -> None:
    grey = np.linspace(0, 65535, 4096).reshape(64, 64).astype(np.uint16)
    for name, got in through(enc(grey, form), (64, 64)).items():
        assert abs(got.mean() - 127.5) < 1, name


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "PA", "RGBa"])
def test_row11_transparency_lies_over_white_everywhere(mode: str) -> None:
    clear = Image.new("RGBA", (64, 64), (0, 0, 0, 0))
    content = enc(clear.convert(mode), "TIFF" if mode == "PA" else "PNG") if mode != "RGBa" else _premultiplied()
    for name, got in through(content, (64, 64)).items():
        assert (got == 255).all(), name


def _premultiplied() -> bytes:
    return enc(Image.new("RGBA", (64, 64), (0, 0, 0, 0)), "TIFF").replace(
        b"\x52\x01\x03\0\x01\0\0\0\x02", b"\x52\x01\x03\0\x01\0\0\0\x01"
    )


# -- row 12: texts and profiles ---------------------------------------------------------------------------------------------


def _chunk(kind: bytes, content: bytes) -> bytes:
    return len(content).to_bytes(4, "big") + kind + content + zlib.crc32(kind + content).to_bytes(4, "big")


def _with_chunk(kind: bytes, content: bytes, *, first: bool) -> bytes:
    plain = enc(Image.new("RGB", (16, 16), (1, 2, 3)))
    at = 33 if first else len(plain) - 12  # after the header, or before the end
    return plain[:at] + _chunk(kind, content) + plain[at:]


BIG = 3_000_000 * b"x"
TEXTS = {
    "zTXt": _with_chunk(b"zTXt", b"workflow\0\0" + zlib.compress(BIG), first=True),
    "zTXt last": _with_chunk(b"zTXt", b"workflow\0\0" + zlib.compress(BIG), first=False),
    "iTXt": _with_chunk(b"iTXt", b"workflow\0\x01\0\0\0" + zlib.compress(BIG), first=True),
    "XMP": _with_chunk(b"iTXt", b"XML:com.adobe.xmp\0\x01\0\0\0" + zlib.compress(BIG), first=True),
    "iCCP": _with_chunk(b"iCCP", b"icc\0\0" + zlib.compress(BIG), first=True),
    "tEXt": _with_chunk(b"tEXt", b"workflow\0" + 23 * BIG, first=True),
    "broken": _with_chunk(b"tEXt", b"workflow\0text", first=True).replace(b"\0text", b"\0tEXT"),
}


@pytest.mark.parametrize("what", TEXTS)
def test_row12_texts_never_reject_a_picture(what: str) -> None:
    ways = () if what == "zTXt" else ("stream",)
    for name, got in through(TEXTS[what], (16, 16), *ways).items():
        assert (got == (1, 2, 3)).all(), name


def test_row12_the_orientation_in_a_text_still_counts() -> None:
    info = PngImagePlugin.PngInfo()
    info.add_itxt("XML:com.adobe.xmp", '<rdf tiff:Orientation="6"/>', zip=True)
    info.add_text("workflow", "x" * 3_000_000, zip=True)
    assert open_picture(enc(Image.new("RGB", (8, 4)), pnginfo=info), RULES).size == (8, 4)


# -- row 13: what a value means is decided once per data set -----------------------------------------------------------------

DARK = np.full((16, 16), 1000, np.uint16)
FULL = np.linspace(0, 4095, 256).reshape(16, 16).astype(np.uint16)


@pytest.mark.parametrize("size", ["16", "null"])
def test_row13_twelve_bits_in_sixteen_are_known_by_the_whole_set(size: str, caplog: pytest.LogCaptureFixture) -> None:
    for split in ("train", "val"):
        put(f"X/{split}/a/dark.png", enc(DARK))
    put("X/val/a/full.png", enc(FULL))
    caplog.set_level(logging.INFO)
    asked = ["pack", "source=folder", "path=X", f"source.size={size}", "out=Y", "workers=0", "shard_size=1"]
    assert main(asked) == 0
    assert read_index(Path("Y")).depth == {"integer": 12}
    assert "images: 3 scaled to 8 bits (integers of 12 bits)" in caplog.text
    assert "3 scaled to 8 bits (integers of 12 bits)" in Path("Y/summary.html").read_text()
    assert (_read(Path("Y"), (16, 16)) == 1000 >> 4).all()  # alone, it would have 10 bits
    assert main([*asked[:-3], "out=Z", "workers=0", "source.depth=16"]) == 0
    assert (_read(Path("Z"), (16, 16)) == 1000 >> 8).all()


@pytest.mark.parametrize(
    ("values", "depth", "mean"),
    [(1.0, {"float": 1}, 127.5), (255.0, {"float": 8}, 127.5), (4095.0, {"float": 12}, 127.5), (0.3, {"float": 1}, 38)],
)
def test_row13_floats(values: float, depth: dict[str, int], mean: float) -> None:
    ramp = np.linspace(0, values, 256).reshape(16, 16).astype(np.float32)
    folder("X", enc(ramp, "TIFF"), n=1, name="tif")
    assert main(["pack", "source=folder", "path=X", "source.size=16", "out=Y", "workers=0"]) == 0
    assert read_index(Path("Y")).depth == depth and abs(_read(Path("Y"), (16, 16)).mean() - mean) < 1


def test_row13_an_index_stores_the_depth_and_training_uses_it() -> None:
    shard("S/train-0.tar", enc(DARK), "png")
    shard("S/val-0.tar", enc(FULL), "png")
    assert main(["index", "S", "workers=0"]) == 0
    assert read_index(Path("S")).depth == {"integer": 12} and (_read(Path("S"), (16, 16)) == 62).all()
    assert main(["index", "S", "workers=0", "depth=16"]) == 0
    assert read_index(Path("S")).depth == {"integer": 16} and (_read(Path("S"), (16, 16)) == 3).all()
    assert main(["index", "S", "workers=0", "check=true", "out=report"]) == 0


@pytest.mark.parametrize("bad", [-0.5, np.nan, np.inf, 70000.0])
def test_row13_values_without_a_rule_are_named(bad: float) -> None:
    img = np.zeros((16, 16), np.float32)
    img[3, 3] = bad
    assert all("scale them to 0 … 255 first" in said for said in refused(enc(img, "TIFF")).values())


def test_row13_values_over_the_given_depth_are_named_with_the_key() -> None:
    with pytest.raises(BadSampleError, match=r"up to 4095, over 10 bits: set data.depth=12"):
        open_picture(enc(FULL), PixelRules(most_pixels=LIMIT, depths={"integer": 10}, keys="data.")).decode()
    bright = enc(np.full((16, 16), 200, np.float32), "TIFF")
    with pytest.raises(BadSampleError, match="over 1 bits: set depth=8"):
        open_picture(bright, PixelRules(most_pixels=LIMIT, depths=ASSUMED)).decode()


# -- row 15: strips ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(1, 20000), (20000, 1)])
def test_row15_a_strip_costs_a_few_megabytes(shape: tuple[int, int]) -> None:
    content = enc(np.full((*shape, 3), 7, np.uint8), "JPEG")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for name, got in through(content, (256, 256), "pack_size", "edit", "cond", "stream", "condition_folder").items():
        assert (got == 7).all(), name
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 60_000  # KiB


def test_row15_the_centre_of_a_strip_is_what_it_was() -> None:
    strip = Image.fromarray(RNG.integers(0, 255, (8, 400, 3), dtype=np.uint8))
    wide = strip.resize((16 * 50, 16), Image.Resampling.LANCZOS).crop((392, 0, 408, 16))
    got = cover(strip, (16, 16), Image.Resampling.LANCZOS)
    assert np.abs(np.asarray(got).astype(int) - np.asarray(wide)).max() <= 1


def test_row15_ordinary_pictures_keep_their_bytes() -> None:
    photo = Image.fromarray(RNG.integers(0, 255, (30, 200, 3), dtype=np.uint8))
    before = photo.resize((round(200 * 16 / 30), 16), Image.Resampling.LANCZOS).crop((45, 0, 61, 16))
    assert cover(photo, (16, 16), Image.Resampling.LANCZOS).tobytes() == before.tobytes()


# -- row 31: a limit of pixels, before memory is taken ------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["PNG", "TIFF"])
def test_row31_too_many_pixels_are_one_sentence_with_the_key(form: str) -> None:
    said = refused(enc(Image.new("1", (14000, 14000)), form))
    assert all(re.search(r"14000×14000 pixels, over [a-z.]*most_pixels=", text) for text in said.values())
    assert "source.most_pixels" in said["pack_size"] and "condition.most_pixels" in said["condition_folder"]


def test_row31_the_key_allows_them() -> None:
    content = enc(Image.new("1", (9500, 9500), 1), "PNG")
    folder("X", content, n=1)
    asked = ["pack", "source=folder", "path=X", "source.size=16", "out=Y", "workers=0"]
    assert main([*asked, "source.most_pixels=200000000"]) == 0
    assert (_read(Path("Y"), (16, 16)) == 255).all()


# -- others of these kinds ----------------------------------------------------------------------------------------------------


def test_of_several_frames_the_first_counts() -> None:
    frames = [Image.new("RGB", (16, 16), colour) for colour in ((250, 0, 0), (0, 250, 0))]
    for form, options in (("GIF", {}), ("WEBP", {"lossless": True}), ("PNG", {}), ("TIFF", {})):
        content = enc(frames[0], form, save_all=True, append_images=frames[1:], **options)
        picture = open_picture(content, RULES).decode()
        assert (picture.img_HW3 == (250, 0, 0)).all() and "the first of several frames" in picture.steps, form


def test_other_colour_spaces() -> None:
    white = {"CMYK": (0, 0, 0, 0), "LAB": (255, 128, 128), "YCbCr": (255, 128, 128)}
    for mode, value in white.items():
        got = open_picture(enc(Image.new(mode, (8, 8), value), "TIFF"), RULES).decode().img_HW3
        assert got.min() >= 253, mode


@pytest.mark.parametrize("content", [b"", b"x", b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"hello " * 99])
def test_what_is_no_picture_is_corrupt(content: bytes) -> None:
    with pytest.raises(BadSampleError) as error:
        open_picture(content, RULES).decode()
    assert error.value.kind == "corrupt"


@given(st.data())
def test_damage_never_surfaces_as_another_error(data: st.DataObject) -> None:
    kind = data.draw(st.sampled_from(sorted(KINDS)))
    image, _, options = KINDS[kind](np.random.default_rng(1), 16)
    content = bytearray(enc(image, data.draw(st.sampled_from(FORMS[kind])), **options))
    for _ in range(data.draw(st.integers(1, 8))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    try:
        picture = open_picture(bytes(content), PixelRules(most_pixels=1 << 20))
        assert picture.decode().img_HWC.shape[:2] == picture.size
    except BadSampleError:
        pass
