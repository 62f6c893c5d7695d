"""Recipes: what is refused, and with which words; the shipped ones; the page that documents them."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, ValidationError

from roll_core.config import Recipe, load_recipe, to_yaml
from roll_core.config.docs import render
from roll_core.config.load import RECIPE_FOLDERS, all_keys
from roll_core.errors import RecipeError

ROOT = Path(__file__).parents[3]
MINIMAL = "name: x\nenv: {name: e}\nwarm_start: {demonstrations: 1}\n"


@pytest.fixture
def recipe_file(tmp_path):
    def write(text: str) -> Path:
        path = tmp_path / "r.yaml"
        path.write_text(text)
        return path

    return write


def test_an_unknown_key_is_refused_with_file_line_and_nearest_name(recipe_file) -> None:
    path = recipe_file(MINIMAL + "rollout:\n  alpha: 1\n  group_sise: 4\n")
    with pytest.raises(RecipeError, match=r"r\.yaml:6: there is no key 'rollout\.group_sise'.*'rollout\.group_size'"):
        load_recipe(path)


def test_a_key_of_another_section_is_pointed_to(recipe_file) -> None:
    with pytest.raises(RecipeError, match=r"'learner\.alpha'. Did you mean 'rollout\.alpha'"):
        load_recipe(recipe_file(MINIMAL), ["learner.alpha=1"])


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("rollout.alpha=abc", "override 'rollout.alpha=abc': rollout.alpha"),
        ('rollout.group_size="4"', "rollout.group_size"),
        ("rollout.group_size=2.5", "rollout.group_size"),
        ("rollout.alpha=-1", "greater than or equal to 0"),
        ("rollout.alpha", "not of the form"),
        ("name.first=x", "'name' is a value"),
        ("model.source=checkpoint", "model.path must name one"),
        ("prompt.format=chat", "needs tokenizer.source"),
        ("prompt.rules=[['(', '']]", "is not a regular expression"),
        ("rollout.extra_groups=1", "needs rollout.order 'finished'"),
        ("algorithm.loss=gpro", "algorithm.loss"),
    ],
)
def test_a_bad_override_is_refused_by_its_name(recipe_file, override: str, words: str) -> None:
    with pytest.raises(RecipeError, match=re.escape(words)):
        load_recipe(recipe_file(MINIMAL), [override])


@pytest.mark.parametrize("text", ["- 1\n", "name: [1\n", "just text"])
def test_a_file_that_is_no_recipe_is_refused(recipe_file, text: str) -> None:
    with pytest.raises(RecipeError, match=r"r\.yaml"):
        load_recipe(recipe_file(text))


def test_numbers_in_scientific_notation_are_numbers(recipe_file) -> None:
    assert load_recipe(recipe_file(MINIMAL + "learner: {lr: 1e-3}\n"), ["warm_start.lr=2e-4"]).learner.lr == 1e-3


def test_an_unknown_recipe_names_the_nearest_shipped_one() -> None:
    with pytest.raises(RecipeError, match="alfworld-tiny"):
        load_recipe("alfworld-tny")


@pytest.mark.parametrize("path", sorted(RECIPE_FOLDERS[0].glob("*.yaml")), ids=lambda p: p.stem)
def test_shipped_recipes_are_valid_and_survive_a_round_trip(path: Path, recipe_file) -> None:
    recipe = load_recipe(path)
    assert load_recipe(recipe_file(to_yaml(recipe))) == recipe
    assert recipe.name == path.stem


def test_recipes_are_frozen(recipe_file) -> None:
    recipe = load_recipe(recipe_file(MINIMAL))
    with pytest.raises(ValidationError, match="frozen"):
        recipe.name = "y"


def test_the_documentation_is_made_from_the_models() -> None:
    assert (ROOT / "docs" / "recipes.md").read_text(encoding="utf-8") == render(), (
        "run `python -m roll_core.config.docs > docs/recipes.md`"
    )


def test_every_key_is_documented_and_read_by_somebody() -> None:
    source = "\n".join(
        path.read_text(encoding="utf-8")
        for path in (ROOT / "roll_core").rglob("*.py")
        if path.relative_to(ROOT / "roll_core").parts[0] != "config"
    )
    for section, field in Recipe.model_fields.items():
        inner = field.annotation
        if not (isinstance(inner, type) and issubclass(inner, BaseModel)):
            assert re.search(rf"\.{section}\b", source), section
            continue
        for key, leaf in inner.model_fields.items():
            assert leaf.description, f"{section}.{key} is not documented"
            names = f"{section}|sizes" if section in ("model", "critic") else section  # a network's sizes, of either
            assert re.search(rf"\b(?:{names})\.{key}\b", source), f"nobody reads {section}.{key}"


@given(st.sampled_from(all_keys()), st.integers(0, 30), st.characters(codec="ascii", categories=["Ll"]))
def test_a_key_with_one_wrong_letter_is_always_refused(key: str, position: int, letter: str) -> None:
    wrong = key[: position % len(key)] + letter + key[position % len(key) + 1 :]
    if wrong in all_keys() or "." not in wrong:
        return
    with pytest.raises(RecipeError):
        load_recipe("alfworld-tiny", [f"{wrong}=1"])
