"""Short problems with one whole number as the answer: how each is asked, worked and answered.

A task's id says everything: ``sum:17,25``, ``reverse:4821``. Numbers have at most nine digits.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

_TASK = re.compile(r"([a-z_]+):(0|[1-9][0-9]{0,8})((?:,(?:0|[1-9][0-9]{0,8})){0,3})", re.ASCII)


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of problem. ``draw`` takes a generator and a number of digits."""

    question: str
    arity: int
    answer: Callable[..., int]
    work: Callable[..., str]
    draw: Callable[[random.Random, int], tuple[int, ...]]
    allowed: Callable[..., bool] = lambda *_: True


def _digits(number: int) -> list[int]:
    return [int(digit) for digit in str(number)]


def _of_digits(rng: random.Random, digits: int) -> int:
    return rng.randrange(10 ** (digits - 1), 10**digits)


def _numbers(count: int) -> Callable[[random.Random, int], tuple[int, ...]]:
    return lambda rng, digits: tuple(_of_digits(rng, digits) for _ in range(count))


def _columns(a: int, b: int) -> str:
    """Addition as at school, from the right."""
    carry, steps = 0, []
    for i in range(max(len(str(a)), len(str(b)))):
        x, y = a // 10**i % 10, b // 10**i % 10
        carried = f" + {carry}" if carry else ""
        steps.append(f"{x} + {y}{carried} = {x + y + carry}")
        carry = (x + y + carry) // 10
    return ", ".join(steps)


def _partial_products(a: int, b: int) -> str:
    parts = [digit * 10**i for i, digit in enumerate(reversed(_digits(b))) if digit]
    return ", ".join(f"{a} * {part} = {a * part}" for part in parts) or f"{a} * 0 = 0"


def _running_sum(values: Sequence[int]) -> str:
    total, steps = values[0], []
    for value in values[1:]:
        steps.append(f"{total} + {value} = {total + value}")
        total += value
    return ", ".join(steps) or str(total)


KINDS = {
    "sum": Kind("What is {} + {}?", 2, lambda a, b: a + b, _columns, _numbers(2)),
    "difference": Kind(
        "What is {} - {}?",
        2,
        lambda a, b: a - b,
        lambda a, b: f"{b} + {a - b} = {a}",
        lambda rng, digits: tuple(sorted(_numbers(2)(rng, digits), reverse=True)),
        lambda a, b: a >= b,
    ),
    "product": Kind(
        "What is {} * {}?",
        2,
        lambda a, b: a * b,
        _partial_products,
        lambda rng, digits: (_of_digits(rng, digits), _of_digits(rng, max(1, digits - 1))),
    ),
    "mod": Kind(
        "What is the remainder of {} divided by {}?",
        2,
        lambda a, b: a % b,
        lambda a, b: f"{a // b} * {b} = {a // b * b}, {a} - {a // b * b} = {a % b}",
        lambda rng, digits: (_of_digits(rng, digits), rng.randrange(2, 10)),
        lambda a, b: b > 0,
    ),
    "digit_sum": Kind(
        "What is the sum of the digits of {}?",
        1,
        lambda a: sum(_digits(a)),
        lambda a: _running_sum(_digits(a)),
        _numbers(1),
    ),
    "reverse": Kind(
        "What number has the digits of {} in reverse order?",
        1,
        lambda a: int(str(a)[::-1]),
        lambda a: ", ".join(reversed(str(a))),
        _numbers(1),
    ),
    "largest": Kind(
        "Which is the largest of {}, {}, {} and {}?",
        4,
        lambda *values: max(values),
        lambda *values: ", ".join(str(max(values[: i + 1])) for i in range(4)),
        _numbers(4),
    ),
}


@dataclass(frozen=True, slots=True)
class Problem:
    kind: str
    numbers: tuple[int, ...]

    @property
    def task(self) -> str:
        return f"{self.kind}:{','.join(map(str, self.numbers))}"

    @property
    def question(self) -> str:
        return KINDS[self.kind].question.format(*self.numbers)

    @property
    def answer(self) -> int:
        return KINDS[self.kind].answer(*self.numbers)

    @property
    def worked(self) -> str:
        """A response that is right, step by step: ``7 + 5 = 12, 1 + 2 + 1 = 4; answer: 42``."""
        return f"{KINDS[self.kind].work(*self.numbers)}; answer: {self.answer}"

    @classmethod
    def of(cls, task: str) -> Problem:
        """Raises KeyError for what is no task."""
        found = _TASK.fullmatch(task)
        kind = KINDS.get(found[1]) if found else None
        numbers = tuple(int(n) for n in f"{found[2]}{found[3]}".split(",")) if found else ()
        if found is None or kind is None or len(numbers) != kind.arity or not kind.allowed(*numbers):
            raise KeyError(
                f"{task!r} is no task of arithmetic; expected something like 'sum:17,25', with one of "
                f"{', '.join(KINDS)} and whole numbers of at most nine digits that make sense for it"
            )
        return cls(found[1], numbers)
