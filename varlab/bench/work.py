"""What is measured: pieces of work, and the methods in which their time is spent."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from varlab.config import Config

__all__ = ["REST", "Part", "Work", "Works"]

REST = "rest"
"""The part of the time that no named part takes."""


@dataclass(frozen=True, kw_only=True)
class Part:
    """A named share of a work's time: that spent in one method of a module, class or object.

    Several methods may have one name. Time in a part that another part's method calls belongs to the inner one, unless the
    outer one is ``closed``.
    """

    name: str
    owner: object
    method: str
    closed: bool = False


@dataclass(frozen=True, kw_only=True)
class Work:
    """A piece of work.

    turn: does it once; returns how many images it was. flops_per_image: as budgets count them; None where none are counted.
    """

    name: str
    turn: Callable[[], int]
    flops_per_image: int | None = None
    parts: Sequence[Part] = ()


@dataclass(frozen=True, kw_only=True)
class Works:
    """The works of one kind. title: of the printed table. facts: what the figures also say (``parameters``, …)."""

    title: str
    works: Sequence[Work]
    facts: Config = field(default_factory=dict)
