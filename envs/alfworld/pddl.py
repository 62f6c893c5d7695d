"""Reads the part of PDDL that ALFWorld uses, into plain data. Standard library only.

What the shipped engine (Fast Downward's translator) does to a text, this module does too: everything is lower case, an
untyped name is of type ``object``, ``object`` is the root of the types, ``or`` and ``exists`` in a condition become
alternatives with further variables. What ALFWorld's domain never says (``forall``, ``imply``, negated ``exists``,
numbers other than costs) raises :class:`PddlError` instead of being half understood.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

ROOT_TYPE = "object"

_TOKEN = re.compile(r"[()]|[^\s()]+")


class PddlError(ValueError):
    """The text is not PDDL, or uses a part of PDDL that this evaluator does not know."""


@dataclass(frozen=True)
class Literal:
    """``predicate(args)`` or its negation; an argument is a variable (``?x``) or an object's name."""

    predicate: str
    args: tuple[str, ...]
    positive: bool = True


@dataclass(frozen=True)
class Conjunction:
    """One alternative of a condition: all literals must hold for some value of ``variables``."""

    literals: tuple[Literal, ...]
    variables: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class Effect:
    """``literal`` comes true when every literal of ``condition`` held before the action."""

    literal: Literal
    condition: tuple[Literal, ...] = ()


@dataclass(frozen=True)
class ActionSchema:
    """An action with its typed parameters, the alternatives of its precondition, and its effects without costs."""

    name: str
    parameters: tuple[tuple[str, str], ...]
    preconditions: tuple[Conjunction, ...]
    effects: tuple[Effect, ...]
    cost: int = 0


@dataclass(frozen=True)
class Domain:
    """Types (name to parent) and action schemas."""

    name: str
    types: dict[str, str]
    actions: tuple[ActionSchema, ...]

    def subtypes(self, name: str) -> list[str]:
        """``name`` and everything below it, parents first, in order of declaration."""
        if name not in self.types and name != ROOT_TYPE:
            raise PddlError(f"Unknown type {name!r}; the domain declares {', '.join(self.types)}.")
        found = [name]
        for parent in found:
            found += [t for t, above in self.types.items() if above == parent and t not in found]
        return found


@dataclass(frozen=True)
class Problem:
    """Objects (name to type), the facts that hold at the start, and the alternatives of the goal."""

    objects: dict[str, str]
    facts: tuple[tuple[str, ...], ...]
    goal: tuple[Conjunction, ...]
    sections: dict[str, Any] = field(default_factory=dict, repr=False)


def parse_sexpr(text: str) -> list[Any]:
    """The one nested list that ``text`` consists of, in lower case, without comments."""
    lines = [line.split(";", 1)[0] for line in text.lower().splitlines()]
    stack: list[list[Any]] = [[]]
    for token in _TOKEN.findall("\n".join(lines)):
        if token == "(":
            stack.append([])
        elif token == ")":
            if len(stack) == 1:
                raise PddlError("A closing parenthesis without an opening one.")
            done = stack.pop()
            stack[-1].append(done)
        else:
            stack[-1].append(token)
    if len(stack) != 1 or len(stack[0]) != 1 or not isinstance(stack[0][0], list):
        raise PddlError("Expected exactly one parenthesised expression.")
    return stack[0][0]


def parse_typed_list(items: list[Any], default: str = ROOT_TYPE) -> list[tuple[str, str]]:
    """``a b - t c`` as ``[(a, t), (b, t), (c, default)]``."""
    result: list[tuple[str, str]] = []
    pending: list[str] = []
    rest = iter(items)
    for item in rest:
        if item == "-":
            kind = next(rest, None)
            if not isinstance(kind, str):
                raise PddlError(f"Expected a type's name after '-', found {kind!r}.")
            result += [(name, kind) for name in pending]
            pending = []
        else:
            pending.append(item)
    return result + [(name, default) for name in pending]


def parse_domain(text: str) -> Domain:
    """Parse a ``(define (domain …) …)`` text."""
    expression = parse_sexpr(text)
    types: dict[str, str] = {}
    actions = []
    for section in expression[2:]:
        if section[0] == ":types":
            types = {name: kind for name, kind in parse_typed_list(section[1:]) if name != ROOT_TYPE}
        elif section[0] == ":action":
            actions.append(_parse_action(section))
        elif section[0] in (":derived", ":constants", ":durative-action"):
            raise PddlError(f"The domain has a {section[0]} section, which this evaluator does not know.")
    return Domain(name=expression[1][1], types=types, actions=tuple(actions))


def parse_problem(text: str) -> Problem:
    """Parse a ``(define (problem …) …)`` text; costs and distances are left out of the facts."""
    sections = {section[0]: section for section in parse_sexpr(text)[1:]}
    for name in (":objects", ":init", ":goal"):
        if name not in sections:
            raise PddlError(f"The problem has no {name} section.")
    facts = dict.fromkeys(tuple(fact) for fact in sections[":init"][1:] if fact[0] != "=")
    return Problem(
        objects=dict(parse_typed_list(sections[":objects"][1:])),
        facts=tuple(facts),
        goal=alternatives(sections[":goal"][1]),
    )


def alternatives(condition: list[Any]) -> tuple[Conjunction, ...]:
    """The disjunctive normal form of a condition, existential variables pulled to the front under fresh names."""
    return tuple(Conjunction(tuple(literals), tuple(variables)) for literals, variables in _expand(condition, {}, [0]))


_Alternative = tuple[list[Literal], list[tuple[str, str]]]


def _expand(condition: list[Any], names: dict[str, str], fresh: list[int]) -> list[_Alternative]:
    if not condition:
        return [([], [])]
    head = condition[0]
    if head == "and":
        result: list[_Alternative] = [([], [])]
        for part in condition[1:]:
            right = _expand(part, names, fresh)
            result = [(ll + rl, lv + rv) for ll, lv in result for rl, rv in right]
        return result
    if head == "or":
        return [one for part in condition[1:] for one in _expand(part, names, fresh)]
    if head == "exists":
        typed = parse_typed_list(condition[1])
        inner = dict(names)
        for variable, _ in typed:
            fresh[0] += 1
            inner[variable] = f"{variable}@{fresh[0]}"
        added = [(inner[variable], kind) for variable, kind in typed]
        return [(literals, added + variables) for literals, variables in _expand(condition[2], inner, fresh)]
    return [([_literal(condition, names)], [])]


def _literal(atom: list[Any], names: dict[str, str]) -> Literal:
    positive = atom[0] != "not"
    if not positive:
        atom = atom[1]
    if atom[0] in ("forall", "imply", "exists", "and", "or", "not", "when") or any(isinstance(a, list) for a in atom):
        raise PddlError(f"Expected a literal, found {atom!r}, which this evaluator does not know here.")
    return Literal(atom[0], tuple(names.get(a, a) for a in atom[1:]), positive)


def _parse_action(section: list[Any]) -> ActionSchema:
    parts = dict(zip(section[2::2], section[3::2], strict=True))
    effects: list[Effect] = []
    cost = _collect_effects(parts.get(":effect", []), (), effects)
    return ActionSchema(
        name=section[1],
        parameters=tuple(parse_typed_list(parts.get(":parameters", []))),
        preconditions=alternatives(parts.get(":precondition", [])),
        effects=tuple(effects),
        cost=cost,
    )


def _collect_effects(expression: list[Any], condition: tuple[Literal, ...], into: list[Effect]) -> int:
    if not expression:
        return 0
    head = expression[0]
    if head == "and":
        return sum(_collect_effects(part, condition, into) for part in expression[1:])
    if head == "when":
        found = alternatives(expression[1])
        if condition or len(found) != 1 or found[0].variables:
            raise PddlError(f"A conditional effect on {expression[1]!r} is more than this evaluator knows.")
        return _collect_effects(expression[2], found[0].literals, into)
    if head == "increase":
        return int(expression[2]) if isinstance(expression[2], str) else 0
    into.append(Effect(_literal(expression, {}), condition))
    return 0
