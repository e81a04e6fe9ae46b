"""Make JPEG files to measure with: crops of scikit-image's photographs, 256×256, about 16 KB each, in ten classes.

python experiments/streaming/make_images.py OUT N
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import simplejpeg
from PIL import Image
from skimage import data

PHOTOS = ("astronaut.png", "chelsea.png", "coffee.png", "rocket.jpg")  # in scikit-image's wheel
QUALITY = 87  # about 16 KB a file


def main(out: Path, n: int) -> None:
    """Crop at random places and sizes, mirrored or not, so that no two files are equal."""
    photos = [np.asarray(Image.open(Path(data.data_dir) / name).convert("RGB")) for name in PHOTOS]
    rng = np.random.default_rng(0)
    for i in range(n):
        photo = photos[i % len(photos)]
        side = int(rng.integers(180, min(photo.shape[:2]) + 1))
        top, left = (int(rng.integers(0, edge - side + 1)) for edge in photo.shape[:2])
        crop = Image.fromarray(photo[top : top + side, left : left + side]).resize((256, 256), Image.Resampling.BICUBIC)
        folder = out / f"class{i % 10}"
        folder.mkdir(parents=True, exist_ok=True)
        pixels = np.ascontiguousarray(np.asarray(crop)[:, :: 1 if rng.random() < 0.5 else -1])
        (folder / f"{i:06d}.jpg").write_bytes(simplejpeg.encode_jpeg(pixels, quality=QUALITY, colorsubsampling="420"))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
