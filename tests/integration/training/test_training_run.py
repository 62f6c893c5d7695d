"""Real training in this process: a real engine, a real learner, a scripted environment."""

from __future__ import annotations

import json

from rock.domain.outcome import LedgerState
from roll_core.training.checkpoint import load_state


def test_a_tiny_run_learns_and_accounts_for_every_episode(run, make_recipe, run_directory) -> None:
    summary = run(make_recipe(), run_directory)
    assert summary.steps == 32
    assert summary.success_after.low > summary.success_before.high, summary
    lines = [json.loads(line) for line in (run_directory.path / "metrics.jsonl").read_text().splitlines()]
    steps = [x for x in lines if "staleness/max" in x["values"]]
    assert [x["step"] for x in steps] == list(range(1, 33))
    assert all(x["values"]["staleness/max"] <= 1 for x in steps)
    state = load_state(run_directory.checkpoints(2).latest())
    accounts = state.machine.ledger.accounts
    assert accounts[LedgerState.TRAINED].episodes == 32 * 32
    assert accounts[LedgerState.VOID].episodes == 0
    assert state.machine.ledger.in_flight == ()
