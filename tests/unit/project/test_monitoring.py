"""The Grafana dashboard and the Prometheus rules ask for metrics, and labels, that the platform has."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from rock.cli.main import app

ROOT = Path(__file__).parents[3]
DOCUMENTED = re.findall(r"^\| `(rock_\w+)(?:\{([\w,]+)\})?`", (ROOT / "docs/platform.md").read_text(), re.MULTILINE)
"""Names and labels; tests/unit/api compares them with what the platform really answers."""
LABELS = {name: set(labels.split(",")) - {""} for name, labels in DOCUMENTED}


def expressions() -> list[str]:
    board = json.loads((ROOT / "docker/grafana/rock-roll.json").read_text())
    rules = yaml.safe_load((ROOT / "docker/prometheus/rules.yml").read_text())
    asked = [target["expr"] for panel in board["panels"] for target in panel.get("targets", [])]
    return asked + [rule["expr"] for group in rules["groups"] for rule in group["rules"]]


@pytest.mark.parametrize("expression", expressions())
def test_every_expression_asks_for_what_there_is(expression: str) -> None:
    names = re.findall(r"\brock_\w+", expression)
    assert names or "up{" in expression
    for name in names:
        known = name if name in LABELS else re.sub(r"_(bucket|count|sum)$", "", name)
        assert known in LABELS, f"{name} is none of {sorted(LABELS)}"
        grouped = {label for by in re.findall(r"by \(([\w, ]+)\)", expression) for label in by.split(", ")} - {"le"}
        filtered = set(re.findall(rf"{name}\{{(\w+)=", expression))
        assert grouped | filtered <= LABELS[known], f"{known} has no label {(grouped | filtered) - LABELS[known]}"


def test_alerts_name_commands_that_there_are() -> None:
    commands = set(re.findall(r"`(rock [a-z]+ [a-z]+)", (ROOT / "docker/prometheus/rules.yml").read_text()))
    assert len(commands) > 2
    asked = {command: CliRunner().invoke(app, [*command.split()[1:], "--help"]) for command in commands}
    assert {command: result.output for command, result in asked.items() if result.exit_code} == {}


def test_every_metric_of_the_platform_is_on_the_board() -> None:
    shown = " ".join(expressions())
    unseen = {name for name in LABELS if name not in shown}
    assert unseen <= {"rock_claims_total", "rock_node_healthy"}


def test_panels_have_different_places() -> None:
    board = json.loads((ROOT / "docker/grafana/rock-roll.json").read_text())
    places = [(p["gridPos"]["x"], p["gridPos"]["y"]) for p in board["panels"]]
    assert len(set(places)) == len(places) == len({p["id"] for p in board["panels"]})
