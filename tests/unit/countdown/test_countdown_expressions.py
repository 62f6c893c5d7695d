"""The parser and evaluator of expressions: exact, complete on what it allows, closed to all else."""

from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from envs.countdown.expression import MAX_CHARACTERS, MAX_NESTING, ExpressionError, evaluate

Tree = int | tuple["Tree", str, "Tree"]
trees = st.recursive(st.integers(0, 999), lambda inner: st.tuples(inner, st.sampled_from("+-*/"), inner), max_leaves=10)


def text_of(tree: Tree) -> str:
    """With parentheses around everything: needs no rule of precedence."""
    return str(tree) if isinstance(tree, int) else f"({text_of(tree[0])}{tree[1]}{text_of(tree[2])})"


def value_of(tree: Tree) -> Fraction:
    """Raises ZeroDivisionError."""
    if isinstance(tree, int):
        return Fraction(tree)
    left, right = value_of(tree[0]), value_of(tree[2])
    return {"+": left + right, "-": left - right, "*": left * right}[tree[1]] if tree[1] != "/" else left / right


def leaves(tree: Tree) -> list[int]:
    return [tree] if isinstance(tree, int) else leaves(tree[0]) + leaves(tree[2])


@given(trees)
def test_a_parenthesised_expression_has_exactly_its_value_and_its_literals(tree: Tree) -> None:
    try:
        expected = value_of(tree)
    except ZeroDivisionError:
        with pytest.raises(ExpressionError, match="division by zero"):
            evaluate(text_of(tree))
        return
    found = evaluate(text_of(tree))
    assert found.value == expected
    assert list(found.literals) == leaves(tree)


flat = st.lists(st.tuples(st.sampled_from("+-*/"), st.integers(1, 99)), max_size=8)


@given(st.integers(1, 99), flat)
def test_without_parentheses_it_reads_as_python_does(first: int, rest: list[tuple[str, int]]) -> None:
    text = f"{first}" + "".join(f" {sign} {number}" for sign, number in rest)
    exact = "".join(f"{sign}Fraction({number})" for sign, number in rest)
    assert evaluate(text).value == eval(f"Fraction({first}){exact}", {"Fraction": Fraction})


@given(st.text(max_size=40))
def test_any_text_either_has_a_value_or_is_refused(text: str) -> None:
    try:
        evaluate(text)
    except ExpressionError:
        return
    assert set(text) <= set("0123456789+-*/()[] \t×÷−·")


@pytest.mark.parametrize(
    "text",
    ["", "()", "-3", "+3", "3-", "2**3", "2//3", "1e3", "1.5", "1_000", "3 4", "2(3)", "abs(3)", "x", "٣", "²", "3!",
     "(3", "3)", "1+2=3", "3\n+4", "__import__('os')", "²+1", "1/0", "4/(2-2)", "9" * 10],
)  # fmt: skip
def test_what_is_no_plain_arithmetic_is_refused(text: str) -> None:
    with pytest.raises(ExpressionError):
        evaluate(text)


def test_the_refusal_says_where_and_what_was_expected() -> None:
    with pytest.raises(ExpressionError, match=r"'\)' at character 5, expected a number or '\('"):
        evaluate("(3 +)")
    with pytest.raises(ExpressionError, match="the end at character 4, expected a number"):
        evaluate("3 +")


def test_length_and_nesting_are_bounded() -> None:
    assert evaluate("(" * MAX_NESTING + "1" + ")" * MAX_NESTING).value == 1
    with pytest.raises(ExpressionError, match="deep"):
        evaluate("(" * (MAX_NESTING + 1) + "1" + ")" * (MAX_NESTING + 1))
    with pytest.raises(ExpressionError, match="characters"):
        evaluate("1+" * MAX_CHARACTERS + "1")
