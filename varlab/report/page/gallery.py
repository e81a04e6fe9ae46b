"""The pictures of run directories, embedded in the page; large ones are reduced to the page's size."""

from __future__ import annotations

import base64
import io
import logging
import os
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from PIL import Image, UnidentifiedImageError

from varlab.errors import VarlabError
from varlab.files import read_bytes
from varlab.report.score_files import Score
from varlab.report.text import whole
from varlab.report.variants import Variant

__all__ = ["Album", "EmbeddedPicture", "Gallery", "galleries"]

_log = logging.getLogger(__name__)

_LARGEST = 64 << 20  # bytes of a file
_MOST_PIXELS = 50_000_000
_MOST_OTHERS = 8  # galleries of names that varlab does not know

_TINY = 720  # narrower pictures are enlarged; by whole factors with hard pixels
_WIDEST = 1600  # pixels
_HEAVIEST = 1_000_000  # bytes of a PNG; heavier photographs are stored as JPEG
_WIDTHS = {1: 1080, 2: 520, 3: 340}  # CSS pixels of a picture, by the number of columns
_TALLEST = 560  # CSS pixels of an enlarged picture


@dataclass(frozen=True)
class EmbeddedPicture:
    """A picture as the page shows it. natural, tall: the file's width and height; width: in CSS pixels. variants: who has this
    picture. note: a sentence below it.
    """

    uri: str
    natural: int
    tall: int
    variants: tuple[Variant, ...]
    width: int = 0
    pixelated: bool = False
    note: str = ""


@dataclass(frozen=True)
class Gallery:
    """Pictures to look at together. items: (title, picture); an empty title stands for the picture's variants."""

    title: str
    about: str
    columns: int
    items: list[tuple[str, EmbeddedPicture]]


@dataclass(frozen=True)
class Album:
    """The galleries of one kind of run. faults: (picture, reason) of each picture that cannot be read."""

    galleries: list[Gallery]
    faults: list[tuple[str, str]]

    @property
    def bytes(self) -> int:
        return sum(len(picture.uri) for gallery in self.galleries for _, picture in gallery.items)


def galleries(variants: Sequence[Variant], room: int) -> Album:
    """Samples beside real images and their nearest training images, growing images and reconstructions, as far as there are.

    room: bytes of pictures on the page; each gallery shows its first picture in any case.
    """
    faults: list[tuple[str, str]] = []
    samples, growth, rebuilt = (_load_all(variants, name, faults) for name in ("samples", "growth", "reconstructions"))
    nearest = _neighbours(variants, faults)
    real = _real_images([owner for picture in samples for owner in picture.variants], faults)
    owners = (", ".join(variant.label for variant in picture.variants) for picture in real)
    titles = [f"Real images, {labels}" for labels in owners] if len(real) > 1 else ["Real images"] * len(real)
    beside = [*zip(titles, real, strict=True), *(("", picture) for picture in samples)]
    shown = [
        _gallery("Samples beside real images", "Real images and samples of a run have the same layout.", beside,
                 columns=2 if len(beside) in (1, 2, 4) or _columns([picture for _, picture in beside], 3) < 3 else 3),
        _gallery("Nearest training images", "Each column is a sample above its nearest training images; the samples go from "
                 "the nearest to the farthest. Above it is its distance in the features of FID, and, where there are val "
                 "images, that of the val image of the same rank. Copies are much nearer than val images.",
                 [("", picture) for picture in nearest], columns=_columns(nearest)),
        _gallery("How an image grows", "Each row is one image, from the first step of the order to the last.",
                 [("", picture) for picture in growth], columns=_columns(growth)),
        _gallery("Reconstructions", "First row: real images. Second row: the same, encoded and decoded by the tokenizer.",
                 [("", picture) for picture in rebuilt], columns=_columns(rebuilt)),
        *(_gallery(name.replace("_", " ").capitalize(), "", [("", picture) for picture in other], columns=_columns(other))
          for name in _other_names(variants) if (other := _load_all(variants, name, faults))),
    ]  # fmt: skip
    return Album(_fitted_together([gallery for gallery in shown if gallery.items], room), faults)


def _fitted_together(shown: Sequence[Gallery], room: int) -> list[Gallery]:
    """Equal room for each gallery; what one does not need is left to larger ones."""
    fitted: dict[int, Gallery] = {}
    smallest_first = sorted(range(len(shown)), key=lambda i: sum(len(picture.uri) for _, picture in shown[i].items))
    for done, i in enumerate(smallest_first):
        fitted[i] = _fitted(shown[i], room // (len(shown) - done))
        room = max(room - sum(len(picture.uri) for _, picture in fitted[i].items), 0)
    return [fitted[i] for i in range(len(shown))]


def _fitted(gallery: Gallery, room: int) -> Gallery:
    """The gallery with as many of its pictures as there is room for."""
    sizes = [len(picture.uri) for _, picture in gallery.items]
    kept = max(sum(sum(sizes[: i + 1]) <= room for i in range(len(sizes))), 1)
    if kept == len(sizes):
        return gallery
    more = f"Further pictures in the run directories: {len(sizes) - kept}. {gallery.about}".rstrip()
    return replace(gallery, items=gallery.items[:kept], about=more)


def _other_names(variants: Sequence[Variant]) -> list[str]:
    """The pictures that a kind of training from elsewhere drew."""
    names: set[str] = set()
    for folder in (run.path / "pictures" for variant in variants for run in variant.runs):
        with suppress(OSError):
            names |= {name.removesuffix(".png") for name in os.listdir(folder) if name.endswith(".png")}  # noqa: PTH208
    return sorted(names - {"samples", "growth", "reconstructions", "real"})[:_MOST_OTHERS]


def _gallery(title: str, about: str, items: list[tuple[str, EmbeddedPicture]], *, columns: int) -> Gallery:
    """Enlarge all tiny pictures by the same factor, so that images have the same size in each.

    The factor is whole, but for pictures for which two is too much.
    """
    target = _WIDTHS[columns]
    tiny = [picture for _, picture in items if picture.natural < _TINY]
    widest = max((picture.natural for picture in tiny), default=target)
    factor = max(1.0, min([target / widest, *(_TALLEST / picture.tall for picture in tiny)]))
    factor = int(factor) if factor >= 2 else factor
    return Gallery(title, about, columns, [(name, _sized(picture, target, factor)) for name, picture in items])


def _columns(pictures: Sequence[EmbeddedPicture], most: int = 2) -> int:
    """The columns in which all of several pictures can still be enlarged, at most so many; else one."""
    columns = range(min(most, len(pictures)), 1, -1)
    return next((n for n in columns if all(1.5 * picture.natural <= _WIDTHS[n] for picture in pictures)), 1)


def _sized(picture: EmbeddedPicture, target: int, factor: float) -> EmbeddedPicture:
    """Enlarge a tiny picture; by a whole factor its pixels stay squares of one size."""
    tiny = picture.natural < _TINY
    width = min(round(picture.natural * (factor if tiny else 1)), target)
    return replace(picture, width=width, pixelated=tiny and width % picture.natural == 0)


def _load_all(variants: Sequence[Variant], name: str, faults: list[tuple[str, str]]) -> list[EmbeddedPicture]:
    """``pictures/<name>.png`` of the first run of each variant that has one. faults: gets those that cannot be read."""
    paths = (next((path for run in variant.runs if (path := run.picture(name))), None) for variant in variants)
    return [picture for path, of in zip(paths, variants, strict=True) if path for picture in _read(path, of, faults)]


def _read(path: Path, variant: Variant, faults: list[tuple[str, str]]) -> list[EmbeddedPicture]:
    """The picture, or nothing where it cannot be read."""
    try:
        return [_load(path, variant)]
    except VarlabError as error:
        _log.warning("%s", error)
        faults.append((str(path), str(error)))
        return []


def _neighbours(variants: Sequence[Variant], faults: list[tuple[str, str]]) -> list[EmbeddedPicture]:
    """The strip of the score that tables show, of the first run of each variant that has one."""
    pictures: list[EmbeddedPicture] = []
    for variant in variants:
        scored = [(run.score, path) for run in variant.runs
                  if run.score and (path := run.picture(f"neighbours/{run.score.name}"))]  # fmt: skip
        for score, path in scored[:1]:
            pictures += [replace(picture, note=_copies(score)) for picture in _read(path, variant, faults)]
    return pictures


def _copies(score: Score) -> str:
    ratio, repeated = score.get("nn_ratio"), score.get("duplicates")
    parts = [f"The median distance is {ratio:.2f} times that of val images."] if ratio is not None else []
    if repeated is not None:
        parts.append(f"{whole(repeated)} of {whole(score.samples)} samples have the same pixels as an earlier one.")
    return " ".join(parts)


def _real_images(owners: Sequence[Variant], faults: list[tuple[str, str]]) -> list[EmbeddedPicture]:
    """The real images beside the samples: each different picture once, with the variants that it belongs to."""
    pictures: dict[str, EmbeddedPicture] = {}
    for picture in _load_all(owners, "real", faults):
        known = pictures.get(picture.uri, replace(picture, variants=()))
        pictures[picture.uri] = replace(picture, variants=known.variants + picture.variants)
    return list(pictures.values())


def _load(path: Path, variant: Variant) -> EmbeddedPicture:
    """Raises VarlabError with the reason where the file is no picture, or too large a one."""
    try:
        data = read_bytes(path, _LARGEST)
        with Image.open(io.BytesIO(data), formats=("PNG", "JPEG")) as image:
            natural, tall = image.size
            if natural * tall > _MOST_PIXELS:
                raise VarlabError(f"{path} has {natural}×{tall} pixels, too many for a page: make it smaller.")
            image.load()
            if natural > _WIDEST or len(data) > _HEAVIEST:
                data = _reduced(image)
    except VarlabError:
        raise
    except UnidentifiedImageError:
        raise VarlabError(f"{path} is neither PNG nor JPEG: draw it again, or remove it.") from None
    except Exception as error:  # Pillow raises almost any type for a damaged file
        raise VarlabError(f"{path} cannot be shown ({error}): draw it again, or remove it.") from error
    kind = "png" if data.startswith(b"\x89PNG") else "jpeg"
    uri = f"data:image/{kind};base64,{base64.b64encode(data).decode('ascii')}"
    return EmbeddedPicture(uri, natural, tall, (variant,))


def _reduced(image: Image.Image) -> bytes:
    image = image.convert("RGB")
    image.thumbnail((_WIDEST, 4 * _WIDEST), Image.Resampling.LANCZOS)
    png, jpeg = io.BytesIO(), io.BytesIO()
    image.save(png, "PNG", optimize=True)
    if png.tell() <= _HEAVIEST:
        return png.getvalue()
    image.save(jpeg, "JPEG", quality=90)
    return jpeg.getvalue()
