"""`rock key`, `rock run` and `rock events` against a platform of their own."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rock.sdk import EpisodeRecord, LedgerState, RockSync, RunCreate
from rock.sdk.home import read_server

Rock = Callable[..., subprocess.CompletedProcess[str]]
FAKE = ("--runtime", "fake", "--port", "0")
AT = "2026-01-01T00:00:00Z"


def test_keys_close_the_door_and_limit_who_comes_in(rock: Rock) -> None:
    rock("up", "-d", *FAKE)
    assert "No keys" in rock("key", "list").stdout
    assert "first key" in rock("key", "create", "trainer", code=1).stderr
    made = rock("key", "create", "me", "--scope", "admin")
    admin = {"ROCK_KEY": made.stdout.strip()}
    assert made.stdout.count("\n") == 1  # the secret alone, for $(…)
    assert "not shown again" in " ".join(made.stderr.split())
    assert "ROCK_KEY" in rock("ps", code=1).stderr
    assert rock("ps", env=admin).returncode == 0
    reader = json.loads(rock("key", "create", "page", "--scope", "read", "--json", env=admin).stdout)
    told = rock("sandbox", "create", code=1, env={"ROCK_KEY": reader["secret"]}).stderr
    assert "needs 'run'" in told
    assert "rock key create" in told
    assert "no scope" in rock("key", "create", "x", "--scope", "god", code=1, env=admin).stderr
    listed = rock("key", "list", env=admin).stdout
    assert "page" in listed
    assert reader["secret"] not in listed
    rock("key", "revoke", reader["id"], env=admin)
    assert reader["id"] not in rock("key", "list", env=admin).stdout
    assert "revoked" in rock("key", "list", "--all", env=admin).stdout
    (only,) = json.loads(rock("key", "list", "--json", env=admin).stdout)
    assert only["scope"] == "admin"
    rock("down")
    assert (
        "has keys" in rock("up", "-d", *FAKE, "--host", "0.0.0.0", env={"ROCK_KEY": ""}).stdout
    )  # a stored one will do
    assert rock("ps", env=admin).returncode == 0
    rock("down")
    assert "has keys" in rock("up", "-d", *FAKE).stdout  # without one it says so instead of waiting for nothing


def test_runs_are_listed_and_their_ledgers_add_up(rock: Rock, rock_home: Path) -> None:
    rock("up", "-d", *FAKE)
    assert "No runs" in rock("run", "list").stdout
    server = read_server(rock_home)
    assert server is not None
    with RockSync(server.url) as platform:
        run = platform.create_run(RunCreate(name="night", recipe={}, total_steps=10)).id
        base: dict[str, Any] = {"env": "toy", "task": "t", "seed": 1, "outcome": "completed"}
        platform.report_episodes(
            run,
            [
                EpisodeRecord(
                    id=f"ep-{n}", ledger=LedgerState.TRAINED, generated_tokens=1000, started_at=AT, ended_at=AT, **base
                )
                for n in range(3)
            ],
        )
    assert "night" in rock("run", "list").stdout
    assert "0 of 10" in rock("run", "show", run).stdout
    told = rock("run", "ledger", run).stdout
    assert "3 episodes, each booked once" in told
    assert "3,000" in told
    ledger = json.loads(rock("run", "ledger", run, "--json").stdout)
    assert (ledger["dispatched"], ledger["accounts"]["trained"], ledger["conserved"]) == (3, 3, True)
    assert "run-none" in rock("run", "ledger", "run-none", code=1).stderr
    assert "run.started" in rock("events", "--run", run).stdout
    (event,) = json.loads(rock("events", "--kind", "run.started", "--json").stdout)
    assert event["subject"] == run


def test_top_prints_one_picture_of_what_there_is(rock: Rock, rock_home: Path) -> None:
    rock("up", "-d", *FAKE)
    assert "No run yet" in rock("top", "--once").stdout
    server = read_server(rock_home)
    assert server is not None
    with RockSync(server.url) as platform:
        platform.create_run(RunCreate(name="night", recipe={}, total_steps=10))
    shown = rock("top", "--once").stdout
    assert "night" in shown
    assert "starting" in shown
    assert "0/10" in shown
