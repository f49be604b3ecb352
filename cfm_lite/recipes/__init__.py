"""Runs by name: `recipe("digits", method="vecor_latent")` is a frozen `Recipe`, to train, to print, to keep."""

from collections.abc import Callable
from typing import Any

from cfm_lite.checks import check_choice
from cfm_lite.recipes.digits import digits, digits_sit
from cfm_lite.recipes.mnist import mnist
from cfm_lite.recipes.recipe import METHODS, Recipe, build_model, build_objective, build_trainer, from_dict
from cfm_lite.recipes.toy import toy

__all__ = ["METHODS", "RECIPES", "Recipe", "build_model", "build_objective", "build_trainer", "from_dict", "recipe"]

RECIPES: dict[str, Callable[[], Recipe]] = {"toy": toy, "digits": digits, "digits_sit": digits_sit, "mnist": mnist}


def recipe(name: str, **changes: Any) -> Recipe:
    """The recipe called `name` with some fields changed; ConfigError for an unknown name or field, with the nearest right one."""
    check_choice("recipe", name, RECIPES)
    return RECIPES[name]().changed(**changes)
