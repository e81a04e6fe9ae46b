"""Draw one grid: ``python grid.py PICTURE SHARDS CREDIT NAME=FOLDER…``, with a block of columns for each ``varlab sample``.

A row for each class. CREDIT is the line below the grid that names the images' authors and licences. Pixels are enlarged twice.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

COLUMNS = 8  # of a block
ENLARGED = 2
MARGIN, LINE = 10, 28


def block(folder: Path, classes: int) -> Image.Image:
    """The first samples of each class, a row for each."""
    arrays = np.load(folder / "samples.npz")
    img_N, label_N = arrays["arr_0"], arrays["arr_1"]
    rows = [np.concatenate(img_N[label_N == label][:COLUMNS], axis=1) for label in range(classes)]
    picture = Image.fromarray(np.concatenate(rows))
    return picture.resize((picture.width * ENLARGED, picture.height * ENLARGED), Image.Resampling.NEAREST)


def draw(classes: list[str], blocks: dict[str, Image.Image], credit: str) -> Image.Image:
    """The blocks beside each other, with names of rows and blocks, and the credit below."""
    font, small = ImageFont.load_default(16), ImageFont.load_default(13)
    left = 2 * MARGIN + max(round(font.getlength(name)) for name in classes)
    width = left + sum(picture.width + MARGIN for picture in blocks.values())
    height = max(picture.height for picture in blocks.values())
    page = Image.new("RGB", (width, LINE + height + LINE), "white")
    pen = ImageDraw.Draw(page)
    for i, name in enumerate(classes):
        pen.text((MARGIN, LINE + height * (i + 0.5) / len(classes)), name, "black", font, anchor="lm")
    for name, picture in blocks.items():
        pen.text((left, LINE / 2), name, "black", font, anchor="lm")
        page.paste(picture, (left, LINE))
        left += picture.width + MARGIN
    pen.text((MARGIN, height + LINE * 1.5), credit, "black", small, anchor="lm")
    return page


def main(picture: str, shards: str, credit: str, *samples: str) -> None:
    """Write the picture."""
    classes = json.loads((Path(shards) / "index.json").read_text())["classes"]
    named = dict(word.split("=", 1) for word in samples)
    blocks = {name: block(Path(folder), len(classes)) for name, folder in named.items()}
    draw([name.replace("_", " ") for name in classes], blocks, credit).save(picture, optimize=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
