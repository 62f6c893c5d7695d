"""Solutions of Countdown instances by exhaustive search, and the small steps that lead to them.

Every intermediate result is a positive whole number. That misses solutions through fractions or negative numbers; the
generated instances all have one without.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass

_LOOSE = frozenset("+-")


@dataclass(frozen=True, slots=True)
class Term:
    """A number that has been made: its text, and the operator that stands outermost in it (empty for a given one)."""

    value: int
    text: str
    outer: str = ""


@dataclass(frozen=True, slots=True)
class Step:
    left: Term
    sign: str
    right: Term
    result: Term

    @property
    def text(self) -> str:
        return f"{self.left.value} {self.sign} {self.right.value} = {self.result.value}"


def given(number: int) -> Term:
    return Term(number, str(number))


def combine(left: Term, sign: str, right: Term) -> Step | None:
    """``left sign right``, with parentheses where they are needed; None if the result is no positive whole number."""
    a, b = left.value, right.value
    if sign == "/":
        value = a // b if b and a % b == 0 else 0
    else:
        value = a + b if sign == "+" else a - b if sign == "-" else a * b
    if value <= 0:
        return None
    tight = sign in "*/"
    before = f"({left.text})" if tight and left.outer in _LOOSE else left.text
    wrap = right.outer and (sign == "/" or (tight and right.outer in _LOOSE) or (sign == "-" and right.outer in _LOOSE))
    after = f"({right.text})" if wrap else right.text
    return Step(left, sign, right, Term(value, f"{before} {sign} {after}", sign))


def moves(terms: tuple[Term, ...]) -> Iterator[tuple[Step, tuple[Term, ...]]]:
    """Every way to make one number of two, and what is there afterwards. Of a+b and b+a only one."""
    for i, one in enumerate(terms):
        for j in range(i + 1, len(terms)):
            rest = (*terms[:i], *terms[i + 1 : j], *terms[j + 1 :])
            high, low = (one, terms[j]) if one.value >= terms[j].value else (terms[j], one)
            for sign in "+-*/":
                step = combine(high, sign, low)
                if step is not None:
                    yield step, (*rest, step.result)


def solve(numbers: tuple[int, ...], target: int, *, use_all: bool, rng: random.Random) -> tuple[Step, ...] | None:
    """Steps to ``target``, one solution of those there are, as ``rng`` has it; None if there is none of this kind."""
    seen: set[tuple[int, ...]] = set()

    def search(terms: tuple[Term, ...]) -> tuple[Step, ...] | None:
        if len(terms) == 1 and terms[0].value == target:
            return ()
        if not use_all and len(terms) < len(numbers) and terms[-1].value == target:
            return ()
        state = tuple(sorted(term.value for term in terms))
        if len(terms) == 1 or state in seen:
            return None
        seen.add(state)
        ways = list(moves(terms))
        rng.shuffle(ways)
        for step, rest in ways:
            found = search(rest)
            if found is not None:
                return (step, *found)
        return None

    steps = search(tuple(given(n) for n in numbers))
    return _needed(steps) if steps else steps


def _needed(steps: tuple[Step, ...]) -> tuple[Step, ...]:
    """Those that the last one stands on: under ``any`` the search may have tried others on the way."""
    wanted, kept = {id(steps[-1].result)}, []
    for step in reversed(steps):
        if id(step.result) in wanted:
            wanted |= {id(step.left), id(step.right)}
            kept.append(step)
    return tuple(reversed(kept))


def attempt(numbers: tuple[int, ...], rng: random.Random) -> tuple[Step, ...]:
    """Numbers combined at random until one is left: what somebody who is looking for a solution tries."""
    terms = tuple(given(n) for n in numbers)
    steps: list[Step] = []
    while len(terms) > 1:
        step, terms = rng.choice(list(moves(terms)))
        steps.append(step)
    return tuple(steps)


def written(steps: tuple[Step, ...]) -> str:
    return ", ".join(step.text for step in steps)


def worked_solution(numbers: tuple[int, ...], target: int, *, use_all: bool, tries: int, rng: random.Random) -> str:
    """A solution as one would write it down: up to ``tries`` attempts that fail, the one that does it, the answer.

    ``7 + 3 = 10, 10 * 12 = 120 no; 12 * 7 = 84, 84 + 3 = 87 yes; answer: 12 * 7 + 3``. Empty if there is no such
    solution.
    """
    steps = solve(numbers, target, use_all=use_all, rng=rng)
    if not steps:
        return ""
    failed = [attempt(numbers, rng) for _ in range(rng.randint(0, tries))]
    lines = [f"{written(a)} no; " for a in failed if target not in {step.result.value for step in a}]
    return f"{''.join(lines)}{written(steps)} yes; answer: {steps[-1].result.text}"
