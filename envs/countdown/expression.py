"""Arithmetic as text: parsed by hand, evaluated exactly, never executed.

Invariants: what is not a number, one of + - * / or a parenthesis is refused; there is no sign, no power, no name, so a
text can only say what can be made of its literals; values are fractions, so nothing is rounded; length and nesting are
bounded, so that no text can exhaust stack, memory or time.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

MAX_CHARACTERS = 200
MAX_NESTING = 20
MAX_DIGITS = 9

_SAME = str.maketrans({"×": "*", "·": "*", "÷": "/", "−": "-", "[": "(", "]": ")"})
_DIGITS = frozenset("0123456789")


class ExpressionError(ValueError):
    """The text is no expression, or it has no value."""


@dataclass(frozen=True, slots=True)
class Expression:
    """What a text says: its exact value and its literals in the order they stand in."""

    value: Fraction
    literals: tuple[int, ...]


def evaluate(text: str) -> Expression:
    """Read ``text``. Raises ExpressionError, which says at which character, for all else but plain arithmetic."""
    if len(text) > MAX_CHARACTERS:
        raise ExpressionError(f"{len(text)} characters; an expression has at most {MAX_CHARACTERS}")
    return _Reader(text.translate(_SAME)).whole()


class _Reader:
    """Recursive descent: sum := product (± product)*; product := atom (*/ atom)*; atom := number | ( sum )."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._at = 0
        self._literals: list[int] = []

    def whole(self) -> Expression:
        value = self._sum(0)
        if self._peek():
            raise self._unexpected("the end or an operator")
        return Expression(value, tuple(self._literals))

    def _sum(self, depth: int) -> Fraction:
        value = self._product(depth)
        while (sign := self._peek()) in ("+", "-"):
            self._at += 1
            term = self._product(depth)
            value = value + term if sign == "+" else value - term
        return value

    def _product(self, depth: int) -> Fraction:
        value = self._atom(depth)
        while (sign := self._peek()) in ("*", "/"):
            self._at += 1
            factor = self._atom(depth)
            if sign == "*":
                value *= factor
            elif factor == 0:
                raise ExpressionError(f"division by zero before character {self._at + 1}")
            else:
                value /= factor
        return value

    def _atom(self, depth: int) -> Fraction:
        if self._peek() == "(":
            if depth == MAX_NESTING:
                raise ExpressionError(f"parentheses more than {MAX_NESTING} deep")
            self._at += 1
            value = self._sum(depth + 1)
            if self._peek() != ")":
                raise self._unexpected("')'")
            self._at += 1
            return value
        return self._number()

    def _number(self) -> Fraction:
        if self._peek() not in _DIGITS:
            raise self._unexpected("a number or '('")
        start = self._at
        while self._at < len(self._text) and self._text[self._at] in _DIGITS:
            self._at += 1
        digits = self._text[start : self._at]
        if len(digits) > MAX_DIGITS:
            raise ExpressionError(f"a number of {len(digits)} digits; at most {MAX_DIGITS} are allowed")
        self._literals.append(int(digits))
        return Fraction(int(digits))

    def _peek(self) -> str:
        """The next character that is no space; empty at the end."""
        while self._at < len(self._text) and self._text[self._at] in " \t":
            self._at += 1
        return self._text[self._at] if self._at < len(self._text) else ""

    def _unexpected(self, expected: str) -> ExpressionError:
        found = repr(self._peek()) if self._peek() else "the end"
        return ExpressionError(f"{found} at character {self._at + 1}, expected {expected}")
