"""Fetch the emoji of two vendors: ``python fetch.py FOLDER`` makes FOLDER/CLASS/*.png, 7,572 images in ten classes.

They are in the npm packages emoji-datasource-google and emoji-datasource-twitter, which ``npm pack`` fetches, or without npm
a plain download. ``python fetch.py FOLDER URL`` takes the two tarballs from URL instead (file:///… for a folder here).
"""

from __future__ import annotations

import base64
import hashlib
import json
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from urllib.request import urlopen

REGISTRY = "https://registry.npmjs.org"
VERSION = "16.0.0"
# npm's integrity of each tarball
SHA512 = {
    "google": "ZRexfzs7MVoLnmzZmNsO4TKhnAJp5D++Vm6PpUpH/jEQQlemp3l88CjZ+DoZ2faM9R4QxZkOPJCoT8DlPhfQ3A==",
    "twitter": "7F+uCuHH+7Qnrc15P5tnbvKkg9E6tlzi4MnT2uW1RlN4pLYTza6cP/dstIfSDMtpjFLWuZewWg8jBbuL2eyELQ==",
}


def fetch(folder: Path, url: str | None = None, sha512: Mapping[str, str] = SHA512) -> int:
    """Write the images of all vendors as ``folder/CLASS/VENDOR-NAME.png``, and return their number.

    The folder appears only when it is complete. An existing one is not fetched again. sha512: in base64, by vendor. Raises
    SystemExit for a tarball with other bytes.
    """
    if not folder.is_dir():
        folder.parent.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(dir=folder.parent) as place:
            images = Path(place) / "images"
            for vendor, expected in sha512.items():
                tarball = download(vendor, Path(place), url)
                check(tarball, expected)
                unpack(tarball, vendor, images)
            images.rename(folder)
    return sum(1 for _ in folder.glob("*/*.png"))


def download(vendor: str, place: Path, url: str | None) -> Path:
    """The tarball of a vendor, in ``place``."""
    package = f"emoji-datasource-{vendor}"
    file = place / f"{package}-{VERSION}.tgz"
    if url is None and shutil.which("npm"):
        subprocess.run(["npm", "pack", "--silent", f"{package}@{VERSION}"], cwd=place, check=True, stdout=sys.stderr)
    else:
        with urlopen(f"{url or f'{REGISTRY}/{package}/-'}/{file.name}", timeout=60) as answer, file.open("wb") as out:
            shutil.copyfileobj(answer, out)
    return file


def check(tarball: Path, expected: str) -> None:
    with tarball.open("rb") as file:
        found = base64.b64encode(hashlib.file_digest(file, "sha512").digest()).decode()
    if found != expected:
        raise SystemExit(f"{tarball.name} has the SHA-512 {found}, not {expected}: download it again.")


def unpack(tarball: Path, vendor: str, images: Path) -> None:
    """Write each image of 64 pixels into the folder of its emoji's category."""
    prefix = f"package/img/{vendor}/64/"
    emoji: list[dict] = []
    pixels: dict[str, bytes] = {}
    with tarfile.open(tarball) as members:
        for member in members:
            if member.name == "package/emoji.json" and (file := members.extractfile(member)):
                emoji = json.load(file)
            elif member.name.startswith(prefix) and (file := members.extractfile(member)):
                pixels[member.name.removeprefix(prefix)] = file.read()
    for category, name in names(emoji):
        if name in pixels:
            target = images / category.replace(" & ", "_and_").replace(" ", "_") / f"{vendor}-{name}"
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(pixels.pop(name))


def names(emoji: list[dict]) -> Iterator[tuple[str, str]]:
    """(category, file name) of each emoji and of its skin tones, which have the category of their emoji."""
    for entry in emoji:
        for variant in (entry, *entry.get("skin_variations", {}).values()):
            yield entry["category"], variant["image"]


if __name__ == "__main__":
    print(f"{fetch(Path(sys.argv[1]), *sys.argv[2:3]):,} images in {sys.argv[1]}")
