"""The formats of data sets: tars, indexes, tables, token shards, Parquet files, pictures and lists of class names."""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from PIL import Image
from pyarrow import parquet

from tests.attack.damage import BYTES, CHECKED_TAR, JSON, TEXT
from tests.attack.trial import Format, Reading
from tests.data.conftest import Made
from tests.data.test_faults import sample, tar
from varlab.data.faults import BadSampleError, FaultCounter
from varlab.data.format.index_builder import build_index
from varlab.data.format.labels import class_names
from varlab.data.format.scan import ScanSettings
from varlab.data.image.augment import Augment
from varlab.data.image.crop import Centre, box_choices
from varlab.data.image.picture import PixelRules, read_picture
from varlab.data.pack.packer import pack
from varlab.data.pack.sources.base import Skipped
from varlab.data.pack.sources.folder import ImageFolder
from varlab.data.pack.sources.parquet import Parquet
from varlab.data.pack.sources.tars import Tars
from varlab.data.sequential.sample_stream import SampleDecoder, SampleStream
from varlab.data.shard_module import ShardDataModule
from varlab.data.token_reader import TokenReader
from varlab.data.tokens import TokenSet, TokenShard, fingerprint, read_tokens, write_array, write_tokens

__all__ = ["FORMATS", "mark", "pack_set", "read_set"]

_MOST = 1 << 20  # pixels
_SIZE = (8, 8)


def mark(*parts: object) -> str:
    """A short digest of values."""
    return hashlib.sha256(b"\0".join(p if isinstance(p, bytes) else repr(p).encode() for p in parts)).hexdigest()[:16]


def _pixels(image: torch.Tensor) -> str:
    return mark(image.contiguous().numpy().tobytes())


# -- indexed shards ------------------------------------------------------------------------------------------------------


def pack_set(folder: Path) -> None:
    """Seven images in two shards for training, three for val."""
    pack(Made(train=7, val=3), folder, shard_size=4)


def read_set(folder: Path | str, **settings: object) -> Reading:
    """Every image with its label, by split and number."""
    found, named = {}, False
    for split, i, image, label in _images(folder, **settings):
        named |= image is None
        if image is not None:
            found[f"{split} {i}"] = mark(_pixels(image), label)
    return found, named


def _images(folder: Path | str, **settings: object) -> Iterator[tuple[str, int, torch.Tensor | None, int]]:
    plain = {
        "batch": 4,
        "eval_batch": 4,
        "seed": 0,
        "workers": 0,
        "cache_bytes": 0,
        "max_bad": 1.0,
        "most_pixels": _MOST,
    }
    augment = Augment(flip=False, crop=1.0, noise=0.0)
    data = ShardDataModule(path=folder, augment=augment, **(plain | settings))  # type: ignore[arg-type]
    for split in ("train", "val"):
        reader = data.reader(split)
        batch = reader.batch(torch.arange(len(reader)))
        for i, valid in enumerate(batch.valid_B.tolist()):
            yield split, i, batch.img_u8_B3HW[i] if valid else None, int(batch.label_B[i])


def _read_pixels(folder: Path) -> Reading:
    """Which images there are, whatever their labels and places."""
    images = [image for _, _, image, _ in _images(folder)]
    return {_pixels(image): True for image in images if image is not None}, any(image is None for image in images)


def _without_digest(folder: Path) -> None:
    """An index as a stranger writes it."""
    pack_set(folder)
    raw = json.loads((folder / "index.json").read_text())
    del raw["sha256"]
    (folder / "index.json").write_text(json.dumps(raw))


def _right_digests(folder: Path) -> None:
    """Give the index of a stranger the digests of the tables as they are now."""
    raw = json.loads((folder / "index.json").read_text())
    for table in raw["tables"].values():
        if (file := folder / table["file"]).is_file() and not file.is_symlink():
            table["sha256"] = hashlib.sha256(file.read_bytes()).hexdigest()
    (folder / "index.json").write_text(json.dumps(raw))


# -- tars without an index -----------------------------------------------------------------------------------------------


def _write_tar(folder: Path) -> None:
    members = [("classes.txt", b"a\nb\n")]
    for i in range(6):
        members += [
            *sample(f"{i:04d}", i, label=b"%d" % (i % 3)),
            (f"{i:04d}.json", b'{"label": 1, "box": [0, 0, 1, 1]}'),
        ]
    (folder / "x.tar").write_bytes(tar(members))
    _list(folder)


def _write_long_tar(folder: Path) -> None:
    """With pax headers, GNU's long names, links and a sparse file's header."""
    for name, form in (("pax.tar", tarfile.PAX_FORMAT), ("gnu.tar", tarfile.GNU_FORMAT)):
        with tarfile.open(folder / name, "w", format=form) as archive:
            for i in range(3):
                for ending, content in (("png", sample("x", i)[0][1]), ("cls", b"1")):
                    member = tarfile.TarInfo(f"{'d' * 120}/{name[:3]}é{i}.{ending}")
                    member.size = len(content)
                    archive.addfile(member, io.BytesIO(content))
            copy = tarfile.TarInfo(f"{name[:3]}link.cls")
            copy.type, copy.linkname = tarfile.LNKTYPE, f"{'d' * 120}/{name[:3]}é0.cls"
            archive.addfile(copy)
            link = tarfile.TarInfo(f"{name[:3]}link.png")
            link.type, link.linkname = tarfile.SYMTYPE, f"{'d' * 120}/{name[:3]}é0.png"
            archive.addfile(link)
    _list(folder)


def _index_and_read(folder: Path) -> Reading:
    """``varlab index``, and every image by its new index."""
    settings = ScanSettings(label="auto", classes=None, decode=True, most_pixels=_MOST, size=None)
    files = sorted(path.name for path in folder.glob("*.tar"))
    _, faults = build_index(
        folder,
        splits={"train": files, "val": files[:1]},
        settings=settings,
        source={},
        val_fraction=0.0,
        seed=0,
        max_bad=1.0,
        workers=0,
    )
    found, named = {}, bool(faults)
    for split, _, image, _ in _images(folder, size=_SIZE):
        if image is None:
            named = True
        elif split == "train":
            found[_pixels(image)] = True
    return found, named


def _stream(folder: Path) -> Reading:
    """``data=stream``, each image with its label left out."""
    urls = [str(folder / name) for name in _listed(folder)]
    counter = FaultCounter(where=str(folder), split="train", n=len(urls) * 6, most=1.0, shards=dict.fromkeys(urls, 6))
    decoder = SampleDecoder(classes=1000, label="none", rules=PixelRules(most_pixels=_MOST))
    stream = SampleStream(urls, name="data.train", n=len(urls) * 6, decoder=decoder, timeout=8.0, expected=counter)
    found, named = {}, False
    (centre,) = box_choices(Centre(), _SIZE, [()])
    for encoded in stream.once():
        out_HW3 = np.zeros((*_SIZE, 3), dtype=np.uint8)
        if stream.decode(encoded, centre, out_HW3) is None:
            named = True
        else:
            found[mark(out_HW3.tobytes())] = True
    return found, named or bool(stream.take_faults())


def _source_images(source: Tars | Parquet | ImageFolder) -> Reading:
    """What a source of ``varlab pack`` gives."""
    found, named = {}, False
    for split in ("train", "val"):
        for entry in source.entries(split):
            loaded = source.load(split, entry)  # type: ignore[arg-type]
            if isinstance(loaded, Skipped):
                named = True
                continue
            image = loaded.image if isinstance(loaded.image, Image.Image) else Image.open(io.BytesIO(loaded.image))
            found[mark(image.mode, image.size, image.tobytes())] = True
    return found, named


_PLAIN = {"size": None, "resample": "bicubic", "val_fraction": 0.2, "seed": 0, "most_pixels": _MOST}


def _tars(folder: Path) -> Reading:
    return _source_images(Tars(path=str(folder), label="auto", classes=None, split={}, **_PLAIN))  # type: ignore[arg-type]


def _write_parquet(folder: Path) -> None:
    images = [sample("x", i)[0][1] for i in range(8)]
    table = pa.table({"image": [{"bytes": image, "path": ""} for image in images], "label": [i % 3 for i in range(8)]})
    features = {"info": {"features": {"label": {"names": ["a", "b", "c"], "_type": "ClassLabel"}}}}
    parquet.write_table(
        table.replace_schema_metadata({"huggingface": json.dumps(features)}), folder / "a.parquet", row_group_size=4
    )


def _parquet(folder: Path) -> Reading:
    return _source_images(Parquet(path=str(folder), image="image", label="label", classes=None, split={}, **_PLAIN))  # type: ignore[arg-type]


def _write_folder(folder: Path) -> None:
    for i in range(6):
        path = folder / "abc"[i % 3] / f"{i}.png"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(sample("x", i)[0][1])


def _folder(folder: Path) -> Reading:
    return _source_images(ImageFolder(path=str(folder), **_PLAIN))  # type: ignore[arg-type]


# -- token shards --------------------------------------------------------------------------------------------------------


def _write_tokens(folder: Path) -> None:
    rng = np.random.default_rng(0)
    splits, labels = {}, {}
    for split, views in (("train", 2), ("val", 1)):
        write_array(folder / f"{split}-000000.npy", rng.integers(0, 32, (9, views, 5)).astype("<u2"))
        write_array(folder / f"{split}.labels.npy", rng.integers(0, 3, 9))
        splits[split] = (TokenShard(f"{split}-000000.npy", 9, fingerprint(folder / f"{split}-000000.npy")),)
        labels[split] = TokenShard(f"{split}.labels.npy", 9, fingerprint(folder / f"{split}.labels.npy"))
    images = {"path": str(folder), "most_pixels": _MOST}
    write_tokens(TokenSet(folder, {"data_hash": "x"}, images, 2, 5, 32, splits, {"train": 0, "val": 0}, labels))


def _write_foreign_tokens(folder: Path) -> None:
    _write_tokens(folder)
    raw = json.loads((folder / "tokens.json").read_text())
    del raw["sha256"]
    (folder / "tokens.json").write_text(json.dumps(raw))


def _read_token_set(folder: Path) -> Reading:
    tokens = read_tokens(folder)
    found = {"": mark(tokens.hash)}
    for split in ("train", "val"):
        reader = TokenReader(tokens, split)
        index_N = torch.arange(len(reader))
        for view in range(tokens.views if split == "train" else 1):
            idx_NP, valid_N = reader.read(index_N, torch.full_like(index_N, view))
            found[f"{split} {view}"] = mark(idx_NP.numpy().tobytes(), valid_N.tolist(), reader.label_N.tolist())
    return found, False


# -- pictures and class names --------------------------------------------------------------------------------------------


def _picture() -> Image.Image:
    """Smooth, so that every format keeps it small."""
    ramp = np.add.outer(np.arange(24) * 5, np.arange(32) * 3)
    return Image.fromarray(np.stack([ramp, ramp[::-1], ramp.T[:24, :1] + ramp], axis=-1).astype(np.uint8))


def _write_pngs(folder: Path) -> None:
    picture = _picture()
    picture.save(folder / "rgb.png")
    picture.quantize(16).save(folder / "palette.png", transparency=3)
    Image.fromarray(np.arange(768, dtype=np.uint16).reshape(24, 32) * 85).save(folder / "deep.png")
    exif = Image.Exif()
    exif[0x0112] = 6
    picture.save(folder / "turned.png", exif=exif, dpi=(72, 72))
    _list(folder)


def _write_others(folder: Path) -> None:
    picture = _picture()
    exif = Image.Exif()
    exif[0x0112] = 6
    picture.save(folder / "plain.jpg")
    picture.save(folder / "progressive.jpg", progressive=True, exif=exif)
    picture.convert("CMYK").save(folder / "cmyk.jpg")
    for ending in ("webp", "gif", "bmp", "tiff"):
        picture.save(folder / f"other.{ending}")
    picture.save(folder / "packed.tiff", compression="tiff_lzw")
    picture.save(folder / "moving.gif", save_all=True, append_images=[picture.rotate(90)])
    _list(folder)


def _list(folder: Path) -> None:
    (folder / "list").write_text(" ".join(sorted(path.name for path in folder.iterdir())))


def _read_pictures(folder: Path) -> Reading:
    found, named = {}, False
    for name in _listed(folder):
        try:
            picture = read_picture(folder / name, PixelRules(most_pixels=_MOST))
            found[name] = mark(picture.img_HWC.shape, picture.img_HWC.tobytes())
        except BadSampleError:
            named = True
    return found, named


def _listed(folder: Path) -> list[str]:
    """The files that were written, also those that are gone."""
    return (folder / "list").read_text().split()


def _write_names(folder: Path) -> None:
    (folder / "names.txt").write_text("".join(f"class é {i}\n" for i in range(40)))


def _names(folder: Path) -> Reading:
    return {"": class_names(str(folder / "names.txt")) or ()}, False


_SHARDS, _TABLES = ("*.tar",), ("*.samples.npy",)

FORMATS = (
    Format("indexed tar", pack_set, read_set, _SHARDS, BYTES, cases=250),
    Format("indexed tar, headers", pack_set, read_set, _SHARDS, CHECKED_TAR, cases=80),
    Format("index.json", pack_set, read_set, ("index.json",), JSON, cases=300),
    Format("index.json of others", _without_digest, _read_pixels, ("index.json",), JSON, partial=True, cases=400),
    Format("sample table", pack_set, read_set, _TABLES, BYTES, cases=150),
    Format("sample table of others", _without_digest, _read_pixels, _TABLES, BYTES, partial=True, after=_right_digests,
           cases=250),
    Format("tar, indexed anew", _write_tar, _index_and_read, _SHARDS, BYTES, partial=True, cases=300),
    Format("tar, headers", _write_tar, _index_and_read, _SHARDS, CHECKED_TAR, partial=True, cases=200),
    Format("tar, long names", _write_long_tar, _index_and_read, _SHARDS, BYTES, partial=True, cases=150),
    Format("tar, streamed", _write_tar, _stream, _SHARDS, BYTES, partial=True, cases=250),
    Format("tar, streamed, headers", _write_long_tar, _stream, _SHARDS, CHECKED_TAR, partial=True, cases=150),
    Format("tars as a source", _write_tar, _tars, _SHARDS, BYTES, partial=True, cases=100),
    Format("parquet", _write_parquet, _parquet, ("*.parquet",), BYTES, partial=True, cases=250),
    Format("image folder", _write_folder, _folder, ("*/*.png",), BYTES, partial=True, cases=100),
    Format("tokens", _write_tokens, _read_token_set, ("*.npy",), BYTES, cases=200),
    Format("tokens.json", _write_tokens, _read_token_set, ("tokens.json",), JSON, cases=200),
    Format("tokens.json of others", _write_foreign_tokens, _read_token_set, ("tokens.json",), JSON, verified=False, cases=250),
    Format("png", _write_pngs, _read_pictures, ("*.png",), BYTES, cases=300),
    Format("other pictures", _write_others, _read_pictures, ("*.*",), BYTES, verified=False, cases=300),
    Format("class names", _write_names, _names, ("names.txt",), TEXT, verified=False, cases=80),
)  # fmt: skip
