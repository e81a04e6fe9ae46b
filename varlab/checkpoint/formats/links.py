"""Links between our tensors and those of another code: one table, used for import and export."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from varlab.checkpoint.formats.state import State
from varlab.types import VarlabError


def _only(tensors: Sequence[Tensor]) -> Tensor:
    return tensors[0]


def _alone(tensor: Tensor) -> Sequence[Tensor]:
    return (tensor,)


@dataclass(frozen=True)
class Link:
    """One of our tensors and the foreign tensors that it is made of. ``write`` is the inverse of ``read``."""

    ours: str
    theirs: tuple[str, ...]
    read: Callable[[Sequence[Tensor]], Tensor] = _only
    write: Callable[[Tensor], Sequence[Tensor]] = _alone


def same(ours: str, theirs: str, *parts: str) -> list[Link]:
    """Links that only rename. parts: weight and bias by default."""
    return [Link(f"{ours}.{part}", (f"{theirs}.{part}",)) for part in parts or ("weight", "bias")]


def reshaped(ours: str, theirs: str, shape: Sequence[int], official: Sequence[int]) -> Link:
    """A link between two shapes of the same numbers; -1 is inferred."""
    return Link(ours, (theirs,), lambda t: t[0].reshape(*shape), lambda t: (t.reshape(*official),))


def joined(ours: str, theirs: Iterable[str]) -> Link:
    """A link that concatenates foreign tensors (query, key and value)."""
    names = tuple(theirs)
    return Link(ours, names, lambda t: torch.cat(list(t)), lambda t: t.chunk(len(names)))


Shapes = Mapping[str, Sequence[int]]


def read_links(
    links: Sequence[Link], state: State, *, shapes: Shapes, extras: Callable[[str], bool], path: Path
) -> State:
    """Translate a foreign state dict into ours.

    shapes: of our tensors. extras: whether a foreign key may be ignored. Raises VarlabError naming the first key that is
    missing, unknown, or of a shape that does not fit the others.
    """
    read = {}
    for link in links:
        for key in link.theirs:
            if key not in state:
                raise VarlabError(f"{path} has no tensor '{key}', which a model of this kind needs.")
        try:
            tensor = link.read([state[key] for key in link.theirs]).float().contiguous()
        except RuntimeError:
            tensor = torch.empty(0)
        if tuple(tensor.shape) != tuple(shapes[link.ours]):
            shapes_read = ", ".join(f"'{key}' {tuple(state[key].shape)}" for key in link.theirs)
            expected = tuple(_shape_of_theirs(link, shapes[link.ours])[0])
            raise VarlabError(
                f"{path}: tensor {shapes_read} does not fit the others, by which its shape is {expected}."
            )
        read[link.ours] = tensor
    known = {key for link in links for key in link.theirs}
    for key in state:
        if key not in known and not extras(key):
            raise VarlabError(f"{path} has a tensor '{key}' that has no place in a model of this kind.")
    return read


def _shape_of_theirs(link: Link, shape: Sequence[int]) -> list[torch.Size]:
    return [t.shape for t in link.write(torch.empty(*shape, device="meta"))]


def write_links(links: Sequence[Link], ours: State) -> State:
    """Translate our state dict into a foreign one. Raises VarlabError for a tensor without a counterpart on either side."""
    missing = [link.ours for link in links if link.ours not in ours]
    left = sorted(ours.keys() - {link.ours for link in links})
    if missing or left:
        what = f"needs '{missing[0]}'" if missing else f"has no place for '{left[0]}'"
        raise VarlabError(f"This model cannot be written in that format, which {what}.")
    return {
        key: tensor.clone().contiguous()
        for link in links
        for key, tensor in zip(link.theirs, link.write(ours[link.ours]), strict=True)
    }
