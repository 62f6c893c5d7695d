"""Recipes: frozen models, and how they are read."""

from roll_core.config.load import load_recipe, recipe_from_data, to_yaml
from roll_core.config.models import Recipe

__all__ = ["Recipe", "load_recipe", "recipe_from_data", "to_yaml"]
