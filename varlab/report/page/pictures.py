"""Pictures of run directories, made fit to stand inside the page: PNG as they are, large ones brought to page size."""

from __future__ import annotations

import base64
import hashlib
import io
import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from PIL import Image

from varlab.report.compare import Variant

__all__ = ["Gallery", "Picture", "galleries"]

_log = logging.getLogger(__name__)

_TINY = 480  # narrower pictures are shown enlarged, by whole factors, with hard pixels
_WIDEST = 1600  # pixels; a page shows no more
_HEAVIEST = 1_000_000  # bytes of PNG; heavier photographs travel as JPEG


@dataclass(frozen=True)
class Picture:
    """A picture as the page shows it. ``width`` is in CSS pixels."""

    uri: str
    digest: str
    natural: int  # the file's own width
    variants: tuple[Variant, ...]  # whose it is; several where runs hold the same picture
    width: int = 0
    pixelated: bool = False


@dataclass(frozen=True)
class Gallery:
    """Pictures that are looked at together, ``columns`` of them in a row. An untitled one is titled by its variants."""

    title: str
    about: str
    columns: int
    items: list[tuple[str, Picture]]


def galleries(variants: Sequence[Variant]) -> list[Gallery]:
    """Samples beside real images, how images grow, reconstructions: those that these variants have pictures of."""
    samples, growth, rebuilt = (_of_variants(variants, name) for name in ("samples", "growth", "reconstructions"))
    real = _real_images([owner for picture in samples for owner in picture.variants])
    titles = ["Real images" if len(real) == 1 else f"Real images, {_owners(picture)}" for picture in real]
    beside = [*zip(titles, real, strict=True), *(("", picture) for picture in samples)]
    found = [
        _gallery("Samples beside real images", "Real images and samples stand in the same layout.", beside,
                 columns=2 if len(beside) in (1, 2, 4) else 3),
        _gallery("How an image grows", "Each row is one image, from the first step of the order to the last.",
                 [("", picture) for picture in growth], columns=_fitting(growth)),
        _gallery("Reconstructions", "First row: real images. Second row: through the tokenizer and back.",
                 [("", picture) for picture in rebuilt], columns=_fitting(rebuilt)),
    ]  # fmt: skip
    return [gallery for gallery in found if gallery.items]


_TARGETS = {1: 1080, 2: 520, 3: 340}
"""CSS pixels a picture may take, by the number of columns."""


def _gallery(title: str, about: str, items: list[tuple[str, Picture]], *, columns: int) -> Gallery:
    """All tiny pictures of a gallery are enlarged alike, so that an image is as large in one as in the next."""
    target = _TARGETS[columns]
    widest = max((picture.natural for _, picture in items if picture.natural < _TINY), default=target)
    factor = max(1, target // widest)
    return Gallery(title, about, columns, [(name, _sized(picture, target, factor)) for name, picture in items])


def _fitting(pictures: Sequence[Picture]) -> int:
    """Columns for wide pictures: two where both can still be enlarged, else a row each."""
    return 2 if len(pictures) > 1 and all(2 * picture.natural <= _TARGETS[2] for picture in pictures) else 1


def _sized(picture: Picture, target: int, factor: int) -> Picture:
    """Tiny pictures are enlarged by a whole factor, so that every pixel of theirs is the same square."""
    natural = picture.natural
    width = natural * factor if natural < _TINY else min(natural, target)
    return replace(picture, width=width, pixelated=natural < _TINY)


def _owners(picture: Picture) -> str:
    return ", ".join(variant.label for variant in picture.variants)


def _of_variants(variants: Sequence[Variant], name: str) -> list[Picture]:
    """``pictures/<name>.png`` of the first run of each variant that has one."""
    found = []
    for variant in variants:
        path = next((path for run in variant.runs if (path := run.picture(name))), None)
        if path and (picture := _load(path, (variant,))):
            found.append(picture)
    return found


def _real_images(variants: Sequence[Variant]) -> list[Picture]:
    """The real images that stand beside the samples: each different picture once, with the variants it belongs to."""
    once: dict[str, Picture] = {}
    for picture in _of_variants(variants, "real"):
        before = once.get(picture.digest)
        owners = (before.variants if before else ()) + picture.variants
        once[picture.digest] = replace(picture, variants=owners)
    return list(once.values())


def _load(path: Path, variants: tuple[Variant, ...]) -> Picture | None:
    data = path.read_bytes()
    try:
        with Image.open(io.BytesIO(data)) as image:
            image.load()
            natural = image.width
            if natural > _WIDEST or len(data) > _HEAVIEST:
                data = _reduced(image)
    except OSError as error:
        _log.warning("The picture %s can't be read and is left out: %s", path, error)
        return None
    kind = "png" if data.startswith(b"\x89PNG") else "jpeg"
    return Picture(
        uri=f"data:image/{kind};base64,{base64.b64encode(data).decode('ascii')}",
        digest=hashlib.sha256(data).hexdigest(),
        natural=natural,
        variants=variants,
    )


def _reduced(image: Image.Image) -> bytes:
    image = image.convert("RGB")
    image.thumbnail((_WIDEST, 4 * _WIDEST), Image.Resampling.LANCZOS)
    png, jpeg = io.BytesIO(), io.BytesIO()
    image.save(png, "PNG", optimize=True)
    if png.tell() <= _HEAVIEST:
        return png.getvalue()
    image.save(jpeg, "JPEG", quality=90)
    return jpeg.getvalue()
