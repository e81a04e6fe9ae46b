"""The one way from an encoded image to its pixels: upright, grey or RGB, in bytes. Everything that reads images uses it.

The format follows from the content, never from a name. Of several frames or pages, the first counts.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple, Protocol

import cv2
import numpy as np
from PIL import Image, ImageFile

from varlab.data.faults import BadSampleError
from varlab.data.image.colour import flat
from varlab.data.image.depth import ASSUMED, U8, Deep, Depths
from varlab.data.image.jpeg import JPEG_END, JPEG_START, MALFORMED, jpeg_header, jpeg_orientation, jpeg_pixels, mended
from varlab.data.image.png import PNG_START, check_png, without_texts
from varlab.errors import VarlabError
from varlab.files import require_plain

__all__ = [
    "FIRST",
    "TURNED",
    "WARNED",
    "EncodedPicture",
    "Picture",
    "PixelRules",
    "open_picture",
    "read_named_picture",
    "read_picture",
]

TURNED, WARNED, FIRST = "turned upright", "decoded in spite of warnings", "the first of several frames"
"""What can be done to an image on the way, as the log counts it."""

_JPEG_MODES = {"Gray": "L", "YCbCr": "RGB"}  # Pillow's modes of them
_JPEG_COLOURS = {"Gray": "GRAY", "YCbCr": "RGB"}  # simplejpeg gives the same bytes as Pillow for these
_NOT_OPENED = ("EPS", "WMF")  # other programs would draw them
_START = 16  # bytes by which Pillow's formats know their files


@dataclass(frozen=True)
class PixelRules:
    """How images become pixels, the same for all images of a data set.

    most_pixels: larger images are bad. depths: the bits of values that are more than bytes. background: the grey under
    transparent parts. keys: what stands before ``most_pixels`` and ``depth`` in the configuration, for messages.
    """

    most_pixels: int
    depths: Depths = field(default_factory=lambda: ASSUMED)
    background: int = 255
    keys: str = ""


class Picture(NamedTuple):
    """A decoded image, upright: ``img_HWC``, C = 1 or 3.

    mode: Pillow's, of the file. steps: what was done on the way. deep: what the file holds, if not bytes.
    """

    img_HWC: U8
    mode: str
    steps: tuple[str, ...] = ()
    deep: Deep | None = None

    @property
    def img_HW3(self) -> U8:
        """In RGB; grey is repeated."""
        if self.img_HWC.shape[2] == 3:
            return self.img_HWC
        return np.asarray(cv2.cvtColor(self.img_HWC, cv2.COLOR_GRAY2RGB), dtype=np.uint8)

    def image(self) -> Image.Image:
        """In mode L or RGB."""
        return Image.fromarray(self.img_HWC if self.img_HWC.shape[2] == 3 else self.img_HWC[..., 0])


class EncodedPicture(Protocol):
    """An image whose header was read. size: its (H, W) when it is upright. form: Pillow's name of the format."""

    @property
    def size(self) -> tuple[int, int]: ...
    @property
    def form(self) -> str: ...

    def decode(self, least: tuple[int, int] = (0, 0)) -> Picture:
        """Decode it. least: an (H, W) that suffices; a much larger JPEG is decoded at the smallest eighth that reaches it.

        Raises:
            BadSampleError: corrupt; bad_values: they do not fit the rules.
        """
        ...


def open_picture(encoded: bytes, rules: PixelRules) -> EncodedPicture:
    """Read the header of an encoded image, before memory for its pixels is taken.

    Raises:
        BadSampleError: corrupt; too_large.
    """
    picture = _Jpeg.of(encoded, rules) if encoded.startswith(JPEG_START) else None
    return picture or _AnyFormat(encoded, rules)


def read_picture(file: Path, rules: PixelRules) -> Picture:
    """Decode an image file.

    Raises:
        BadSampleError: it cannot be read; corrupt; too_large; bad_values.
    """
    try:
        encoded = require_plain(file).read_bytes()
    except OSError as e:
        raise BadSampleError("corrupt", f"cannot be read ({e.strerror or e})") from e
    check_png(encoded)
    return open_picture(encoded, rules).decode()


def read_named_picture(file: Path, rules: PixelRules, setting: str) -> Picture:
    """Decode the image file that a setting names. VarlabError if it cannot be used."""
    try:
        return read_picture(file, rules)
    except BadSampleError as e:
        raise VarlabError(f"{setting}={file} cannot be used: {e}.") from e


def _check_pixels(height: int, width: int, rules: PixelRules) -> None:
    if height * width > rules.most_pixels:
        key = f"{rules.keys}most_pixels"
        raise BadSampleError(
            "too_large", f"{width}×{height} pixels, over {key}={rules.most_pixels}: raise {key} to use it"
        )
    if not height * width:
        raise BadSampleError("corrupt", f"its header says {width}×{height} pixels")


class _Jpeg:
    """A JPEG file that libjpeg-turbo knows."""

    form = "JPEG"

    def __init__(self, encoded: bytes, height: int, width: int, colours: str):
        self._encoded, self._colours = encoded, colours
        self._orientation = jpeg_orientation(encoded)
        self._lies = self._orientation > 4
        self.size = (width, height) if self._lies else (height, width)

    @classmethod
    def of(cls, encoded: bytes, rules: PixelRules) -> _Jpeg | None:
        """None for a file that it does not know."""
        header = jpeg_header(encoded)
        if header is None:
            return None
        _check_pixels(header[0], header[1], rules)
        return cls(encoded, *header)

    def decode(self, least: tuple[int, int] = (0, 0)) -> Picture:
        img_HWC, warned = self._pixels(least[::-1] if self._lies else least)
        mode = _JPEG_MODES.get(self._colours, self._colours)
        if self._orientation == 1 and not warned:
            return Picture(img_HWC, mode)
        steps = (TURNED,) * (self._orientation > 1) + (WARNED,) * warned
        return Picture(_upright(img_HWC, self._orientation), mode, steps)

    def _pixels(self, least: tuple[int, int]) -> tuple[U8, bool]:
        """``img_HWC`` as stored, and whether the file has warnings."""
        direct = _JPEG_COLOURS.get(self._colours)
        try:
            checked = jpeg_pixels(self._encoded, direct or self._colours.replace("YCCK", "CMYK"), least)
            if direct:
                return checked
            whole, warned = mended(self._encoded) + JPEG_END, checked[1]
        except ValueError:  # Pillow says itself if data is missing
            whole, warned = mended(self._encoded), False
        with _unreadable_is_corrupt(), _opened(whole) as image:
            image.load()
            return flat(image, "", background=0, depths={}, key="")[0], warned


class _AnyFormat:
    """A file of any format, by Pillow."""

    def __init__(self, encoded: bytes, rules: PixelRules):
        self._rules = rules
        with _unreadable_is_corrupt():
            self._image = _opened(without_texts(encoded) if encoded.startswith(PNG_START) else encoded)
            width, height = self._image.size
            _check_pixels(height, width, rules)
            self.form, self._raw = str(self._image.format), _layout(self._image)
            self._several = bool(getattr(self._image, "is_animated", False)) and self.form != "MPO"
            self._orientation = _orientation(self._image, encoded)
        self._turns_itself = self.form == "TIFF"
        lies = self._orientation > 4 and not self._turns_itself
        self.size = (width, height) if lies else (height, width)

    def decode(self, least: tuple[int, int] = (0, 0)) -> Picture:
        rules = self._rules
        with _unreadable_is_corrupt(), self._image as image:
            image.load()
            mode = image.mode
            img_HWC, steps, deep = flat(
                image, self._raw, background=rules.background, depths=rules.depths, key=f"{rules.keys}depth"
            )
        if not self._turns_itself:
            img_HWC = _upright(img_HWC, self._orientation)
        steps = (TURNED,) * (self._orientation > 1) + steps + (FIRST,) * self._several
        return Picture(img_HWC, mode, steps, deep)


def _opened(encoded: bytes) -> ImageFile.ImageFile:
    """As Image.open does, but without Pillow's own limit of pixels.

    Raises:
        SyntaxError: no format knows the file, or the first that seems to know it finds it damaged.
    """
    reason = "it is no image in a known format" if encoded else "0 bytes"
    for load_formats in (Image.preinit, Image.init):
        load_formats()
        for name in Image.ID:
            factory, accept = Image.OPEN[name]
            if name in _NOT_OPENED or not (accept is None or _knows(accept, encoded)):
                continue
            try:
                image = factory(io.BytesIO(encoded), "")
                image.format = image.format or name
                return image
            except MALFORMED as e:
                reason = f"{name}: {e}" if accept else reason
    raise SyntaxError(reason)


def _knows(accept: Callable[[bytes], bool | str], encoded: bytes) -> bool:
    """Whether a format takes a file for its own by the first bytes; a text says why it could not decode it."""
    try:
        return accept(encoded[:_START]) in (True, 1)
    except MALFORMED:  # the file is shorter than that
        return False


def _layout(image: ImageFile.ImageFile) -> str:
    """Pillow's raw mode of a file, such as L;4; empty if there is none."""
    args = image.tile[0][3] if image.tile else ""
    return str(args[0] if isinstance(args, tuple) and args else args)


def _orientation(image: ImageFile.ImageFile, encoded: bytes) -> int:
    """EXIF's or XMP's orientation, 1 … 8; 1 (upright) if there is none that can be read."""
    if image.format == "PNG":
        if not any(name in encoded for name in (b"eXIf", b"iTXt", b"Raw profile type exif")):
            return 1
        image.load()  # PNG may state it after the pixels
    try:
        orientation = image.getexif().get(0x0112)
    except MALFORMED:
        return 1
    return orientation if isinstance(orientation, int) and 1 <= orientation <= 8 else 1


def _upright(img_HWC: U8, orientation: int) -> U8:
    """Turn and mirror stored pixels as EXIF's orientation asks."""
    if orientation > 4:
        img_HWC = img_HWC.transpose(1, 0, 2)
    if orientation in (2, 3, 6, 7):
        img_HWC = img_HWC[:, ::-1]
    if orientation in (3, 4, 7, 8):
        img_HWC = img_HWC[::-1]
    return np.ascontiguousarray(img_HWC)


@contextmanager
def _unreadable_is_corrupt() -> Iterator[None]:
    try:
        yield
    except Image.DecompressionBombError as e:
        raise BadSampleError("too_large", f"{e}: reduce it first") from e
    except MALFORMED as e:
        raise BadSampleError("corrupt", f"cannot be decoded ({e})") from e
