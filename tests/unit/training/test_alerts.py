"""Alerts of a run: what pauses it, who is told, and that telling never hurts."""

from __future__ import annotations

import json
import logging
import socketserver
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

from rock.domain.alerts import Action
from roll_core.config import Recipe
from roll_core.errors import RunPaused
from roll_core.training.alerts import Alarms, read_alerts, standing_rules
from roll_core.training.cli import Plan, _stopped


def recipe(**alerts: Any) -> Recipe:
    written = {"name": "night", "env": {"name": "e"}, "warm_start": {"demonstrations": 1}, "alerts": alerts}
    return Recipe.model_validate_json(json.dumps(written))


def test_the_rules_in_the_documentation_hold_and_show_every_action() -> None:
    text = (Path(__file__).parents[3] / "docs" / "training.md").read_text(encoding="utf-8")
    written = next(block for block in text.split("```yaml\n")[1:] if block.startswith("alerts:"))
    alerts = yaml.safe_load(written.split("```")[0])["alerts"]
    own = {rule["name"] for rule in alerts["rules"]}
    assert {r.action for r in standing_rules(recipe(**alerts).alerts) if r.name in own} == set(Action)


class Clock:
    now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


def alarms(directory: Path, clock: Clock | None = None, said: list[str] | None = None, **alerts: Any) -> Alarms:
    tell = said.append if said is not None else lambda _: None
    return Alarms(recipe(**alerts), directory, "run-1", tell=tell, clock=clock or Clock())


LONG = {"name": "long", "metric": "rollout/turns", "kind": "above", "threshold": 10.0}


def test_a_storm_of_void_episodes_pauses_before_it_is_trained_on(tmp_path: Path) -> None:
    said: list[str] = []
    made = alarms(tmp_path, said=said)
    for step in range(1, 5):
        made.before_training(step, {"rollout/void_rate": 0.9})
    with pytest.raises(RunPaused, match=r"void-storm at step 5.*5 of the last 5.*--resume last") as paused:
        made.before_training(5, {"rollout/void_rate": 0.9})
    made.close()
    assert not paused.value.for_good
    (alert,) = [a for a in read_alerts(tmp_path) if a["alert"] == "void-storm"]
    assert (alert["state"], alert["action"], alert["step"], alert["run"]) == ("firing", "pause", 5, "night")
    assert said
    assert "void-storm firing" in said[-1]


def test_a_rule_of_ones_own_replaces_the_standing_one_of_its_name() -> None:
    own = {"name": "void-rate", "metric": "rollout/void_rate", "kind": "above", "threshold": 0.2, "action": "stop"}
    rules = {rule.name: rule for rule in standing_rules(recipe(rules=[own]).alerts)}
    assert rules["void-rate"].threshold == 0.2
    assert set(rules) == {"void-rate", "void-storm", "reward-collapse", "no-progress"}
    assert standing_rules(recipe(standard=False).alerts) == ()
    assert "void-storm" not in {r.name for r in standing_rules(recipe(void_pause=1.0).alerts)}


def test_stop_is_for_good_and_notify_goes_on(tmp_path: Path) -> None:
    made = alarms(tmp_path, standard=False, rules=[LONG])
    made.before_training(1, {"rollout/turns": 20.0})
    assert made.values() == {"alerts/firing": 1.0}
    made.before_training(2, {"rollout/turns": 5.0})
    assert made.values() == {"alerts/firing": 0.0}
    made.close()
    assert [a["state"] for a in read_alerts(tmp_path)] == ["firing", "cleared"]
    stopping = alarms(tmp_path, standard=False, rules=[{**LONG, "action": "stop"}])
    with pytest.raises(RunPaused) as stopped:
        stopping.before_training(1, {"rollout/turns": 20.0})
    assert stopped.value.for_good


def test_silence_is_seen_by_the_clock(tmp_path: Path) -> None:
    clock, said = Clock(), []  # type: ignore[var-annotated]
    made = alarms(tmp_path, clock, said)
    clock.now_s = 1799
    made.tick(0)
    assert said == []
    clock.now_s = 1801
    made.tick(0)
    made.tick(0)
    assert said == ["alert no-progress firing: no step for 1801 s, the limit is 1800 s"]


class Posted(BaseHTTPRequestHandler):
    got: list[dict[str, Any]]

    def do_POST(self) -> None:
        self.got.append(json.loads(self.rfile.read(int(self.headers["content-length"]))))
        self.send_response(204)
        self.end_headers()

    def log_message(self, *args: Any) -> None:
        return None


@pytest.fixture
def hook() -> Iterator[tuple[str, list[dict[str, Any]]]]:
    got: list[dict[str, Any]] = []
    server = HTTPServer(("127.0.0.1", 0), type("Handler", (Posted,), {"got": got}))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/alerts", got
    server.shutdown()
    server.server_close()
    thread.join()


def test_a_webhook_and_a_command_get_the_same_json(hook: tuple[str, list[dict[str, Any]]], tmp_path: Path) -> None:
    url, got = hook
    kept = tmp_path / "told.json"
    command = [sys.executable, "-c", f"import sys; open({str(kept)!r}, 'a').write(sys.stdin.read())"]
    made = alarms(tmp_path, standard=False, rules=[LONG], webhook=url, command=command)
    made.before_training(7, {"rollout/turns": 11.0})
    made.close()
    assert got == [json.loads(kept.read_text())]
    assert got[0]["reason"] == "rollout/turns is 11, above 10 in 1 of the last 1 samples; 0% may be"
    assert got[0]["step"] == 7


class Mail(socketserver.StreamRequestHandler):
    """As little of SMTP as a client needs to hand a message over."""

    lines: list[str]

    def handle(self) -> None:
        self.wfile.write(b"220 here\r\n")
        in_data = False
        for raw in self.rfile:
            line = raw.decode().rstrip("\r\n")
            self.lines.append(line)
            if in_data and line != ".":
                continue
            in_data = line.upper() == "DATA"
            self.wfile.write(b"354 go on\r\n" if in_data else b"250 ok\r\n")
            if line.upper() == "QUIT":
                return


def test_mail_is_handed_to_the_server(tmp_path: Path) -> None:
    lines: list[str] = []
    with socketserver.TCPServer(("127.0.0.1", 0), type("Handler", (Mail,), {"lines": lines})) as server:
        thread = threading.Thread(target=server.handle_request, daemon=True)
        thread.start()
        host = f"127.0.0.1:{server.server_address[1]}"
        made = alarms(tmp_path, standard=False, rules=[LONG], email="me@example.org", smtp_host=host)
        made.before_training(1, {"rollout/turns": 11.0})
        made.close()
        thread.join(10)
    assert "Subject: [night] long firing" in lines
    assert "To: me@example.org" in lines


def test_who_cannot_be_told_is_named_in_the_log_and_the_run_goes_on(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.ERROR):
        made = alarms(
            tmp_path, standard=False, rules=[LONG], webhook="http://127.0.0.1:9/", command=["/does/not/exist"],
            email="me@example.org", smtp_host="127.0.0.1:9",
        )  # fmt: skip
        made.before_training(1, {"rollout/turns": 11.0})
        made.close()
    told = " ".join(record.getMessage() for record in caplog.records)
    for way in ("alerts.webhook", "alerts.command", "alerts.email"):
        assert way in told


@pytest.mark.parametrize(
    ("alerts", "named"),
    [
        ({"rules": [{**LONG, "kind": "drop"}]}, "drop"),
        ({"rules": [LONG, LONG]}, "long"),
        ({"webhook": "nowhere"}, "nowhere"),
        ({"rules": [{**LONG, "colour": "red"}]}, "colour"),
    ],
)
def test_rules_that_cannot_be_are_refused_before_the_run(alerts: dict[str, Any], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        recipe(**alerts)


@pytest.mark.parametrize(("for_good", "told"), [(True, False), (False, True)], ids=["stopped", "paused"])
def test_how_to_go_on_is_said_unless_the_rule_stopped_the_run_for_good(
    for_good: bool, told: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = SimpleNamespace(latest=lambda: tmp_path / "step-3")
    monkeypatch.setattr("roll_core.training.run.RunDirectory.checkpoints", lambda *_: checkpoint)
    last_words = _stopped(RunPaused("Alert voids.", for_good=for_good), Plan(recipe(), tmp_path))
    assert str(last_words).startswith("Alert voids.")
    assert ("--resume" in str(last_words)) is told
