"""The protocol of a score: the settings that two comparable scores share."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping

from varlab.config import Config
from varlab.metrics.extractors import Extractor

# sampler settings in a name: their short form, and the neutral value that is left out
_SHOWN = {
    "cfg": ("cfg", None),
    "cfg_steps": ("steps", None),
    "top_k": ("k", 0),
    "top_p": ("p", 1),
    "temperature": ("t", 1),
}

FACTS = (
    "judge",
    "perceptual_network",
    "leakage",
    "classes",
    "samples",
    "guidance",
    "code",
    "notes",
    "label",
    "images",
    "balance",
    "weights_sha256",
    "kept",
    "ris_splits",
)
"""What a protocol says about its settings. It follows from their hashes, so the protocol's name does not depend on it."""


def protocol(
    *,
    extractor: Extractor,
    reference: Mapping[str, object],
    n: int,
    sampler: Mapping[str, object] | None,
    seed: int,
) -> Config:
    """The settings under which a score was measured, in JSON types.

    reference: name, hash and n of the reference images. n: the number of scored images. sampler: its settings, None for a
    tokenizer. seed: of samples and draws. A classifier's protocol says what it predicts and how well: ``judge``.
    """
    judge = {} if extractor.held_out is None else {"judge": extractor.held_out.to_json()}
    return {
        "extractor": extractor.name,
        "extractor_hash": extractor.hash,
        "reference": dict(reference),
        "n": n,
        "sampler": dict(sampler) if sampler is not None else None,
        "seed": seed,
        "resize": extractor.resize,
        "rounding": "uint8",
        **judge,
    }


def protocol_name(protocol: Config) -> str:
    """A short file name for a protocol, such as ``classifier-3f2a_n1000_cfg1.5_k900_p0.96_seed0_1c9e0b``.

    It ends in a hash of all settings, so equal protocols have the same name on every machine, and others differ.
    """
    sampler = protocol.get("sampler") or {}
    parts = [f"{protocol['extractor']}-{protocol['extractor_hash'][:4]}", f"n{protocol['n']}"]
    for key, (short, neutral) in _SHOWN.items():
        value = sampler.get(key, neutral)
        if value is not None and value != neutral:
            parts.append(f"{short}{value:g}")
    settings = {key: value for key, value in protocol.items() if key not in FACTS}
    text = json.dumps(settings, sort_keys=True, separators=(",", ":"))
    parts += [f"seed{protocol['seed']}", hashlib.sha256(text.encode()).hexdigest()[:6]]
    return re.sub(r"[^A-Za-z0-9._-]", "-", "_".join(parts))
