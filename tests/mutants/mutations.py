"""Small wrong changes of the science rooms: one operator, number, name or statement each."""

from __future__ import annotations

import ast
import copy
import random
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
ROOMS = ("order", "transformer", "tokenizer", "losses", "sample", "metrics")
FILES = (
    *("rng", "processor", "recipe/flops"),
    *(
        f"tasks/{name}"
        for name in ("classifier_task", "gan", "generator_task", "likelihood", "target", "tokenizer_task")
    ),
    *(f"tasks/update/{name}" for name in ("code_use", "ema", "optimizer", "scale_stages", "schedule")),
)

_OPERATORS: dict[type[ast.AST], type[ast.AST]] = {
    ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq,
    ast.Is: ast.IsNot, ast.IsNot: ast.Is, ast.In: ast.NotIn, ast.NotIn: ast.In, ast.And: ast.Or, ast.Or: ast.And,
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult, ast.FloorDiv: ast.Mult, ast.Mod: ast.FloorDiv,
    ast.Pow: ast.Mult, ast.BitAnd: ast.BitOr, ast.BitOr: ast.BitAnd, ast.BitXor: ast.BitOr, ast.LShift: ast.RShift,
    ast.RShift: ast.LShift, ast.MatMult: ast.Mult,
}  # fmt: skip
_PAIRS = (
    "mean sum", "min max", "amin amax", "argmin argmax", "cos sin", "floor ceil", "sqrt square", "log log1p", "zeros ones",
    "zeros_like ones_like", "new_zeros new_ones", "zeros_ ones_", "clamp_min clamp_max", "add_ sub_", "mul_ div_", "all any",
)  # fmt: skip
_NAMES = {a: b for pair in _PAIRS for a, b in (pair.split(), pair.split()[::-1])}


@dataclass(frozen=True)
class Mutant:
    """One change. path: below the root. function: the first line of the innermost one around it, 0 for none. span: bytes."""

    path: str
    line: int
    function: int
    code: str  # the whole line
    before: str
    after: str
    span: tuple[int, int]
    nth: int = 1  # of those that read the same

    @property
    def key(self) -> str:
        """What names it in the list of equivalents: it holds as long as the line does."""
        return f"{self.path}: {self.code}: {self.before} → {self.after}" + f" #{self.nth}" * (self.nth > 1)

    def source(self) -> bytes:
        """The changed file."""
        content, (start, end) = (ROOT / self.path).read_bytes(), self.span
        return content[:start] + self.after.encode() + content[end:]


def science_files() -> list[str]:
    """The mutated files."""
    files = [file for room in ROOMS for file in sorted((ROOT / "varlab" / room).rglob("*.py"))]
    files += [ROOT / "varlab" / f"{name}.py" for name in FILES]
    return [file.relative_to(ROOT).as_posix() for file in files if file.name != "__init__.py"]


def sample(seed: int, count: int) -> list[Mutant]:
    """So many of all mutants, each as likely as another."""
    everything = [mutant for path in science_files() for mutant in mutants_of(path)]
    return random.Random(seed).sample(everything, min(count, len(everything)))


def mutants_of(path: str, source: bytes | None = None) -> list[Mutant]:
    """All changes of a file."""
    source = (ROOT / path).read_bytes() if source is None else source
    finder = _Finder(path, source)
    finder.visit(ast.parse(source))
    seen: Counter[str] = Counter()
    numbered = []
    for mutant in finder.found:
        seen[mutant.key] += 1
        numbered.append(replace(mutant, nth=seen[mutant.key]))
    return numbered


class _Finder(ast.NodeVisitor):
    """Docstrings, annotations, messages, imports and errors stay as they are."""

    def __init__(self, path: str, source: bytes):
        self.path, self.source, self.function, self.found = path, source, 0, list[Mutant]()
        self.starts = [0]
        for line in source.splitlines(keepends=True):
            self.starts.append(self.starts[-1] + len(line))

    def visit(self, node: ast.AST) -> None:
        skipped = (ast.Raise, ast.Import, ast.ImportFrom, ast.JoinedStr, ast.Assert)
        if isinstance(node, ast.keyword) and node.arg == "strict":
            return  # of zip
        if isinstance(node, skipped) or (isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)):
            return
        if isinstance(node, ast.Expr) and ast.unparse(node).startswith(("logger.", "log.")):
            return
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            self._function(node)
            return
        if isinstance(node, ast.ClassDef):
            for child in node.body:
                self.visit(child)
            return
        if isinstance(node, ast.Assign) and "__all__" in ast.unparse(node.targets[0]):
            return
        if isinstance(node, ast.AnnAssign):
            if node.value is not None:
                self.visit(node.value)
            return
        for other in _changes(node):
            self._add(node, other)
        self.generic_visit(node)

    def _function(self, node: ast.FunctionDef | ast.AsyncFunctionDef) -> None:
        around = self.function
        self.function = min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])
        for child in (*node.args.defaults, *filter(None, node.args.kw_defaults), *node.body):
            self.visit(child)
        self.function = around

    def _add(self, node: ast.AST, other: ast.AST | str) -> None:
        start, end = (self._at(node, end=end) for end in (False, True))
        before = " ".join(self.source[start:end].decode().split())
        line = node.lineno  # type: ignore[attr-defined]
        code = self.source[self.starts[line - 1] : self.starts[line]].decode().strip()
        text = other if isinstance(other, str) else ast.unparse(other)
        after = f"({text})" if isinstance(node, ast.expr) and not isinstance(node, ast.Constant) else text
        self.found.append(Mutant(self.path, line, self.function, code, before, after, (start, end)))

    def _at(self, node: ast.AST, *, end: bool) -> int:
        line, column = (node.end_lineno, node.end_col_offset) if end else (node.lineno, node.col_offset)  # type: ignore[attr-defined]
        return self.starts[line - 1] + column


def _changes(node: ast.AST) -> Iterator[ast.AST | str]:
    """What a node becomes, one change at a time."""
    other = copy.deepcopy(node)
    match other:
        case ast.Compare(ops=[op, *_]):
            other.ops[0] = _OPERATORS[type(op)]()  # type: ignore[call-overload]
            yield other
        case ast.BinOp(op=op) | ast.BoolOp(op=op) | ast.AugAssign(op=op):
            other.op = _OPERATORS[type(op)]()  # type: ignore[assignment]
            yield other
        case ast.UnaryOp(op=ast.USub() | ast.Not() | ast.Invert(), operand=operand):
            yield operand
        case ast.Constant(value=bool() as value):
            yield str(not value)
        case ast.Constant(value=int() as value):
            yield str(value + 1)
        case ast.Constant(value=float() as value):
            yield str(2 * value or 1.0)
        case ast.IfExp(test=test):
            other.test = ast.UnaryOp(ast.Not(), test)
            yield other
        case ast.Call(func=ast.Attribute(attr="detach", value=value), args=[]):
            yield value
        case ast.Call(func=ast.Attribute(attr=name)) if name in _NAMES:
            other.func.attr = _NAMES[name]  # type: ignore[attr-defined]
            yield other
        case ast.Call(func=ast.Name(id=name)) if name in _NAMES:
            other.func.id = _NAMES[name]  # type: ignore[attr-defined]
            yield other
        case ast.Expr(value=ast.Call(func=function)) if "__init__" not in ast.unparse(function):
            yield "pass"
