"""A mutant inside a function, put into the functions of modules that are imported already."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from functools import cache
from types import CodeType, FunctionType

from tests.mutants.mutations import ROOT, Mutant

_OPTIMIZED = 1  # a flag of the code of functions; those of modules and classes lack it


def is_inside_functions(mutant: Mutant) -> bool:
    """Whether only the code of functions changes: no module, no class, and no default of an argument."""
    return changed_codes(mutant) is not None


def changed_codes(mutant: Mutant) -> dict[tuple[str, int], CodeType] | None:
    """The new code of each function that changes, by its name and first line; None if anything else changes."""
    before, after = list(_codes(_original(mutant.path))), list(_codes(_compiled(mutant.path, mutant.source())))
    if [code.co_qualname for code in before] != [code.co_qualname for code in after]:
        return None
    changed: dict[tuple[str, int], CodeType] = {}
    for old, new in zip(before, after, strict=True):
        if not old.co_flags & _OPTIMIZED:
            if _plain(old, deep=False) != _plain(new, deep=False):
                return None
        elif _plain(old, deep=True) != _plain(new, deep=True):
            if old.co_freevars != new.co_freevars:
                return None
            changed[old.co_qualname, old.co_firstlineno] = new
    return changed


def patches(mutant: Mutant) -> list[tuple[FunctionType, CodeType]]:
    """The functions that change, with their new code."""
    changed, functions = changed_codes(mutant) or {}, _functions().get(str(ROOT / mutant.path), [])
    keys = [(function, (function.__code__.co_qualname, function.__code__.co_firstlineno)) for function in functions]
    return [(function, changed[key]) for function, key in keys if key in changed]


def apply(found: list[tuple[FunctionType, CodeType]]) -> None:
    for function, code in found:
        function.__code__ = code


@cache
def _functions() -> dict[str, list[FunctionType]]:
    """Those of the package, by their file."""
    made: dict[str, list[FunctionType]] = {}
    for thing in gc.get_objects():
        if type(thing) is FunctionType and thing.__code__.co_filename.startswith(str(ROOT / "varlab")):
            made.setdefault(thing.__code__.co_filename, []).append(thing)
    return made


@cache
def _original(path: str) -> CodeType:
    return _compiled(path, (ROOT / path).read_bytes())


def _compiled(path: str, source: bytes) -> CodeType:
    return compile(source, str(ROOT / path), "exec", dont_inherit=True)


def _codes(code: CodeType) -> Iterator[CodeType]:
    yield code
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _codes(constant)


def _plain(code: CodeType, *, deep: bool) -> CodeType:
    """Without lines; with its inner functions only if deep."""
    constants = tuple(
        (_plain(c, deep=True) if deep else None) if isinstance(c, CodeType) else c for c in code.co_consts
    )
    return code.replace(co_firstlineno=1, co_linetable=b"", co_consts=constants)
