"""The arms of a paired experiment: which training each uses, what is done to its velocity, and how samples are drawn from it.

*Scaled FM* is FM's velocity times 1/(1 - lambda), *re-targeted FM* the exact affine map (v - lambda E[u_neg]) / (1 - lambda).
What scaling reproduces is scaling, what re-targeting reproduces is re-targeting; only what is left is repulsion.
"""

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from cfm_lite import guidance, samplers
from cfm_lite.checks import check_count
from cfm_lite.data.datasets import DataSet
from cfm_lite.draws import keyed_generator
from cfm_lite.errors import ConfigError
from cfm_lite.guidance import Velocity
from cfm_lite.paths import PATHS
from cfm_lite.recipes import Recipe
from cfm_lite.recipes.recipe import SOLVERS
from cfm_lite.runs import Run

__all__ = ["ARMS", "EVALUATIONS", "Arm", "balanced_labels", "draw_samples", "noise_of", "trained_recipe", "velocity"]

EVALUATIONS = {"euler": 1, "midpoint": 2, "heun": 2, "rk4": 4, "sde": 1}  # model calls per step
SDE_END = 0.04  # the last step of the SDE, which has no noise, as in SiT's program


def _as_trained(v: Velocity, recipe: Recipe, mean: Tensor) -> Velocity:
    return v


@dataclass(frozen=True)
class Arm:
    """A method as it is sampled: which training it uses, with which fields, and what is done to the velocity afterwards."""

    method: str
    trained: str
    change: Callable[[Velocity, Recipe, Tensor], Velocity] = _as_trained
    fields: Mapping[str, Any] = field(default_factory=dict)

    @property
    def changes(self) -> bool:
        """Whether something is done to the trained velocity."""
        return self.change is not _as_trained


def _scaled(v: Velocity, recipe: Recipe, mean: Tensor) -> Velocity:
    return guidance.rescale(v, 1 / (1 - recipe.weight))


def _retargeted(v: Velocity, recipe: Recipe, mean: Tensor) -> Velocity:
    return guidance.retarget(v, recipe.weight, mean)


def _debiased(v: Velocity, recipe: Recipe, mean: Tensor) -> Velocity:
    return guidance.debias(v, recipe.weight, mean)


def _unshuffled(v: Velocity, recipe: Recipe, mean: Tensor) -> Velocity:
    return guidance.debias_shuffle(v, recipe.weight, recipe.k)


ARMS = {
    arm.method: arm
    for arm in (
        Arm("fm", "fm"),
        Arm("fm_scaled", "fm", _scaled),
        Arm("fm_retargeted", "fm", _retargeted),
        Arm("delta_fm", "delta_fm"),
        Arm("delta_fm_debiased", "delta_fm", _debiased),
        Arm("vecor", "vecor"),
        Arm("vecor_debiased", "vecor", _unshuffled),
        Arm("vecor_latent", "vecor_latent"),
        Arm("dispersive", "dispersive"),
        Arm("contrastive_independent", "contrastive", fields={"views": "independent"}),
        Arm("contrastive_restricted", "contrastive", fields={"views": "restricted"}),
    )
}

_OF_REPULSION, _OF_FEATURES = ("weight", "k", "perturb"), ("spread", "variant", "tau", "block")
READS: Mapping[str, tuple[str, ...]] = {  # the fields that belong to a method; all others are those of every training
    "fm": (),
    "delta_fm": ("weight",),
    "vecor": _OF_REPULSION,
    "vecor_latent": _OF_REPULSION,
    "dispersive": _OF_FEATURES,
    "contrastive": (*_OF_FEATURES, "views"),
}
_OF_METHODS = {name for names in READS.values() for name in names}
OF_SAMPLES = ("solver", "sample_steps", "guidance")


def trained_recipe(recipe: Recipe) -> Recipe:
    """`recipe` with its default for every field that its training does not read, so that equal trainings have equal recipes."""
    idle = (_OF_METHODS - set(READS[recipe.method])) | set(OF_SAMPLES)
    defaults = {f.name: f.default for f in dataclasses.fields(recipe) if f.name in idle}
    return recipe.changed(**defaults)


def velocity(arm: Arm, run: Run, data: DataSet, y: Tensor) -> Velocity:
    """The velocity of one arm for labels `y` (B,): guided if the recipe says so, then changed as the arm says.

    The mean wrong velocity of in-batch negatives is (alpha(1) - alpha(0)) E[x1], from the training data.
    """
    recipe, path = run.recipe, PATHS[run.recipe.path]
    device = next(run.model.parameters()).device
    ends = torch.tensor([0.0, 1.0], dtype=torch.float64)
    mean = (data.x1.double().mean(0) * (path.alpha(ends)[1] - path.alpha(ends)[0])).to(data.x1.dtype)
    return arm.change(guidance.cfg(run.model, y.to(device), recipe.guidance), recipe, mean.to(device))


def draw_samples(
    arm: Arm, run: Run, data: DataSet, y: Tensor, steps: int, seed: int = 0, chunk: int = 1000, solver: str | None = None
) -> Tensor:
    """Samples (len(y), *dims) of one arm for labels `y`, from noise that depends on `seed` alone, so that arms are paired.

    `solver` is "sde" or one of SOLVERS, by default the recipe's; "sde" takes `steps` >= 2, the last of them without noise.
    """
    device, noise, parts = next(run.model.parameters()).device, noise_of(data, len(y), seed), []
    for i in range(0, len(y), chunk):
        v, x = velocity(arm, run, data, y[i : i + chunk]), noise[i : i + chunk].to(device)
        parts.append(_integrate(v, x, steps, solver or run.recipe.solver, run.recipe, keyed_generator("cpu", seed, "sde", i)).cpu())
    return torch.cat(parts)


def noise_of(data: DataSet, n: int, seed: int) -> Tensor:
    """The noise (n, *dims) that samples start from."""
    return torch.randn(n, *data.shape, generator=keyed_generator("cpu", seed, "sampling noise"))


def _integrate(v: Velocity, x: Tensor, steps: int, solver: str, recipe: Recipe, generator: torch.Generator) -> Tensor:
    if solver != "sde":
        return samplers.sample(v, x, torch.linspace(0, 1, steps + 1), SOLVERS[solver])
    if steps < 2:
        raise ConfigError(f"steps is {steps}; the SDE needs at least 2, for its last one has no noise.")
    ts = torch.linspace(0, 1 - SDE_END, steps)
    return samplers.sample_sde(v, x, ts, PATHS[recipe.path], last_step_size=SDE_END, generator=generator)


def balanced_labels(classes: int, n: int) -> Tensor:
    """`n` labels (n,) that run through the classes in turn."""
    return torch.arange(check_count("n", n)) % classes
