"""A run is a function that returns a frozen `Recipe`; every field changes the run, and the whole of it is kept in config.json.

The code that trains the plane, the digits and ImageNet is one; only the recipe differs.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol, Self

import torch
from torch import nn

from cfm_lite import draws, objective, perturbations, samplers
from cfm_lite.checks import check_choice, check_count, check_number
from cfm_lite.distributed import ALONE, World
from cfm_lite.errors import ConfigError
from cfm_lite.losses import VARIANTS
from cfm_lite.models import MLP, SiT
from cfm_lite.objective import Objective
from cfm_lite.paths import PATHS
from cfm_lite.training import PRECISIONS, Trainer, warmup

__all__ = ["METHODS", "PERTURBATIONS", "SOLVERS", "Recipe", "build_model", "build_objective", "build_trainer", "from_dict"]

METHODS = ("fm", "delta_fm", "vecor", "vecor_latent", "dispersive", "contrastive")
TIMES: dict[str, Callable[..., Any]] = {
    "uniform": draws.uniform_time,
    "logit_normal": draws.logit_normal_time,
    "lognormal": draws.lognormal_time,
}
COUPLINGS = {"independent": draws.independent, "minibatch_ot": draws.minibatch_ot}
SOLVERS = {step.__name__: step for step in (samplers.euler, samplers.midpoint, samplers.heun, samplers.rk4)}
PERTURBATIONS = {
    name: getattr(perturbations, name)
    for name in ("channel_shuffle", "crop_resize", "cutmix", "gaussian_blur", "color_jitter", "additive_noise")
}


_COUNTS = {name: 1 for name in ("hidden_size", "depth", "num_heads", "patch_size", "k", "block", "shard", "batch", "steps", "accumulate")}
_COUNTS |= {"sample_steps": 1, "warmup": 0, "seed": 0}  # the least of each field that counts something
_NUMBERS = {"weight": (0.0, math.inf), "spread": (0.0, math.inf), "tau": (0.0, math.inf), "label_dropout": (0.0, 1.0), "lr": (0.0, 1e6)}
_NUMBERS |= {"cooldown": (0.0, 1.0), "clip": (0.0, math.inf), "ema": (0.0, 1.0), "guidance": (-math.inf, math.inf)}
_ABOVE, _BELOW = ("tau", "lr"), ("ema",)  # these do not reach their bound


class Shaped(Protocol):
    """What a model has to know of its data: the dims of one sample, and how many classes there are."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    @property
    def num_classes(self) -> int: ...


@dataclass(frozen=True)
class Recipe:
    """Everything that decides a run, from the data to the samples."""

    dataset: str = "digits"
    # the network: "mlp" or "sit"
    model: str = "mlp"
    hidden_size: int = 256
    depth: int = 4
    num_heads: int = 4
    patch_size: int = 2
    # the method and its settings; each reads only its own
    method: str = "fm"
    weight: float = 0.05  # lambda of delta_fm and vecor
    k: int = 1
    perturb: str = "crop_resize"
    spread: float = 0.5  # weight of dispersive and contrastive
    variant: str = "infonce_l2"
    tau: float = 0.5
    block: int = 1  # from 1; the papers take a quarter of the depth
    views: str = "independent"
    # the draw
    path: str = "linear"
    time: str = "uniform"
    coupling: str = "independent"
    label_dropout: float = 0.1
    shard: int = 32
    # the optimisation
    batch: int = 256
    steps: int = 1000
    lr: float = 2e-3
    warmup: int = 0
    cooldown: float = 0.0  # the last fraction of the steps, over which lr falls linearly to 0
    clip: float = 1.0
    ema: float = 0.999
    precision: str = "float32"
    accumulate: int = 1
    seed: int = 0
    # the samples
    solver: str = "euler"
    sample_steps: int = 50
    guidance: float = 1.0

    def __post_init__(self) -> None:
        for name, allowed in (
            ("model", ("mlp", "sit")),
            ("method", METHODS),
            ("perturb", PERTURBATIONS),
            ("path", PATHS),
            ("time", TIMES),
            ("coupling", COUPLINGS),
            ("solver", SOLVERS),
            ("variant", VARIANTS),
            ("views", ("independent", "restricted")),
            ("precision", PRECISIONS),
        ):
            check_choice(name, getattr(self, name), allowed)
        for name, low in _COUNTS.items():
            check_count(name, getattr(self, name), low)
        for name, (low, high) in _NUMBERS.items():
            check_number(name, getattr(self, name), low, high, open_low=name in _ABOVE, open_high=name in _BELOW)
        if self.weight * self.k >= 1:
            raise ConfigError(
                f"weight {self.weight:g} times K = {self.k} is {self.weight * self.k:g}; it must stay below 1, else the loss has no "
                f"minimum. Use a weight below {1 / self.k:g}."
            )
        if self.seed >= 2**63:
            raise ConfigError(f"seed is {self.seed}; it must be below 2^63.")

    def changed(self, **changes: Any) -> Self:
        """A copy with some fields changed; ConfigError names the nearest field for an unknown one."""
        for name in changes:
            check_choice("recipe field", name, [field.name for field in dataclasses.fields(self)])
        return dataclasses.replace(self, **changes)

    def as_dict(self) -> dict[str, Any]:
        """The fields as plain values, for config.json."""
        return dataclasses.asdict(self)


def build_model(recipe: Recipe, data: Shaped) -> nn.Module:
    """The network of a recipe for one data set, initialised from the recipe's seed without touching the global generator."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)
        if recipe.model == "mlp":
            points = len(data.shape) == 1
            return MLP(data.shape, recipe.hidden_size, recipe.depth, data.num_classes, residual=not points)
        channels, side = data.shape[0], data.shape[-1]
        return SiT(
            input_size=side,
            patch_size=recipe.patch_size,
            in_channels=channels,
            hidden_size=recipe.hidden_size,
            depth=recipe.depth,
            num_heads=recipe.num_heads,
            num_classes=data.num_classes,
        )


def build_objective(recipe: Recipe, model: nn.Module) -> Objective:
    """The objective of a recipe on a model; ConfigError where the method's settings do not fit together."""
    time = TIMES[recipe.time]
    path = PATHS[recipe.path]
    shared: dict[str, Any] = {
        "path": path,
        "time": functools.partial(time, path=path) if recipe.time == "lognormal" else time,
        "couple": COUPLINGS[recipe.coupling],
        "label_dropout": recipe.label_dropout,
        "shard": recipe.shard,
    }
    if recipe.method == "delta_fm":
        return objective.delta_fm(model, recipe.weight, **shared)
    if recipe.method in ("vecor", "vecor_latent"):
        space = "latent" if recipe.method == "vecor_latent" else "velocity"
        return objective.vecor(model, recipe.weight, recipe.k, PERTURBATIONS[recipe.perturb], space, **shared)
    if recipe.method == "dispersive":
        return objective.dispersive(model, recipe.spread, recipe.tau, recipe.block, variant=recipe.variant, **shared)
    plain = objective.fm(model, **shared)
    if recipe.method == "contrastive":
        return plain.plus(objective.Contrastive(recipe.spread, recipe.block, recipe.variant, recipe.tau, recipe.views))
    return plain


def build_trainer(
    recipe: Recipe,
    model: nn.Module,
    *,
    built: Objective | None = None,
    ema_warmup: bool = True,
    world: World = ALONE,
    compile: bool = False,
) -> Trainer:
    """The trainer of a recipe on a model, for its objective or the one `built` already; a `clip` of 0 means none."""
    return Trainer(
        built or build_objective(recipe, model),
        world=world,
        compile=compile,
        lr=recipe.lr,
        clip=recipe.clip or None,
        ema_decay=recipe.ema,
        ema_warmup=ema_warmup,
        seed=recipe.seed,
        accumulate=recipe.accumulate,
        precision=recipe.precision,
        schedule=_schedule(recipe),
    )


def _schedule(recipe: Recipe) -> Callable[[int], float]:
    rise, cool = warmup(recipe.warmup), round(recipe.cooldown * recipe.steps)
    return lambda step: rise(step) * (min(1.0, (recipe.steps - step) / cool) if cool else 1.0)


def from_dict(fields: Mapping[str, Any], kind: type[Recipe] = Recipe) -> Recipe:
    """The inverse of `Recipe.as_dict`; ConfigError for an unknown field, with the nearest right one."""
    for name in fields:
        check_choice("recipe field", name, [field.name for field in dataclasses.fields(kind)])
    return kind(**fields)
