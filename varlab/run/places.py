"""What lies at a place that a configuration names, by its hash: data and parent runs may move while a run is stopped."""

from __future__ import annotations

from pathlib import Path

from varlab.errors import VarlabError
from varlab.files import read_bytes, sha256
from varlab.json_file import LARGEST, parse_json
from varlab.run.config_keys import ABSENT
from varlab.run.record import Parent, RunRecord

__all__ = ["holds_same"]

_ROLES = {
    "tokenizer_run": "tokenizer",
    "condition.tokenizer_run": "condition",
    "perceptual.run": "perceptual",
    "extractor.run": "judge",
    "init": "init",
}
"""The role of the parent that a key names."""
_WEIGHTS = {"init": ("weights_raw.safetensors",)}
_CARRIED = ("tokenizer.safetensors", "weights.safetensors")  # a generator's run carries its tokenizer


def holds_same(record: RunRecord, key: str, place: object) -> bool | None:
    """Whether a place holds what the run began with; None where only the command itself can find out.

    That is so for a URL, for an old index, and for a run that was killed before it recorded its data.

    key: one of those that ``Use.PLACE`` leaves out. place: its new value, which may be ABSENT.
    """
    if record.data is None:
        return None
    place = None if place == ABSENT else place
    if role := _ROLES.get(key):
        return _holds_parent(record.parents.get(role), role, place)
    data = record.data
    if place is None:
        return not data.get("tokens")
    for file, part in (("index.json", "hash"), ("tokens.json", "tokens")):
        if hashed := _own_hash(Path(str(place)) / file):
            return bool(hashed == data.get(part))
    return None


def _holds_parent(parent: Parent | None, role: str, place: object) -> bool:
    if parent is None or place is None:
        return False
    files = [Path(str(place)) / name for name in _WEIGHTS.get(role, _CARRIED)]
    weights = next((file for file in files if file.is_file()), None)
    return place == "auto" or (weights is not None and sha256(weights) == parent.weights_sha256)


def _own_hash(file: Path) -> str | None:
    """The hash that an index, or a set of tokens, gives of itself; None without such a file, or if it has none."""
    try:
        value = parse_json(read_bytes(file, LARGEST))
    except (OSError, ValueError, VarlabError):
        return None
    return value.get("sha256") if isinstance(value, dict) else None
