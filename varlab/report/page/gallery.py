"""The pictures of run directories, embedded in the page; large ones are reduced to the page's size."""

from __future__ import annotations

import base64
import io
import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from PIL import Image

from varlab.report.variants import Variant

__all__ = ["EmbeddedPicture", "Gallery", "galleries"]

_log = logging.getLogger(__name__)

_TINY = 480  # narrower pictures are enlarged by whole factors, with hard pixels
_WIDEST = 1600  # pixels
_HEAVIEST = 1_000_000  # bytes of a PNG; heavier photographs are stored as JPEG
_WIDTHS = {1: 1080, 2: 520, 3: 340}  # CSS pixels of a picture, by the number of columns


@dataclass(frozen=True)
class EmbeddedPicture:
    """A picture as the page shows it. natural: the file's width; width: in CSS pixels. variants: who has this picture."""

    uri: str
    natural: int
    variants: tuple[Variant, ...]
    width: int = 0
    pixelated: bool = False


@dataclass(frozen=True)
class Gallery:
    """Pictures to look at together. items: (title, picture); an empty title stands for the picture's variants."""

    title: str
    about: str
    columns: int
    items: list[tuple[str, EmbeddedPicture]]


def galleries(variants: Sequence[Variant]) -> list[Gallery]:
    """Samples beside real images, growing images and reconstructions, where the variants have such pictures."""
    samples, growth, rebuilt = (_load_all(variants, name) for name in ("samples", "growth", "reconstructions"))
    real = _real_images([owner for picture in samples for owner in picture.variants])
    owners = (", ".join(variant.label for variant in picture.variants) for picture in real)
    titles = [f"Real images, {labels}" for labels in owners] if len(real) > 1 else ["Real images"] * len(real)
    beside = [*zip(titles, real, strict=True), *(("", picture) for picture in samples)]
    shown = [
        _gallery("Samples beside real images", "Real images and samples have the same layout.", beside,
                 columns=2 if len(beside) in (1, 2, 4) else 3),
        _gallery("How an image grows", "Each row is one image, from the first step of the order to the last.",
                 [("", picture) for picture in growth], columns=_columns(growth)),
        _gallery("Reconstructions", "First row: real images. Second row: the same, encoded and decoded by the tokenizer.",
                 [("", picture) for picture in rebuilt], columns=_columns(rebuilt)),
        *(_gallery(name.replace("_", " ").capitalize(), "", [("", picture) for picture in other], columns=_columns(other))
          for name in _other_names(variants) if (other := _load_all(variants, name))),
    ]  # fmt: skip
    return [gallery for gallery in shown if gallery.items]


def _other_names(variants: Sequence[Variant]) -> list[str]:
    """The pictures that a kind of training from elsewhere drew."""
    folders = [run.path / "pictures" for variant in variants for run in variant.runs]
    names = {path.stem for folder in folders for path in folder.glob("*.png")}
    return sorted(names - {"samples", "growth", "reconstructions", "real"})


def _gallery(title: str, about: str, items: list[tuple[str, EmbeddedPicture]], *, columns: int) -> Gallery:
    """Enlarge all tiny pictures by the same factor, so that images have the same size in each."""
    target = _WIDTHS[columns]
    widest = max((picture.natural for _, picture in items if picture.natural < _TINY), default=target)
    factor = max(1, target // widest)
    return Gallery(title, about, columns, [(name, _sized(picture, target, factor)) for name, picture in items])


def _columns(pictures: Sequence[EmbeddedPicture]) -> int:
    """Columns for wide pictures: two if all can still be enlarged there, else one."""
    return 2 if len(pictures) > 1 and all(2 * picture.natural <= _WIDTHS[2] for picture in pictures) else 1


def _sized(picture: EmbeddedPicture, target: int, factor: int) -> EmbeddedPicture:
    """Enlarge a tiny picture by a whole factor, so that its pixels stay squares of one size."""
    tiny = picture.natural < _TINY
    return replace(picture, width=picture.natural * factor if tiny else min(picture.natural, target), pixelated=tiny)


def _load_all(variants: Sequence[Variant], name: str) -> list[EmbeddedPicture]:
    """``pictures/<name>.png`` of the first run of each variant that has one."""
    paths = [(v, next((path for run in v.runs if (path := run.picture(name))), None)) for v in variants]
    return [picture for variant, path in paths if path and (picture := _load(path, variant))]


def _real_images(variants: Sequence[Variant]) -> list[EmbeddedPicture]:
    """The real images beside the samples: each different picture once, with the variants that it belongs to."""
    pictures: dict[str, EmbeddedPicture] = {}
    for picture in _load_all(variants, "real"):
        known = pictures.get(picture.uri, replace(picture, variants=()))
        pictures[picture.uri] = replace(picture, variants=known.variants + picture.variants)
    return list(pictures.values())


def _load(path: Path, variant: Variant) -> EmbeddedPicture | None:
    data = path.read_bytes()
    try:
        with Image.open(io.BytesIO(data)) as image:
            image.load()
            natural = image.width
            if natural > _WIDEST or len(data) > _HEAVIEST:
                data = _reduced(image)
    except OSError as error:
        _log.warning("The picture %s is damaged, and the page leaves it out: %s", path, error)
        return None
    kind = "png" if data.startswith(b"\x89PNG") else "jpeg"
    uri = f"data:image/{kind};base64,{base64.b64encode(data).decode('ascii')}"
    return EmbeddedPicture(uri, natural, (variant,))


def _reduced(image: Image.Image) -> bytes:
    image = image.convert("RGB")
    image.thumbnail((_WIDEST, 4 * _WIDEST), Image.Resampling.LANCZOS)
    png, jpeg = io.BytesIO(), io.BytesIO()
    image.save(png, "PNG", optimize=True)
    if png.tell() <= _HEAVIEST:
        return png.getvalue()
    image.save(jpeg, "JPEG", quality=90)
    return jpeg.getvalue()
