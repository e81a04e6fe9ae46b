"""Protocols with a name (``conf/metrics``): what they ask of samples, reference and extractor, and why two of them differ."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import combinations

from varlab.config import Config
from varlab.errors import VarlabError

__all__ = ["ScoredSet", "explain", "require_protocol", "score_label"]

_THOUSAND = 1000
_FULL = 50_000  # samples of an FID that is called FID-50k
_SAME = 1e-9  # relative


@dataclass(frozen=True, kw_only=True)
class ScoredSet:
    """What is about to be scored.

    of: samples, or reconstructions of the reference's images. n: images. extractor, weights: its name and the hash of its
    weights. moments: whether the reference stores some. reference_images: how many images it has. balance: of the samples'
    classes, in words.
    """

    of: str
    n: int
    image_size: tuple[int, ...]
    extractor: str
    weights: str
    moments: bool
    reference_images: int
    balance: str

    def answer(self, key: str) -> object:
        """What this set has for a key of a protocol."""
        if key == "balanced":
            return " to " not in self.balance and self.balance.startswith("each of")
        if key == "reference":
            return [*(["moments"] if self.moments else []), *(["images"] if self.reference_images else [])]
        return list(self.image_size) if key == "image_size" else getattr(self, key)


_WORDS = {
    "name": "",
    "of": "a score of {}",
    "extractor": "extractor={}",
    "weights": "an extractor whose weights have a SHA-256 that begins with {}",
    "n": "{} samples",
    "image_size": "images of {} pixels",
    "reference": "a reference that holds {}",
    "reference_images": "{} images in the reference",
    "balanced": "samples with every class equally often, by their labels: {}",
}


def require_protocol(asked: Mapping[str, object] | None, scored: ScoredSet) -> None:
    """Raise VarlabError, in one sentence, unless a named protocol is what is about to be measured.

    asked: the part ``protocol`` of ``conf/metrics``; None for settings without a name. Its keys that are null ask nothing.
    """
    for key, wanted in (asked or {}).items():
        if key == "name" or wanted is None:
            continue
        has = scored.answer(key)
        fits = wanted in has if isinstance(has, list) and key == "reference" else has == wanted
        if key == "weights":
            fits = str(has).startswith(str(wanted))
        if not fits:
            raise VarlabError(
                f"metrics={(asked or {})['name']} asks for {_WORDS[key].format(wanted)}, but here it is {_shown(has)}: give "
                "that, or score under another protocol (metrics=smoke)."
            )


def _shown(value: object) -> str:
    if isinstance(value, list) and all(isinstance(one, str) for one in value):
        return " and ".join(value) or "nothing"
    text = str(value)
    return text[:12] if len(text) == 64 else text


def score_label(asked: Mapping[str, object] | None, n: int, extractor: str) -> str:
    """What the FID of n samples is called: FID-50k only from 50,000 on, in Inception's features; and its protocol."""
    is_full = extractor == "inception" and n >= _FULL and n % _THOUSAND == 0
    size = f"FID-{n // _THOUSAND}k" if is_full else f"FID of {n:,} samples"
    return size if asked is None else f"{size}, {asked['name']}"


_DECIDES = {
    "fid": ("protocol.reference",),
    "sfid": ("protocol.reference",),
    "inception_score": ("inception", "splits"),
    "precision": ("neighbours", "manifold"),
    "recall": ("neighbours", "manifold"),
    "density": ("density_neighbours", "manifold"),
    "coverage": ("density_neighbours", "manifold"),
    "kid": ("kid",),
}
"""The settings of a protocol on which each score depends."""


def explain(protocols: Mapping[str, Config], scores: Mapping[str, float]) -> Iterator[str]:
    """A sentence for each score that two protocols measure differently, with the settings that it comes from.

    scores: by ``protocol/score``.
    """
    for (one, a), (other, b) in combinations(protocols.items(), 2):
        for score, settings in _DECIDES.items():
            x, y = scores.get(f"{one}/{score}"), scores.get(f"{other}/{score}")
            if x is None or y is None or abs(x - y) <= _SAME * max(abs(x), abs(y)):
                continue
            pairs = [(key, _setting(a, key), _setting(b, key)) for key in settings]
            why = "; ".join(f"{key} {p} and {q}" for key, p, q in pairs if p != q) or "rounding"
            yield f"{score}: {one} {x:.6g}, {other} {y:.6g}, by {why}"


def _setting(config: Config, key: str) -> str:
    value: object = config
    for part in key.split("."):
        value = value.get(part) if isinstance(value, Mapping) else None
    if isinstance(value, Mapping):
        return "(" + ", ".join(f"{name}={one}" for name, one in value.items() if one is not None) + ")"
    return "none" if value is None else str(value)
