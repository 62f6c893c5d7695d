"""The facts of a game and conjunctive queries over them: what the evaluator spends its time in.

Objects are small integers in the alphabetical order of their names, so that sorting tuples of integers is sorting the
facts the way the shipped engine sorts them. Facts are indexed by each argument; a query plans its joins once per game
and then only walks facts that fit. The order in which a query finds its solutions means nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

Fact = tuple[int, ...]
Slot = int  # >= 0: a position in the binding; < 0: the constant -1 - slot

_NONE: frozenset[Fact] = frozenset()


class Relation:
    """The facts of one predicate, indexed by every argument."""

    __slots__ = ("by_arg", "facts")

    def __init__(self, arity: int) -> None:
        self.facts: set[Fact] = set()
        self.by_arg: tuple[dict[int, set[Fact]], ...] = tuple({} for _ in range(arity))

    def add(self, fact: Fact) -> None:
        if fact not in self.facts:
            self.facts.add(fact)
            for index, value in zip(self.by_arg, fact, strict=True):
                index.setdefault(value, set()).add(fact)

    def discard(self, fact: Fact) -> None:
        if fact in self.facts:
            self.facts.discard(fact)
            for index, value in zip(self.by_arg, fact, strict=True):
                index[value].discard(fact)

    def copy(self) -> Relation:
        other = Relation(0)
        other.facts = set(self.facts)
        other.by_arg = tuple({value: set(facts) for value, facts in index.items()} for index in self.by_arg)
        return other


Facts = dict[str, Relation]


def fork(facts: Facts, fluents: Iterable[str]) -> Facts:
    """A state of its own: relations in ``fluents`` are copied, all others (which never change) are shared."""
    return {**facts, **{name: facts[name].copy() for name in fluents}}


@dataclass(frozen=True)
class Atom:
    """A literal compiled to slots."""

    predicate: str
    slots: tuple[Slot, ...]
    positive: bool = True

    def instance(self, binding: list[int]) -> Fact:
        return tuple(binding[s] if s >= 0 else -1 - s for s in self.slots)


@dataclass(frozen=True)
class _Scan:
    """Walk the facts of a relation that agree with what is bound, and bind the rest."""

    predicate: str
    bound: tuple[tuple[int, Slot], ...]  # (argument position, slot) that must agree
    free: tuple[tuple[int, Slot], ...]  # (argument position, slot) to bind


@dataclass(frozen=True)
class _Test:
    """Check one ground fact (or, for ``=``, one equality)."""

    atom: Atom


@dataclass(frozen=True)
class _Enumerate:
    """Bind a slot that no positive literal mentions to each object of its type."""

    slot: Slot


class Query:
    """All bindings under which a conjunction of atoms holds.

    ``domains`` gives for each slot the objects it may take; ``facts`` only guides the order of the joins.
    """

    def __init__(self, atoms: tuple[Atom, ...], domains: list[frozenset[int]], facts: Facts) -> None:
        self.size = len(domains)
        self.domains = domains
        self.steps = () if not all(domains) else tuple(self._plan(list(atoms), facts))
        self.impossible = not all(domains)

    def _plan(self, atoms: list[Atom], facts: Facts) -> Iterator[_Scan | _Test | _Enumerate]:
        """Tests as soon as their arguments are bound, then always the scan that should find the fewest facts."""
        bound: set[int] = set()

        def is_bound(slot: Slot) -> bool:
            return slot < 0 or slot in bound

        while atoms:
            ready = [a for a in atoms if all(map(is_bound, a.slots))]
            scans = [a for a in atoms if a.positive and a.predicate != "="]
            if ready:
                atoms.remove(ready[0])
                yield _Test(ready[0])
            elif scans:
                atom = min(scans, key=lambda a: _estimate(a, bound, facts))
                atoms.remove(atom)
                places = list(enumerate(atom.slots))
                yield _Scan(
                    atom.predicate,
                    tuple((i, s) for i, s in places if is_bound(s)),
                    tuple((i, s) for i, s in places if not is_bound(s)),
                )
                bound.update(s for s in atom.slots if s >= 0)
            else:
                slot = next(s for s in atoms[0].slots if not is_bound(s))
                bound.add(slot)
                yield _Enumerate(slot)
        yield from (_Enumerate(slot) for slot in range(self.size) if slot not in bound)

    def solve(self, facts: Facts, binding: list[int], depth: int = 0) -> Iterator[list[int]]:
        """Yield ``binding`` itself, filled in, once per solution: copy what is to be kept."""
        if depth == len(self.steps):
            if not self.impossible:
                yield binding
            return
        step = self.steps[depth]
        if type(step) is _Test:
            if _true(step.atom, facts, binding):
                yield from self.solve(facts, binding, depth + 1)
        elif type(step) is _Scan:
            for fact in _fitting(step, facts, binding):
                if self._bind(step.free, fact, binding):
                    yield from self.solve(facts, binding, depth + 1)
        elif type(step) is _Enumerate:
            for value in self.domains[step.slot]:
                binding[step.slot] = value
                yield from self.solve(facts, binding, depth + 1)

    def holds(self, facts: Facts, binding: list[int]) -> bool:
        """Whether there is a solution at all."""
        return next(self.solve(facts, binding), None) is not None

    def _bind(self, free: tuple[tuple[int, Slot], ...], fact: Fact, binding: list[int]) -> bool:
        for i, s in free:
            if fact[i] not in self.domains[s]:
                return False
            binding[s] = fact[i]
        # A variable that the literal names twice was bound by its last place: the others must agree.
        return len(free) == 1 or all(binding[s] == fact[i] for i, s in free)


def candidates(relation: Relation, bound: list[tuple[int, int]]) -> list[Fact]:
    """The facts whose argument ``i`` is ``value`` for every ``(i, value)`` of ``bound``."""
    if not bound:
        return list(relation.facts)
    smallest = min((relation.by_arg[i].get(value, _NONE) for i, value in bound), key=len)
    if len(bound) == 1:
        return list(smallest)
    return [fact for fact in smallest if all(fact[i] == value for i, value in bound)]


def _fitting(step: _Scan, facts: Facts, binding: list[int]) -> list[Fact]:
    bound = [(i, binding[s] if s >= 0 else -1 - s) for i, s in step.bound]
    return candidates(facts[step.predicate], bound)


def _true(atom: Atom, facts: Facts, binding: list[int]) -> bool:
    fact = atom.instance(binding)
    if atom.predicate == "=":
        return (fact[0] == fact[1]) == atom.positive
    return (fact in facts[atom.predicate].facts) == atom.positive


def _estimate(atom: Atom, bound: set[int], facts: Facts) -> float:
    relation = facts[atom.predicate]
    size = float(len(relation.facts))
    for index, slot in zip(relation.by_arg, atom.slots, strict=True):
        if slot < 0 or slot in bound:
            size /= max(1, len(index))
    return size
