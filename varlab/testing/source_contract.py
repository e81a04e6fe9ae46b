"""The laws of sources of images, which `varlab pack` reads in several processes."""

from __future__ import annotations

import json
import pickle
from collections.abc import Sequence
from typing import Any

from PIL import Image

from varlab.data.format.index import SPLITS
from varlab.data.pack.sources.base import ImageSource, Skipped, SourceSample
from varlab.testing.expectation import expect, require_members

LONGEST = 90  # characters of a key


def check_source(source: ImageSource, *, most: int = 32) -> None:
    """Check a source; of each split ``most`` samples are loaded. Raises VarlabError with the first broken law."""
    require_members(source, ImageSource)
    name, described = type(source).__name__, source.describe()
    expect(isinstance(described, dict) and "name" in described, f"{name}.describe must return a dict with a name.")
    try:
        json.dumps(described)
        copied: ImageSource = pickle.loads(pickle.dumps(source))
    except (TypeError, AttributeError, pickle.PicklingError) as error:
        expect(False, f"{name} must be copied to worker processes, and describe must hold JSON types: {error}.")
    texts = all(isinstance(one, str) for one in source.classes) and len(set(source.classes)) == len(source.classes)
    expect(texts, f"{name}.classes must be different texts, in label order.")
    for split in SPLITS:
        entries = source.entries(split)
        same = list(entries) == list(source.entries(split)) == list(copied.entries(split))
        expect(same, f"{name}.entries('{split}') differs between calls or processes: its order must be fixed.")
        _check_samples(source, copied, split, list(entries)[:most])
    expect(len(source.entries(SPLITS[0])) > 0, f"{name}.entries('{SPLITS[0]}') is empty: there is nothing to train on.")


def _check_samples(source: ImageSource, copied: ImageSource, split: str, entries: Sequence[Any]) -> None:
    name, keys = type(source).__name__, set()
    for entry in entries:
        sample = source.load(split, entry)
        if isinstance(sample, Skipped):
            continue
        expect(isinstance(sample, SourceSample), f"{name}.load must return a SourceSample or a Skipped.")
        _check_sample(source, sample)
        expect(sample.key not in keys, f"{name}: the key {sample.key} occurs twice in {split}.")
        keys.add(sample.key)
        again = copied.load(split, entry)
        same = isinstance(again, SourceSample) and (again.key, again.label) == (sample.key, sample.label)
        expect(same and _pixels(again) == _pixels(sample), f"{name}.load gives another sample in another process.")


def _check_sample(source: ImageSource, sample: SourceSample) -> None:
    name, key = type(source).__name__, sample.key
    plain = key.isascii() and "." not in key and 0 < len(key) <= LONGEST
    expect(plain, f"{name}: the key '{key}' must be at most {LONGEST} ASCII characters without a dot.")
    known = sample.label is None or 0 <= sample.label < len(source.classes)
    expect(known, f"{name}: the label {sample.label} of {key} is none of {len(source.classes)} classes.")
    if isinstance(sample.image, Image.Image):
        expect(sample.image.mode in ("L", "RGB"), f"{name}: {key} has the mode {sample.image.mode}, not L or RGB.")
        size = sample.image.size[::-1]
        fits = source.image_size is None or tuple(source.image_size) == size
        expect(fits, f"{name}: {key} is {size} (H, W), but image_size is {source.image_size}.")
    else:
        expect(isinstance(sample.image, bytes), f"{name}: the image of {key} must be a PIL image or encoded bytes.")
    box = sample.box
    expect(box is None or all(0 <= x <= 1 for x in box), f"{name}: the box of {key} must lie in [0, 1].")


def _pixels(sample: SourceSample | Skipped) -> bytes:
    image = sample.image if isinstance(sample, SourceSample) else b""
    return image if isinstance(image, bytes) else image.tobytes()
