"""Small photographs without labels: the hundred faces that ship with scikit-image."""

from __future__ import annotations

from pathlib import Path

from PIL import Image
from skimage import data

FACES = 100  # the pictures after them show no faces


def write_faces(folder: Path) -> None:
    """A PNG of 25 × 25 pixels for each face."""
    folder.mkdir(parents=True, exist_ok=True)
    for i, face_HW in enumerate(data.lfw_subset()[:FACES]):
        Image.fromarray((face_HW * 255).round().astype("uint8")).save(folder / f"{i:03d}.png")
