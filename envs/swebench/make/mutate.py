"""Bugs as small changes of one expression, spliced into the source so that the rest of the file stays as it was.

Pure: source text in, mutants out, the same for the same source.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass

_COMPARISONS: dict[type[ast.cmpop], tuple[str, str]] = {
    ast.Lt: ("<", "<="), ast.LtE: ("<=", "<"), ast.Gt: (">", ">="), ast.GtE: (">=", ">"), ast.Eq: ("==", "!="),
    ast.NotEq: ("!=", "=="), ast.Is: ("is", "is not"), ast.IsNot: ("is not", "is"), ast.In: ("in", "not in"),
    ast.NotIn: ("not in", "in"),
}  # fmt: skip
_ARITHMETIC: dict[type[ast.operator], tuple[str, str]] = {
    ast.Add: ("+", "-"), ast.Sub: ("-", "+"), ast.Mult: ("*", "+"), ast.FloorDiv: ("//", "*"), ast.Mod: ("%", "+"),
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Mutant:
    """Bytes ``start`` to ``end`` of a file's UTF-8 text are replaced. ``scope``: the function it lies in."""

    path: str
    start: int
    end: int
    replacement: str
    scope: str
    kind: str

    def applied(self, source: str) -> str:
        raw = source.encode()
        return (raw[: self.start] + self.replacement.encode() + raw[self.end :]).decode()


def mutants(path: str, source: str) -> list[Mutant]:
    """Every mutant of a module, in the order of their places. Raises SyntaxError if it is no Python.

    Each one still parses and differs from the source in its syntax tree. Code outside functions is left alone.
    """
    tree = ast.parse(source)
    text = _Text(source)
    original = ast.dump(tree)
    found = []
    for scope, node in _in_functions(tree):
        for start, end, replacement, kind in _changes(node, text):
            mutant = Mutant(path, start, end, replacement, scope, kind)
            if _parses_otherwise(mutant.applied(source), original):
                found.append(mutant)
    return sorted(found, key=lambda m: (m.start, m.end, m.replacement))


def _parses_otherwise(changed: str, original: str) -> bool:
    try:
        return ast.dump(ast.parse(changed)) != original
    except SyntaxError:
        return False


class _Text:
    """Places in a file: from the parser's lines and columns, which count bytes, to bytes from the start."""

    def __init__(self, source: str) -> None:
        self.raw = source.encode()
        self._lines = [0]
        for line in self.raw.splitlines(keepends=True):
            self._lines.append(self._lines[-1] + len(line))

    def start(self, node: ast.expr | ast.stmt) -> int:
        return self._lines[node.lineno - 1] + node.col_offset

    def end(self, node: ast.expr | ast.stmt) -> int:
        assert node.end_lineno is not None
        assert node.end_col_offset is not None
        return self._lines[node.end_lineno - 1] + node.end_col_offset

    def between(self, left: ast.expr, right: ast.expr, operator: str) -> tuple[int, int] | None:
        """Where the operator stands between two operands; None where it is not written just so, and once."""
        begin, end = self.end(left), self.start(right)
        gap = self.raw[begin:end]
        if gap.count(operator.encode()) != 1 or b"#" in gap:
            return None
        at = begin + gap.index(operator.encode())
        return at, at + len(operator)


def _in_functions(tree: ast.Module) -> Iterator[tuple[str, ast.AST]]:
    def walk(node: ast.AST, scope: tuple[str, ...], inside: bool) -> Iterator[tuple[str, ast.AST]]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                function = inside or not isinstance(child, ast.ClassDef)
                for statement in child.body:
                    yield from visit(statement, (*scope, child.name), function)
            else:
                yield from visit(child, scope, inside)

    def visit(node: ast.AST, scope: tuple[str, ...], inside: bool) -> Iterator[tuple[str, ast.AST]]:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            function = inside or not isinstance(node, ast.ClassDef)
            for statement in node.body:
                yield from visit(statement, (*scope, node.name), function)
            return
        if isinstance(node, ast.JoinedStr):  # places inside f-strings are not told exactly before Python 3.12
            return
        if inside:
            yield ".".join(scope), node
        yield from walk(node, scope, inside)

    yield from walk(tree, (), False)


def _changes(node: ast.AST, text: _Text) -> Iterator[tuple[int, int, str, str]]:
    if isinstance(node, ast.Compare) and len(node.ops) == 1 and type(node.ops[0]) in _COMPARISONS:
        written, other = _COMPARISONS[type(node.ops[0])]
        if place := text.between(node.left, node.comparators[0], written):
            yield *place, other, "comparison"
    elif isinstance(node, ast.BinOp) and type(node.op) in _ARITHMETIC:
        written, other = _ARITHMETIC[type(node.op)]
        if place := text.between(node.left, node.right, written):
            yield *place, other, "arithmetic"
    elif isinstance(node, ast.BoolOp):
        written, other = ("and", "or") if isinstance(node.op, ast.And) else ("or", "and")
        if len(node.values) == 2 and (place := text.between(node.values[0], node.values[1], written)):
            yield *place, other, "junction"
    elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
        yield text.start(node), text.start(node.operand), "", "negation"
    elif isinstance(node, ast.Constant) and type(node.value) is int and node.value in (0, 1, 2):
        yield text.start(node), text.end(node), str(node.value + 1), "number"
    elif isinstance(node, ast.Return) and node.value is not None and not isinstance(node.value, ast.Constant):
        yield text.start(node.value), text.end(node.value), "None", "return"
    elif isinstance(node, ast.If | ast.While) and not isinstance(node.test, ast.Compare | ast.BoolOp | ast.UnaryOp):
        yield text.start(node.test), text.start(node.test), "not ", "condition"
