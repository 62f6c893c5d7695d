"""The fast engine: plays a PDDL game with a text grammar as TextWorld and Fast Downward do. Standard library only.

Invariants, checked against the shipped engine by the tests and by ``benchmarks.alfworld_speed``:
- the text of every step, the admissible commands and their order, and whether the game is won are identical;
- a command that is not admissible changes nothing and answers ``Nothing happens.``;
- a :class:`Game` never changes once built (its caches only grow), so any number of :class:`Play` may share it.

A game is built once: domain and grammar are parsed once per text, the joins of every action are planned over the
initial facts. A step then changes a handful of facts and asks again which actions apply; what depends only on where the
agent stands (most commands are ``go to …``) is remembered per place.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache

from envs.alfworld.facts import Atom, Fact, Facts, Query, Relation, fork
from envs.alfworld.grammar import (
    CommandText,
    Context,
    Each,
    Entity,
    Grammar,
    GrammarError,
    Node,
    Text,
    Value,
)
from envs.alfworld.names import display_names
from envs.alfworld.pddl import (
    ROOT_TYPE,
    ActionSchema,
    Conjunction,
    Domain,
    Literal,
    PddlError,
    parse_domain,
    parse_problem,
)
from envs.alfworld.twl2 import parse_grammar

NOTHING_HAPPENS = "Nothing happens."
_NEGATED = "not_"

_domain = lru_cache(maxsize=8)(parse_domain)


@dataclass(frozen=True)
class Action:
    """An action with its arguments, and the command that stands for it."""

    schema: int
    args: tuple[int, ...]
    command: str


@dataclass(frozen=True)
class _Schema:
    """An action schema made ready for one game."""

    source: ActionSchema
    text: CommandText
    keys: tuple[str, ...]  # the parameters as the grammar's queries name them
    queries: tuple[Query, ...]
    preconditions: tuple[tuple[Atom, ...], ...]
    effects: tuple[tuple[Atom, tuple[Atom, ...]], ...]
    fluents: tuple[str, ...]  # the changing predicates that decide which actions apply
    may_do_nothing: bool
    named: tuple[int, ...] | None  # the parameters that decide the command's text; None: the state does too


class Game:
    """One game's rules, objects and initial facts. ``domain``, ``grammar`` and ``problem`` are the texts it carries."""

    def __init__(self, domain: str, grammar: str, problem: str) -> None:
        parsed: Domain = _domain(domain)
        start = parse_problem(problem)
        self.grammar: Grammar = parse_grammar(grammar)
        self.ids = sorted(start.objects)
        self._index = {name: i for i, name in enumerate(self.ids)}
        names = display_names({arg for fact in start.facts for arg in fact[1:]})
        self.entities = [Entity(i, start.objects[i], names.get(i, "")) for i in self.ids]
        self.members = self._members(parsed, start.objects)
        self._changing = frozenset(e.literal.predicate for a in parsed.actions for e in a.effects)
        self.facts = self._initial_facts(parsed, start.facts, start.goal)
        self.fluents = tuple(sorted(n for n in self.facts if n.removeprefix(_NEGATED) in self._changing))
        self.schemas = tuple(self._schema(action) for action in parsed.actions)
        self._goal = [self._query(c, ()) for c in start.goal]
        self._commands: dict[tuple[int, ...], str] = {}
        self._applicable: dict[tuple[int, tuple[Fact, ...]], dict[str, Action]] = {}

    # --- building ---------------------------------------------------------------------------------------------------

    def _members(self, domain: Domain, objects: dict[str, str]) -> dict[str, list[frozenset[int]]]:
        kinds = [ROOT_TYPE, *domain.types]
        of_kind = {k: frozenset(self._index[o] for o, t in objects.items() if t == k) for k in kinds}
        return {kind: [of_kind[k] for k in domain.subtypes(kind)] for kind in kinds}

    def _initial_facts(
        self, domain: Domain, facts: tuple[tuple[str, ...], ...], goal: tuple[Conjunction, ...]
    ) -> Facts:
        """All facts by predicate, a relation for every predicate that is mentioned anywhere."""
        literals = [lit for c in goal for lit in c.literals]
        literals += [lit for a in domain.actions for c in a.preconditions for lit in c.literals]
        literals += [e.literal for a in domain.actions for e in a.effects]
        literals += [lit for a in domain.actions for e in a.effects for lit in e.condition]
        arity = {lit.predicate: len(lit.args) for lit in literals} | {f[0]: len(f) - 1 for f in facts}
        conditional = {e.literal.predicate for a in domain.actions for e in a.effects if e.condition}
        queried = self.grammar.queried()
        if shown := queried & (conditional | {_NEGATED + name for name in conditional}):
            # The shipped text engine shows both outcomes of a conditional effect: not worth imitating.
            raise GrammarError(f"The grammar asks for {', '.join(sorted(shown))}, which changes conditionally.")
        negated = {q for q in queried if q.startswith(_NEGATED) and q.removeprefix(_NEGATED) in arity}
        relations = {name: Relation(n) for name, n in arity.items() if name != "="}
        relations |= {name: Relation(arity[name.removeprefix(_NEGATED)]) for name in negated}
        for fact in facts:
            relations[fact[0]].add(tuple(self._object(arg) for arg in fact[1:]))
        return relations

    def _object(self, name: str) -> int:
        if name not in self._index:
            raise PddlError(f"{name!r} is not among the problem's objects.")
        return self._index[name]

    def _atom(self, literal: Literal, slots: dict[str, int]) -> Atom:
        args = tuple(slots[a] if a.startswith("?") else -1 - self._object(a) for a in literal.args)
        return Atom(literal.predicate, args, literal.positive)

    def _query(self, condition: Conjunction, parameters: tuple[tuple[str, str], ...]) -> Query:
        variables = (*parameters, *condition.variables)
        slots = {name: i for i, (name, _) in enumerate(variables)}
        # A type nobody declared has no objects, as for Fast Downward: the domain writes "?l - location," (with the
        # comma) in examineObject, whose first alternative therefore never holds.
        domains = [frozenset().union(*self.members.get(kind, ())) for _, kind in variables]
        return Query(tuple(self._atom(lit, slots) for lit in condition.literals), domains, self.facts)

    def _schema(self, action: ActionSchema) -> _Schema:
        text = self.grammar.commands.get(action.name)
        if text is None:
            raise GrammarError(f"The grammar has no text for the domain's action {action.name!r}.")
        slots = {name: i for i, (name, _) in enumerate(action.parameters)}
        asked = {lit.predicate for c in action.preconditions for lit in c.literals}
        template_asks = {
            p.predicate.removeprefix(_NEGATED) for node in text.template if isinstance(node, Each) for p in node.query
        }
        return _Schema(
            source=action,
            text=text,
            keys=tuple(f"{name.strip('?')}:{kind}" for name, kind in action.parameters),
            queries=tuple(self._query(c, action.parameters) for c in action.preconditions),
            preconditions=tuple(
                tuple(self._atom(lit, slots | {v: 0 for v, _ in c.variables}) for lit in c.literals)
                for c in action.preconditions
                for slots in [{n: i for i, (n, _) in enumerate((*action.parameters, *c.variables))}]
            ),
            effects=tuple(
                (self._atom(e.literal, slots), tuple(self._atom(lit, slots) for lit in e.condition))
                for e in action.effects
            ),
            fluents=tuple(sorted(asked & self._changing)),
            may_do_nothing=_may_do_nothing(action),
            named=None if template_asks & self._changing else _named(text.template, action),
        )

    # --- playing ----------------------------------------------------------------------------------------------------

    def start(self) -> Play:
        """A new episode."""
        return Play(self)

    def say(self, action: str, **arguments: str) -> str:
        """The command for an action in this game's own words, from displayed names: grammars differ in their verbs."""
        schema = next((s for s in self.schemas if s.source.name == action), None)
        if schema is None:
            raise PddlError(f"The domain has no action {action!r}.")
        named = {name: i for i, name in enumerate(e.name for e in self.entities)}
        bare = {key.split(":")[0]: key for key in schema.keys}
        context = {bare[parameter]: named[name] for parameter, name in arguments.items()}
        return self.grammar.render(schema.text.template, context, self.facts, self)

    def won(self, facts: Facts) -> bool:
        return any(query.holds(facts, [0] * query.size) for query in self._goal)

    def applicable(self, facts: Facts) -> dict[str, Action]:
        """The actions that apply, by command."""
        found: dict[str, Action] = {}
        for number, schema in enumerate(self.schemas):
            deciding = [fact for name in schema.fluents for fact in facts[name].facts]
            if len(deciding) > 1:
                found.update(self._ground(number, schema, facts))
                continue
            key = (number, tuple(deciding))
            if key not in self._applicable:
                self._applicable[key] = self._ground(number, schema, facts)
            found.update(self._applicable[key])
        return found

    def _ground(self, number: int, schema: _Schema, facts: Facts) -> dict[str, Action]:
        count = len(schema.keys)
        bindings: dict[tuple[int, ...], None] = {}
        for query, atoms in zip(schema.queries, schema.preconditions, strict=True):
            for binding in query.solve(facts, [0] * query.size):
                if not (schema.may_do_nothing and _does_nothing(schema, atoms, binding)):
                    bindings[tuple(binding[:count])] = None
        actions = [Action(number, args, self._command(number, schema, args, facts)) for args in bindings]
        return {action.command: action for action in actions}

    def _command(self, number: int, schema: _Schema, args: tuple[int, ...], facts: Facts) -> str:
        key = None if schema.named is None else (number, *[args[i] for i in schema.named])
        command = self._commands.get(key) if key else None
        if command is None:
            context: Context = dict(zip(schema.keys, args, strict=True))
            command = self.grammar.render(schema.text.template, context, facts, self)
            if key:
                self._commands[key] = command
        return command


def _named(template: tuple[Node, ...], action: ActionSchema) -> tuple[int, ...] | None:
    """The parameters a command template speaks of (``go to {r}`` is the same from wherever one starts); None: any."""
    words: set[str] = set()
    for node in template:
        if isinstance(node, Each) and isinstance(node.expression, Value):
            words.update(re.findall(r"\w+", node.expression.source))
            words.update(key.split(":")[0] for p in node.query for key in p.args)
        elif not isinstance(node, Text):
            return None
    return tuple(i for i, (name, _) in enumerate(action.parameters) if name.strip("?") in words)


def _may_do_nothing(action: ActionSchema) -> bool:
    """Whether a precondition could already imply all effects: Fast Downward leaves such operators out."""
    asked = {(lit.predicate, lit.positive) for c in action.preconditions for lit in c.literals}
    added = {e.literal.predicate for e in action.effects if e.literal.positive}
    return all(
        not e.condition
        and (
            (e.literal.predicate, e.literal.positive) in asked
            or (not e.literal.positive and e.literal.predicate in added)
        )
        for e in action.effects
    )


def _does_nothing(schema: _Schema, preconditions: tuple[Atom, ...], binding: list[int]) -> bool:
    given = {(atom.predicate, atom.positive, atom.instance(binding)) for atom in preconditions}
    effects = {(atom.predicate, atom.positive, atom.instance(binding)) for atom, _ in schema.effects}
    # An addition overrides the deletion of the same fact.
    return all(e in given or (not e[1] and (e[0], True, e[2]) in effects) for e in effects)


class Play:
    """One episode of a game: the facts as they are now."""

    def __init__(self, game: Game) -> None:
        self.game = game
        self.facts = fork(game.facts, game.fluents)
        self.won = game.won(self.facts)
        self._actions = game.applicable(self.facts)

    def intro(self) -> str:
        """The first observation."""
        return self._symbol("intro", {})

    def admissible(self) -> list[str]:
        """The commands that do something now, in alphabetical order."""
        return sorted(self._actions)

    def step(self, command: str) -> str:
        """Do what ``command`` says, if it is admissible, and return the answer."""
        action = self._actions.get(command.strip())
        if action is None:
            return NOTHING_HAPPENS
        schema = self.game.schemas[action.schema]
        self._apply(schema, action)
        self.won = self.game.won(self.facts)
        self._actions = self.game.applicable(self.facts)
        context = dict(zip(schema.keys, action.args, strict=True))
        return self.game.grammar.render(schema.text.feedback, context, self.facts, self.game)

    def _apply(self, schema: _Schema, action: Action) -> None:
        """Deletions before additions, all conditions judged in the state before the action."""
        binding = list(action.args)
        facts = self.facts
        fired = [
            atom
            for atom, condition in schema.effects
            if all((c.instance(binding) in facts[c.predicate].facts) == c.positive for c in condition)
        ]
        for atom in sorted(fired, key=lambda a: a.positive):
            fact = atom.instance(binding)
            holds, fails = facts[atom.predicate], facts.get(_NEGATED + atom.predicate)
            if atom.positive:
                holds.add(fact)
            else:
                holds.discard(fact)
            if fails is not None:  # the shipped text engine remembers what ceased to be, not what never was
                (fails.discard if atom.positive else fails.add)(fact)

    def _symbol(self, name: str, context: Context) -> str:
        return self.game.grammar.symbol(name, context, self.facts, self.game)
