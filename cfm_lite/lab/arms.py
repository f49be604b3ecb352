"""The arms of a paired experiment: its training, its change to the velocity, and its sampler.

*Scaled FM* is FM's velocity times 1/(1 - lambda). *Re-targeted FM* is the exact affine map
(v - lambda E[u_neg]) / (1 - lambda) of FM's velocity. Neither needs training. An effect that one
of them shows too is not an effect of repulsion.
"""

import dataclasses
import math

import torch
from torch import Tensor

from cfm_lite._internal.checks import check_count
from cfm_lite.data.datasets import DataSet
from cfm_lite.guidance import Velocity
from cfm_lite.methods import METHODS, Arm, arms
from cfm_lite.runs import Run, sampling
from cfm_lite.runs.reads import BOOST, OF_SAMPLES, idle_fields
from cfm_lite.runs.recipe import Recipe
from cfm_lite.samplers import EVALUATIONS

__all__ = [
    "ARMS",
    "CONTROLS",
    "EVALUATIONS",
    "TRAINED",
    "Arm",
    "balanced_labels",
    "conditions",
    "draw_samples",
    "trained_recipe",
    "velocity",
]


ARMS = arms()
TRAINED = tuple(name for name, arm in ARMS.items() if arm.trained != "fm" and not arm.changes)
CONTROLS = {name: method.control.method for name, method in METHODS.items() if method.control}


def trained_recipe(recipe: Recipe) -> Recipe:
    """`recipe` with the default for every field that its training does not read.

    Equal trainings thus have equal recipes.
    """
    idle = idle_fields(recipe) | {*OF_SAMPLES, *BOOST}
    defaults = {f.name: f.default for f in dataclasses.fields(recipe) if f.name in idle}
    return recipe.changed(**defaults)


def velocity(arm: Arm, run: Run, data: DataSet, y: Tensor) -> Velocity:
    """The velocity of one arm for labels `y` (B,).

    It is guided if the recipe asks for guidance, then changed as the arm says.
    """
    return sampling.guided(
        run,
        y.to(run.device),
        run.recipe.guidance,
        change=lambda guided: arm(guided, run.recipe, data),
    )


def draw_samples(
    arm: Arm,
    run: Run,
    data: DataSet,
    y: Tensor,
    steps: int,
    seed: int = 0,
    chunk: int = 0,
    solver: str | None = None,
) -> Tensor:
    """Samples (len(y), *dims) of one arm for labels `y`.

    The noise depends on `seed` alone, so arms are paired. `solver` is "sde" or one of SOLVERS, by
    default the recipe's. "sde" takes `steps` >= 2, and its last step adds no noise. `chunk` are
    drawn at once: by default 1,000, or 50 pictures of more than 256 numbers on a CPU, whose cache
    holds no more. (The SDE keeps 1,000, because its noise depends on it.)
    """
    solver = solver or run.recipe.solver
    few = run.device.type == "cpu" and math.prod(data.shape) > 256 and solver != "sde"
    return sampling.draw_rows(
        lambda some: velocity(arm, run, data, some),
        sampling.noise_of(data.shape, len(y), seed, run.dtype),
        y,
        run.recipe,
        steps=steps,
        solver=solver,
        seed=seed,
        batch=chunk or (50 if few else 1000),
        device=run.device,
    )


def conditions(data: DataSet, n: int) -> Tensor:
    """What `n` samples are drawn for: the classes in turn, or captions (n, L), seen and held-out
    ones in turn.
    """
    captioned = data.condition == "captions"
    return sampling.captions_in_turn(n) if captioned else balanced_labels(data.num_classes, n)


def balanced_labels(classes: int, n: int) -> Tensor:
    """`n` labels (n,) that run through the classes in turn.

    Raises ConfigError for n below 1.
    """
    return torch.arange(check_count("n", n), device="cpu") % classes
