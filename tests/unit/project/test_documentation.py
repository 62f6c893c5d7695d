"""What the documentation says exists: files, anchors, commands with options, make targets, keys, code that parses."""

from __future__ import annotations

import ast
import re
import shlex
import tomllib
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import click
import pytest
import typer
from pydantic import BaseModel

from rock.cli._contributed import entry_points
from rock.cli.main import app
from rock.runtimes.manifest import EnvManifest

ROOT = Path(__file__).parents[3]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
# docs/recipes.md is generated from the recipe's models and compared with them elsewhere.
WRITTEN = [page for page in PAGES if page.name != "recipes.md"]

pages = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
written = pytest.mark.parametrize("page", WRITTEN, ids=lambda page: page.name)


def blocks(page: Path) -> Iterator[tuple[str, str]]:
    """Language and text of every fenced block."""
    for match in re.finditer(r"^```(\w*)\n(.*?)^```", page.read_text(), re.M | re.S):
        yield match.group(1), match.group(2)


def anchor(heading: str) -> str:
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


@pages
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if "://" in target:
            continue
        name, _, fragment = target.partition("#")
        found = (page.parent / name).resolve() if name else page
        assert found.exists(), f"{page.name} links to {target}"
        if fragment:
            headings = re.findall(r"^#+ (.+)$", found.read_text(), re.M)
            assert fragment in map(anchor, headings), f"{page.name} links to {target}"


@pages
def test_python_in_it_parses(page: Path) -> None:
    for language, text in blocks(page):
        if language == "python":
            ast.parse(text)


def own_command(function: Any) -> click.Command:
    """A contributed command by itself: `rock` imports it only when it is run."""
    single = typer.Typer()
    single.command()(function)
    return typer.main.get_command(single)


COMMANDS: dict[str, Any] = dict(typer.main.get_command(app).commands)  # type: ignore[attr-defined]
for entry in entry_points():
    group, _, command_name = entry.name.rpartition(".")
    target = entry.load()
    command = typer.main.get_command(target) if isinstance(target, typer.Typer) else own_command(target)
    (COMMANDS[group].commands if group else COMMANDS)[command_name] = command


def calls(page: Path) -> Iterator[list[str]]:
    """Words after `rock` in the page's shell blocks and in its inline code."""
    text = page.read_text()
    lines = [line for language, block in blocks(page) if language in ("", "bash", "sh") for line in block.splitlines()]
    lines += re.findall(r"`(rock [^`]+)`", text)
    for line in lines:
        for found in re.findall(r"(?:^|[(\s])rock ((?:[a-z]+|--[a-z]+).*)", line.split("  #")[0]):
            words = shlex.split(found.replace("…", "").replace("'", " "), comments=True)
            cut = next((i for i, word in enumerate(words) if word in ("&&", "||", "|", ";")), len(words))
            yield words[:cut]


@written
def test_commands_and_options_exist(page: Path) -> None:
    for words in calls(page):
        command: Any = None
        group = COMMANDS
        rest = list(words)
        while rest and not rest[0].startswith("-") and rest[0] in group:
            command = group[rest.pop(0)]
            group = getattr(command, "commands", {})
        if command is None:
            assert not re.fullmatch(r"[a-z]+", words[0]) or words[0] in COMMANDS, f"{page.name}: rock {words}"
            continue
        if command is COMMANDS["exec"]:  # what follows the sandbox is somebody else's command line
            continue
        known = {name for parameter in command.params for name in (*parameter.opts, *parameter.secondary_opts)}
        for word in rest:
            if word.startswith("-") and word.strip("-"):
                option = word.split("=")[0].rstrip(").,:")
                assert option in known or option in ("-h", "--help"), f"{page.name}: rock {' '.join(words)}"


def test_the_table_of_commands_is_true() -> None:
    for cell in re.findall(r"^\| `([^|]+)` \|", (ROOT / "docs" / "cli.md").read_text(), re.M):
        name, *words = re.sub(r"[\[\]`,]", " ", cell).split()
        commands = getattr(COMMANDS[name], "commands", None)
        command = COMMANDS[name] if commands is None else None
        for word in words:
            if commands is not None and word in commands:
                command = commands[word]
            elif word.startswith("-"):
                known = {option for parameter in command.params for option in parameter.opts} if command else set()
                assert word in known, f"{name}: {word}"


@pages
def test_make_targets_exist(page: Path) -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.M))
    for line in [*re.findall(r"`make ([^`]+)`", page.read_text()), *re.findall(r"^make (.+)$", page.read_text(), re.M)]:
        for word in shlex.split(line, comments=True):
            assert "=" in word or word in targets or word == "…", f"{page.name}: make {line}"


def test_every_key_of_an_environment_is_described() -> None:
    page = (ROOT / "docs" / "environments.md").read_text()
    for name, field in EnvManifest.model_fields.items():
        inner = field.annotation
        if isinstance(inner, type) and issubclass(inner, BaseModel):
            assert f"`[{name}] " in page
            for key in inner.model_fields:
                assert f"{key}`" in page, f"[{name}] {key}"
        else:
            assert f"`{name}`" in page, name


def test_every_benchmark_is_known_to_make_bench() -> None:
    """`python -m benchmarks` lists modules that take --quick."""
    for path in (ROOT / "benchmarks").glob("*.py"):
        if not path.name.startswith("_") and path.stem not in {"demo", "workloads"}:
            assert "--quick" in path.read_text(), path.name


def test_a_wheel_carries_every_file_that_is_no_module() -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    patterns = settings["package-data"]["*"]
    for pattern in settings["packages"]["find"]["include"]:
        for path in (ROOT / pattern.rstrip("*")).rglob("*"):
            if path.is_file() and path.suffix not in (".py", ".pyc"):
                assert any(fnmatch(path.name, one) for one in patterns), path
