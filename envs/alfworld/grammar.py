"""ALFWorld's text: renders observations and commands from a grammar read by ``twl2``. Standard library only.

The shipped engine parses the grammar again at every step; here each right-hand side is a small tree, made once per
grammar text. Rendering follows the shipped engine in this: of a symbol's rules the first whose condition has a solution
is taken (the solution itself is not kept), a query lists its solutions in sorted order, and different variables stand
for different objects.
"""

from __future__ import annotations

import ast
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Protocol

from envs.alfworld.facts import Fact, Facts, candidates


class GrammarError(ValueError):
    """The grammar uses a form that this reader does not know, or names a symbol that has no rule."""


@dataclass(frozen=True)
class Entity:
    """What a template can say of an object."""

    id: str
    type: str
    name: str
    definite: str = "the"
    indefinite: str = "a"


class World(Protocol):
    """What rendering needs to know of a game."""

    @property
    def entities(self) -> list[Entity]: ...

    @property
    def members(self) -> dict[str, list[frozenset[int]]]:
        """For each type its own objects, then those of each of its subtypes."""


Context = dict[str, int]
"""Variable (``name:type``) to object. A bare name, as templates use it, is the part before the colon."""


@dataclass(frozen=True)
class Pattern:
    """One predicate of a query; ``args`` are ``name:type`` keys."""

    predicate: str
    args: tuple[str, ...]


# The nodes of a right-hand side.
@dataclass(frozen=True)
class Text:
    text: str


@dataclass(frozen=True)
class Symbol:
    name: str


@dataclass(frozen=True)
class Value:
    """An expression; compiled when first used, since a game may carry malformed ones that no rule reaches."""

    source: str

    def evaluate(self, names: dict[str, Entity]) -> object:
        return _expression(self.source)(names)


@dataclass(frozen=True)
class Each:
    """The expression for every solution of the query (once if there is none to ask), joined as a list or bare."""

    expression: Symbol | Value
    query: tuple[Pattern, ...]
    as_list: bool


Node = Text | Symbol | Value | Each


@dataclass(frozen=True)
class Rule:
    condition: tuple[Pattern, ...]
    nodes: tuple[Node, ...]


@dataclass(frozen=True)
class CommandText:
    """An action's command template and the symbol that answers it."""

    template: tuple[Node, ...]
    feedback: tuple[Node, ...]


@dataclass(frozen=True)
class Grammar:
    rules: dict[str, tuple[Rule, ...]]
    commands: dict[str, CommandText]

    def queried(self) -> frozenset[str]:
        """Every predicate that some rule or list asks about."""
        rules = [rule for alternatives in self.rules.values() for rule in alternatives]
        nodes = [node for rule in rules for node in rule.nodes]
        nodes += [node for command in self.commands.values() for node in (*command.template, *command.feedback)]
        patterns = [p for rule in rules for p in rule.condition]
        patterns += [p for node in nodes if isinstance(node, Each) for p in node.query]
        return frozenset(p.predicate for p in patterns)

    def render(self, nodes: tuple[Node, ...], context: Context, facts: Facts, world: World) -> str:
        """The text of ``nodes``, with what ``context`` binds, in the state ``facts``."""
        out: list[str] = []
        for node in nodes:
            if isinstance(node, Text):
                out.append(node.text)
            elif isinstance(node, Each):
                self._render_each(node, context, facts, world, out)
            else:
                out.append(self._render_expression(node, context, facts, world))
        return "".join(out)

    def _render_each(self, node: Each, context: Context, facts: Facts, world: World, out: list[str]) -> None:
        contexts = solutions(node.query, context, facts, world) if node.query else [context]
        parts = [self._render_expression(node.expression, c, facts, world) for c in contexts]
        if not node.as_list:
            out += parts
        elif not parts:
            out.append(self.symbol("list_empty", context, facts, world))
        elif len(parts) == 1:
            out += parts
        else:
            out.append(self.symbol("list_separator", context, facts, world).join(parts[:-1]))
            out.append(self.symbol("list_last_separator", context, facts, world))
            out.append(parts[-1])

    def _render_expression(self, node: Symbol | Value, context: Context, facts: Facts, world: World) -> str:
        if isinstance(node, Symbol):
            return self.symbol(node.name, context, facts, world)
        names = {key.split(":", 1)[0]: world.entities[value] for key, value in context.items()}
        return str(node.evaluate(names))

    def symbol(self, name: str, context: Context, facts: Facts, world: World) -> str:
        for rule in self.rules.get(name, ()):
            if not rule.condition or solutions(rule.condition, context, facts, world, first=True):
                return self.render(rule.nodes, context, facts, world)
        raise GrammarError(f"No rule of the grammar's symbol {name!r} applies.")


def solutions(
    query: tuple[Pattern, ...], context: Context, facts: Facts, world: World, *, first: bool = False
) -> list[Context]:
    """The contexts that extend ``context`` and fulfil ``query``, in the shipped engine's order."""
    found: list[Context] = []
    _extend(query, 0, dict(context), facts, world, found, first)
    return found


def _extend(
    query: tuple[Pattern, ...],
    depth: int,
    context: Context,
    facts: Facts,
    world: World,
    found: list[Context],
    first: bool,
) -> None:
    if depth == len(query):
        found.append(dict(context))
        return
    pattern = query[depth]
    relation = facts.get(pattern.predicate)
    if relation is None or not relation.facts:
        return
    bound = [(i, context[key]) for i, key in enumerate(pattern.args) if key in context]
    new = [(i, key) for i, key in enumerate(pattern.args) if key not in context]
    for group in _by_type(candidates(relation, bound), new, world):
        for fact in sorted(group):
            values = {key: fact[i] for i, key in new}
            used = set(context.values())
            if len(set(values.values())) < len(values) or not used.isdisjoint(values.values()):
                continue
            if any(fact[i] != values[key] for i, key in new):
                continue
            context.update(values)
            _extend(query, depth + 1, context, facts, world, found, first)
            for key in values:
                del context[key]
            if first and found:
                return


def _by_type(facts: list[Fact], new: list[tuple[int, str]], world: World) -> list[list[Fact]]:
    """Facts grouped by the types of their new arguments: the named type itself first, then its subtypes."""
    members = [(i, world.members[key.rsplit(":", 1)[-1]]) for i, key in new]
    groups: dict[tuple[int, ...], list[Fact]] = {}
    for fact in facts:
        ranks = [next((r for r, objects in enumerate(sets) if fact[i] in objects), -1) for i, sets in members]
        if -1 not in ranks:
            groups.setdefault(tuple(ranks), []).append(fact)
    return [group for _, group in sorted(groups.items())]


@lru_cache(maxsize=1024)
def _expression(source: str) -> Callable[[dict[str, Entity]], object]:
    """A template's expression: attributes of variables, strings, ``+`` and ``or``. Nothing else is ever evaluated."""
    try:
        tree = ast.parse(source.strip(), mode="eval").body
    except SyntaxError as error:
        raise GrammarError(f"The expression {source!r} of the grammar is malformed: {error.msg}.") from error
    return _compile(tree, source)


def _compile(tree: ast.expr, source: str) -> Callable[[dict[str, Entity]], object]:
    if isinstance(tree, ast.Name):
        name = tree.id
        return lambda names: names[name].name
    if isinstance(tree, ast.Attribute) and isinstance(tree.value, ast.Name):
        name, attribute = tree.value.id, tree.attr
        return lambda names: getattr(names[name], attribute, None)
    if isinstance(tree, ast.Constant) and isinstance(tree.value, str):
        constant = tree.value
        return lambda names: constant
    if isinstance(tree, ast.BinOp) and isinstance(tree.op, ast.Add):
        left, right = _compile(tree.left, source), _compile(tree.right, source)
        return lambda names: f"{left(names)}{right(names)}"
    if isinstance(tree, ast.BoolOp) and isinstance(tree.op, ast.Or):
        values = [_compile(value, source) for value in tree.values]
        return lambda names: next((v for v in (value(names) for value in values) if v), None)
    raise GrammarError(f"The expression {source!r} of the grammar is more than this reader knows.")
