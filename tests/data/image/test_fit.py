"""What packing makes of a picture's size."""

from __future__ import annotations

import io

import pytest
from PIL import Image

from varlab.data.image.picture import PixelRules
from varlab.data.image.resize import Fit

RULES = PixelRules(most_pixels=1 << 24)


def encoded(width: int, height: int, form: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    Image.radial_gradient("L").resize((width, height)).convert("RGB").save(buffer, format=form)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("size", "kept"),
    [((500, 375), (384, 288)), ((375, 500), (288, 384)), ((120, 100), (345, 288)), ((10, 400), (288, 4608))],
)
def test_the_whole_picture_is_kept(size: tuple[int, int], kept: tuple[int, int]) -> None:
    """As torchvision's Resize(288), which VAR uses: the shorter side is 288, the other is rounded down."""
    fit = Fit(size=288, resample="lanczos", check="decode", rules=RULES, whole=True)
    image = fit(encoded(*size)).image
    assert isinstance(image, Image.Image) and image.size == kept and fit.image_size is None
    if size == (500, 375):
        with Image.open(io.BytesIO(encoded(*size))) as source:
            wanted = source.resize(kept, Image.Resampling.LANCZOS)
        assert image.tobytes() == wanted.tobytes()


def test_what_has_its_size_is_stored_unchanged() -> None:
    fit = Fit(size=288, resample="lanczos", check="header", rules=RULES, whole=True)
    right, other = encoded(400, 288, "JPEG"), encoded(400, 300, "JPEG")
    assert fit(right).image == right and isinstance(fit(other).image, Image.Image)
