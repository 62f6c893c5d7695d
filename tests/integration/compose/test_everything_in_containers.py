"""docker-compose.yml, the whole of it: built, up, trained against, looked at in a browser, and down without a trace."""

from __future__ import annotations

import json
import stat
import time
import urllib.request
from collections.abc import Callable

import pytest

from rock.sdk import RockSync

from .conftest import Stack, docker

pytestmark = [pytest.mark.slow, pytest.mark.docker, pytest.mark.browser, pytest.mark.timeout(3600)]

SHORT = (
    "warm_start.demonstrations=200", "warm_start.epochs=1", "training.steps=2", "training.threads=1",
    "evaluation.tasks=8", "rollout.groups_per_batch=4",
    "algorithm.filter_zero_variance=false",  # so little imitation solves nothing: no group would have a signal
)  # fmt: skip


def key(stack: Stack) -> str:
    return (stack.directory / "secrets/rock_key").read_text()


def until(found: Callable[[], object], timeout_s: float = 60) -> object:
    end_s = time.monotonic() + timeout_s
    while not (result := found()):
        assert time.monotonic() < end_s, "it never came"
        time.sleep(0.2)
    return result


def asked(stack: Stack, query: str) -> list[dict]:
    """What Prometheus answers."""
    url = f"{stack.url('PROMETHEUS_PORT')}/api/v1/query?query={urllib.request.quote(query)}"
    with urllib.request.urlopen(url, timeout=10) as answer:
        return json.load(answer)["data"]["result"]


def test_the_secrets_stay_on_this_side_of_their_directory(stack: Stack) -> None:
    assert stat.S_IMODE((stack.directory / "secrets").stat().st_mode) == 0o700
    ids = stack("ps", "-q").split()
    for name in ("rock_key", "database_password"):
        secret = (stack.directory / "secrets" / name).read_text()
        assert len(secret) > 32
        assert secret not in docker("inspect", *ids)


def test_the_platform_wants_its_key_and_keeps_its_state_in_postgresql(stack: Stack) -> None:
    from rock.sdk import Unauthorized

    with RockSync(stack.url("PORT"), key="") as rock, pytest.raises(Unauthorized):
        rock.runs()
    with RockSync(stack.url("PORT"), key=key(stack)) as rock:
        assert rock.health().runtime == "docker"
    query = "psql -h /var/run/postgresql -U rock -d rock -tAc 'select count(*) from runs'"
    count = stack("exec", "-T", "database", "sh", "-c", f"PGPASSWORD=$(cat /run/secrets/database_password) {query}")
    assert count.strip() == "0"


def test_a_short_training_is_seen_by_platform_prometheus_and_page(stack: Stack) -> None:
    stack("exec", "-T", "platform", "rock", "env", "build", "arithmetic", timeout_s=600)
    stack("--profile", "train", "run", "--rm", "-T", "trainer", "train", "arithmetic-tiny", *SHORT, timeout_s=900)
    with RockSync(stack.url("PORT"), key=key(stack)) as rock:
        (run,) = rock.runs()
        assert (run.status, run.step) == ("completed", 2)
        ledger = rock.ledger(run.id)
        assert ledger.conserved
        assert ledger.accounts["trained"] > 0
    until(lambda: asked(stack, "rock_leases_granted_total > 0"))
    assert asked(stack, 'up{job="rock"}')[0]["value"][1] == "1"
    _look(stack, run.name)


def _look(stack: Stack, run_name: str) -> None:
    """The page, in a browser: Streamlit's own health says nothing of what is on it."""
    from dashboard.screenshots import browser

    with browser() as chromium:
        page = chromium.new_page()
        page.goto(stack.url("DASHBOARD_PORT"))
        page.get_by_text(run_name).first.wait_for(timeout=60_000)


def test_what_was_stored_outlives_its_containers(stack: Stack) -> None:
    before = docker("inspect", "-f", "{{.Id}}", *stack("ps", "-q").split()).split()
    stack("stop", "-t", "60")
    stack("up", "-d", "--force-recreate")
    after = docker("inspect", "-f", "{{.Id}}", *stack("ps", "-q").split()).split()
    assert not set(before) & set(after)
    with RockSync(stack.url("PORT"), key=key(stack)) as rock:
        assert [run.status for run in rock.runs()] == ["completed"]
