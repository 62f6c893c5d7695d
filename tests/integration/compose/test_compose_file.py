"""docker-compose.yml as compose reads it: valid, nothing public, no secret in sight, every image may be another."""

from __future__ import annotations

import os
import re
import stat
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[3]


def resolved(command: list[str], *options: str, **environ: str) -> dict[str, Any]:
    """The file with all variables filled in."""
    inherited = {k: v for k, v in os.environ.items() if not k.startswith(("ROCK_", "COMPOSE_"))}
    done = subprocess.run(
        [*command, *options, "config"],
        cwd=ROOT, env={**inherited, **environ}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return yaml.safe_load(done.stdout)


def test_trainer_and_grafana_come_only_when_asked_for(compose_command: list[str]) -> None:
    services = resolved(compose_command, "--profile", "train", "--profile", "grafana")["services"]
    assert {name: service.get("profiles") for name, service in services.items()} == {
        "database": None, "platform": None, "dashboard": None, "prometheus": None, "trainer": ["train"],
        "grafana": ["grafana"],
    }  # fmt: skip


def test_every_image_may_be_another(compose_command: list[str]) -> None:
    names = {"ROCK_IMAGE", "ROCK_TRAIN_IMAGE", "ROCK_POSTGRES_IMAGE", "ROCK_PROMETHEUS_IMAGE", "ROCK_GRAFANA_IMAGE"}
    own = {name: f"registry.example.org/{name.lower()}:7" for name in names}
    services = resolved(compose_command, "--profile", "train", "--profile", "grafana", **own)["services"]
    assert {service["image"] for service in services.values()} == set(own.values())


def test_nothing_is_public(compose_command: list[str]) -> None:
    services = resolved(compose_command, "--profile", "train", "--profile", "grafana")["services"]
    for name, service in services.items():
        assert "ports" not in service
        assert not service.get("privileged")
        words = " ".join(map(str, service.get("command") or []))
        assert "0.0.0.0" not in words
        if name in ("platform", "dashboard"):
            assert "--host 127.0.0.1" in words
        if name == "prometheus":
            assert "--web.listen-address=127.0.0.1:" in words
        if name == "grafana":
            assert service["environment"]["GF_SERVER_HTTP_ADDR"] == "127.0.0.1"
    assert services["database"]["network_mode"] == "none"
    holders = [n for n, s in services.items() if "docker.sock" in str(s.get("volumes"))]
    assert holders == ["platform"]


def test_secrets_come_in_files_alone(compose_command: list[str]) -> None:
    file = resolved(compose_command, "--profile", "train", "--profile", "grafana", ROCK_SECRETS="/etc/rock/secrets")
    assert {s["file"] for s in file["secrets"].values()} == {
        "/etc/rock/secrets/rock_key", "/etc/rock/secrets/database_password"
    }  # fmt: skip
    for service in file["services"].values():
        for name in service.get("environment") or {}:
            assert not re.search(r"(KEY|PASSWORD|SECRET)$", name), name


def test_everybody_waits_for_whom_they_need(compose_command: list[str]) -> None:
    services = resolved(compose_command, "--profile", "train", "--profile", "grafana")["services"]
    needs = {name: set(service.get("depends_on") or {}) for name, service in services.items()}
    assert needs == {
        "database": set(), "platform": {"database"}, "dashboard": {"platform"}, "prometheus": {"platform"},
        "trainer": {"platform"}, "grafana": set(),
    }  # fmt: skip
    for service in services.values():
        for needed, how in (service.get("depends_on") or {}).items():
            assert how["condition"] == "service_healthy"
            assert "healthcheck" in services[needed]


def test_what_grafana_is_given_is_there(compose_command: list[str]) -> None:
    service = resolved(compose_command, "--profile", "grafana")["services"]["grafana"]
    given = [
        str(volume.get("source") if isinstance(volume, dict) else volume.split(":")[0]) for volume in service["volumes"]
    ]
    assert all(Path(path).is_dir() for path in given)
    folder = ROOT / "docker/grafana"
    (provider,) = yaml.safe_load((folder / "provisioning/dashboards/rock-roll.yml").read_text())["providers"]
    assert (folder / Path(provider["options"]["path"]).relative_to("/etc/rock-grafana")).is_file()


def test_every_variable_is_explained() -> None:
    variables = set(re.findall(r"\$\{(ROCK_\w+)", (ROOT / "docker-compose.yml").read_text()))
    told = (ROOT / "docs/operations.md").read_text()
    assert {name for name in variables if f"`{name}`" not in told} == set()


def test_secrets_are_made_once_and_kept_from_other_users(tmp_path: Path) -> None:
    script = [str(ROOT / "tools/compose-secrets.sh"), str(tmp_path / "s")]
    subprocess.run(script, check=True, capture_output=True)
    first = {file.name: file.read_text() for file in (tmp_path / "s").iterdir()}
    subprocess.run(script, check=True, capture_output=True)
    assert {file.name: file.read_text() for file in (tmp_path / "s").iterdir()} == first
    assert set(first) == {"rock_key", "database_password"}
    assert all(re.fullmatch(r"[A-Za-z0-9]{36,}", text) for text in first.values())
    assert len(set(first.values())) == 2
    assert stat.S_IMODE((tmp_path / "s").stat().st_mode) == 0o700


@pytest.mark.parametrize("name", ["postgres-start.sh"])
def test_scripts_parse(name: str) -> None:
    subprocess.run(["sh", "-n", str(ROOT / "docker" / name)], check=True)
