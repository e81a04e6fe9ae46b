"""JSON values of a stranger: payloads that would run something, and other types, sizes and keys in any place."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

__all__ = ["changed", "damaged_json", "payloads"]
_DEEP = 100_000
_HOLE = '"\u2400hole\u2400"'
_TEXTS = (
    "",
    "x" * 70_000,
    "\x1b[31mred\x07\r\n",
    "\ud800",
    "\u202e\u0000",
    "../../outside/planted",
    "/etc/passwd",
    "${oc.env:HOME}",
    "${a}",
    "pipe:touch planted",
    "http://127.0.0.1:9/x",
    "-1",
    "1e999",
    "NaN",
    "null",
    "é" * 300,
    "<script>alert(1)</script>",
    "%s%n{0}",
)
_VALUES: tuple[Any, ...] = (
    None,
    True,
    False,
    0,
    1,
    -1,
    5,
    0.5,
    2**31,
    2**63,
    2**64,
    10**18,
    10**299,
    10**400,
    -(10**30),
    math.nan,
    math.inf,
    -math.inf,
    1e308,
    1e-320,
    [],
    {},
    [[]],
    [1, 2],
    {"a": 1},
    [None] * 3000,
    {str(i): i for i in range(2000)},
)


def payloads(planted: Path) -> dict[str, Any]:
    """What would run a program, import a module or write a file, if it were built; each would make ``planted``."""
    x, touch = str(planted), f"touch {planted}"
    path = {"_target_": "pathlib.Path", "_args_": [x]}
    return {
        "torch's own runner": {"_target_": "torch.utils.collect_env.run", "command": touch},
        "os.system": {"_target_": "os.system", "_args_": [touch]},
        "subprocess": {"_target_": "subprocess.Popen", "args": ["touch", x]},
        "nested": {"_target_": "pathlib.Path.touch", "_args_": [path]},
        "own function": {"_target_": "varlab.files.write_text", "path": path, "text": ""},
        "own part around": {
            "_target_": "varlab.order.Permutation",
            "path": {"_target_": "os.system", "_args_": [touch]},
        },
        "partial": {"_partial_": True, "inner": [{"_target_": "os.system", "_args_": [touch], "_partial_": False}]},
        "twice": {"_target_": "hydra.utils.instantiate", "config": {"_target_": "os.system", "command": touch}},
        "unpickled": {"_target_": "torch.load", "f": x, "weights_only": False},
        "numpy": {"_target_": "numpy.load", "file": x, "allow_pickle": True},
        "exec": {"_target_": "builtins.exec", "_args_": [f"import os; os.system({touch!r})"]},
        "import": {"_target_": "importlib.import_module", "name": "antigravity"},
        "unknown module": {"_target_": "antigravity.fly"},
        "not recursive": {"_recursive_": False, "x": {"_target_": "os.system", "_args_": [touch]}},
        "interpolation": {"_target_": "varlab.order.Permutation", "path": "${oc.env:HOME}"},
        "command": {"path": f"pipe:{touch}", "train": [f"pipe:{touch}"], "val": f"pipe:{touch}"},
        "address": {"vgg": "http://127.0.0.1:9/weights.pth", "_target_": "varlab.losses.Perceptual"},
        "no text": {"_target_": ["os.system"], "_args_": [touch]},
    }


def places(value: object, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The path of everything in a JSON value."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(place for key, item in inner for place in places(item, (*path, key)))]


def changed(value: Any, path: tuple[Any, ...], change: Callable[[Any], Any]) -> Any:
    """A JSON value with one part of it changed."""
    if not path:
        return change(value)
    copy = value.copy()
    copy[path[0]] = changed(value[path[0]], path[1:], change)
    return copy


def _other(rng: Random, old: Any) -> Any:
    """Something in the place of a JSON value."""
    if isinstance(old, dict) and old and rng.random() < 0.5:
        key = rng.choice(list(old))
        rest = {name: item for name, item in old.items() if name != key}
        return rng.choice([rest, rest | {f"{key}x": old[key]}, old | {"surplus": old[key]}, rest | {"": old[key]}])
    if isinstance(old, list) and old and rng.random() < 0.5:
        return rng.choice([old[1:], old * 2, old * 500, old[::-1], [old], dict(enumerate(map(str, old)))])
    if isinstance(old, int | float) and rng.random() < 0.5:
        return rng.choice([old + 1, -old, old * 1000, str(old), [old], float(old) + 0.5])
    if isinstance(old, str) and rng.random() < 0.4:
        return rng.choice([old[:-1], old.upper(), old + "/../x", old + "\0", [old], old * 100])
    return rng.choice(
        [rng.choice(_VALUES), rng.choice(_TEXTS), rng.choice([*payloads(Path("../outside/planted")).values()])]
    )


def damaged_json(rng: Random, value: Any) -> str:
    """JSON with one to three parts changed; deeply nested at times."""
    for _ in range(rng.choice([1, 1, 2, 3])):
        deep = rng.random() < 0.04
        place = rng.choice(places(value))
        value = changed(value, place, lambda old: json.loads(_HOLE) if deep else _other(rng, old))  # noqa: B023
    kind = rng.choice(["[]", "{}"])
    opening = "[" if kind == "[]" else '{"a":'
    nest = opening * _DEEP + "1" + kind[1] * rng.choice([_DEEP, 0])
    text = json.dumps(value, ensure_ascii=rng.random() < 0.8)
    return text.replace(json.dumps(json.loads(_HOLE)), nest).replace(_HOLE, nest)
