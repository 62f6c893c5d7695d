"""`rock env check --instances`: which tasks, and what is concluded."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rock.cli._verdicts import chosen_tasks, expert_of, verdict_of
from rock.domain.errors import InvalidRequest, NotFound

KNOWN = ["a__a-1", "a__a-2", "b__b-1"]


@pytest.mark.parametrize(
    ("asked", "chosen"), [("all", KNOWN), ("2", KNOWN[:2]), ("9", KNOWN), ("b__b-1, a__a-1", ["b__b-1", "a__a-1"])]
)
def test_tasks_are_chosen_by_number_by_name_or_all(asked: str, chosen: list[str]):
    assert chosen_tasks(KNOWN, asked) == chosen


def test_a_task_that_is_not_known_is_named():
    with pytest.raises(NotFound, match="c__c-1"):
        chosen_tasks(KNOWN, "a__a-1,c__c-1")
    with pytest.raises(InvalidRequest, match="at least 1"):
        chosen_tasks(KNOWN, "0")


def test_a_bundle_without_solutions_is_refused_with_what_to_do(tmp_path: Path):
    with pytest.raises(InvalidRequest, match=r"'toy' has no expert.json"):
        expert_of(tmp_path, "toy")
    (tmp_path / "expert.json").write_text(json.dumps({"t": ["go"]}))
    assert expert_of(tmp_path, "toy") == {"t": ["go"]}


@given(st.lists(st.booleans(), max_size=5), st.lists(st.just("SandboxLost"), max_size=2))
def test_a_verdict_is_solved_only_if_every_time_was(successes: list[bool], failures: list[str]):
    verdict = verdict_of(successes, failures)
    assert (verdict == "broken") == bool(failures)
    if not failures and successes:
        assert (verdict == "solved") == all(successes)
        assert (verdict == "flaky") == (any(successes) and not all(successes))
