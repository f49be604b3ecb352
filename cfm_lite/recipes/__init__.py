"""Runs by name: `recipe("digits", method="vecor_latent")` is a frozen `Recipe`, to train, to print, to keep."""

from collections.abc import Callable, Mapping
from typing import Any

from cfm_lite.checks import check_choice
from cfm_lite.recipes.cifar10 import cifar10
from cfm_lite.recipes.digits import digits, digits_sit
from cfm_lite.recipes.imagenet import ImageNet, imagenet
from cfm_lite.recipes.mnist import mnist
from cfm_lite.recipes.recipe import METHODS, Recipe, build_model, build_objective, build_trainer
from cfm_lite.recipes.recipe import from_dict as _from_dict
from cfm_lite.recipes.toy import toy

__all__ = [
    "METHODS",
    "RECIPES",
    "ImageNet",
    "Recipe",
    "build_model",
    "build_objective",
    "build_trainer",
    "from_dict",
    "imagenet",
    "recipe",
]

RECIPES: dict[str, Callable[[], Recipe]] = {
    "toy": toy,
    "digits": digits,
    "digits_sit": digits_sit,
    "mnist": mnist,
    "cifar10": cifar10,
}


def recipe(name: str, **changes: Any) -> Recipe:
    """The recipe called `name` with some fields changed; ConfigError for an unknown name or field, with the nearest right one."""
    check_choice("recipe", name, RECIPES)
    return RECIPES[name]().changed(**changes)


def from_dict(fields: Mapping[str, Any]) -> Recipe:
    """The inverse of `Recipe.as_dict`, for ImageNet's recipes too; ConfigError for an unknown field."""
    return _from_dict(fields, ImageNet if fields.get("dataset") == "imagenet" else Recipe)
