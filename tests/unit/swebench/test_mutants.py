"""Bugs by one changed expression."""

from __future__ import annotations

import ast
import inspect
import textwrap

import pytest
from hypothesis import given
from hypothesis import strategies as st

from envs.swebench.make import instance, source, trying
from envs.swebench.make.instance import Effect, effect, failure_words
from envs.swebench.make.mutate import mutants

SOURCE = textwrap.dedent(
    '''
    LIMIT = 1 < 2  # outside functions nothing changes

    class Über:
        def take(self, n, items):
            """Words: é."""
            if n > len(items) and not items:
                return []
            return items[:n + 1]
    '''
)


def test_every_kind_of_change_is_found_and_has_its_place():
    found = mutants("a.py", SOURCE)
    assert {m.kind for m in found} == {"comparison", "junction", "negation", "arithmetic", "number", "return"}
    assert {m.scope for m in found} == {"Über.take"}


@pytest.mark.parametrize("module", [instance, source, trying], ids=lambda m: m.__name__)
def test_mutants_of_real_modules_parse_and_differ_in_one_line(module: object):
    text = inspect.getsource(module)  # type: ignore[arg-type]
    found = mutants("m.py", text)
    assert len(found) > 10
    for mutant in found:
        changed = mutant.applied(text)
        assert ast.dump(ast.parse(changed)) != ast.dump(ast.parse(text))
        raw = text.encode()
        assert changed.encode().startswith(raw[: mutant.start])
        assert changed.encode().endswith(raw[mutant.end :])


def test_the_same_source_gives_the_same_mutants():
    assert mutants("a.py", SOURCE) == mutants("a.py", SOURCE)


statuses = st.dictionaries(st.sampled_from("abcdefgh"), st.sampled_from(["PASSED", "FAILED", "ERROR", "SKIPPED"]))


@given(statuses, statuses)
def test_an_instance_fails_something_keeps_something_and_loses_nothing(clean: dict[str, str], mutated: dict[str, str]):
    found = effect(clean, mutated, {})
    if found is not None:
        assert found.fail_to_pass
        assert found.pass_to_pass
        assert {*found.fail_to_pass, *found.pass_to_pass} == {n for n, s in clean.items() if s == "PASSED"}
        assert all(mutated[name] == "PASSED" for name in found.pass_to_pass)


def test_a_bug_that_nobody_notices_or_that_breaks_everything_is_none():
    clean = dict.fromkeys("abc", "PASSED")
    assert effect(clean, clean, {}) is None
    assert effect(clean, dict.fromkeys("abc", "FAILED"), {}) is None
    assert effect(clean, {}, {}) is None
    assert effect(clean, {**clean, "b": "FAILED"}, {"b": "boom", "c": "no"}) == Effect(
        ("b",), ("a", "c"), {"b": "boom"}
    )


def test_names_that_the_parser_cut_are_left_out():
    clean = {"a": "PASSED", "t[x": "PASSED", "b": "PASSED"}
    assert effect(clean, {**clean, "a": "FAILED"}, {}) == Effect(("a",), ("b",), {})


def test_the_words_of_a_failure_come_from_the_summary():
    assert failure_words("FAILED tests/a.py::t - assert 1 == 2\nPASSED tests/a.py::u\n") == {
        "tests/a.py::t": "assert 1 == 2"
    }
