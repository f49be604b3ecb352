"""The arms of a paired experiment: which training each uses, what is done to its velocity, and how
samples are drawn from it.

*Scaled FM* is FM's velocity times 1/(1 - lambda), *re-targeted FM* the exact affine map (v - lambda E[u_neg]) / (1 - lambda).
What scaling reproduces is scaling, what re-targeting reproduces is re-targeting; only what is left is repulsion.
"""

import dataclasses

import torch
from torch import Tensor

from cfm_lite import guidance, samplers
from cfm_lite._internal.checks import check_count
from cfm_lite.data.datasets import DataSet
from cfm_lite.draws import keyed_generator
from cfm_lite.errors import ConfigError
from cfm_lite.guidance import Velocity
from cfm_lite.methods import METHODS, Arm, arms
from cfm_lite.paths import PATHS
from cfm_lite.runs import Run
from cfm_lite.runs.reads import READS
from cfm_lite.runs.recipe import SOLVERS, Recipe
from cfm_lite.samplers import EVALUATIONS, SDE_END

__all__ = [
    "ARMS",
    "CONTROLS",
    "EVALUATIONS",
    "Arm",
    "balanced_labels",
    "draw_samples",
    "noise_of",
    "trained_recipe",
    "velocity",
]


ARMS = arms()
CONTROLS = {name: method.control.method for name, method in METHODS.items() if method.control}

_OF_METHODS = {name for names in READS.values() for name in names}
OF_SAMPLES = ("solver", "sample_steps", "guidance")


def trained_recipe(recipe: Recipe) -> Recipe:
    """`recipe` with its default for every field that its training does not read, so that equal
    trainings have equal recipes.
    """
    idle = (_OF_METHODS - {*READS[recipe.method], *READS[recipe.also]}) | set(OF_SAMPLES)
    defaults = {f.name: f.default for f in dataclasses.fields(recipe) if f.name in idle}
    return recipe.changed(**defaults)


def velocity(
    arm: Arm, run: Run, data: DataSet, y: Tensor, interval: tuple[float, float] = (0.0, 1.0)
) -> Velocity:
    """The velocity of one arm for labels `y` (B,): guided in `interval` if the recipe says so, then
    changed as the arm says.
    """
    device = next(run.model.parameters()).device
    return arm(
        guidance.cfg(run.model, y.to(device), run.recipe.guidance, interval), run.recipe, data
    )


def draw_samples(
    arm: Arm,
    run: Run,
    data: DataSet,
    y: Tensor,
    steps: int,
    seed: int = 0,
    chunk: int = 1000,
    solver: str | None = None,
    interval: tuple[float, float] = (0.0, 1.0),
) -> Tensor:
    """Samples (len(y), *dims) of one arm for labels `y`, from noise that depends on `seed` alone,
    so that arms are paired.

    `solver` is "sde" or one of SOLVERS, by default the recipe's; "sde" takes `steps` >= 2, the last
    of them without noise. Guidance acts in `interval`, times from 0 (noise) to 1 (data).
    """
    device, noise, parts = next(run.model.parameters()).device, noise_of(data, len(y), seed), []
    for i in range(0, len(y), chunk):
        v, x = velocity(arm, run, data, y[i : i + chunk], interval), noise[i : i + chunk].to(device)
        parts.append(
            _integrate(
                v,
                x,
                steps,
                solver or run.recipe.solver,
                run.recipe,
                keyed_generator("cpu", seed, "sde", i),
            ).cpu()
        )
    return torch.cat(parts)


def noise_of(data: DataSet, n: int, seed: int) -> Tensor:
    """The noise (n, *dims) that samples start from."""
    return torch.randn(n, *data.shape, generator=keyed_generator("cpu", seed, "sampling noise"))


def _integrate(
    v: Velocity, x: Tensor, steps: int, solver: str, recipe: Recipe, generator: torch.Generator
) -> Tensor:
    if solver != "sde":
        return samplers.sample(v, x, torch.linspace(0, 1, steps + 1), SOLVERS[solver])
    if steps < 2:
        raise ConfigError(
            f"steps is {steps}; the SDE needs at least 2, for its last one has no noise."
        )
    ts = torch.linspace(0, 1 - SDE_END, steps)
    return samplers.sample_sde(
        v, x, ts, PATHS[recipe.path], last_step_size=SDE_END, generator=generator
    )


def balanced_labels(classes: int, n: int) -> Tensor:
    """`n` labels (n,) that run through the classes in turn."""
    return torch.arange(check_count("n", n)) % classes
